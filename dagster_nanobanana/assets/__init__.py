"""One file an asset family, from the table to the pictures."""
