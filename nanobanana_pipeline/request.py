"""One call to a provider, and the key under which its outcome is remembered.

`ImageRequest` is what the pipeline knows of every provider's request; the fields, their defaults
and rules are those of the provider's own model. The request key is the SHA-256 of the RFC 8785
canonical JSON of every field that decides the picture; ``tests/golden/request_keys.json`` pins it.
"""

import functools
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Optional

import rfc8785
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

__all__ = [
    "MAX_REFERENCES",
    "MAX_SEED",
    "ImageRequest",
    "canonical_json",
    "parameter_faults",
    "request_key",
]

KEY_VERSION: Final = 1
MAX_REFERENCES: Final = 16
MAX_SEED: Final = 2**53 - 1
"""RFC 8785 numbers are IEEE doubles: a larger integer has no canonical form."""
ROW_FIELDS: Final = frozenset({"prompt", "seed", "ref_sha256"})
"""Fields that belong to a cell, and that no launch may set for all of them."""


class ImageRequest(BaseModel):
    """Base of every provider's request. A provider's model declares all its fields in one order.

    Stored JSON keeps that order. Each model has the six fields below; those that it does not use
    keep a default. `None` stands for no webhook and no label.

    Attributes:
        prompt: the text, kept to the letter.
        seed: of the provider's random numbers.
        samples: how many pictures; each is paid for.
        ref_sha256: of the bytes of its reference pictures, in order.
        webhook: where the provider tells of its end; the engine fills it in.
        track_id: the attempt's own name, and behind it a label; the engine fills it in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delivery_fields: ClassVar[frozenset[str]] = frozenset({"webhook", "track_id"})
    """Fields that decide how a picture comes, and not which."""

    if TYPE_CHECKING:
        # Declared here they would stand before all others, in stored JSON too.
        prompt: str
        seed: int
        samples: int
        ref_sha256: tuple[str, ...]
        webhook: str | None
        track_id: str | None

    @property
    def endpoint(self) -> str:
        """The kind of call, as part of the request key."""
        return "images"

    @property
    def size_asked(self) -> tuple[int, int] | None:
        """Width and height that the pictures must have; None if any will do."""
        return None

    def picture_fields(self) -> dict[str, Any]:
        """The fields that decide the picture, as JSON has them."""
        return self.model_dump(mode="json", include=set(self.key_fields()))

    @classmethod
    def fitted_size(cls, width: int, height: int) -> tuple[int | None, int | None]:
        """The size to ask for where a picture shall be as a reference is; None leaves it open."""
        del width, height
        return None, None

    @classmethod
    def table_fields(cls) -> tuple[str, ...]:
        """Fields that a prompt table gives directly; references come by its column `ref_image`."""
        return tuple(name for name in cls.model_fields if name != "ref_sha256")

    @classmethod
    def key_fields(cls) -> tuple[str, ...]:
        """Fields that the request key is made of; a model may leave some out of some requests."""
        return tuple(name for name in cls.model_fields if name not in cls.delivery_fields)

    @classmethod
    def default_parameters(cls) -> dict[str, Any]:
        """The provider's own values of all that a launch may say of its pictures."""
        return {
            name: field.default
            for name, field in cls.model_fields.items()
            if name not in ROW_FIELDS | cls.delivery_fields
        }

    @classmethod
    def read_parameters(cls, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Part a launch's parameters into those of the picture and those of its delivery.

        They hold for every row that does not say otherwise; None leaves the default.

        Raises:
            pydantic.ValidationError: a field breaks a rule, or there is no such field.
        """
        named = {name: value for name, value in given.items() if value is not None}
        read = _parameters_of(cls)(**named).model_dump(exclude_unset=True)
        delivery = {name: read.pop(name) for name in list(read) if name in cls.delivery_fields}
        return read, delivery


@functools.cache
def _parameters_of(model: type[ImageRequest]) -> type[BaseModel]:
    """A model of all that a launch may say, by the rules of the provider's model."""
    fields: dict[str, Any] = {
        name: (Optional[field.rebuild_annotation()], None)  # noqa: UP045 - made while it runs
        for name, field in model.model_fields.items()
        if name not in ROW_FIELDS
    }
    return create_model("Parameters", __config__=ConfigDict(extra="forbid"), **fields)


def parameter_faults(model: type[ImageRequest], error: ValidationError) -> str:
    """What is wrong with a launch's parameters, in a sentence a fault."""
    known = (*model.default_parameters(), *sorted(model.delivery_fields))
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
    return rfc8785.dumps(
        {
            **request.picture_fields(),
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
