"""The command line: thin, like `dagster_nanobanana` beside it."""

from nanobanana_pipeline.cli.app import app

__all__ = ["app"]
