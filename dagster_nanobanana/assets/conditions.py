"""When assets that cost nothing make themselves, once their automation sensor is started."""

import dagster as dg

__all__ = ["on_changed_inputs"]

on_changed_inputs = (
    # Kept until it is handled: what changes while a run is under way must not be forgotten.
    dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.data_version_changed()
    ).since_last_handled()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
).with_label("on changed inputs")
"""What is upstream has another content than before, and none of it is missing or being made.

A new launch that brings nothing new has the same data version, and asks for nothing.
"""
