"""S3 calls as boto3 sends them, by operation and folder."""

from collections import Counter
from typing import Any

from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Calls"]


class Calls:
    """Counts every call of a bucket's client, from when it is made."""

    def __init__(self, store: ObjectStore) -> None:
        self._prefix = store.prefix
        self.made: Counter[tuple[str, str]] = Counter()
        store.client.meta.events.register("provide-client-params.s3", self._note)

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        key = str(params.get("Key") or params.get("Prefix") or "").removeprefix(self._prefix)
        self.made[model.name, key.split("/")[0]] += 1

    def take(self) -> Counter[tuple[str, str]]:
        """What was counted since the last time."""
        made, self.made = self.made, Counter()
        return made
