"""What a picture depends on, and the emulator's own hash of it."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class PictureFields:
    """The fields of a request that change its pictures, and none that do not.

    Width and height are pixels; `samples` is how many pictures one request makes; `references` are
    SHA-256 of what it starts from, in their order, and empty for `text2img`.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    seed: int
    samples: int
    noise_scale_start: float
    noise_scale_end: float
    noise_clip_std: float
    watermark: bool
    endpoint: str = "text2img"
    references: tuple[str, ...] = ()

    def digest(self) -> str:
        """Hash the fields: equal for requests that ask for the same pictures, else different."""
        fields = asdict(self)
        if not self.references:  # hashes of pictures without them are older than these fields
            del fields["endpoint"], fields["references"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `json.dumps(asdict(fields))` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"references": tuple(fields.get("references", ()))})

    def sample_digest(self, sample: int) -> bytes:
        """Hash one picture of the request, counted from 0; more samples leave the first alone."""
        alone = replace(self, samples=1).digest()
        return hashlib.sha256(f"{alone}:{sample}".encode()).digest()


@dataclass(frozen=True, slots=True)
class Order:
    """A valid request: what to draw, the client's own mark on it, and how to deliver it.

    Attributes:
        picture: What to draw.
        track_id: The client's mark, if it gave one.
        base64: Deliver texts of base64 instead of pictures.
        temp: Deliver to a path that is cleaned daily.
        webhook: Where to tell that it is done, if anywhere.
    """

    picture: PictureFields
    track_id: str | None
    base64: bool = False
    temp: bool = False
    webhook: str | None = None
