"""Launches partitions again, each as it was launched the last time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from nanobanana_pipeline.errors import PlanError
from nanobanana_pipeline.generation.engine.engine import Progress
from nanobanana_pipeline.generation.launch_steps import Settled, settle_launch
from nanobanana_pipeline.generation.manifest.manifest import read_current
from nanobanana_pipeline.generation.planning.partition_plan import read_partition_plan
from nanobanana_pipeline.generation.planning.planner import Launch
from nanobanana_pipeline.generation.planning.run_files import RunPlan, unfinished_plans
from nanobanana_pipeline.money import Cap
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["relaunch", "retry"]


def relaunch(
    store: ObjectStore, prompt_set: str, seed: int, run_id: str, last: RunPlan | None = None
) -> Launch:
    """A launch of a partition with the parameters and the pilot's limit of the last one.

    Where the partition has no manifest yet it goes by its newest plan; where that was version
    0.1.0's by the plan `last`, or None to look for one.

    Raises:
        PlanError: it was never launched.
        StorageError: S3 refuses or holds damaged objects.
    """
    current, _ = read_current(store, prompt_set, seed)
    if current is not None:
        return Launch(prompt_set, seed, run_id, limit=current.limit)
    newest = read_partition_plan(store, prompt_set, seed)
    if newest is not None:
        return Launch(prompt_set, seed, run_id, limit=newest.limit)
    made = last or _last_plan(store, prompt_set, seed)
    return Launch(prompt_set, seed, run_id, parameters=made.parameters, limit=made.limit)


def retry(
    store: ObjectStore,
    account: Account,
    partitions: Iterable[tuple[str, int]],
    cap: Cap,
    *,
    run_id: Callable[[], str],
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[Settled]:
    """Launch partitions (prompt set, seed) again, in order, until all together reach the cap.

    The caps that are configured hold too. `run_id` names the run of each partition; `on_progress`
    is called now and then from this thread.

    Raises:
        PlanError: a partition cannot be launched.
        StorageError: S3 refuses or holds damaged objects.
    """
    for prompt_set, seed in partitions:
        if cap.is_reached:
            return
        again = relaunch(store, prompt_set, seed, run_id())
        launch = replace(again, max_images=cap.images, max_cost=cap.cost)
        settled = settle_launch(store, account, launch, on_progress=on_progress)
        yield settled
        if settled.report.halted:
            return  # the next partition would be refused as this one was
        cap = cap.less(settled.report.spent, account.budget.price)


def _last_plan(store: ObjectStore, prompt_set: str, seed: int) -> RunPlan:
    """The plan of a run that never came to its manifest.

    Raises:
        PlanError: there is none.
    """
    mine = [m for m in unfinished_plans(store) if (m.prompt_set, m.seed) == (prompt_set, seed)]
    if not mine:
        raise PlanError(f"{prompt_set}, seed {seed} was never launched: launch it first")
    return mine[-1]
