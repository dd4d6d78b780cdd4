"""Sensors, schedules and conditions: what launches runs without a person."""
