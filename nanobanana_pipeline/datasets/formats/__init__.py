"""How a release's rows and pictures are laid out, one module a format."""
