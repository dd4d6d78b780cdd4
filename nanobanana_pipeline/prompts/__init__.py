"""Prompt tables and the prompt sets that are made of them.

`table` reads a file with one of `readers`, `validation` separates good rows from bad ones, and
`prompt_set` stores the good ones under their fingerprint.
"""
