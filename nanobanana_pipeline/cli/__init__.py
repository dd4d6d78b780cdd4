"""The command line: thin, like `dagster_project` beside it."""

from nanobanana_pipeline.cli.app import app

__all__ = ["app"]
