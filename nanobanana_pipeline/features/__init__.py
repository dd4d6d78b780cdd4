"""Features: figures of an image's pixels, measured once for each image."""
