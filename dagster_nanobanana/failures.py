"""What the domain refuses, shown as its own sentence and not as a stack trace."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from dagster_nanobanana.run_watch import RunOver
from nanobanana_pipeline.errors import NanobananaError

__all__ = ["plain_failures"]


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """Turn the domain's errors into failures of the step; trying again would not mend them.

    Raises:
        dagster.Failure: says what the domain said.
    """
    try:
        yield
    except (NanobananaError, RunOver) as error:
        raise dg.Failure(str(error), allow_retries=False) from None
