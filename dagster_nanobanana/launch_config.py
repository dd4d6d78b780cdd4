"""What a launch of `generated_images` may say in the launchpad."""

from decimal import Decimal, InvalidOperation
from typing import Any

import dagster as dg
from pydantic import Field, ValidationError

from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.provider.account import PROVIDER
from nanobanana_pipeline.request import parameter_faults

__all__ = ["GenerationConfig", "amount_of", "launch_of"]


class GenerationConfig(dg.Config):
    """What a launch may say. Everything left out stays as the partition was made before."""

    width: int | None = Field(
        None, description="Pixels, 1024 to 2048, divisible by 32. The provider's default is 2048."
    )
    height: int | None = Field(
        None, description="Pixels, 1024 to 2048, divisible by 32. The provider's default is 2048."
    )
    samples: int | None = Field(
        None, description="Pictures a cell, 1 to 4; each is paid for. Default 1."
    )
    negative_prompt: str | None = Field(None, description="What should not be in the pictures.")
    noise_scale_start: float | None = Field(
        None, description="The provider's noise_scale_start. Default 7.5."
    )
    noise_scale_end: float | None = Field(
        None, description="The provider's noise_scale_end. Default 7.5."
    )
    noise_clip_std: float | None = Field(
        None, description="The provider's noise_clip_std. Default 2.5."
    )
    watermark: bool | None = Field(
        None, description="Whether the provider puts its watermark in. Default no."
    )
    keep_original_aspect: bool | None = Field(
        None, description="For rows with a reference picture: keep its aspect. Default no."
    )
    base64: bool | None = Field(
        None, description="Have pictures sent as text of base64 instead of files. Default no."
    )
    temp: bool | None = Field(
        None, description="Have pictures kept in the provider's folder cleaned daily. Default no."
    )
    webhook: str | None = Field(
        None,
        description=(
            "An https URL of your own that is told of each completion. Default: this project's "
            "receiver, where NANOBANANA_WEBHOOK_URL names one."
        ),
    )
    track_id: str | None = Field(
        None, description="A label of your own, sent behind each attempt's id as its track_id."
    )
    change_parameters: bool = Field(
        default=False,
        description=(
            "Buy the partition anew where the pictures' parameters (width, negative_prompt, …) "
            "differ from those it was made with. Without it such a launch is refused, with what it "
            "would buy."
        ),
    )
    limit: int | None = Field(
        None,
        description=(
            "A pilot: buy so many rows of the prompt set only, always the same ones; a larger "
            "limit adds to a smaller one. The rest is not_requested."
        ),
    )
    max_images: int | None = Field(
        None,
        description=(
            "Buy at most so many images in this run; the rest is over budget. 0 buys nothing: it "
            "brings what was bought, and accounts for it."
        ),
    )
    max_cost: str | None = Field(
        None,
        description=(
            "Spend at most so much money in this run, in the currency of "
            "NANOBANANA_PRICE_PER_IMAGE; the rest is over budget."
        ),
    )
    rebuy: bool = Field(
        default=False,
        description=(
            "Buy again what is in doubt or lost, where no evidence settles it: may be paid for "
            "twice. Requests in doubt wait until 15 minutes after their claim has run out."
        ),
    )
    slots: int | None = Field(
        None, description="Most requests at the provider at once. Default: NANOBANANA_SLOTS."
    )
    shard_size: int | None = Field(
        None,
        description=(
            "Most requests a step. Left out, all go through one step: best on one machine, where "
            "steps cost more than they bring. Several machines share a partition by its shards."
        ),
    )


def launch_of(config: GenerationConfig, name: str, seed: int, run_id: str) -> Launch:
    """What a launch's config asks for.

    Raises:
        PlanError: values are out of range; all are named. Dagster's config types know no ranges,
            and a config mapping that raises shows the launchpad an internal error instead.
    """
    model = PROVIDER.request_model
    named = {*model.default_parameters(), *model.delivery_fields}
    faults: list[str] = []
    picture, delivery, max_cost = dict[str, Any](), dict[str, Any](), None
    try:
        picture, delivery = model.read_parameters(config.model_dump(include=named))
    except ValidationError as error:
        faults.append(parameter_faults(model, error))
    try:
        max_cost = amount_of(config.max_cost)
    except PlanError as error:
        faults.append(str(error))
    if config.slots is not None and config.slots < 1:
        faults.append(f"slots {config.slots} is out of range: use 1 or more, or none")
    asked = Launch(
        prompt_set=name,
        seed=seed,
        run_id=run_id,
        parameters=picture,
        delivery=delivery,
        change_parameters=config.change_parameters,
        limit=config.limit,
        shard_size=config.shard_size,
        rebuy=config.rebuy,
        max_images=config.max_images,
        max_cost=max_cost,
    )
    faults += asked.faults
    if faults:
        raise PlanError("; ".join(faults))
    return asked


def amount_of(max_cost: str | None) -> Decimal | None:
    """What a config's `max_cost` says, which is text so that no digit is lost.

    Raises:
        PlanError: it is no amount.
    """
    try:
        return None if max_cost is None else Decimal(max_cost)
    except InvalidOperation:
        raise PlanError(f"max_cost {max_cost!r} is no amount of money") from None
