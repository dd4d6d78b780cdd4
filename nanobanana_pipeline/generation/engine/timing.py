"""`Timing`: how long the engine waits, how often it tries, and how much it holds meanwhile."""

from dataclasses import dataclass
from typing import Final

from nanobanana_pipeline.generation.budget.incarnation import DEFAULT_HEARTBEAT, HeartbeatTiming
from nanobanana_pipeline.ledger import PAID_PATIENCE_SECONDS
from nanobanana_pipeline.storage.faults import PATIENCE_SECONDS

__all__ = ["DEFAULT_TIMING", "Timing"]


@dataclass(frozen=True)
class Timing:
    """Waits, tries and bounds of one shard. Fields that end in `_seconds` are seconds."""

    # Stopping, and saying how far it is.
    grace_seconds: float = 20.0
    """After an interrupt, until requests in flight are left to the next launch."""
    doubt_seconds: float = 10.0
    """After the grace, to put unanswered requests in doubt while S3 may be silent."""
    unwritten_seconds: float = 5.0
    """At a stop, an acceptance that the ledger has not taken for so long is logged."""
    progress_seconds: float = 10.0
    """Between two reports of progress."""

    # Claiming and sending.
    lease_margin_seconds: float = 30.0
    """What a claim must outlast the POST's own deadline by; a new claim does so twice."""
    rebuy_after_lease_seconds: float = 900.0
    """After the lease of a request in doubt, until it may be bought again: its first answer may
    still arrive."""
    failed_pause_seconds: float = 1.0
    """Before a request that failed at the provider is sent again."""
    unsent_tries: int = 6
    """Connections that fail in a row before a request is left open."""
    max_backoff_seconds: float = 10.0
    """Longest wait between these."""
    others_claim_poll_seconds: float = 3.0
    """Between two looks at a request that another run is sending."""

    # Polling.
    first_poll_seconds: float = 0.1
    """After sending, and the shortest wait while nothing is known of the provider's latency."""
    poll_share: float = 0.08
    """Each wait is this share of the time since sending: done requests are noticed within 8 %,
    whatever the latency."""
    usual_polls: int = 40
    """Polls in the time in which most requests finish: there they are denser, since a slot that
    is not known to be free is capacity that is paid for."""
    min_poll_seconds: float = 0.03
    """Shortest wait between two of these."""
    max_poll_seconds: float = 5.0
    """Longest wait between two polls."""
    poll_until_seconds: float = 1800.0
    """After sending, until a request is left accepted for a later launch."""
    missing_tries: int = 3
    """Answers in a row that say the provider does not know the id, before it is believed."""
    webhook_patience_seconds: float = 10.0
    """Shortest wait for a webhook, from sending; then the provider is polled."""
    webhook_patience_latencies: float = 2.0
    """The same in mean latencies; the longer of the two holds."""

    # Transfer.
    transfer_workers: int = 8
    """Threads that bring pictures into the bucket."""
    hand_over: int = 64
    """Finished requests that may wait for a transfer worker; submit workers stop at more."""
    hand_over_poll_seconds: float = 0.2
    """How often a worker that waits at the hand-over looks whether it should stop."""
    download_seconds: float = 60.0
    """For all tries to download one picture."""
    download_tries: int = 6
    """Tries to download one picture."""
    download_tries_once_lost: int = 2
    """The same for a lost request, which each launch tries again."""
    stuck_after: int = 8
    """Uploads that fail in a row, before nothing more is bought until one succeeds."""
    stuck_poll_seconds: float = 1.0
    """Between two looks whether one has."""

    # S3 and the budget.
    patience_seconds: float = PATIENCE_SECONDS
    """How long a ledger write is repeated while S3 is silent."""
    paid_patience_seconds: float = PAID_PATIENCE_SECONDS
    """The same once something was paid for, and for pictures."""
    heartbeat: HeartbeatTiming = DEFAULT_HEARTBEAT
    """The shard's heartbeat, and the closing of its reservations."""


DEFAULT_TIMING: Final = Timing()
"""For ModelsLab and a bucket that is not far away."""
