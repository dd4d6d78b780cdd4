"""Mistakes that the ageing must catch, each made to the product for as long as a test runs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final
from unittest import mock

from nanobanana_pipeline.bucket_keys import ledger_key
from nanobanana_pipeline.errors import StorageUnavailable
from nanobanana_pipeline.generation.budget import reclaim
from nanobanana_pipeline.generation.budget.counters import Scope
from nanobanana_pipeline.generation.budget.incarnation import Incarnation, Permit
from nanobanana_pipeline.generation.engine import submit
from nanobanana_pipeline.generation.engine.reconcile import Reconciler
from nanobanana_pipeline.generation.engine.submit import Submitter
from nanobanana_pipeline.generation.engine.transfer import Transfer
from nanobanana_pipeline.generation.engine.work_queue import Finished
from nanobanana_pipeline.ledger import Attempt, Entry, Held, Ledger, Outcome, State, now_iso
from nanobanana_pipeline.storage import ObjectStore, cas

__all__ = ["BUDGET_MUTANTS", "MUTANTS"]

Mutant = Callable[[], contextlib.AbstractContextManager[Any]]


def _replace(owner: object, name: str, new: object) -> Mutant:
    return lambda: mock.patch.object(owner, name, new)


def _update_without_if_match(
    self: ObjectStore, key: str, body: bytes, etag: str, *, content_type: str = "application/json"
) -> str:
    del etag
    return self.put(key, body, content_type=content_type)


def _create_without_if_none_match(
    self: ObjectStore,
    key: str,
    body: bytes,
    *,
    content_type: str = "application/octet-stream",
    **_: object,
) -> str:
    return self.put(key, body, content_type=content_type)


_lease_left = Held.lease_left.fget  # type: ignore[attr-defined]
_may_claim = Entry.may_claim
_record = Ledger.record
_write = cas.write
_step = Entry._step
_grow = Incarnation.grow


def _doubt_is_open(self: Entry, *, rebuy: bool = False) -> bool:
    return self.state is State.IN_DOUBT or _may_claim(self, rebuy=rebuy)


def _record_once(self: Ledger, held: Held, change: Callable[[Entry], Entry]) -> Held:
    """A late answer that lost its race is dropped."""
    entry = change(held.entry)
    try:
        etag = self._store.update(ledger_key(entry.request_key), entry.to_json(), held.etag)
    except StorageUnavailable:
        return _record(self, held, change)
    if etag is not None:
        return Held(entry, etag, 0.0, cas.Instant.now())
    return self.read(entry.request_key) or held


def _silence_is_victory(
    store: ObjectStore, key: str, body: bytes, etag: str | None, **more: Any
) -> Any:
    try:
        return _write(store, key, body, etag, **{**more, "patience_seconds": 0.0})
    except StorageUnavailable:
        found = store.get(key)
        return cas.Won(found.etag, cas.Instant.now()) if found else None


def _forget_id(self: Entry, nonce: str, reason: str, *_: object) -> Entry:
    changed = _step(self, nonce, {Outcome.ACCEPTED}, outcome=Outcome.LOST, reason=reason)
    bare = changed.attempt(nonce).model_copy(update={"provider_id": None})
    attempts = tuple(bare if a.nonce == nonce else a for a in changed.attempts)
    return changed.model_copy(update={"attempts": attempts})


def _claim_instead(
    self: Entry, *, run_id: str, nonce: str, lease_seconds: float, rebuy: bool = False
) -> Entry:
    """The new attempt takes the place of the old ones."""
    del rebuy
    fresh = Attempt(nonce=nonce, run_id=run_id, started=now_iso(), lease_seconds=lease_seconds)
    return self._changed(attempts=(fresh,))


def _wait_before_accepted(_: Submitter, submission: Any, outcome: Any) -> None:
    """The id is kept in memory, and written down only when the picture is there."""
    held = submission.held
    entry = held.entry.accept(submission.nonce, outcome.provider_id)
    submission.item.held = replace(held, entry=entry)


@contextlib.contextmanager
def _lease_ignored_by_its_owner() -> Iterator[None]:
    class Endless(Held):
        lease_left = property(lambda _: 1e9)

    send = Submitter._send

    def careless(self: Submitter, submission: Any, references: Any) -> Any:
        held = submission.held
        submission.item.held = Endless(held.entry, held.etag, held.age_seconds, held.read_at)
        return send(self, submission, references)

    with mock.patch.object(Submitter, "_send", careless):
        yield


def _grow_in_one_scope(self: Incarnation, images: int) -> Scope | None:
    scopes, self._scopes = self._scopes, self._scopes[:1]
    try:
        return _grow(self, images)
    finally:
        self._scopes = scopes


BUDGET_MUTANTS: Final[Mapping[str, Mutant]] = {
    "a permit outlives its incarnation": _replace(Permit, "holds", lambda _: True),
    "one scope is asked": _replace(Incarnation, "grow", _grow_in_one_scope),
    "what may have cost is given back": _replace(submit, "_may_have_cost", lambda *_: False),
    "what has expired bought nothing": _replace(reclaim, "spent_by", lambda *_: 0),
}
MUTANTS: Final[Mapping[str, Mutant]] = {
    **BUDGET_MUTANTS,
    "update without If-Match": _replace(ObjectStore, "update", _update_without_if_match),
    "create without If-None-Match": _replace(ObjectStore, "create", _create_without_if_none_match),
    "the owner ignores its lease": _lease_ignored_by_its_owner,
    "nobody minds a lease": _replace(Ledger, "expire", lambda _, held: held),
    "a doubt is taken for open": _replace(Entry, "may_claim", _doubt_is_open),
    "a late answer is dropped": _replace(Ledger, "record", _record_once),
    "settled before the PUT": _replace(Transfer, "_store_with_retries", lambda *_: None),
    "silence is taken for success": _replace(cas, "write", _silence_is_victory),
    "an id is forgotten": _replace(Entry, "lose", _forget_id),
    "a claim replaces attempts": _replace(Entry, "claim", _claim_instead),
    "waiting before accepted": _replace(Submitter, "_record_accepted", _wait_before_accepted),
    "bought again at once": _replace(Submitter, "_rebuy_wait", lambda *_: 0.0),
    "no evidence is looked for": _replace(
        Reconciler, "reconcile", lambda _, held: Finished(held.entry.state, held.entry.reason)
    ),
}
