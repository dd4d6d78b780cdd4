"""Settles a shard's requests: submit, poll, transfer."""
