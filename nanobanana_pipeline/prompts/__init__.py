"""Prompt tables and the prompt sets that are made of them.

The way of a row: `table` reads a file (through `delimited` or `typed`, which note in an `intake`
what they cannot use), `validation` parts good rows from bad ones, `prompt_set` keeps the good ones
under their fingerprint.
"""
