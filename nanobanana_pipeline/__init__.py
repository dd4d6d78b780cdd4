"""Turns a table of prompts into image datasets on S3, buying nothing twice. Knows no Dagster."""
