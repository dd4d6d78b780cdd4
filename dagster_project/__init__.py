"""The stand-alone Dagster project: one code location that uses `dagster_nanobanana`."""
