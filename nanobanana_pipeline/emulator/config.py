"""What an emulator can be told before it starts."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from nanobanana_pipeline.emulator.moods import check_rates

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EmulatorConfig(BaseModel):
    """The settings of one emulator; they never change while it runs.

    Attributes:
        mode: "queued" answers a POST at once and lets the client fetch; "sync" answers when done.
        cap: How many generations may be under way at once; one more is answered with a 429.
        retry_after_seconds: What a 429 asks the client to wait.
        latency_seconds: Shortest and longest time of a generation, drawn evenly in between.
        image_format: How pictures are encoded.
        expiry_seconds: How long outputs live after completion; the provider says 24 hours.
        slow_answer_seconds: The delay that the mood `slow_answer` adds.
        late_webhook_seconds: The delay that the mood `webhook_late` adds.
        found_late_seconds: How long after a purchase the mood `found_late` does not know its id.
        firewall_text: The text in a prompt that the mood `firewall` strikes at.
        moods: Rate of each misbehaviour, 0 to 1; those not named never happen.
        seed: Makes latencies and misbehaviours repeatable.
        api_key: The one key that is accepted; None accepts any that is not empty.
        data_dir: Where purchases outlive a restart; None keeps them in memory.
        keep_alive_seconds: How long an idle connection is kept open.
        wallet: What the account holds before it buys anything.
        price_per_image: What each picture takes from the wallet.
        currency: Of both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["queued", "sync"] = "queued"
    cap: Annotated[int, Field(ge=1)] = 10
    retry_after_seconds: _Seconds = 2
    latency_seconds: tuple[_Seconds, _Seconds] = (1.0, 3.0)
    image_format: Literal["png", "jpg", "webp"] = "png"
    expiry_seconds: _Seconds = 24 * 3600
    slow_answer_seconds: _Seconds = 5
    late_webhook_seconds: _Seconds = 60
    found_late_seconds: _Seconds = 5
    firewall_text: Annotated[str, Field(min_length=1)] = "/etc/passwd"
    moods: dict[str, float] = Field(default_factory=dict)
    seed: int = 0
    api_key: SecretStr | None = None
    data_dir: Path | None = None
    keep_alive_seconds: Annotated[int, Field(ge=0)] = 5
    wallet: Annotated[float, Field(allow_inf_nan=False)] = 1000.0
    price_per_image: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    currency: str = "USD"

    @field_validator("latency_seconds")
    @classmethod
    def _check_order(cls, latency: tuple[float, float]) -> tuple[float, float]:
        shortest, longest = latency
        if shortest > longest:
            raise ValueError(f"the shortest latency, {shortest}, is above the longest, {longest}")
        return latency

    @field_validator("moods")
    @classmethod
    def _check_moods(cls, moods: dict[str, float]) -> dict[str, float]:
        return check_rates(moods)
