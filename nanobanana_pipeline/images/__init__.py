"""Image bytes: formats, marks of provenance, contact sheets."""
