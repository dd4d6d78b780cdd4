"""What happened to every request that was ever made, one small object each."""

from nanobanana_pipeline.ledger.entry import (
    MAX_FAILURES,
    Attempt,
    Entry,
    Outcome,
    State,
    StoredImage,
    new_nonce,
)
from nanobanana_pipeline.ledger.ledger import PAID_PATIENCE_SECONDS, Held, Ledger, boot_clock

__all__ = [
    "MAX_FAILURES",
    "PAID_PATIENCE_SECONDS",
    "Attempt",
    "Entry",
    "Held",
    "Ledger",
    "Outcome",
    "State",
    "StoredImage",
    "boot_clock",
    "new_nonce",
]
