"""The request of ModelsLab's enterprise `nano_banana` endpoints: its fields, defaults and rules.

The endpoints are ``text2img``, and ``img2img`` and ``multi_ref`` for requests with references.
"""

import re
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from nanobanana_pipeline.request import MAX_REFERENCES, MAX_SEED, ImageRequest

__all__ = ["ModelsLabRequest"]

ONLY_WITH_REFERENCES: Final = frozenset({"ref_sha256", "keep_original_aspect"})
SIDE_MIN, SIDE_MAX, SIDE_STEP = 1024, 2048, 32

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


class ModelsLabRequest(ImageRequest):
    """A generation request without its API key.

    Numbers may come as decimal strings, and ``yes``/``no`` as booleans; both are normalised. Text
    is kept to the letter: it is neither stripped nor Unicode-normalised.

    Raises:
        pydantic.ValidationError: a field breaks the provider's rules.
    """

    delivery_fields: ClassVar = frozenset({"webhook", "track_id", "base64", "temp"})

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
    def size_asked(self) -> tuple[int, int] | None:
        """Width and height; None where a reference's aspect is kept."""
        if self.ref_sha256 and self.keep_original_aspect == "yes":
            return None
        return self.width, self.height

    def picture_fields(self) -> dict[str, Any]:
        """The fields that decide the picture; some do so only where there are references."""
        always = set(self.delivery_fields)
        left_out = always if self.ref_sha256 else always | ONLY_WITH_REFERENCES
        return self.model_dump(mode="json", exclude=left_out)

    @classmethod
    def fitted_size(cls, width: int, height: int) -> tuple[int, int]:
        """The size to ask for where a picture shall be as its reference is.

        Both sides are brought within what the provider allows, with the aspect kept as far as that
        goes: a small reference grows, a large one shrinks, and a long one is cut short.
        """
        scale = max(1.0, SIDE_MIN / min(width, height))
        scale = min(scale, SIDE_MAX / max(width, height))

        def fitted(side: int) -> int:
            return min(max(round(side * scale / SIDE_STEP) * SIDE_STEP, SIDE_MIN), SIDE_MAX)

        return fitted(width), fitted(height)

    def fields(self) -> dict[str, Any]:
        """What is sent, but for the key and the references' bytes: every field explicitly."""
        left_out = {"ref_sha256"} if self.ref_sha256 else set(ONLY_WITH_REFERENCES)
        return self.model_dump(exclude=left_out)
