"""Compare-and-swap on the real S3: races, lost answers, and a bucket that refuses every write."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import tenacity

from nanobanana_pipeline.errors import PromptTableError, StorageError, StorageFull
from nanobanana_pipeline.errors import StorageUnavailable as Unavailable
from nanobanana_pipeline.generation.budget.counters import day_scope
from nanobanana_pipeline.ledger import Entry, Ledger
from nanobanana_pipeline.lineage.openlineage import recorder
from nanobanana_pipeline.lineage.trace.index_writer import refresh_index
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.provider.modelslab.own_bucket import Place, change_places
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore, StoredObject, cas, faults
from tests.datasets.release_rows import rows_of
from tests.datasets.test_release import built
from tests.launching import keep_prompts, prompts, reserve
from tests.s3_proxy import Fate, Loss, Refusal, S3Proxy

KEY = "tables/current.json"
REFUSED = Refusal(412, "PreconditionFailed")
MOST_PUTS = 12
"""In the second and a half for which the tests below are patient: 60 and more without back-off."""


@pytest.fixture
def proxy(s3_url: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_url) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: S3Proxy, store: ObjectStore) -> ObjectStore:
    return proxy.store_like(store)


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of a second and a half, and a word in the log soon."""
    monkeypatch.setattr(cas, "Patience", lambda _, **more: faults.Patience(1.5, **more))
    monkeypatch.setattr(cas, "LEAST_ROUNDS", 4)
    monkeypatch.setattr(cas.put_if_absent.retry, "stop", tenacity.stop_after_delay(1.5))
    monkeypatch.setattr(faults, "TELL_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(faults._waiting, "_told", float("-inf"))


def lines_of(found: StoredObject | None) -> list[str]:
    return found.body.decode().split() if found else []


def add(store: ObjectStore, line: str) -> tuple[list[str], list[str]]:
    """Append a line by `swap`, once."""
    return cas.swap(
        store,
        KEY,
        lines_of,
        lambda lines: lines if line in lines else [*lines, line],
        lambda lines: "\n".join(lines).encode(),
    )


def test_of_writers_at_once_each_lands_once(store: ObjectStore) -> None:
    names = [f"n{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(add, store), names))
    assert sorted(lines_of(store.get(KEY))) == names


def test_of_sixteen_conditional_writes_one_wins_and_the_others_see_it(store: ObjectStore) -> None:
    bodies = [f"body {number}".encode() for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda body: cas.write(store, KEY, body, None), bodies))
    [winner] = [each for each in done if isinstance(each, cas.Won)]
    now = store.get(KEY)
    assert now is not None
    assert winner.etag == now.etag
    assert {each.body for each in done if isinstance(each, StoredObject)} == {now.body}


@pytest.mark.parametrize(("loss", "puts"), [(Loss.ANSWER, 1), (Loss.REQUEST, 2), (REFUSED, 2)])
def test_a_write_that_was_lost_or_refused_for_nothing_wins_and_says_since_when(
    store: ObjectStore, far: ObjectStore, proxy: S3Proxy, loss: Fate, puts: int
) -> None:
    for number in range(2):
        before = store.get(KEY)
        called, began = proxy.count("PUT"), cas.boot_clock()
        proxy.lose_once(loss, "PUT")
        won = cas.write(far, KEY, f"{number}".encode(), before.etag if before else None)
        assert isinstance(won, cas.Won)
        now = store.get(KEY)
        assert now is not None
        assert (now.body, now.etag) == (f"{number}".encode(), won.etag)
        assert proxy.count("PUT") - called == puts
        assert began <= won.sent_at.boot <= cas.boot_clock()
        # Where a try was heard it is that one, else the first: it may have landed long ago.
        if loss is Loss.ANSWER:
            assert won.sent_at.boot - began < 0.05


def test_a_lost_answer_is_not_a_second_step(
    store: ObjectStore, far: ObjectStore, proxy: S3Proxy
) -> None:
    add(store, "a")
    proxy.lose_once(Loss.ANSWER, "PUT")
    assert add(far, "b") == (["a"], ["a", "b"])
    assert proxy.count("PUT") == 1


def test_an_unchanged_value_is_not_written(
    far: ObjectStore, store: ObjectStore, proxy: S3Proxy
) -> None:
    add(store, "a")
    assert add(far, "a") == (["a"], ["a"])
    assert proxy.count("PUT") == 0


def test_an_object_that_is_gone_is_no_victory(store: ObjectStore) -> None:
    won = cas.write(store, KEY, b"a", None)
    assert isinstance(won, cas.Won)
    store.delete(KEY)
    assert cas.write(store, KEY, b"b", won.etag) is None


def by_claim(store: ObjectStore, far: ObjectStore) -> None:
    del store
    request = ModelsLabRequest(prompt="a red panda", seed=1)
    fresh = Entry.new(request, request_key(request, realm="emulator"), realm="emulator")
    Ledger(far).claim(None, fresh, run_id="run", nonce="n1", lease_seconds=60)


def by_step(store: ObjectStore, far: ObjectStore) -> None:
    request = ModelsLabRequest(prompt="a red panda", seed=1)
    fresh = Entry.new(request, request_key(request, realm="emulator"), realm="emulator")
    held = Ledger(store).claim(None, fresh, run_id="run", nonce="n1", lease_seconds=60)
    assert held is not None
    Ledger(far).record(held, lambda entry: entry.accept("n1", "7"))


def by_counter(store: ObjectStore, far: ObjectStore) -> None:
    for place in (store, far):
        reserve(day_scope(place, Budget(), "2026-01-01"), f"run/shard/{place is far:08d}", 1)


def by_pointer(store: ObjectStore, far: ObjectStore) -> None:
    del store
    refresh_index(far)


def by_prompt_set(store: ObjectStore, far: ObjectStore) -> None:
    keep_prompts(store, "set", prompts(1))
    keep_prompts(far, "set", prompts(1))


def by_delivery(store: ObjectStore, far: ObjectStore) -> None:
    del store
    place = Place(public_url="https://cdn.test/gen", uri="s3://b/in", since="2026-01-01")
    change_places(far, lambda places: places.add(place))


def by_release(store: ObjectStore, far: ObjectStore) -> None:
    built(far, rows_of(store, 2))


def by_lineage(store: ObjectStore, far: ObjectStore) -> None:
    del store
    recorder._append(far, "lineage/2026-01-01/run.ndjson", "{}")


def by_content(store: ObjectStore, far: ObjectStore) -> None:
    del store
    cas.put_if_absent(far, "references/ab", b"picture")


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize(
    ("change", "path"),
    [
        (by_claim, "/ledger/"),
        (by_step, "/ledger/"),
        (by_counter, "/budget/"),
        (by_pointer, "/index/current.json"),
        (by_prompt_set, "/set/current.json"),
        (by_delivery, "/delivery.json"),
        (by_release, "/build.json"),
        (by_release, "/latest.json"),
        (by_lineage, "/lineage/"),
        (by_content, "/references/"),
    ],
)
def test_a_bucket_that_refuses_every_write_is_asked_slower_and_not_for_ever(
    store: ObjectStore,
    far: ObjectStore,
    proxy: S3Proxy,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[ObjectStore, ObjectStore], None],
    path: str,
) -> None:
    proxy.rule = lambda method, called: REFUSED if method == "PUT" and path in called else None
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(Unavailable, match=r"the bucket answers 412 .* look for a proxy") as error,
    ):
        change(store, far)
    assert store.uri("") in str(error.value)
    assert 1 < proxy.count("PUT", path) <= MOST_PUTS
    [said] = [r.getMessage() for r in caplog.records if "waiting for S3" in r.getMessage()]
    assert "the bucket answers 412" in said
    assert "AWS_ENDPOINT_URL_S3" not in said


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize(
    ("change", "path"), [(by_step, "/ledger/"), (by_counter, "/budget/"), (by_pointer, "/index/")]
)
def test_defeats_without_end_have_one(
    store: ObjectStore,
    far: ObjectStore,
    proxy: S3Proxy,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[ObjectStore, ObjectStore], None],
    path: str,
) -> None:
    """Another writer is quicker each time, as far as the loser can tell."""
    real = cas.write

    def overtaken(told: ObjectStore, key: str, *given: Any, **more: Any) -> Any:
        if told is far:
            proxy.calls.append(("LOST", key))
            return None
        return real(told, key, *given, **more)

    monkeypatch.setattr(cas, "write", overtaken)
    with pytest.raises(Unavailable, match=rf"{path}.*was changed by other writers"):
        change(store, far)
    assert 4 <= proxy.count("LOST") <= 40


@pytest.mark.usefixtures("_hasty")
def test_a_full_bucket_ends_with_its_own_remedy(far: ObjectStore, proxy: S3Proxy) -> None:
    proxy.rule = lambda method, _: Refusal(507, "InsufficientStorage") if method == "PUT" else None
    with pytest.raises(StorageFull, match="free space"):
        cas.write(far, KEY, b"a", None)


def test_what_is_there_already_is_not_written_again(store: ObjectStore) -> None:
    cas.put_if_absent(store, "references/ab", b"first")
    cas.put_if_absent(store, "references/ab", b"second")
    found = store.get("references/ab")
    assert found is not None
    assert found.body == b"first"


@pytest.mark.parametrize("error", [StorageError, PromptTableError])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", r"s3://b/k is damaged \(Invalid JSON.*\): mend it"),
        (b"[]", r"s3://b/k is damaged \(.*\): mend it"),
        (b'{"public_url": "x"}', r"s3://b/k is damaged \(schema: Field required\): mend it"),
        (b'{"schema": 1, "public_url": 7}', r"damaged \(public_url: .*valid string\): mend it"),
        (
            b'{"schema": 1, "uri": "s3://b", "since": "", "public_url": "http://me:secret@h/"}',
            r"damaged \(Value error, the public URL.*\): mend it",
        ),
        (b'{"schema": 2}', "has schema 2, and this version knows 1: upgrade nanobanana-pipeline"),
    ],
)
def test_what_cannot_be_read_says_where_what_and_how_to_mend_it_and_no_secret(
    body: bytes, said: str, error: type[StorageError | PromptTableError]
) -> None:
    with pytest.raises(error, match=said) as raised:
        cas.parse_json(
            body, "s3://b/k", Place.model_validate_json, 1, error=error, remedy="mend it"
        )
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
