"""Traces one image, request, prompt or run through everything it was made of and went into."""
