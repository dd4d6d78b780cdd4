"""What pictures look like: measured from every pixel, once a picture."""
