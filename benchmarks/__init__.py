"""The figures that README and docs quote, each with the command that repeats it."""
