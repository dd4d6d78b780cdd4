"""The orchestration: what Dagster shows and runs. Wiring only; the logic is the domain's."""
