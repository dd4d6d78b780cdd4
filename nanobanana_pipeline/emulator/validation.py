"""The provider's rules for the body of a generation, as its contract states them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nanobanana_pipeline.emulator.fields import Order, PictureFields

_T = TypeVar("_T")

_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_LONGEST_NUMBER = 64  # characters; far more than a 64-bit number needs
_SMALLEST_SIDE, _LARGEST_SIDE, _SIDE_STEP = 1024, 2048, 32
_MOST_SAMPLES = 4
_LARGEST_SEED = 2**64 - 1


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
    width = fields.read("width", _side, _nearest_side(original_width))
    height = fields.read("height", _side, _nearest_side(original_height))
    if fields.read("keep_original_aspect", _switch, False) and original_size:  # noqa: FBT003 - a value, not a flag
        longest = max(width, height) / max(original_size)
        width, height = (_nearest_side(side * longest) for side in original_size)
    picture = PictureFields(
        prompt=fields.read("prompt", _prompt, ""),
        negative_prompt=fields.read("negative_prompt", _text, ""),
        width=width,
        height=height,
        seed=fields.read("seed", _seed, 0),
        samples=fields.read("samples", _samples, 1),
        noise_scale_start=fields.read("noise_scale_start", _number, 7.5),
        noise_scale_end=fields.read("noise_scale_end", _number, 7.5),
        noise_clip_std=fields.read("noise_clip_std", _number, 2.5),
        watermark=fields.read("watermark", _switch, False),  # noqa: FBT003 - a value, not a flag
        endpoint=endpoint,
        references=tuple(references),
    )
    track_id = fields.read("track_id", _text, "")
    webhook = fields.read("webhook", _text, "")
    temp, base64 = (
        fields.read(name, _switch, False)  # noqa: FBT003 - a value, not a flag
        for name in ("temp", "base64")
    )
    if not picture.prompt and "prompt" not in fields.errors:
        fields.errors["prompt"] = ["prompt is required"]
    if fields.errors:
        raise InvalidOrderError(fields.errors)
    return Order(picture, track_id or None, base64=base64, temp=temp, webhook=webhook or None)


class _BadValueError(ValueError):
    """What is wrong with one value, as the end of a sentence that begins with the field's name."""


class _Fields:
    """Reads fields one by one and collects what is wrong with them."""

    def __init__(self, body: Mapping[str, object]) -> None:
        self._body = body
        self.errors: dict[str, list[str]] = {}

    def read(self, name: str, parse: Callable[[object], _T], default: _T) -> _T:
        """Parse a field; when it is missing or wrong, go on with `default`."""
        raw = self._body.get(name)
        if raw is None:
            return default
        try:
            return parse(raw)
        except _BadValueError as error:
            self.errors[name] = [f"{name} {error}"]
            return default


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise _BadValueError("must be a string")
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise _BadValueError("must not contain lone surrogates") from None
    return raw


def _prompt(raw: object) -> str:
    prompt = _text(raw)
    if not prompt.strip():
        raise _BadValueError("is required")
    return prompt


def _number(raw: object) -> float:
    if isinstance(raw, str) and len(raw) <= _LONGEST_NUMBER and _NUMBER.fullmatch(raw):
        raw = float(raw)
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise _BadValueError("must be a number")
    try:
        number = float(raw)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _BadValueError("must be a finite number")
    return number + 0.0  # -0.0 draws the same picture as 0.0


def _whole(raw: object) -> int:
    # Whole numbers never pass through a float, which would round seeds beyond 2^53.
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and len(raw) <= _LONGEST_NUMBER and _WHOLE.fullmatch(raw):
        return int(raw)
    number = _number(raw)
    if not number.is_integer():
        raise _BadValueError("must be a whole number")
    return int(number)


def _side(raw: object) -> int:
    side = _whole(raw)
    if not _SMALLEST_SIDE <= side <= _LARGEST_SIDE:
        raise _BadValueError(f"must be between {_SMALLEST_SIDE} and {_LARGEST_SIDE}")
    if side % _SIDE_STEP:
        raise _BadValueError(f"must be divisible by {_SIDE_STEP}")
    return side


def _nearest_side(pixels: float) -> int:
    """Find the side that the rules allow and that is nearest."""
    steps = round(pixels / _SIDE_STEP)
    return min(max(steps * _SIDE_STEP, _SMALLEST_SIDE), _LARGEST_SIDE)


def _samples(raw: object) -> int:
    samples = _whole(raw)
    if not 1 <= samples <= _MOST_SAMPLES:
        raise _BadValueError(f"must be between 1 and {_MOST_SAMPLES}")
    return samples


def _seed(raw: object) -> int:
    seed = _whole(raw)
    if not 0 <= seed <= _LARGEST_SEED:
        raise _BadValueError(f"must be between 0 and {_LARGEST_SEED}")
    return seed


def _switch(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.strip().lower() in {"yes", "no"}:
        return raw.strip().lower() == "yes"
    raise _BadValueError('must be "yes" or "no"')
