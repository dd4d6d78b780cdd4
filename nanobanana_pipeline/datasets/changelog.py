"""Compares two releases of a dataset row by row."""

from typing import Final

import pandas as pd

__all__ = ["changes"]

GONE: Final = "no longer among the recipe's candidates"


def changes(now: pd.DataFrame, before: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """Compare two manifests (row_id, row_sha256); `rejected` (row_id, reason) is of the later one.

    Gives a row a difference: row_id, change (removed, added or changed) and reason.
    """
    hashes, old = (each.set_index("row_id")["row_sha256"] for each in (now, before))
    removed = old.index.difference(hashes.index, sort=False)
    added = hashes.index.difference(old.index, sort=False)
    both = hashes.index.intersection(old.index, sort=False)
    changed = both[(hashes[both] != old[both]).to_numpy()]
    reasons = rejected.drop_duplicates("row_id").set_index("row_id")["reason"]
    gone = reasons.reindex(removed).fillna(GONE).to_numpy()
    parts = [
        pd.DataFrame({"row_id": removed, "change": "removed", "reason": gone}),
        pd.DataFrame({"row_id": added, "change": "added", "reason": "chosen now"}),
        pd.DataFrame({"row_id": changed, "change": "changed", "reason": "other metadata"}),
    ]
    return pd.concat(parts, ignore_index=True).astype("string")
