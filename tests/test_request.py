"""The request key: what changes the picture changes it, nothing else does, and it never drifts."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from nanobanana_pipeline.provider.modelslab.request import ONLY_WITH_REFERENCES, ModelsLabRequest
from nanobanana_pipeline.request import MAX_SEED, canonical_json, request_key

GOLDEN = json.loads((Path(__file__).parent / "golden/request_keys.json").read_text("utf-8"))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
prompts = texts.filter(str.strip)
sides = st.integers(32, 64).map(lambda steps: steps * 32)
noises = st.floats(allow_nan=False, allow_infinity=False)
requests = st.builds(
    ModelsLabRequest,
    prompt=prompts,
    negative_prompt=texts,
    width=sides,
    height=sides,
    seed=st.integers(0, MAX_SEED),
    samples=st.integers(1, 4),
    noise_scale_start=noises,
    noise_scale_end=noises,
    noise_clip_std=noises,
    watermark=st.sampled_from(["yes", "no"]),
)
OTHER: dict[str, st.SearchStrategy[Any]] = {
    "prompt": prompts,
    "negative_prompt": texts,
    "width": sides,
    "height": sides,
    "seed": st.integers(0, MAX_SEED),
    "samples": st.integers(1, 4),
    "noise_scale_start": noises,
    "noise_scale_end": noises,
    "noise_clip_std": noises,
    "watermark": st.sampled_from(["yes", "no"]),
}


def key(request: ModelsLabRequest) -> str:
    return request_key(request, realm="emulator")


A, B = "a" * 64, "b" * 64


def made(**fields: object) -> ModelsLabRequest:
    return ModelsLabRequest.model_validate({"prompt": "a cat", "seed": 1, **fields})


# --- golden --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", GOLDEN["vectors"], ids=lambda vector: str(vector["name"]))
def test_keys_never_drift(vector: dict[str, Any]) -> None:
    request = ModelsLabRequest.model_validate(vector["request"])
    place = {name: vector[name] for name in ("realm", "endpoint", "variant")}
    canonical = canonical_json(request, **place)
    assert canonical.decode() == vector["canonical"]
    assert request_key(request, **place) == vector["key"]
    assert hashlib.sha256(vector["canonical"].encode()).hexdigest() == vector["key"]


def test_golden_vectors_that_are_the_same_picture_share_a_key_and_no_others_do() -> None:
    groups: dict[str, set[str]] = {}
    for vector in GOLDEN["vectors"]:
        groups.setdefault(vector["same_as"] or vector["name"], set()).add(vector["key"])
    assert all(len(keys) == 1 for keys in groups.values())
    assert len(set.union(*groups.values())) == len(groups)


def test_every_field_is_sorted_into_the_picture_or_out_of_it() -> None:
    canonical = json.loads(canonical_json(made(), realm="emulator"))
    decided = set(canonical) - {"key_version", "realm", "endpoint", "variant"}
    never = ModelsLabRequest.delivery_fields | ONLY_WITH_REFERENCES
    assert decided == set(ModelsLabRequest.model_fields) - never == set(OTHER)
    referring = json.loads(canonical_json(made(ref_sha256=[A]), realm="emulator"))
    assert set(referring) == set(canonical) | ONLY_WITH_REFERENCES
    assert set(referring) == {
        *ModelsLabRequest.key_fields(),
        "key_version",
        "realm",
        "endpoint",
        "variant",
    }


# --- what the key ignores ------------------------------------------------------------------------


@given(
    requests,
    st.none() | texts.map(lambda text: f"https://example.org/{text}"),
    st.none() | texts,
    st.sampled_from(["yes", "no"]),
    st.sampled_from(["yes", "no"]),
)
def test_the_key_ignores_how_the_picture_is_delivered(
    request: ModelsLabRequest, webhook: str | None, track_id: str | None, temp: str, base64: str
) -> None:
    delivery = {"webhook": webhook, "track_id": track_id, "temp": temp, "base64": base64}
    other = ModelsLabRequest.model_validate({**request.model_dump(), **delivery})
    assert key(other) == key(request)


@given(requests)
def test_the_key_ignores_how_numbers_and_switches_are_written(request: ModelsLabRequest) -> None:
    fields = request.model_dump()
    spelled: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, str) and name == "watermark":
            spelled[name] = value == "yes"
        elif isinstance(value, int | float):
            spelled[name] = f" {value!r} "
        else:
            spelled[name] = value
    assert key(ModelsLabRequest.model_validate(spelled)) == key(request)
    as_floats = {n: float(v) if isinstance(v, int) else v for n, v in fields.items()}
    assert key(ModelsLabRequest.model_validate(as_floats)) == key(request)


@pytest.mark.parametrize("seven", [7, 7.0, "7", "7.0", " 7 ", "+7", "7.", "07", "7e0", "0.7e1"])
def test_seven_is_seven_however_it_is_written(seven: object) -> None:
    assert key(made(seed=seven, noise_clip_std=seven)) == key(made(seed=7, noise_clip_std=7))


@pytest.mark.parametrize("zero", [-0.0, "-0", "-0.0", 0, "0e5"])
def test_minus_zero_is_zero(zero: object) -> None:
    request = made(noise_scale_start=zero, seed=zero)
    assert key(request) == key(made(noise_scale_start=0, seed=0))
    assert math.copysign(1, request.noise_scale_start) == 1


def test_no_negative_prompt_is_an_empty_one() -> None:
    assert key(made(negative_prompt=None)) == key(made(negative_prompt="")) == key(made())


def test_defaults_and_the_same_values_named_are_one_request() -> None:
    assert key(made(**ModelsLabRequest.default_parameters())) == key(made())


@pytest.mark.parametrize(
    ("written", "read"),
    [(True, "yes"), (False, "no"), ("YES", "yes"), (" No ", "no"), ("true", "yes")],
)
def test_switches_are_read_as_people_write_them(written: object, read: str) -> None:
    request = made(watermark=written, temp=written, base64=written)
    assert (request.watermark, request.temp, request.base64) == (read, read, read)


# --- what the key tells apart --------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHER)
@given(requests, st.data())
def test_the_key_changes_with_every_field_of_the_picture(
    name: str, request: ModelsLabRequest, data: st.DataObject
) -> None:
    value = data.draw(OTHER[name])
    assume(value != getattr(request, name))
    other = ModelsLabRequest.model_validate({**request.model_dump(), name: value})
    assert key(other) != key(request)


@pytest.mark.parametrize("what", ["realm", "endpoint", "variant"])
@given(requests, texts)
def test_the_key_changes_with_realm_endpoint_and_variant(
    what: str, request: ModelsLabRequest, value: str
) -> None:
    usual = {"realm": "emulator", "endpoint": "text2img", "variant": ""}
    assume(value != usual[what])
    assume(value or what != "endpoint")  # none named means the request's own
    assert request_key(request, **{**usual, what: value}) != request_key(request, **usual)


def test_references_and_their_order_are_part_of_the_key_and_pick_the_endpoint() -> None:
    alone, both, swapped = made(ref_sha256=[A]), made(ref_sha256=[A, B]), made(ref_sha256=[B, A])
    assert len({key(made()), key(alone), key(both), key(swapped)}) == 4
    assert [made().endpoint, alone.endpoint, both.endpoint] == ["text2img", "img2img", "multi_ref"]
    kept = made(ref_sha256=[A], keep_original_aspect=True)
    assert key(kept) != key(alone)
    asked = [r.size_asked for r in (made(keep_original_aspect=True), alone, kept)]
    assert asked == [(2048, 2048), (2048, 2048), None]


def test_an_aspect_without_a_reference_changes_nothing() -> None:
    request = made(keep_original_aspect="yes")
    assert key(request) == key(made())
    assert "keep_original_aspect" not in request.fields()


@given(prompts, st.integers(0, 20), st.characters(exclude_categories=["Cs"]))
def test_the_key_changes_with_any_character_of_the_prompt(
    prompt: str, place: int, character: str
) -> None:
    other = prompt[:place] + character + prompt[place:]
    assert key(made(prompt=other)) != key(made(prompt=prompt))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("é", "e\u0301"),
        ("Å", "\u212b"),
        ("ﬁ", "fi"),
        ("a", "a "),
        ("a", " a"),
        ("a", "a\n"),
        ("a\n", "a\r\n"),
        ("a", "\ufeffa"),
        ("a", "a\u200b"),
        ("a", "a\x00"),
        ("a", "A"),
        ("😀", "😁"),
        ('"', '\\"'),
    ],
)
def test_prompts_are_neither_stripped_nor_normalised(one: str, other: str) -> None:
    assert made(prompt=one).prompt == one
    assert made(prompt=other).prompt == other
    assert key(made(prompt=one)) != key(made(prompt=other))


def test_neighbouring_seeds_above_32_bits_are_told_apart() -> None:
    seeds = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 - 2, 2**53 - 1]
    assert len({key(made(seed=seed)) for seed in seeds}) == len(seeds)


@given(requests)
def test_a_request_survives_being_written_down(request: ModelsLabRequest) -> None:
    again = ModelsLabRequest.model_validate_json(request.model_dump_json())
    assert again == request
    assert key(again) == key(request)


# --- what is refused -----------------------------------------------------------------------------


YES, NO = True, False


def _each(name: str, *values: object) -> list[tuple[str, object]]:
    return [(name, value) for value in values]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *_each("prompt", "", " ", "\t\n\u3000", None, 5, "a\ud800", "\udfff"),
        *_each("negative_prompt", 5, "\ud800"),
        *_each("webhook", 5, "\udc00"),
        *_each("width", 1000, 992, 2080, 1025, 1024.5, "1024.5", "", None, YES),
        *_each("height", 0, -1024, "wide", [], "1_024", "0x400", "1024px"),
        *_each("seed", -1, 2**53, "2e16", 1.5, "1.5", YES, None, "NaN", math.nan),
        *_each("seed", math.inf, "inf", "9" * 5000, 10**400, "1e999"),
        *_each("samples", 0, 5, "9", YES, 1.5, None),
        *_each("noise_scale_start", math.nan, math.inf, "nan", "abc", YES, None),
        *_each("noise_scale_end", -math.inf, "-inf", "1e999", "", NO),
        *_each("noise_clip_std", "Infinity", "1_0", 10**400, []),
        *_each("watermark", "maybe", 1, 0, None, ""),
        ("steps", 20),
    ],
)
def test_what_breaks_a_rule_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        made(**{name: value})
    assert refused.value.errors()[0]["loc"] == (name,)


@given(
    st.dictionaries(
        st.sampled_from([*ModelsLabRequest.model_fields]),
        st.none() | st.text() | st.floats() | st.booleans() | st.integers() | st.binary(),
    )
)
def test_anything_is_either_a_request_with_a_key_or_refused(fields: dict[str, object]) -> None:
    try:
        request = ModelsLabRequest.model_validate(fields)
    except ValidationError:
        return
    assert len(key(request)) == 64


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        made().seed = 2  # type: ignore[misc]


def test_picture_parameters_keep_what_was_named_only() -> None:
    given = {"width": "1024", "watermark": True, "height": None, "temp": False}
    picture, delivery = ModelsLabRequest.read_parameters(given)
    assert picture == {"width": 1024, "watermark": "yes"}
    assert delivery == {"temp": "no"}
    with pytest.raises(ValidationError):
        ModelsLabRequest.read_parameters({"seed": 1})


def test_a_webhook_goes_over_https_or_stays_on_this_machine() -> None:
    for good in ("https://hooks.example.org/a", "http://127.0.0.1:8080/x", "http://localhost/y"):
        assert ModelsLabRequest.read_parameters({"webhook": good}) == ({}, {"webhook": good})
    for bad in ("http://hooks.example.org/a", "ftp://a.b", "hooks.example.org", "https://[", ""):
        with pytest.raises(ValidationError):
            ModelsLabRequest.read_parameters({"webhook": bad})
