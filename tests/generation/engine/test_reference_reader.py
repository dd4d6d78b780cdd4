"""A reference is in hand before its request is claimed: none is ever sent without its picture."""

import hashlib
import threading
from collections.abc import Sequence

import pytest

from nanobanana_pipeline.bucket_keys import reference_key
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.generation.engine.reference_reader import StoredReferences
from nanobanana_pipeline.generation.engine.submit import Submitter
from nanobanana_pipeline.generation.engine.work_queue import Finished, WorkItem
from nanobanana_pipeline.generation.planning.run_files import PlannedRequest
from nanobanana_pipeline.ledger import State
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.provider.outcomes import SubmitOutcome
from nanobanana_pipeline.provider.protocol import MaySend
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.generation.engine.test_submit import submitter
from tests.launching import bought, entries


def kept(store: ObjectStore, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    store.put(reference_key(sha256), data)
    return sha256


def work_with(*hashes: str) -> WorkItem:
    request = ModelsLabRequest(prompt="a fox", seed=1, width=1024, height=1024, ref_sha256=hashes)
    return WorkItem(PlannedRequest(request_key(request, realm="emulator"), request))


def a_submitter(store: ObjectStore, base_url: str) -> Submitter:
    return submitter(account_for(base_url, store), store, threading.Event())


def test_a_reference_that_is_gone_leaves_the_request_unclaimed(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators()
    step = a_submitter(store, emulator.base_url).advance(work_with("0" * 64))
    assert isinstance(step, Finished)
    assert (step.state, "make the prompt set again" in str(step.reason)) == (State.OPEN, True)
    assert (entries(store), bought(emulator)) == ([], 0)


def test_what_is_sent_is_what_was_read_before_the_claim(
    store: ObjectStore, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = emulators()
    one = a_submitter(store, emulator.base_url)
    sent: list[tuple[bytes, ...]] = []
    submit = one._provider.submit

    def note(
        request: ModelsLabRequest, references: Sequence[bytes], *, may_send: MaySend
    ) -> SubmitOutcome:
        sent.append(tuple(references))
        return submit(request, references, may_send=may_send)

    monkeypatch.setattr(one._provider, "submit", note)
    pictures = [f"reference {number}".encode() for number in range(16)]
    hashes = [kept(store, data) for data in pictures]
    claim = one.ledger.claim

    def claim_and_lose(*args: object, **more: object) -> object:
        for sha256 in hashes:
            store.delete(reference_key(sha256))
        one._references.read.cache_clear()
        return claim(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(one.ledger, "claim", claim_and_lose)
    one.advance(work_with(*hashes))
    assert sent == [tuple(pictures)]


def test_a_reference_that_is_not_what_its_name_says_is_refused(store: ObjectStore) -> None:
    store.put(reference_key("a" * 64), b"another")
    with pytest.raises(StorageError, match="damaged"):
        StoredReferences(store).read("a" * 64)
