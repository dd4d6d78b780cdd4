"""Derived prompt sets: the prompts of which a dataset has too few pictures, to be drawn again.

They are prompt sets like any other: snapshots of rows as the origin's snapshot has them, so that
every request and its key are what the origin's would be. One never changes: its name,
``<dataset>.top-up.<origin>.<12 hexadecimal digits>``, says what it is made of.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
import rfc8785

from nanobanana_pipeline.bucket_keys import prompt_set_key
from nanobanana_pipeline.errors import PromptTableError
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.checked_prompts import CheckedPrompts, fingerprint
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["is_topup_set", "origin_of", "topup_prefix", "write_topup_set"]

DIGITS: Final = 12
ALWAYS: Final = ("prompt_id", "prompt")
NOTHING_WRONG: Final = {"row": "int64", "column": "str", "value": "str", "reason": "str"}


def topup_prefix(dataset: str) -> str:
    """What the names of all prompt sets that are derived for a dataset begin with."""
    return f"{dataset}.top-up."


def origin_of(dataset: str, name: str) -> str | None:
    """The prompt set that `name` was derived from for this dataset; None if it was not."""
    found = re.fullmatch(rf"{re.escape(topup_prefix(dataset))}(.+)\.[0-9a-f]{{{DIGITS}}}", name)
    return found[1] if found else None


def is_topup_set(name: str) -> bool:
    """Whether a prompt set was derived for some dataset."""
    return origin_of(name.partition(topup_prefix(""))[0], name) is not None


def write_topup_set(
    store: ObjectStore,
    dataset: str,
    origin: prompt_set.PromptSet,
    prompts: pd.DataFrame,
    parameters: Mapping[str, Any],
) -> str:
    """Keep rows of the origin's snapshot, in its order, as a prompt set; gives its name.

    `parameters` are all picture parameters that they will be drawn with: a set that is drawn with
    others is another one.

    Raises:
        PromptTableError: dataset and prompt set have too long names together.
    """
    empty = [name for name in prompts if name not in ALWAYS and prompts[name].isna().all()]
    rows = prompts.drop(columns=empty).reset_index(drop=True)
    made_of = rfc8785.dumps({"prompts": fingerprint(rows), "parameters": dict(parameters)})
    digest = hashlib.sha256(made_of).hexdigest()[:DIGITS]
    name = f"{topup_prefix(dataset)}{origin.name}.{digest}"
    try:
        kept = prompt_set.current(store, prompt_set.valid_name(name))
    except PromptTableError as error:
        raise PromptTableError(
            f"{error}; it is derived from the prompt set {origin.name!r} for the dataset "
            f"{dataset!r}: give one of them a shorter name"
        ) from None
    if kept is None:
        source = store.uri(prompt_set_key(origin.name, f"{origin.fingerprint}.parquet"))
        faults = pd.DataFrame(columns=list(NOTHING_WRONG)).astype(NOTHING_WRONG)
        prompt_set.snapshot(store, name, CheckedPrompts(source, rows, faults))
    return name
