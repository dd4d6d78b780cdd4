"""Records each run as OpenLineage events, in the bucket and at an endpoint."""
