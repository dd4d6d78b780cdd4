"""The module that Dagster loads in a checkout of this project."""

from dagster_nanobanana.build_definitions import build_definitions

__all__ = ["defs"]

defs = build_definitions()
