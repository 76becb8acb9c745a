"""synthvision: from ten guide images of a new disease to a checked classifier and report."""

__version__ = "0.1.0"
