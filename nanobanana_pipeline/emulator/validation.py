"""The provider's rules for the body of a generation, as its contract states them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nanobanana_pipeline.emulator.fields import Order, PictureFields
from nanobanana_pipeline.emulator.rules import (
    BadValueError,
    Rule,
    number,
    required_text,
    switch,
    text,
    whole,
)

_T = TypeVar("_T")

_SMALLEST_SIDE, _LARGEST_SIDE, _SIDE_STEP = 1024, 2048, 32

_PROMPT = required_text("prompt")
_NEGATIVE_PROMPT = text("negative_prompt")
_WIDTH = whole("width", _LARGEST_SIDE, _SMALLEST_SIDE, _LARGEST_SIDE, _SIDE_STEP)
_HEIGHT = whole("height", _LARGEST_SIDE, _SMALLEST_SIDE, _LARGEST_SIDE, _SIDE_STEP)
_SEED = whole("seed", 0, 0, 2**64 - 1)
_SAMPLES = whole("samples", 1, 1, 4)
_NOISE_SCALE_START = number("noise_scale_start", 7.5)
_NOISE_SCALE_END = number("noise_scale_end", 7.5)
_NOISE_CLIP_STD = number("noise_clip_std", 2.5)
_WATERMARK = switch("watermark")
_TEMP = switch("temp")
_BASE64 = switch("base64")
_WEBHOOK = text("webhook", "Told once at completion if it is HTTPS, or on loopback.")
_TRACK_ID = text("track_id", "Echoed in the webhook; a second order with it is bought again.")
_KEEP_ORIGINAL_ASPECT = switch("keep_original_aspect")

ORDER_RULES: tuple[Rule[Any], ...] = (
    _PROMPT,
    _NEGATIVE_PROMPT,
    _WIDTH,
    _HEIGHT,
    _SEED,
    _SAMPLES,
    _NOISE_SCALE_START,
    _NOISE_SCALE_END,
    _NOISE_CLIP_STD,
    _WATERMARK,
    _TEMP,
    _BASE64,
    _WEBHOOK,
    _TRACK_ID,
    _KEEP_ORIGINAL_ASPECT,
)
"""The rule of every field of a generation but `key` and `ref_image`."""


class InvalidOrderError(ValueError):
    """The body breaks the rules.

    Attributes:
        errors: What is wrong with each field that is.
    """

    def __init__(self, errors: dict[str, list[str]]) -> None:
        super().__init__("; ".join(words for each in errors.values() for words in each))
        self.errors = errors


def read_order(
    body: Mapping[str, object],
    endpoint: str = "text2img",
    references: Sequence[str] = (),
    original_size: tuple[int, int] | None = None,
) -> Order:
    """Check a body and fill in the provider's defaults.

    Numbers may come as strings and switches as booleans. `null` means that a field was not given.

    Args:
        body: What the client sent.
        endpoint: Where it sent it.
        references: The SHA-256 of what the pictures start from.
        original_size: Width and height of the first of them, if known.

    Raises:
        InvalidOrderError: One or more fields break the rules; it names all of them.
    """
    fields = _Fields(body)
    original_width, original_height = original_size or (_LARGEST_SIDE, _LARGEST_SIDE)
    width = fields.read(_WIDTH, _nearest_side(original_width))
    height = fields.read(_HEIGHT, _nearest_side(original_height))
    if fields.read(_KEEP_ORIGINAL_ASPECT) and original_size:
        longest = max(width, height) / max(original_size)
        width, height = (_nearest_side(side * longest) for side in original_size)
    picture = PictureFields(
        prompt=fields.read(_PROMPT),
        negative_prompt=fields.read(_NEGATIVE_PROMPT),
        width=width,
        height=height,
        seed=fields.read(_SEED),
        samples=fields.read(_SAMPLES),
        noise_scale_start=fields.read(_NOISE_SCALE_START),
        noise_scale_end=fields.read(_NOISE_SCALE_END),
        noise_clip_std=fields.read(_NOISE_CLIP_STD),
        watermark=fields.read(_WATERMARK),
        endpoint=endpoint,
        references=tuple(references),
    )
    track_id, webhook = fields.read(_TRACK_ID), fields.read(_WEBHOOK)
    temp, base64 = fields.read(_TEMP), fields.read(_BASE64)
    if fields.errors:
        raise InvalidOrderError(fields.errors)
    return Order(picture, track_id or None, base64=base64, temp=temp, webhook=webhook or None)


class _Fields:
    """Reads fields one by one and collects what is wrong with them."""

    def __init__(self, body: Mapping[str, object]) -> None:
        self._body = body
        self.errors: dict[str, list[str]] = {}

    def read(self, rule: Rule[_T], default: _T | None = None) -> _T:
        """Read a field; when it is missing or wrong, go on with `default`, or the rule's own."""
        instead = rule.default if default is None else default
        raw = self._body.get(rule.name)
        if raw is None:
            if rule.required:
                self.errors[rule.name] = [f"{rule.name} is required"]
            return instead
        try:
            return rule.parse(raw)
        except BadValueError as error:
            self.errors[rule.name] = [f"{rule.name} {error}"]
            return instead


def read_fields(body: Mapping[str, object], *rules: Rule[_T]) -> list[_T]:
    """Read some fields of a body.

    Raises:
        InvalidOrderError: One or more break their rules; it names all of them.
    """
    fields = _Fields(body)
    values = [fields.read(rule) for rule in rules]
    if fields.errors:
        raise InvalidOrderError(fields.errors)
    return values


def _nearest_side(pixels: float) -> int:
    """Find the side that the rules allow and that is nearest."""
    steps = round(pixels / _SIDE_STEP)
    return min(max(steps * _SIDE_STEP, _SMALLEST_SIDE), _LARGEST_SIDE)
