"""The ledger: one JSON object a request key, with all attempts at buying it and their outcome."""

from nanobanana_pipeline.ledger.attempt import Attempt, Outcome, StoredImage, new_nonce, now_iso
from nanobanana_pipeline.ledger.entry import COSTING, MAX_FAILURES, UNSURE, Entry, State
from nanobanana_pipeline.ledger.ledger import PAID_PATIENCE_SECONDS, Held, Ledger
from nanobanana_pipeline.storage.cas import boot_clock

__all__ = [
    "COSTING",
    "MAX_FAILURES",
    "PAID_PATIENCE_SECONDS",
    "UNSURE",
    "Attempt",
    "Entry",
    "Held",
    "Ledger",
    "Outcome",
    "State",
    "StoredImage",
    "boot_clock",
    "new_nonce",
    "now_iso",
]
