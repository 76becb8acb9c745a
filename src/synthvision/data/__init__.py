"""The data room: images in, an audited and split Manifest out. Only `torch_data` knows torch."""
