"""The first stage, where other workers and slow servers come between two of its lines."""

import threading
from collections.abc import Callable, Iterator

import pytest

from nanobanana_pipeline.generation.budget.reservations import ShardBudget
from nanobanana_pipeline.generation.engine.submit import Submitter
from nanobanana_pipeline.generation.engine.thread_group import StopEvents
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.engine.transfer import Transfer
from nanobanana_pipeline.generation.engine.work_queue import (
    Downloadable,
    Finished,
    Requeue,
    WorkItem,
)
from nanobanana_pipeline.generation.planning.run_files import PlannedRequest
from nanobanana_pipeline.ledger import Entry, Ledger, Outcome, State
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.provider.slots import Slots
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.launching import bought, entries, tell
from tests.s3_proxy import Loss, S3Proxy, wait_until

REQUEST = ModelsLabRequest(prompt="a red panda", seed=1, width=1024, height=1024)
KEY = request_key(REQUEST, realm="emulator")


@pytest.fixture
def proxy(s3_url: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_url) as proxy:
        yield proxy


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def submitter(account: Account, store: ObjectStore, stop: threading.Event) -> Submitter:
    return Submitter(
        store,
        account,
        Slots(2),
        budget=ShardBudget(store, lambda _: [], price=None, run_id="run", shard="shard-0000"),
        stopping=StopEvents(stop=stop),
    )


def work_item() -> WorkItem:
    return WorkItem(PlannedRequest(KEY, REQUEST))


def meanwhile(store: ObjectStore, *changes: Callable[[Entry], Entry]) -> threading.Thread:
    """Change the entry as soon as it is being sent."""

    def change() -> None:
        ledger = Ledger(store)
        wait_until(lambda: ledger.read(KEY))
        for step in changes:
            held = ledger.read(KEY)
            assert held is not None
            ledger.apply(held, step)

    thread = threading.Thread(target=change)
    thread.start()
    return thread


def first(entry: Entry) -> str:
    return entry.attempts[0].nonce


def test_a_late_answer_after_a_rebuy_by_another_is_kept_and_brought(
    store: ObjectStore, emulators: Emulators, stop: threading.Event
) -> None:
    emulator = emulators(
        latency_seconds=(0.1, 0.1), moods={"slow_answer": 1}, slow_answer_seconds=5
    )
    account = account_for(emulator.base_url, store)
    other = meanwhile(
        store,
        lambda entry: entry.doubt(first(entry), "its lease ran out"),
        lambda entry: entry.claim(run_id="other", nonce="n2", lease_seconds=60, rebuy=True),
    )
    step = submitter(account, store, stop).advance(work_item())
    other.join()
    assert isinstance(step, Downloadable)
    (entry,) = entries(store)
    assert [a.outcome for a in entry.attempts] == [Outcome.ACCEPTED, Outcome.SUBMITTING]
    transfer = Transfer(store, Ledger(store), account.provider, account.downloader, run_id="run")
    settled = transfer.settle(step.held, step.nonce, step.done).held.entry
    assert settled.state is State.SETTLED
    assert [a.outcome for a in settled.attempts] == [Outcome.SETTLED, Outcome.SUBMITTING]
    assert settled.images
    assert bought(emulator) == 1


def test_an_answer_to_what_others_have_settled_already_changes_nothing(
    store: ObjectStore, emulators: Emulators, stop: threading.Event
) -> None:
    emulator = emulators(moods={"slow_answer": 1}, slow_answer_seconds=5)
    account = account_for(emulator.base_url, store)
    other = meanwhile(store, lambda entry: entry.fail(first(entry), "a webhook said so"))
    step = submitter(account, store, stop).advance(work_item())
    other.join()
    assert step == Finished(State.FAILED, "a webhook said so")


def test_pictures_that_cannot_be_had_do_not_undo_what_another_run_has_settled(
    store: ObjectStore, emulators: Emulators, stop: threading.Event
) -> None:
    emulator = emulators()
    account = account_for(emulator.base_url, store)
    step = submitter(account, store, stop).advance(work_item())
    assert isinstance(step, Downloadable)
    transfer = Transfer(
        store,
        Ledger(store),
        account.provider,
        account.downloader,
        run_id="run",
        timing=Timing(download_seconds=0.1),
    )
    assert transfer.settle(step.held, step.nonce, step.done).held.entry.state is State.SETTLED
    broken = step.done.output[0].replace(".png", ".jpg")
    tell(emulator, "moods", forget=1)
    late = transfer.settle(step.held, step.nonce, type(step.done)("1", (broken,)))
    assert "404" in str(late.reason)
    assert late.held.entry.state is State.SETTLED
    assert entries(store)[0] == late.held.entry


def test_a_picture_is_not_lost_while_the_provider_cannot_be_asked(
    store: ObjectStore, emulators: Emulators, stop: threading.Event
) -> None:
    account = account_for(emulators().base_url, store)
    step = submitter(account, store, stop).advance(work_item())
    assert isinstance(step, Downloadable)
    nowhere = account_for("http://127.0.0.1:9/nano_banana/", store)
    transfer = Transfer(
        store,
        Ledger(store),
        nowhere.provider,
        account.downloader,
        run_id="r",
        timing=Timing(download_seconds=0.1),
    )
    gone = type(step.done)("1", (step.done.output[0].replace(".png", ".jpg"),))
    result = transfer.settle(step.held, step.nonce, gone)
    assert result.held.entry.state is State.ACCEPTED
    assert "provider says" in str(result.reason)


def test_a_claim_that_would_not_outlast_the_answer_is_given_back_unsent(
    store: ObjectStore, emulators: Emulators, stop: threading.Event
) -> None:
    emulator = emulators()
    slow = submitter(account_for(emulator.base_url, store), store, stop)
    slow._lease_seconds = 10
    item = work_item()
    assert slow.advance(item) == Requeue(0)
    assert item.state is State.OPEN
    (entry,) = entries(store)
    assert entry.attempts[0].outcome is Outcome.NOT_SENT
    assert bought(emulator) == 0


def test_a_stop_that_comes_while_claiming_gives_the_claim_back_unsent(
    store: ObjectStore, emulators: Emulators, stop: threading.Event, proxy: S3Proxy
) -> None:
    emulator = emulators()

    def rule(method: str, _: str) -> Loss | None:
        if method == "PUT":
            stop.set()
        return None

    proxy.rule = rule
    account = account_for(emulator.base_url, store)
    item = work_item()
    submitter(account, proxy.store_like(store), stop).advance(item)
    assert (item.state, entries(store)[0].reason) == (State.OPEN, "stopped")
    assert bought(emulator) == 0
