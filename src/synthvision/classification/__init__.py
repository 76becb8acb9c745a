"""From a manifest of images to a classifier: models, augmentation, training that resumes exactly, predictions."""
