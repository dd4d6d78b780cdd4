"""The emulator's misbehaviours: what they are, how often they happen, and repeatably when.

Whether a mood strikes is a hash of the emulator's seed, the mood's name and the *occasion*: which
picture is asked for, and for which time since the start. So a rehearsal goes wrong in the same
places each time, in whatever order its requests arrive, and a retry gets another chance.

To add a mood, name it in `MOODS`. What it does stands in a table: in `response_faults` for answers
that fail, in `response_variants` for another body of the same meaning, in `echoes` for what a fetch
says of its request, in `image_faults` for images. A mood of no table asks `Moods.strikes` where it
happens.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from enum import Enum


class Stage(Enum):
    """The moment when a mood shows itself."""

    GATEWAY = "something before the provider answers the call, and nothing is bought"
    REFUSAL = "the POST is answered without anything being bought"
    ANSWER = "it is bought, but the answer goes wrong"
    GENERATION = "it is bought and answered well, and goes wrong later"
    VARIANT = "its answers, to the POST and to every fetch, come in another shape"
    DELIVERY = "the pictures, or the word that they are done, come in another way"
    ECHO = "every fetch of finished pictures says of which request they are, truly or not"
    FETCH = "one fetch goes wrong, and the next may go well"
    BYTES = "the picture's bytes are not what they should be, however they are delivered"
    IMAGE = "the first GET of an image goes wrong"
    LINK = "every GET of an image goes wrong"


MOODS: Mapping[str, Stage] = {
    "bad_gateway": Stage.GATEWAY,
    "firewall": Stage.GATEWAY,
    "unread_close": Stage.GATEWAY,
    "http_500_before": Stage.REFUSAL,
    "error_200": Stage.REFUSAL,
    "rate_limited": Stage.REFUSAL,
    "unauthorized": Stage.REFUSAL,
    "no_credit": Stage.REFUSAL,
    "plan_too_small": Stage.REFUSAL,
    "rate_limited_503": Stage.REFUSAL,
    "rate_limited_header": Stage.REFUSAL,
    "error_list": Stage.REFUSAL,
    "error_map": Stage.REFUSAL,
    "own_failure": Stage.REFUSAL,
    "http_500_after": Stage.ANSWER,
    "lost_answer_after": Stage.ANSWER,
    "html_answer": Stage.ANSWER,
    "cut_json": Stage.ANSWER,
    "empty_body": Stage.ANSWER,
    "json_list": Stage.ANSWER,
    "empty_object": Stage.ANSWER,
    "queued_true": Stage.ANSWER,
    "slow_answer": Stage.ANSWER,
    "processing_400": Stage.VARIANT,
    "messege": Stage.VARIANT,
    "output_string": Stage.VARIANT,
    "output_blank": Stage.VARIANT,
    "output_null": Stage.VARIANT,
    "proxy_links_list": Stage.VARIANT,
    "proxy_links_map": Stage.VARIANT,
    "extras": Stage.VARIANT,
    "id_string": Stage.VARIANT,
    "request_id": Stage.VARIANT,
    "no_meta": Stage.VARIANT,
    "eta_float": Stage.VARIANT,
    "escaped_slashes": Stage.VARIANT,
    "fetch_500": Stage.FETCH,
    "fetch_html": Stage.FETCH,
    "fetch_cut": Stage.FETCH,
    "fetch_other": Stage.FETCH,
    "fetch_meta": Stage.ECHO,
    "fetch_seed": Stage.ECHO,
    "fetch_trimmed": Stage.ECHO,
    "fetch_translated": Stage.ECHO,
    "both_ids": Stage.ECHO,
    "failed": Stage.GENERATION,
    "forget": Stage.GENERATION,
    "found_late": Stage.GENERATION,
    "never_ready": Stage.GENERATION,
    "shared_id": Stage.GENERATION,
    "seed_ignored": Stage.GENERATION,
    "webp": Stage.DELIVERY,
    "index_first": Stage.DELIVERY,
    "base64_inline": Stage.DELIVERY,
    "base64_data_uri": Stage.DELIVERY,
    "double_slash": Stage.DELIVERY,
    "webhook_never": Stage.DELIVERY,
    "webhook_late": Stage.DELIVERY,
    "webhook_lies": Stage.DELIVERY,
    "webhook_request_id": Stage.DELIVERY,
    "webhook_twice": Stage.DELIVERY,
    "webhook_other_id": Stage.DELIVERY,
    "details_flat": Stage.VARIANT,
    "wrong_size": Stage.BYTES,
    "smaller_size": Stage.BYTES,
    "avif": Stage.BYTES,
    "picture_html": Stage.BYTES,
    "picture_cut": Stage.BYTES,
    "lying_extension": Stage.BYTES,
    "corrupt_chunk": Stage.BYTES,
    "image_bomb": Stage.BYTES,
    "provenance": Stage.BYTES,
    "image_404": Stage.IMAGE,
    "image_html": Stage.IMAGE,
    "image_empty": Stage.IMAGE,
    "truncated_image": Stage.IMAGE,
    "expired_link": Stage.LINK,
    "image_redirect": Stage.LINK,
    "image_redirect_private": Stage.LINK,
    "oversized": Stage.LINK,
    "text_plain": Stage.LINK,
}


class MoodError(ValueError):
    """A mood that there is not, or a rate that cannot be."""


def check_rates(rates: Mapping[str, object]) -> dict[str, float]:
    """Check that every name is a mood and every rate lies between 0 and 1.

    Raises:
        MoodError: One does not; it says which, and what would be right.
    """
    checked: dict[str, float] = {}
    for name, rate in rates.items():
        if name not in MOODS:
            raise MoodError(f"{name!r} is not a mood; there are {', '.join(MOODS)}")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)):
            raise MoodError(f"the rate of {name} must be a number, not {rate!r}")
        if not 0 <= rate <= 1:
            raise MoodError(f"the rate of {name} must be between 0 and 1, not {rate}")
        checked[name] = float(rate)
    return checked


class Moods:
    """The rates in force, and the dice."""

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        self._seed = seed
        self._rates = dict(rates)
        self._asked: Counter[str] = Counter()
        self._spent: set[tuple[str, str]] = set()

    @property
    def rates(self) -> dict[str, float]:
        """The rate of every mood there is."""
        return {name: self._rates.get(name, 0.0) for name in MOODS}

    def change(self, rates: Mapping[str, object]) -> None:
        """Set some rates and leave the others.

        Raises:
            MoodError: A name or a rate is wrong; none is changed then.
        """
        self._rates |= check_rates(rates)

    def occasion(self, picture_hash: str) -> str:
        """Name the next time that this picture is asked for."""
        self._asked[picture_hash] += 1
        return f"{picture_hash}:{self._asked[picture_hash]}"

    def roll(self, what: str, occasion: str) -> float:
        """Roll the dice: evenly within [0, 1), always the same for the same seed and arguments."""
        text = f"{self._seed}:{what}:{occasion}"
        digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
        return int.from_bytes(digest) / 2**48

    def strikes(self, name: str, occasion: str) -> bool:
        """Tell whether a mood strikes on an occasion."""
        return self.roll(name, occasion) < self._rates.get(name, 0.0)

    def strikes_once(self, name: str, occasion: str) -> bool:
        """Like `strikes`, but never twice on the same occasion."""
        if (name, occasion) in self._spent or not self.strikes(name, occasion):
            return False
        self._spent.add((name, occasion))
        return True

    def striking(self, stage: Stage, occasion: str) -> list[str]:
        """List the moods of one stage that strike on an occasion."""
        return [
            name for name, when in MOODS.items() if when is stage and self.strikes(name, occasion)
        ]
