"""Sensors and schedules: what launches runs without a person."""
