"""The bucket check, on the real server and through proxies that break one thing at a time."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from typer.testing import CliRunner, Result

from nanobanana_pipeline.bucket_keys import bucket_verdict_key
from nanobanana_pipeline.cli import app
from nanobanana_pipeline.errors import StorageError
from nanobanana_pipeline.storage import ObjectStore, bucket_check, s3_client
from nanobanana_pipeline.storage.bucket import claim_bucket
from nanobanana_pipeline.storage.bucket_check import (
    ROUNDS,
    BucketVerdict,
    ensure_checked,
    run_check,
)
from nanobanana_pipeline.storage.races import WRITERS
from tests.later import later
from tests.s3_proxy import S3Proxy
from tests.storage.breaking_proxy import (
    Break,
    breaking,
    claims_to_refuse,
    clock_off,
    honest,
    ignores_checksums,
    ignores_conditions,
    ignores_conditions_in_versioned_buckets,
    keeps_its_versioning_to_itself,
    lets_through,
    refuses_all_conditions,
    refuses_deletes,
    takes_bare_etags_only,
)


@pytest.fixture(autouse=True)
def _four_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the default check be short, where its length is not what a test is about."""
    monkeypatch.setattr(bucket_check, "ROUNDS", 4)


def checked(store: ObjectStore, rounds: int = 4) -> BucketVerdict:
    (verdict,) = run_check([store], rounds)
    return verdict


def kept(store: ObjectStore) -> BucketVerdict | None:
    found = store.get(bucket_verdict_key(store.client.meta.endpoint_url))
    return BucketVerdict.model_validate_json(found.body) if found else None


@pytest.mark.usefixtures("check_for_real")
def test_the_default_check_passes_on_a_good_server_and_costs_little(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_check, "ROUNDS", ROUNDS)
    began = time.monotonic()
    ensure_checked(store)
    assert time.monotonic() - began < 60  # a few seconds, on a machine that is not busy
    verdict = kept(store)
    assert verdict is not None
    assert (verdict.faults, verdict.warnings) == ([], [])
    races = [each for each in verdict.trials if each.what.startswith("one of 16")]
    assert [(each.tried, each.held) for each in races] == [(ROUNDS // 2, ROUNDS // 2)] * 2


def test_the_default_check_misses_one_percent_less_than_once_in_a_hundred_runs() -> None:
    assert 0.99 ** (ROUNDS * (WRITERS - 1)) < 0.001


def test_later_uses_read_one_small_object(store: ObjectStore) -> None:
    with S3Proxy(store.client.meta.endpoint_url) as proxy:
        seen = proxy.store_like(store)
        claim_bucket(seen, "emulator")
        proxy.calls.clear()
        claim_bucket(seen, "emulator")
        assert [method for method, _ in proxy.calls] == ["GET", "GET", "GET"]
        assert proxy.calls[-1][1].endswith("?versioning")
        body = kept(seen)
    assert body is not None
    assert len(body.model_dump_json()) < 2_000


def test_what_it_leaves_are_a_verdict_and_a_lease_that_is_free(store: ObjectStore) -> None:
    ensure_checked(store)
    lease, verdict = sorted(store.keys(""))
    assert lease == "probe/lease"
    assert verdict.startswith("probe/verdict-")
    found = store.get(lease)
    assert found is not None
    assert found.body == b""


def test_a_bucket_of_0_1_0_is_checked_at_its_next_use(store: ObjectStore) -> None:
    store.put("nanobanana.json", b'{"layout": 1, "realm": "emulator"}')
    claim_bucket(store, "emulator")
    assert kept(store) is not None


BROKEN: dict[str, tuple[Break, str]] = {
    "half of the losers let through": (lets_through(0.5, 1), "were told that they won"),
    "conditions ignored": (ignores_conditions, "were told that they won"),
    "412 to everything": (refuses_all_conditions, "no writer won.*PreconditionFailed to 16"),
    "only bare ETags": (takes_bare_etags_only, "only without its quotes"),
    "refused and stored": (claims_to_refuse, "bytes of another writer"),
    "Date 20 minutes ahead": (clock_off(timedelta(minutes=20)), r"1,2\d\d s old.*by NTP"),
    "Date 20 minutes behind": (clock_off(-timedelta(minutes=20)), r"-1,\d\d\d s old.*by NTP"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_server_that_breaks_a_promise_is_refused_and_told(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken, said = BROKEN[name]
    monkeypatch.setattr(bucket_check, "LEASE_PATIENCE_SECONDS", 0.5)
    with breaking(store, broken) as seen:
        with pytest.raises(StorageError, match=said) as told:
            claim_bucket(seen, "emulator")
        assert seen.client.meta.endpoint_url in str(told.value)
        assert "nanobanana bucket check" in str(told.value)
        assert store.get("nanobanana.json") is None


def test_a_server_that_lets_one_percent_through_is_refused(store: ObjectStore) -> None:
    with breaking(store, lets_through(0.01, 4)) as seen:
        assert "were told that they won" in " ".join(checked(seen, ROUNDS).faults)


def test_a_refusal_is_kept_until_a_check_passes(store: ObjectStore) -> None:
    rule = [lets_through(1)]
    with breaking(store, lambda *call: rule[0](*call)) as seen:  # noqa: PLW0108 - it changes
        with pytest.raises(StorageError, match="told that they won"):
            ensure_checked(seen)
        rule[0] = honest
        with pytest.raises(StorageError, match="told that they won"):
            ensure_checked(seen)
        assert checked(seen).faults == []
        ensure_checked(seen)


def test_without_the_right_to_delete_it_passes_each_time(store: ObjectStore) -> None:
    with breaking(store, refuses_deletes) as seen:
        first, second = checked(seen), checked(seen)
    assert first.faults == second.faults == []
    assert {each.what: each.tried for each in second.trials}["none of 16 creates over an object"]
    assert len(list(store.keys(""))) <= 6
    with breaking(store, lambda r, f: refuses_deletes(r, lambda x: lets_through(1)(x, f))) as seen:
        assert checked(seen).faults


@pytest.fixture
def own_bucket(s3_url: str) -> ObjectStore:
    """A bucket of its own, whose versioning a test may switch."""
    client, name = s3_client(endpoint_url=s3_url), f"own-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return ObjectStore(client, name)


def version(store: ObjectStore) -> None:
    store.client.put_bucket_versioning(
        Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"}
    )


def test_a_versioned_bucket_passes_and_gets_two_versions_a_round(own_bucket: ObjectStore) -> None:
    version(own_bucket)
    verdict = checked(own_bucket, 8)
    assert (verdict.faults, verdict.versioning) == ([], "Enabled")
    found = own_bucket.client.list_object_versions(Bucket=own_bucket.bucket)
    races = [each for each in found["Versions"] if "race" in each["Key"]]
    assert 8 <= len(races) <= 2 * 8  # more only where S3 refuses all of a round
    assert len(found["Versions"]) + len(found["DeleteMarkers"]) < 4 * 8


def test_a_bucket_whose_versioning_was_switched_on_is_checked_again(
    own_bucket: ObjectStore,
) -> None:
    with breaking(own_bucket, ignores_conditions_in_versioned_buckets) as seen:
        ensure_checked(seen)
        ensure_checked(seen)
        version(own_bucket)
        with pytest.raises(StorageError, match="told that they won"):
            ensure_checked(seen)


def test_without_the_right_to_read_its_versioning_a_bucket_passes(
    own_bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(own_bucket)
    with breaking(own_bucket, keeps_its_versioning_to_itself) as seen:
        ensure_checked(seen)
        verdict = kept(seen)
        assert verdict is not None
        assert verdict.versioning == ""
        monkeypatch.setattr(bucket_check, "_check", None)
        ensure_checked(seen)


def test_ignored_checksums_are_warned_of(store: ObjectStore) -> None:
    with breaking(store, ignores_checksums) as seen:
        verdict = checked(seen)
    assert verdict.faults == []
    assert "checksum" in verdict.warnings[0]


def test_after_thirty_days_it_is_checked_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_checked(store)

    def again(*_: object, **__: object) -> BucketVerdict:
        raise AssertionError

    monkeypatch.setattr(bucket_check, "_check", again)
    ensure_checked(later(store, timedelta(days=29)))
    with pytest.raises(AssertionError):
        ensure_checked(later(store, timedelta(days=31)))


def test_processes_that_begin_at_once_check_one_after_the_other(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, running, most, count = bucket_check._check, [0], [0], [0]

    def watched(*args: object, **more: object) -> BucketVerdict:
        running[0] += 1
        count[0] += 1
        most[0] = max(most[0], running[0])
        try:
            return real(*args, **more)  # type: ignore[arg-type]
        finally:
            running[0] -= 1

    monkeypatch.setattr(bucket_check, "_check", watched)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_checked(store), range(4)))
    assert (most, count) == ([1], [1])


def test_the_lease_of_a_dead_process_is_taken_over(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_check, "LEASE_SECONDS", 1.0)
    store.put("probe/lease", b"of a process that was killed")
    began = time.monotonic()
    ensure_checked(store)
    assert time.monotonic() - began > 1


def test_a_short_check_that_passes_is_not_kept(store: ObjectStore) -> None:
    assert checked(store, 2).faults == []
    assert kept(store) is None


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"schema": 1}'])
def test_a_damaged_verdict_is_named_and_written_anew(store: ObjectStore, body: bytes) -> None:
    store.put(bucket_verdict_key(store.client.meta.endpoint_url), body)
    with pytest.raises(StorageError, match=r"damaged.*nanobanana bucket check"):
        ensure_checked(store)
    checked(store)
    ensure_checked(store)


def test_a_newer_verdict_is_left_alone(store: ObjectStore) -> None:
    key, body = (
        bucket_verdict_key(store.client.meta.endpoint_url),
        json.dumps({"schema": bucket_check.SCHEMA + 1}),
    )
    store.put(key, body.encode())
    for use in (ensure_checked, checked):
        with pytest.raises(StorageError, match="upgrade nanobanana-pipeline"):
            use(store)
    found = store.get(key)
    assert found is not None
    assert found.body == body.encode()


def test_no_password_of_an_address_is_kept() -> None:
    class Meta:
        endpoint_url = "http://user:pass@s3.test:9000/?key=secret"

    class Client:
        meta = Meta

    endpoint = bucket_check._endpoint(ObjectStore(Client(), "b"))  # type: ignore[arg-type]
    assert endpoint == "http://s3.test:9000"


def command(store: ObjectStore, *options: str) -> Result:
    env = {
        "NANOBANANA_BUCKET": store.bucket,
        "NANOBANANA_PREFIX": store.prefix.rstrip("/"),
        "COLUMNS": "200",
    }
    return CliRunner().invoke(app, ["bucket", "check", *options], env=env)


def test_the_command_says_what_was_tried_and_how_often_it_held(store: ObjectStore) -> None:
    done = command(store, "--races", "6")
    assert done.exit_code == 0, done.output
    for said in ("one of 16 creates", "one of 16 updates", "S3's clock", "checksum", "holds"):
        assert said in done.output
    assert "copy of what was read" not in done.output
    store.put("delivery.json", b"{}")
    assert "copy of what was read" in command(store, "--races", "2").output


def test_the_command_spreads_writers_over_endpoints_and_exits_with_1(store: ObjectStore) -> None:
    with breaking(store, honest) as good, breaking(store, lets_through(1)) as bad:
        urls = [each.client.meta.endpoint_url for each in (good, bad)]
        done = command(store, "--races", "4", "--endpoint", urls[0], "--endpoint", urls[1])
        assert done.exit_code == 1, done.output
        assert all(url in done.output for url in urls)
        assert "were told that they won" in done.output
        assert kept(good) is not None
        assert kept(bad) is not None
