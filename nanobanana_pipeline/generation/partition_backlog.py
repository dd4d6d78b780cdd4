"""Which partitions lack cells that a launch could buy, and how far a budget goes over them.

It holds what was launched before and what is named from above (recipes). What is
missing of it comes from manifests and the ledger alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from nanobanana_pipeline.generation.budget.counters import partition_scope
from nanobanana_pipeline.generation.manifest.manifest import (
    CellState,
    CurrentManifest,
    read_all_current,
)
from nanobanana_pipeline.generation.planning.planner import Launch, plan_cells
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.prompt_set import PromptSet
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.storage import ObjectStore

__all__ = ["Share", "find_backlog", "share_budget"]

BUYABLE: Final = frozenset({CellState.PENDING, CellState.OVER_BUDGET, CellState.FAILED})
"""Cells that another launch may buy; what is in doubt or lost is held, and no matter of budget."""


@dataclass(frozen=True)
class Backlog:
    """A partition that may lack cells.

    Attributes:
        limit: the pilot's that it was launched with; None for all rows.
        missing: cells, at most: those that failed for good, or are in the ledger already, count.
        is_first: it was named among those that go first.
        is_stale: its manifest is of another table than the prompt set's current one, or it has
            none.
    """

    prompt_set: str
    seed: int
    limit: int | None
    missing: int
    is_first: bool
    is_stale: bool


@dataclass(frozen=True)
class Share:
    """What a launch of a partition may buy.

    Attributes:
        max_images: as many as there is room for; 0 where only a manifest or what was bought before
            is missing.
    """

    backlog: Backlog
    max_images: int


def find_backlog(store: ObjectStore, first: Iterable[tuple[str, int]] = ()) -> list[Backlog]:
    """Partitions that may lack cells, in the order in which they should be launched.

    Those named in `first` (prompt set, seed) come first, also where they were never launched, but
    for those whose prompt set does not exist; then those that lack fewest, so that they become
    whole; then by name and seed. Reads one small object a partition and a prompt set.

    Raises:
        PromptTableError: a prompt set's ``current.json`` is damaged.
        StorageError: S3 refuses or holds damaged objects.
    """
    named = frozenset(first)
    manifests = {(m.prompt_set, m.seed): m for m in read_all_current(store)}
    partitions = named | manifests.keys()
    tables = {name: prompt_set.current(store, name) for name in {name for name, _ in partitions}}
    found = (
        _backlog_of(table, seed, manifests.get((name, seed)), is_first=(name, seed) in named)
        for name, seed in partitions
        if (table := tables[name]) is not None
    )
    return sorted(
        (each for each in found if each.missing or each.is_stale),
        key=lambda b: (not b.is_first, b.missing, b.prompt_set, b.seed),
    )


def share_budget(
    store: ObjectStore, account: Account, backlog: Iterable[Backlog], room: int
) -> Iterator[Share]:
    """Deal out the room of a budget, the first ones first.

    One partition of `find_backlog` after another is looked into (its prompt set, its manifest, and
    the ledger's entries of what is not settled) until `room`, the images that may be bought in all,
    is used up. Partitions whose own cap has no room are left out.

    Raises:
        PlanError: a partition cannot be launched.
        StorageError: S3 refuses or holds damaged objects.
    """
    for each in backlog:
        if room <= 0:
            return
        share = _share(store, account, each, room)
        if share is not None:
            room -= share.max_images
            yield share


def _backlog_of(
    table: PromptSet, seed: int, current: CurrentManifest | None, *, is_first: bool
) -> Backlog:
    limit = current.limit if current else None
    is_stale = current is None or current.fingerprint != table.fingerprint
    if current is None or is_stale:
        missing = min(table.rows, limit or table.rows)
    else:
        missing = sum(n for state, n in current.cells.items() if state in BUYABLE)
    return Backlog(table.name, seed, limit, missing, is_first, is_stale)


def _share(store: ObjectStore, account: Account, backlog: Backlog, room: int) -> Share | None:
    """What may be bought of a partition; None if launching it would come to nothing."""
    table = prompt_set.current(store, backlog.prompt_set)
    if table is None:
        return None
    prompts = prompt_set.load(store, table.name, table.fingerprint)
    launch = Launch(backlog.prompt_set, backlog.seed, "share", limit=backlog.limit)
    run_plan = plan_cells(store, account, launch, prompts).run_plan
    if not run_plan.buy:
        return Share(backlog, 0) if run_plan.resume or backlog.is_stale else None
    scope = partition_scope(store, account.budget, backlog.prompt_set, backlog.seed)
    spent = scope.read()
    own = scope.cap.room(spent.images_counted, spent.cost_counted, account.budget.price)
    allowed = min(run_plan.buy_images, room, run_plan.buy_images if own is None else own)
    return Share(backlog, allowed) if allowed else None
