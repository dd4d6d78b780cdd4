"""Jobs beside the assets, one module each."""
