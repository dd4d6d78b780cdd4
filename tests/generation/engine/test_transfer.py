"""The second stage: pictures from URLs and from the customer's own bucket, into their place."""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image, PngImagePlugin

from nanobanana_pipeline.bucket_keys import image_key, image_owner_key
from nanobanana_pipeline.emulator import EmulatorThread
from nanobanana_pipeline.errors import DownloadError, StorageError
from nanobanana_pipeline.generation.engine.timing import Timing
from nanobanana_pipeline.generation.engine.transfer import Transfer, Transferred
from nanobanana_pipeline.ledger import Entry, Held, Ledger, State
from nanobanana_pipeline.provider.modelslab import delivery
from nanobanana_pipeline.provider.modelslab.own_bucket import Place, change_places
from nanobanana_pipeline.provider.modelslab.request import ModelsLabRequest
from nanobanana_pipeline.provider.outcomes import Done
from nanobanana_pipeline.request import request_key
from nanobanana_pipeline.storage import ObjectStore
from tests.conftest import Emulators, account_for
from tests.launching import admin
from tests.s3_proxy import Loss, S3Proxy, wait_until

PUBLIC = "https://cdn.test/gen"
"""No such host: whatever is read from there is read from S3."""

Bring = Callable[..., Transferred]


def picture(number: int = 0, size: tuple[int, int] = (1024, 1024), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (number, 80, 160)).save(out, kind)
    return out.getvalue()


def accepted(
    store: ObjectStore,
    prompt: str = "a fox",
    *,
    age: timedelta = timedelta(),
    provider_id: str | None = "1",
    **fields: object,
) -> Held:
    """A request that the provider took so long ago, by the ledger."""
    request = ModelsLabRequest.model_validate(
        {"prompt": prompt, "seed": 1, "width": 1024, "height": 1024, **fields}
    )
    key = request_key(request, realm="emulator")
    entry = Entry.new(request, key, realm="emulator")
    entry = entry.claim(run_id="run", nonce="n1", lease_seconds=60).accept("n1", provider_id)
    moment = (datetime.now(UTC) - age).isoformat(timespec="milliseconds")
    (attempt,) = entry.attempts
    entry = entry.model_copy(
        update={"attempts": (attempt.model_copy(update={"accepted": moment}),)}
    )
    assert store.create(f"ledger/{key[:2]}/{key}.json", entry.to_json())
    held = Ledger(store).read(key)
    assert held is not None
    return held


@pytest.fixture
def emulator(emulators: Emulators) -> EmulatorThread:
    return emulators()


@pytest.fixture
def bring(store: ObjectStore, emulator: EmulatorThread) -> Bring:
    """Bring outputs of an accepted request into the bucket, perhaps through another store."""

    def run(
        held: Held, *output: str, through: ObjectStore | None = None, seconds: float = 20
    ) -> Transferred:
        mine = through or store
        account = account_for(emulator.base_url, store)
        transfer = Transfer(
            mine,
            Ledger(mine),
            account.provider,
            account.downloader,
            run_id="run",
            timing=Timing(download_seconds=seconds),
        )
        return transfer.settle(held, "n1", Done("1", output))

    return run


@pytest.fixture
def own(store: ObjectStore) -> str:
    """The folder that the provider writes into; gives where its keys begin, below our prefix."""
    uri = store.uri("deliveries")
    place = Place(public_url=PUBLIC, uri=uri, since="2026-01-01T00:00:00.000+00:00")
    change_places(store, lambda places: places.add(place))
    return "deliveries/"


@pytest.fixture
def proxy(s3_url: str) -> Iterator[S3Proxy]:
    with S3Proxy(s3_url) as proxy:
        yield proxy


def stored(store: ObjectStore, key: str) -> tuple[bytes, str, dict[str, str]]:
    found = store.client.get_object(Bucket=store.bucket, Key=store.prefix + key)
    return found["Body"].read(), found["ContentType"], found["Metadata"]


def image_keys(store: ObjectStore) -> list[str]:
    return list(store.keys("images/"))


def calls(emulator: EmulatorThread, endpoint: str) -> dict[str, int]:
    counted: dict[str, int] = admin(emulator, "stats")["calls"].get(endpoint, {})
    return counted


# --- the customer's own bucket -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "extension", "content_type"),
    [("PNG", "png", "image/png"), ("JPEG", "jpg", "image/jpeg"), ("WEBP", "webp", "image/webp")],
)
def test_a_picture_in_ones_own_bucket_is_copied_byte_for_byte(
    store: ObjectStore, own: str, bring: Bring, kind: str, extension: str, content_type: str
) -> None:
    data = picture(kind=kind)
    store.put(f"{own}x/0.png", data, content_type="text/plain")
    held = accepted(store)
    result = bring(held, f"{PUBLIC}//x//0.png?signature=1")
    assert (result.held.entry.state, result.reason) == (State.SETTLED, None)
    (image,) = result.held.entry.images
    assert image.key == image_key(hashlib.sha256(data).hexdigest(), extension)
    assert (image.format, image.size, image.width) == (extension, len(data), 1024)
    assert stored(store, image.key) == (
        data,
        content_type,
        {"request-key": held.entry.request_key, "run-id": "run"},
    )
    assert stored(store, f"{own}x/0.png")[0] == data, "the original is left where it is"


def test_a_picture_is_read_once_and_not_uploaded(
    store: ObjectStore, own: str, bring: Bring, proxy: S3Proxy
) -> None:
    store.put(f"{own}0.png", picture())
    held = accepted(store)
    assert bring(held, f"{PUBLIC}/0.png", through=proxy.store_like(store)).reason is None
    assert proxy.count("GET", "deliveries/0.png") == 1
    assert proxy.count("PUT", "/images/") == 1
    assert proxy.count("HEAD") == 0


def test_the_second_owner_of_equal_bytes_is_written_down(
    store: ObjectStore, own: str, bring: Bring
) -> None:
    for name in ("0.png", "1.png"):
        store.put(own + name, picture())
    first, second = accepted(store, "first"), accepted(store, "second")
    (image,) = bring(first, f"{PUBLIC}/0.png").held.entry.images
    for _ in range(2):
        assert bring(second, f"{PUBLIC}/1.png").held.entry.images == (image,)
    assert stored(store, image.key)[2]["request-key"] == first.entry.request_key
    assert image_keys(store) == [
        image.key,
        image_owner_key(image.sha256, second.entry.request_key),
    ]


@pytest.mark.parametrize("prefix", [b"", b"data:image/png;base64,"])
def test_base64_texts_in_ones_own_bucket_are_decoded_and_uploaded(
    store: ObjectStore, own: str, bring: Bring, prefix: bytes
) -> None:
    data = picture()
    store.put(f"{own}0.base64", prefix + base64.b64encode(data))
    (image,) = bring(accepted(store), f"{PUBLIC}/0.base64").held.entry.images
    assert stored(store, image.key)[:2] == (data, "image/png")


def test_a_picture_that_is_swapped_between_reading_and_copying_is_read_again(
    store: ObjectStore, own: str, bring: Bring, proxy: S3Proxy
) -> None:
    before, after = picture(1), picture(2)
    store.put(f"{own}0.png", before)
    swaps = [after]

    def swap(method: str, path: str) -> None:
        if method == "PUT" and "/images/" in path and swaps:
            store.put(f"{own}0.png", swaps.pop())

    proxy.rule = swap
    result = bring(accepted(store), f"{PUBLIC}/0.png", through=proxy.store_like(store))
    (image,) = result.held.entry.images
    assert image.sha256 == hashlib.sha256(after).hexdigest()
    assert image_keys(store) == [image.key], "nothing lies under a hash that is not its own"
    assert stored(store, image.key)[0] == after


@pytest.mark.parametrize("loss", Loss)
def test_a_copy_whose_request_or_answer_is_lost_is_settled_once(
    store: ObjectStore, own: str, bring: Bring, proxy: S3Proxy, loss: Loss
) -> None:
    store.put(f"{own}0.png", picture())
    proxy.lose_once(loss, "PUT", "/images/")
    result = bring(accepted(store), f"{PUBLIC}/0.png", through=proxy.store_like(store))
    (image,) = result.held.entry.images
    assert image_keys(store) == [image.key], "it has no second owner"


def test_where_copies_are_not_allowed_the_bytes_are_uploaded(
    store: ObjectStore, own: str, bring: Bring
) -> None:
    class NoCopies(ObjectStore):
        def adopt(self, *_: object, **__: object) -> bool:
            raise StorageError("AccessDenied: s3:GetObjectTagging")

    store.put(f"{own}0.png", picture())
    strict = NoCopies(store.client, store.bucket, store.prefix)
    held = accepted(store)
    (image,) = bring(held, f"{PUBLIC}/0.png", through=strict).held.entry.images
    data, content_type, metadata = stored(store, image.key)
    assert (data, content_type) == (picture(), "image/png")
    assert metadata["request-key"] == held.entry.request_key


def test_a_picture_that_comes_late_into_the_bucket_is_waited_for(
    store: ObjectStore, own: str, bring: Bring
) -> None:
    late = threading.Timer(0.5, store.put, (f"{own}0.png", picture()))
    late.start()
    assert bring(accepted(store), f"{PUBLIC}/0.png").held.entry.state is State.SETTLED
    late.join()


def test_a_picture_that_is_not_in_the_bucket_is_lost_whatever_its_age(
    store: ObjectStore, own: str, bring: Bring, emulator: EmulatorThread
) -> None:
    """The provider deletes nothing there: age is no reason."""
    assert own
    held = accepted(store, age=timedelta(hours=30))
    result = bring(held, f"{PUBLIC}/0.png", seconds=0.1)
    assert result.held.entry.state is State.LOST
    assert f"{store.uri('deliveries/0.png')}: there is no such object" in str(result.reason)
    assert "expired" not in str(result.reason)
    assert calls(emulator, "fetch") == {"200": 1}, "the provider was asked for another URL"


def test_a_picture_that_may_not_be_read_stays_accepted_and_the_permission_is_named(
    store: ObjectStore, own: str, bring: Bring
) -> None:
    store.put(f"{own}0.png", picture())
    held = accepted(store)
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{store.bucket}/{store.prefix}{own}*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    store.client.put_bucket_policy(Bucket=store.bucket, Policy=policy)
    try:
        result = bring(held, f"{PUBLIC}/0.png")
    finally:
        store.client.delete_bucket_policy(Bucket=store.bucket)
    assert (result.held.entry.state, result.refused) == (State.ACCEPTED, True)
    assert "s3:GetObject" in str(result.reason)
    assert f"s3://{store.bucket}" in str(result.reason)
    # SeaweedFS hears of a policy's end a moment later.
    wait_until(lambda: bring(result.held, f"{PUBLIC}/0.png").held.entry.state is State.SETTLED)


def test_an_object_above_the_bound_is_no_picture(
    store: ObjectStore, own: str, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MAX_IMAGE_BYTES", 100)
    store.put(f"{own}0.png", picture())
    result = bring(accepted(store), f"{PUBLIC}/0.png", seconds=0.1)
    assert result.held.entry.state is State.LOST
    assert "more than 100" in str(result.reason)
    assert image_keys(store) == []


def test_an_object_that_is_no_picture_is_lost(store: ObjectStore, own: str, bring: Bring) -> None:
    store.put(f"{own}0.png", b"<html>not a picture</html>")
    result = bring(accepted(store), f"{PUBLIC}/0.png", seconds=0.1)
    assert result.held.entry.state is State.LOST
    assert "not a PNG" in str(result.reason)


def test_a_place_that_is_told_while_a_run_goes_on_is_found(
    store: ObjectStore, emulator: EmulatorThread
) -> None:
    """A private bucket answers strangers with 403: the picture is not lost for that."""
    public = f"{emulator.root_url}/outputs/nowhere"
    held, data = accepted(store, samples=2), [picture(1), picture(2)]
    for number, each in enumerate(data):
        store.put(f"late/{number}.png", each)
    place = Place(public_url=public, uri=store.uri("late"), since="2026-01-01T00:00:00.000+00:00")
    account = account_for(emulator.base_url, store)
    transfer = Transfer(
        store,
        Ledger(store),
        account.provider,
        account.downloader,
        run_id="r",
        timing=Timing(download_seconds=0.1),
    )
    with pytest.raises(DownloadError):  # the folders are read once, before this one is registered
        transfer._read_output(f"{public}/0.png")
    change_places(store, lambda places: places.add(place))
    result = transfer.settle(held, "n1", Done("1", (f"{public}/0.png", f"{public}/1.png")))
    assert [image.sha256 for image in result.held.entry.images] == [
        hashlib.sha256(each).hexdigest() for each in data
    ]


# --- the provider's own URLs ---------------------------------------------------------------------


def test_an_expired_picture_is_given_up_at_once_and_says_so(
    store: ObjectStore, emulator: EmulatorThread, bring: Bring
) -> None:
    held = accepted(store, age=timedelta(hours=24, minutes=1))
    result = bring(held, f"{emulator.root_url}/outputs/gone.png", seconds=60)
    assert result.held.entry.state is State.LOST
    reason = str(result.reason)
    assert "expired: the provider deletes pictures after 24 hours; accepted at " in reason
    assert str(held.entry.attempts[0].accepted) in reason
    assert "HTTP 404" in reason
    assert calls(emulator, "outputs") == {"404": 1}, "no second try"


def test_a_picture_that_is_gone_too_early_says_status_and_age(
    store: ObjectStore, emulator: EmulatorThread, bring: Bring
) -> None:
    held = accepted(store, age=timedelta(hours=23, minutes=10))
    result = bring(held, f"{emulator.root_url}/outputs/gone.png", seconds=3)
    assert result.held.entry.state is State.LOST
    assert "HTTP 404, 23 h 10 min after it was accepted" in str(result.reason)
    assert "expired" not in str(result.reason)
    assert calls(emulator, "outputs")["404"] > 1, "it was tried again"


def test_a_broken_picture_is_not_called_expired(store: ObjectStore, bring: Bring) -> None:
    held = accepted(store, age=timedelta(hours=30))
    data = "data:image/png;base64," + base64.b64encode(picture()[:-20]).decode()
    result = bring(held, data, seconds=0.1)
    assert result.held.entry.state is State.LOST
    assert "expired" not in str(result.reason)


def test_an_expired_picture_is_asked_for_anew_before_it_is_given_up(
    store: ObjectStore, emulators: Emulators
) -> None:
    emulator = emulators(mode="sync")
    account = account_for(emulator.base_url, store)
    drawn = account.provider.submit(
        ModelsLabRequest(prompt="a fox", seed=1, width=1024, height=1024)
    )
    assert isinstance(drawn, Done)
    held = accepted(store, age=timedelta(hours=25), provider_id=drawn.provider_id)
    transfer = Transfer(store, Ledger(store), account.provider, account.downloader, run_id="r")
    result = transfer.settle(held, "n1", Done("1", (f"{emulator.root_url}/outputs/gone.png",)))
    assert (result.held.entry.state, result.reason) == (State.SETTLED, None)
    assert calls(emulator, "outputs") == {"404": 1, "200": 1}


def test_pictures_that_nobody_asked_for_are_left_where_they_are(
    store: ObjectStore, own: str, bring: Bring, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        store.put(f"{own}{number}.png", picture(number))
    held = accepted(store, samples=2)
    result = bring(held, *(f"{PUBLIC}/{number}.png" for number in range(3)))
    assert result.held.entry.state is State.SETTLED
    assert [image.sample for image in result.held.entry.images] == [0, 1]
    assert len(image_keys(store)) == 2
    assert "3 pictures for 2 samples" in caplog.text
    assert held.entry.request_key in caplog.text


def test_a_size_that_a_reference_decides_is_taken_as_it_comes(
    store: ObjectStore, own: str, bring: Bring
) -> None:
    store.put(f"{own}0.png", picture(size=(1024, 1312)))
    reference = ("0" * 64,)
    kept = accepted(store, ref_sha256=reference, keep_original_aspect="yes")
    (image,) = bring(kept, f"{PUBLIC}/0.png").held.entry.images
    assert (image.width, image.height) == (1024, 1312)
    fixed = bring(accepted(store, ref_sha256=reference), f"{PUBLIC}/0.png", seconds=0.1)
    assert fixed.held.entry.state is State.LOST
    assert "not 1024×1024 as asked" in str(fixed.reason)


def test_marks_of_provenance_are_kept_in_the_ledger(
    store: ObjectStore, own: str, bring: Bring
) -> None:
    marked, packet = io.BytesIO(), PngImagePlugin.PngInfo()
    packet.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    Image.new("RGB", (1024, 1024)).save(marked, "PNG", pnginfo=packet)
    store.put(f"{own}0.png", marked.getvalue())
    (image,) = bring(accepted(store), f"{PUBLIC}/0.png").held.entry.images
    assert image.marks == ("xmp",)
