"""The table of every requested cell of one partition, with its state."""
