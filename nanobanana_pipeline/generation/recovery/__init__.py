"""Runs that died, doubts, and launching again."""
