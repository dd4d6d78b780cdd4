"""What must hold at every moment, told from raw bytes in the bucket and the provider's books.

Nothing here uses the product's own reading of an entry: a mistake in one must not hide in both.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from tests.ageing.fake_provider import SUBMIT_SECONDS, FakeProvider, Order, picture
from tests.ageing.scheduler import Scheduler

if TYPE_CHECKING:
    from tests.ageing.fake_s3 import FakeS3

__all__ = ["Violation", "Witness"]

BARS_A_NEW_ONE: Final = frozenset({"submitting", "accepted", "in_doubt", "lost", "settled"})
REBUY_MAY: Final = frozenset({"in_doubt", "lost"})
FREE: Final = frozenset({"not_sent", "failed", "refused"})
REBUY_AFTER_LEASE_SECONDS: Final = 900.0
MOST_FAILURES: Final = 3
WHOLE_SECONDS: Final = 2.0
"""S3 tells time in whole seconds: two readings may be that far apart."""


class Violation(AssertionError):  # noqa: N818 - the word of whoever promises
    """A promise of DESIGN.md that was broken."""


class Witness:
    """Looks at every write to the bucket and every call to the provider."""

    def __init__(self, scheduler: Scheduler, provider: FakeProvider) -> None:
        self._scheduler = scheduler
        self._provider = provider
        self.s3: FakeS3
        self._claimed: dict[str, float] = {}  # nonce → when it was last written as submitting
        self._posted: dict[str, float] = {}  # nonce → when
        self._told: dict[str, list[Order]] = {}  # actor → sales that it knows of
        self.rebuy_chosen = False
        self.caps: list[int] | None = None

    # ── what is written ──────────────────────────────────────────────────────────────────────

    def wrote(self, key: str, old: bytes | None, new: bytes) -> None:
        """Judge one write that was applied."""
        if not key.startswith("ledger/"):
            return
        entry = json.loads(new)
        before = json.loads(old) if old is not None else {"attempts": []}
        self._scheduler.tell(f"    entry {key[10:18]} is {_brief(entry)}")
        self._check(old is None or new != old, f"{key} is written twice over")
        was = {attempt["nonce"]: attempt for attempt in before["attempts"]}
        now = {attempt["nonce"]: attempt for attempt in entry["attempts"]}
        left = [nonce for nonce in was if nonce in now]
        dropped = [attempt["outcome"] for nonce, attempt in was.items() if nonce not in now]
        self._check(list(now)[: len(left)] == left, "attempts changed places")
        self._check(set(dropped) <= {"not_sent"}, f"attempts were dropped: {dropped}")
        counted = entry.get("unsent", 0) - before.get("unsent", 0)
        self._check(counted == len(dropped), f"{len(dropped)} dropped, and {counted} counted")
        for nonce in list(now)[len(left) :]:
            self._check_new(entry, now[nonce], list(was.values()))
        for nonce, attempt in now.items():
            self._check_step(attempt, was.get(nonce))
            self._check_books(attempt)
            if attempt["outcome"] == "submitting":
                self._claimed[nonce] = self._scheduler.now
        if entry["state"] == "settled" or any(a["outcome"] == "settled" for a in now.values()):
            self._check(entry["state"] == "settled", "one attempt is settled and its request not")
            self._check_images(entry, complete=True)
        self._check_images(entry, complete=False)
        kept = {image["sha256"] for image in entry.get("images", ())}
        lost = {image["sha256"] for image in before.get("images", ())} - kept
        # The good ones of a lost attempt give way to all of another's, bought on purpose.
        whole = entry["state"] == "settled" and before.get("state") != "settled"
        self._check(not lost or whole, "pictures were dropped")

    def _check_new(self, entry: dict[str, Any], new: dict[str, Any], old: list[Any]) -> None:
        outcomes = {attempt["outcome"] for attempt in old}
        self._check(new["outcome"] == "submitting", "an attempt did not begin with a claim")
        barred = outcomes & BARS_A_NEW_ONE
        if new.get("rebuy"):
            self._check(self.rebuy_chosen, "nobody chose to buy again")
            self._check(barred <= REBUY_MAY, f"bought again while another attempt is {barred}")
            for attempt in old:
                if attempt["outcome"] == "in_doubt":
                    ends = self._claimed[attempt["nonce"]] + attempt["lease_seconds"]
                    left = ends + REBUY_AFTER_LEASE_SECONDS - self._scheduler.now
                    self._check(left <= WHOLE_SECONDS, f"bought again {left:.0f} s too early")
        else:
            self._check(not barred, f"a new attempt while another is {barred}")
            self._check("refused" not in outcomes, "what was refused is tried again")
            failures = sum(attempt["outcome"] == "failed" for attempt in old)
            self._check(failures < MOST_FAILURES, "a fourth attempt after three failures")
        self._check(entry["state"] == "submitting", "a claimed request is not submitting")

    def _check_step(self, attempt: dict[str, Any], before: dict[str, Any] | None) -> None:
        if before is None:
            return
        if before.get("accepted"):
            for name in ("accepted", "provider_id"):
                self._check(before.get(name) == attempt.get(name), f"{name} was forgotten")
        if before.get("provider_id"):
            self._check(bool(attempt.get("provider_id")), "a provider id was forgotten")
        if before["outcome"] in {"settled", *FREE}:
            self._check(
                attempt["outcome"] == before["outcome"],
                f"{before['outcome']} became {attempt['outcome']}",
            )

    def _check_books(self, attempt: dict[str, Any]) -> None:
        for order in self.live():
            if order.nonce == attempt["nonce"]:
                self._check(
                    attempt["outcome"] not in FREE,
                    f"{order.provider_id} was bought and is called {attempt['outcome']}",
                )

    def _check_images(self, entry: dict[str, Any], *, complete: bool) -> None:
        images = entry.get("images", [])
        if complete:
            samples = sorted(image["sample"] for image in images)
            self._check(samples == list(range(entry["request"]["samples"])), "settled in part")
        own = [order for order in self._provider.orders if order.key == entry["request_key"]]
        drawn = {
            hashlib.sha256(picture(order.number, sample)).hexdigest()
            for order in own
            for sample in range(order.request.samples)
        }
        for image in images:
            found = self.s3.objects.get(image["key"])
            self._check(found is not None, "a picture is noted and not stored")
            assert found is not None
            digest = hashlib.sha256(found.body).hexdigest()
            self._check(digest == image["sha256"], "a picture is not under its own hash")
            self._check(digest in drawn, "a picture is another request's")

    # ── what is said to the provider and by it ───────────────────────────────────────────────

    def posting(self, key: str, nonce: str) -> None:
        """Judge a POST as it arrives."""
        self._check(nonce not in self._posted, "the same attempt was sent twice")
        self._posted[nonce] = now = self._scheduler.now
        attempts = self.attempts(key)
        self._check(nonce in attempts, "it was sent before its claim was stored")
        self._check(list(attempts)[-1] == nonce, "it was sent after a newer claim")
        mine = attempts[nonce]
        self._check(
            mine["outcome"] in {"submitting", "in_doubt"}, f"it was sent while {mine['outcome']}"
        )
        left = self._claimed[nonce] + mine["lease_seconds"] - now - SUBMIT_SECONDS
        self._check(left >= 0, f"the lease ends {-left:.0f} s before the POST's deadline")
        others = [order for order in self.live() if order.key == key]
        self._check(not others or mine.get("rebuy", False), "bought twice, and nobody chose to")

    def sold(self) -> None:
        """Judge what was spent so far: against every cap, and against what its counter says."""
        if self.caps is None:
            return
        spent: dict[str, int] = {}
        for order in self.live():
            run_id = self.attempts(order.key)[order.nonce]["run_id"]
            for counter in (
                "budget/partitions/set/seed=1.json",
                f"budget/days/{self.s3.date(order.sold).date()}.json",
                f"runs/{run_id}/budget.json",
            ):
                spent[counter] = spent.get(counter, 0) + order.request.samples
        for key, images in spent.items():
            parts = key.split("/")
            scope = parts[1] if parts[0] == "budget" else "runs"
            cap = self.caps[("partitions", "days", "runs").index(scope)]
            self._check(images <= cap, f"{images} pictures bought with a cap of {cap}: {key}")
            counted = self._counted(key)
            self._check(counted >= images, f"{key} says {counted}, and {images} were bought")

    def _counted(self, key: str) -> int:
        stored = self.s3.objects.get(key)
        if stored is None:
            return 0
        counter = json.loads(stored.body)
        return int(counter["images"] + sum(r["images"] for r in counter["reservations"].values()))

    def told(self, order: Order) -> None:
        """A worker has heard of a sale."""
        actor = self._scheduler.current
        assert actor is not None
        self._told.setdefault(actor.name, []).append(order)

    def leaving(self) -> None:
        """A worker turns to something else: what it was told must be written by now."""
        actor = self._scheduler.current
        if actor is None or actor.crashed:
            return
        for order in self._told.pop(actor.name, []):
            attempt = self.attempts(order.key)[order.nonce]
            self._check(
                order.failed or attempt.get("provider_id") == order.provider_id,
                f"{order.provider_id} was told to {actor.name} and not written down",
            )

    def excused(self) -> None:
        """S3 was silent for so long that a worker could not write down what it was told."""
        actor = self._scheduler.current
        if actor is not None:
            self._told.pop(actor.name, None)

    # ── what must be true at the end ─────────────────────────────────────────────────────────

    def check_brought(self) -> None:
        """All that can be had is here, after a sound worker went by."""
        for order in self.live():
            attempt = self.attempts(order.key)[order.nonce]
            known = attempt.get("accepted") or attempt.get("provider_id") or self._mail(order)
            if known and order.is_kept(self._scheduler.now + 600) and not order.broken:
                state = self.entry(order.key)["state"]
                self._check(state == "settled", f"{order.provider_id} can be had and is {state}")

    def check_end(self) -> None:
        """Nothing is stuck, and whatever was bought is settled or says why not."""
        for key in [key for key in self.s3.objects if key.startswith("ledger/")]:
            entry = json.loads(self.s3.objects[key].body)
            self._check(
                entry["state"] not in {"submitting", "accepted"}, f"{entry['state']} for ever"
            )
            if entry["state"] in {"in_doubt", "lost", "failed", "refused"}:
                self._check(any(a.get("reason") for a in entry["attempts"]), "it does not say why")
        for order in self.live():
            entry = self.entry(order.key)
            attempt = self.attempts(order.key)[order.nonce]
            fine = attempt["outcome"] in {"settled", "lost", "in_doubt"} or (
                attempt["outcome"] == "accepted" and entry["state"] == "settled"
            )
            self._check(fine, f"{order.provider_id} was bought and is {attempt['outcome']}")
            if attempt["outcome"] in {"lost", "in_doubt"}:
                self._check(bool(attempt.get("reason")), f"{order.provider_id} does not say why")

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def live(self) -> list[Order]:
        """Sales that cost money."""
        return [order for order in self._provider.orders if not order.failed]

    def entry(self, key: str) -> dict[str, Any]:
        stored = self.s3.objects.get(f"ledger/{key[:2]}/{key}.json")
        found: dict[str, Any] = json.loads(stored.body) if stored else {"attempts": []}
        return found

    def attempts(self, key: str) -> dict[str, dict[str, Any]]:
        return {attempt["nonce"]: attempt for attempt in self.entry(key)["attempts"]}

    def _mail(self, order: Order) -> bool:
        prefix = f"webhooks/{order.key}.{order.nonce}/"
        return any(key.startswith(prefix) for key in self.s3.objects)

    def _check(self, fine: bool, text: str) -> None:  # noqa: FBT001 - as assert
        if not fine:
            raise Violation(text)


def _brief(entry: dict[str, Any]) -> str:
    attempts = ", ".join(f"{a['nonce'][-2:]} {a['outcome']}" for a in entry["attempts"])
    return f"{entry['state']} ({attempts})"
