"""The module that Dagster loads where the wheel is installed."""

from dagster_nanobanana.build_definitions import build_definitions

__all__ = ["defs"]

defs = build_definitions()
