"""One call to the provider, and the key under which its outcome is remembered.

The fields, defaults and rules are those of ModelsLab's enterprise ``nano_banana`` endpoints:
``text2img``, and ``img2img`` and ``multi_ref`` for requests with reference pictures. The request
key is the SHA-256 of the RFC 8785 canonical JSON of every field that changes the picture;
``tests/golden/request_keys.json`` pins it for ever.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

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
    "KEY_FIELDS",
    "KEY_VERSION",
    "MAX_SEED",
    "NOT_IN_THE_PICTURE",
    "ONLY_WITH_REFERENCES",
    "REQUEST_FIELDS",
    "SIDE_MAX",
    "SIDE_MIN",
    "SIDE_STEP",
    "TABLE_FIELDS",
    "DeliveryParameters",
    "ImageRequest",
    "PictureParameters",
    "canonical_json",
    "parameter_faults",
    "read_parameters",
    "request_key",
]

KEY_VERSION: Final = 1
NOT_IN_THE_PICTURE: Final = frozenset({"webhook", "track_id", "base64", "temp"})
ONLY_WITH_REFERENCES: Final = frozenset({"ref_sha256", "keep_original_aspect"})
MAX_REFERENCES: Final = 16

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


def _https_or_loopback(value: str) -> str:
    """A webhook carries pictures' addresses: it goes over https, or stays on this machine."""
    try:
        parts = urlsplit(value)
        host = (parts.hostname or "").lower()
    except ValueError:
        raise ValueError("not a URL") from None
    loopback = host in {"localhost", "127.0.0.1", "::1"}
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
        raise ValueError("must be an https URL")
    return value


EncodableText = Annotated[str, AfterValidator(_encodable)]
Whole = Annotated[int, BeforeValidator(_number)]
Side = Annotated[Whole, AfterValidator(_side)]
Noise = Annotated[
    float, BeforeValidator(_number), Field(allow_inf_nan=False), AfterValidator(_no_minus_zero)
]
YesNo = Annotated[Literal["yes", "no"], BeforeValidator(_yes_no)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
WebhookUrl = Annotated[EncodableText, AfterValidator(_https_or_loopback)]


class ImageRequest(BaseModel):
    """A generation request without its API key.

    Numbers may come as decimal strings, and ``yes``/``no`` as booleans; both are normalised. Text
    is kept to the letter: it is neither stripped nor Unicode-normalised. References are named by
    the SHA-256 of their bytes, in order; the bytes themselves are sent as ``ref_image``.

    Raises:
        pydantic.ValidationError: a field breaks the provider's rules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Annotated[EncodableText, AfterValidator(_not_blank)]
    negative_prompt: Annotated[EncodableText, BeforeValidator(_null_is_empty)] = ""
    width: Side = 2048
    height: Side = 2048
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)]
    samples: Annotated[Whole, Field(ge=1, le=4)] = 1
    noise_scale_start: Noise = 7.5
    noise_scale_end: Noise = 7.5
    noise_clip_std: Noise = 2.5
    watermark: YesNo = "no"
    keep_original_aspect: YesNo = "no"
    ref_sha256: Annotated[tuple[Sha256, ...], Field(max_length=MAX_REFERENCES)] = ()
    temp: YesNo = "no"
    base64: YesNo = "no"
    webhook: WebhookUrl | None = None
    track_id: EncodableText | None = None

    @property
    def endpoint(self) -> Literal["text2img", "img2img", "multi_ref"]:
        """The provider's path for it: its number of references decides."""
        if not self.ref_sha256:
            return "text2img"
        return "img2img" if len(self.ref_sha256) == 1 else "multi_ref"

    @property
    def size_is_asked(self) -> bool:
        """Whether pictures must be `width` × `height`; not where a reference's aspect is kept."""
        return not self.ref_sha256 or self.keep_original_aspect == "no"

    def fields(self) -> dict[str, Any]:
        """What is sent, but for the key and the references' bytes: every field explicitly."""
        left_out = {"ref_sha256"} if self.ref_sha256 else set(ONLY_WITH_REFERENCES)
        return self.model_dump(exclude=left_out)


REQUEST_FIELDS: Final = tuple(ImageRequest.model_fields)
KEY_FIELDS: Final = tuple(name for name in REQUEST_FIELDS if name not in NOT_IN_THE_PICTURE)
"""The fields that the request key is made of; without references `ONLY_WITH_REFERENCES` are not."""
TABLE_FIELDS: Final = tuple(name for name in REQUEST_FIELDS if name != "ref_sha256")
"""The fields that a prompt table gives directly; references come by its column ``ref_image``."""


class PictureParameters(BaseModel):
    """What a launch says for every row that does not say it itself; None leaves the default.

    Raises:
        pydantic.ValidationError: a field breaks the provider's rules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    negative_prompt: EncodableText | None = None
    width: Side | None = None
    height: Side | None = None
    samples: Annotated[Whole, Field(ge=1, le=4)] | None = None
    noise_scale_start: Noise | None = None
    noise_scale_end: Noise | None = None
    noise_clip_std: Noise | None = None
    watermark: YesNo | None = None
    keep_original_aspect: YesNo | None = None

    def given(self) -> dict[str, Any]:
        """The parameters that were named."""
        return self.model_dump(exclude_none=True)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The provider's own values, all of them."""
        return {name: ImageRequest.model_fields[name].default for name in cls.model_fields}


class DeliveryParameters(BaseModel):
    """How pictures come, for every row that does not say it itself; None leaves the default.

    They change no picture and no key, so a launch may name others than the one before.

    Attributes:
        base64: ``yes`` for text of base64 instead of picture files.
        temp: ``yes`` for the provider's folder that is cleaned daily.
        webhook: an https URL that is told of each completion, in place of this project's receiver.
        track_id: a label of your own; it follows the attempt's own id in what is sent.

    Raises:
        pydantic.ValidationError: a field breaks the provider's rules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base64: YesNo | None = None
    temp: YesNo | None = None
    webhook: WebhookUrl | None = None
    track_id: EncodableText | None = None

    def given(self) -> dict[str, Any]:
        """The parameters that were named."""
        return self.model_dump(exclude_none=True)


def read_parameters(given: Mapping[str, Any]) -> tuple[PictureParameters, DeliveryParameters]:
    """Part a launch's parameters into those of the picture and those of its delivery.

    Raises:
        pydantic.ValidationError: a field breaks the provider's rules, or there is no such field.
    """
    delivery = {n: value for n, value in given.items() if n in DeliveryParameters.model_fields}
    picture = {n: value for n, value in given.items() if n not in delivery}
    return PictureParameters(**picture), DeliveryParameters(**delivery)


def parameter_faults(error: ValidationError) -> str:
    """What is wrong with a launch's parameters, in a sentence a fault."""
    known = (*PictureParameters.model_fields, *DeliveryParameters.model_fields)
    return "; ".join(
        f"{fault['loc'][0]} {fault['input']!r}: " + fault["msg"].removeprefix("Value error, ")
        if fault["type"] != "extra_forbidden"
        else f"{fault['loc'][0]!r} is no parameter; there are {', '.join(known)}"
        for fault in error.errors(include_url=False)
    )


def canonical_json(
    request: ImageRequest, *, realm: str, endpoint: str | None = None, variant: str = ""
) -> bytes:
    """RFC 8785 JSON, in UTF-8, of what decides the picture.

    Args:
        request: the request; fields that do not change the picture are left out.
        realm: whose pictures these are (``modelslab``, ``emulator``, or a name of your own).
        endpoint: the provider's path; the request's own if None.
        variant: another value draws the same request again on purpose.
    """
    left_out = frozenset() if request.ref_sha256 else ONLY_WITH_REFERENCES
    fields: dict[str, Any] = request.model_dump(mode="json", include={*KEY_FIELDS} - left_out)
    return rfc8785.dumps(
        {
            **fields,
            "key_version": KEY_VERSION,
            "realm": realm,
            "endpoint": endpoint or request.endpoint,
            "variant": variant,
        }
    )


def request_key(
    request: ImageRequest, *, realm: str, endpoint: str | None = None, variant: str = ""
) -> str:
    """SHA-256 of `canonical_json`, as 64 hexadecimal digits."""
    canonical = canonical_json(request, realm=realm, endpoint=endpoint, variant=variant)
    return hashlib.sha256(canonical).hexdigest()
