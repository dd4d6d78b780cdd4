"""One call to the provider, and the key under which its outcome is remembered.

The fields, defaults and rules are those of ModelsLab's enterprise ``nano_banana/text2img``. The
request key is the SHA-256 of the RFC 8785 canonical JSON of every field that changes the picture;
``tests/golden/request_keys.json`` pins it for ever.
"""

import hashlib
import re
from typing import Annotated, Any, Final, Literal

import rfc8785
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

__all__ = [
    "KEY_VERSION",
    "MAX_SEED",
    "NOT_IN_THE_PICTURE",
    "REQUEST_FIELDS",
    "SIDE_MAX",
    "SIDE_MIN",
    "SIDE_STEP",
    "ImageRequest",
    "PictureParameters",
    "canonical_json",
    "parameter_faults",
    "request_key",
]

KEY_VERSION: Final = 1
NOT_IN_THE_PICTURE: Final = frozenset({"webhook", "track_id", "base64", "temp"})

SIDE_MIN, SIDE_MAX, SIDE_STEP = 1024, 2048, 32
MAX_SEED: Final = 2**53 - 1
"""RFC 8785 numbers are IEEE doubles: a larger integer has no canonical form."""

_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_YES_NO = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}


def _number(value: object) -> object:
    """Give a decimal string as a number; refuse booleans, which Python counts as numbers."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")  # noqa: TRY004 - pydantic's way
    if isinstance(value, str):
        text = value.strip()
        if not _DECIMAL.fullmatch(text):
            raise ValueError("not a number")
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return value


def _yes_no(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return _YES_NO.get(value.strip().lower(), value)
    return value


def _no_minus_zero(value: float) -> float:
    return value + 0.0


def _encodable(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start + 1}") from None
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("blank")
    return value


def _null_is_empty(value: object) -> object:
    return "" if value is None else value


def _side(value: int) -> int:
    if not SIDE_MIN <= value <= SIDE_MAX or value % SIDE_STEP:
        raise ValueError(f"must be {SIDE_MIN} to {SIDE_MAX} and divisible by {SIDE_STEP}")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
Whole = Annotated[int, BeforeValidator(_number)]
Side = Annotated[Whole, AfterValidator(_side)]
Noise = Annotated[
    float, BeforeValidator(_number), Field(allow_inf_nan=False), AfterValidator(_no_minus_zero)
]
YesNo = Annotated[Literal["yes", "no"], BeforeValidator(_yes_no)]


class ImageRequest(BaseModel):
    """A `text2img` request without its API key.

    Numbers may come as decimal strings, and ``yes``/``no`` as booleans; both are normalised. Text
    is kept to the letter: it is neither stripped nor Unicode-normalised.

    Raises:
        pydantic.ValidationError: a field breaks the provider's rules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Annotated[Text, AfterValidator(_not_blank)]
    negative_prompt: Annotated[Text, BeforeValidator(_null_is_empty)] = ""
    width: Side = 2048
    height: Side = 2048
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)]
    samples: Annotated[Whole, Field(ge=1, le=4)] = 1
    noise_scale_start: Noise = 7.5
    noise_scale_end: Noise = 7.5
    noise_clip_std: Noise = 2.5
    watermark: YesNo = "no"
    temp: YesNo = "no"
    base64: YesNo = "no"
    webhook: Text | None = None
    track_id: Text | None = None


REQUEST_FIELDS: Final = tuple(ImageRequest.model_fields)


class PictureParameters(BaseModel):
    """What a launch says for every row that does not say it itself; None leaves the default.

    Raises:
        pydantic.ValidationError: a field breaks the provider's rules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    negative_prompt: Text | None = None
    width: Side | None = None
    height: Side | None = None
    samples: Annotated[Whole, Field(ge=1, le=4)] | None = None
    noise_scale_start: Noise | None = None
    noise_scale_end: Noise | None = None
    noise_clip_std: Noise | None = None
    watermark: YesNo | None = None

    def given(self) -> dict[str, Any]:
        """The parameters that were named."""
        return self.model_dump(exclude_none=True)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The provider's own values, all of them."""
        return {name: ImageRequest.model_fields[name].default for name in cls.model_fields}


def parameter_faults(error: ValidationError) -> str:
    """What is wrong with picture parameters, in a sentence a fault."""
    return "; ".join(
        f"{fault['loc'][0]} {fault['input']!r}: " + fault["msg"].removeprefix("Value error, ")
        if fault["type"] != "extra_forbidden"
        else f"{fault['loc'][0]!r} is no picture parameter; there are "
        + ", ".join(PictureParameters.model_fields)
        for fault in error.errors(include_url=False)
    )


def canonical_json(
    request: ImageRequest, *, realm: str, endpoint: str = "text2img", variant: str = ""
) -> bytes:
    """RFC 8785 JSON, in UTF-8, of what decides the picture.

    Args:
        request: the request; fields that do not change the picture are left out.
        realm: whose pictures these are (``modelslab``, ``emulator``, or a name of your own).
        endpoint: the provider's path.
        variant: another value draws the same request again on purpose.
    """
    fields: dict[str, Any] = request.model_dump(exclude=set(NOT_IN_THE_PICTURE))
    return rfc8785.dumps(
        {
            **fields,
            "key_version": KEY_VERSION,
            "realm": realm,
            "endpoint": endpoint,
            "variant": variant,
        }
    )


def request_key(
    request: ImageRequest, *, realm: str, endpoint: str = "text2img", variant: str = ""
) -> str:
    """SHA-256 of `canonical_json`, as 64 hexadecimal digits."""
    canonical = canonical_json(request, realm=realm, endpoint=endpoint, variant=variant)
    return hashlib.sha256(canonical).hexdigest()
