"""What a launch will settle: cells, their request keys, and the run files that list them."""
