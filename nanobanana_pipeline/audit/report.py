"""What an audit has found; plain values."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from nanobanana_pipeline.ledger import State

__all__ = [
    "LISTED",
    "NOTES",
    "UNSETTLED_STATES",
    "AuditReport",
    "Finding",
    "FindingKind",
    "Unsettled",
]

LISTED: Final = 1000
"""So many findings of each kind are listed; all are counted."""


class FindingKind(StrEnum):
    """What can disagree."""

    UNREADABLE = "unreadable"
    IMAGE_ORPHAN = "image_orphan"
    IMAGE_MISSING = "image_missing"
    IMAGE_DAMAGED = "image_damaged"
    IMAGE_DIFFERS = "image_differs"
    IMAGE_UNOWNED = "image_unowned"
    MANIFEST_WRONG = "manifest_wrong"
    MANIFEST_BEHIND = "manifest_behind"
    FEATURES_WRONG = "features_wrong"
    ACCEPTANCE_EXPIRING = "acceptance_expiring"
    CLAIM_ABANDONED = "claim_abandoned"
    RUN_UNFINISHED = "run_unfinished"
    RESERVATION_DEAD = "reservation_dead"
    BUILD_ABANDONED = "build_abandoned"


NOTES: Final = frozenset({FindingKind.MANIFEST_BEHIND, FindingKind.BUILD_ABANDONED})
"""No disagreements: a manifest that does not know the latest yet; what a build that was killed has
left, which no release names."""

UNSETTLED_STATES: Final = frozenset({State.IN_DOUBT, State.LOST, State.REFUSED, State.FAILED})
"""States without pictures that are as they should be, and are told of apart."""


@dataclass(frozen=True)
class Finding:
    """An object that disagrees, or a note of one; `text` says what is wrong, and the remedy."""

    kind: FindingKind
    key: str
    text: str


@dataclass(frozen=True)
class Unsettled:
    """A request that ended without all its pictures; no disagreement.

    `age_seconds` is since the entry last changed, by the S3 server's clock.
    """

    state: State
    request_key: str
    run_id: str
    reason: str | None
    age_seconds: float


@dataclass
class AuditReport:
    """What an audit has looked at, and what it has found.

    Attributes:
        findings: the first `LISTED` of each kind; `counts` has all.
        unsettled: the first `LISTED` of each state; `states` has all entries.
        images: objects under ``images/``; of one partition, pictures that its entries name.
        images_read: pictures that were read whole and hashed.
        manifests: partitions whose manifest was compared with the ledger.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[FindingKind] = field(default_factory=Counter)
    unsettled: list[Unsettled] = field(default_factory=list)
    states: Counter[State] = field(default_factory=Counter)
    images: int = 0
    images_read: int = 0
    manifests: int = 0
    runs: int = 0

    @property
    def agrees(self) -> bool:
        """Whether nothing was found but notes."""
        return not set(self.counts) - NOTES

    def add(self, kind: FindingKind, key: str, text: str) -> None:
        """Count a finding, and list it unless there are too many of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= LISTED:
            self.findings.append(Finding(kind, key, text))

    def add_unsettled(self, found: Unsettled) -> None:
        """List a request without all its pictures, unless there are too many; `states` counts."""
        if self.states[found.state] <= LISTED:
            self.unsettled.append(found)
