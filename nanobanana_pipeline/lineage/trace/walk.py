"""`Walk` collects a `LineageGraph`, upstream and downstream from what a trace has looked up.

It reads only the first ledger entries of many requests, and the first plans and snapshots of many
runs and prompt sets; manifests tell enough about the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from nanobanana_pipeline.bucket_keys import (
    ledger_key,
    manifest_prefix,
    prompt_set_key,
    release_key,
    run_done_key,
    run_plan_key,
)
from nanobanana_pipeline.errors import (
    EntryDamaged,
    PromptTableError,
    StorageError,
    StorageUnavailable,
)
from nanobanana_pipeline.generation.manifest import manifest
from nanobanana_pipeline.generation.planning.run_files import RunPlan, read_plan, read_request_keys
from nanobanana_pipeline.ledger import COSTING, Entry, Held, Ledger, Outcome
from nanobanana_pipeline.lineage.openlineage.recorder import was_stopped
from nanobanana_pipeline.lineage.trace.current_tables import (
    PartitionManifest,
    read_partition_manifest,
)
from nanobanana_pipeline.lineage.trace.graph import LineageGraph, Link, Node, NodeKind
from nanobanana_pipeline.lineage.trace.index_reader import INDEXED_COLUMNS, LookupOrder, TraceIndex
from nanobanana_pipeline.prompts import prompt_set
from nanobanana_pipeline.prompts.checked_prompts import attributes_of
from nanobanana_pipeline.provider.account import PROVIDER
from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.wording import counted

__all__ = ["Walk", "run_rows"]

MAX_ENTRIES: Final = 100
MAX_COUNTED: Final = 10_000
"""Of a run without a manifest, so many requests are looked up in the ledger."""
UNANSWERED: Final = frozenset({Outcome.SUBMITTING, Outcome.IN_DOUBT})
MAX_RUNS: Final = 32
MAX_SNAPSHOTS: Final = 8

Row = Mapping[str, Any]


class Walk:
    """Collects a lineage graph. Not safe to share between threads."""

    def __init__(self, store: ObjectStore, index: TraceIndex) -> None:
        self.index = index
        self._store = store
        self._matches: dict[str, None] = {}
        self._nodes: dict[str, Node] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._notes: dict[str, None] = {}
        self._plans: dict[str, RunPlan | None] = {}

    def add_image(self, sha256: str, request_keys: Iterable[str]) -> None:
        """Add an image, the requests that made it, and the releases that hold it."""
        keys = sorted(request_keys)
        self._requests(keys, self._cells(keys), only={sha256})
        if not keys:
            self._add(NodeKind.IMAGE, sha256)
            self._notes["no manifest in force has this picture: only releases do"] = None
        self._releases([sha256])
        self._matches[f"{NodeKind.IMAGE}:{sha256}"] = None

    def add_requests(self, request_keys: Iterable[str]) -> None:
        """Add requests, and all that was made from them."""
        keys = sorted(request_keys)
        self._releases(self._requests(keys, self._cells(keys)))
        self._matches |= {f"{NodeKind.REQUEST}:{key}": None for key in keys}

    def add_prompts(self, cells: Sequence[Row]) -> None:
        """Add the prompt rows of these cells, and all that was made from them."""
        keys = sorted({row["request_key"] for row in cells})
        self._releases(self._requests(keys, cells))
        for row in cells:
            self._matches[f"{NodeKind.PROMPT_ROW}:{_prompt_name(row)}"] = None

    def add_run(self, run_id: str, rows: Sequence[Row]) -> None:
        """Add a run, and what it made."""
        keys = sorted({row["request_key"] for row in rows})
        if rows:
            self._releases(self._requests(keys, rows))
        else:
            plan = self._plan(run_id)
            all_planned = read_request_keys(self._store, plan) if plan else iter(())
            planned = sorted(islice(all_planned, MAX_COUNTED))
            self._releases(self._requests(planned, self._cells(planned)))
            self._notes[self._bought(run_id, planned)] = None
        self._run(run_id)
        self._matches[f"{NodeKind.RUN}:{run_id}"] = None

    def _bought(self, run_id: str, planned: Sequence[str]) -> str:
        """What a run without a manifest has bought, by the ledger."""
        bought = unsure = 0
        for held in Ledger(self._store).read_many(planned):
            if isinstance(held, EntryDamaged):
                self._notes[str(held)] = None
                continue
            outcomes = [a.outcome for a in held.entry.attempts if a.run_id == run_id]
            bought += held.entry.samples * sum(
                outcome in COSTING - UNANSWERED for outcome in outcomes
            )
            unsure += held.entry.samples * sum(outcome in UNANSWERED for outcome in outcomes)
        said = f"it bought {counted(bought, 'image') if bought else 'nothing'}"
        if unsure:
            said += f", and may have bought {unsure:,} more"
        if bought or unsure:
            said = f"the ledger says that {said}"
        if len(planned) == MAX_COUNTED:
            said += f" (only its first {counted(MAX_COUNTED, 'request', 'was')} counted)"
        return f"no manifest has anything of run {run_id}: {said}"

    def graph(self, query: str) -> LineageGraph:
        """The collected graph."""
        notes = [self.index.stale_text] if self.index.stale else []
        return LineageGraph(
            query=query,
            matches=tuple(self._matches),
            nodes=self._nodes,
            links=tuple(self._links.values()),
            notes=(*notes, *self._notes),
        )

    def _add(self, kind: NodeKind, name: str, **facts: Any) -> str:  # noqa: ANN401
        """Add a node, or facts to it; returns its id."""
        known = {n: value for n, value in facts.items() if value is not None}
        before = self._nodes.get(f"{kind}:{name}")
        node = Node(kind, name, {**(before.facts if before else {}), **known})
        self._nodes[node.id] = node
        return node.id

    def _link(self, source: str, target: str, **facts: Any) -> None:  # noqa: ANN401
        self._links.setdefault((source, target), Link(source, target, facts))

    def _cells(self, request_keys: Sequence[str]) -> list[Row]:
        """Cells of requests from the index; for the rest, from their runs' partitions."""
        cells: list[Row] = list(self.index.find(LookupOrder.REQUEST, request_keys))
        missing = set(request_keys) - {row["request_key"] for row in cells}
        if missing:
            held = Ledger(self._store).read_many(sorted(missing)[:MAX_ENTRIES])
            runs = {a.run_id for h in held if isinstance(h, Held) for a in h.entry.attempts}
            plans = [plan for run in sorted(runs)[:MAX_RUNS] if (plan := self._plan(run))]
            for name, seed in sorted({(plan.prompt_set, plan.seed) for plan in plans}):
                partition = read_partition_manifest(self._store, name, seed)
                rows = _rows(self._store, partition) if partition else []
                cells += [row for row in rows if row["request_key"] in missing]
        return cells

    def _requests(
        self, keys: Sequence[str], cells: Sequence[Row], only: set[str] | None = None
    ) -> list[str]:
        """Add requests with their cells, runs and images; returns the images' hashes."""
        held = {}
        for each in Ledger(self._store).read_many(keys[:MAX_ENTRIES]):
            if isinstance(each, EntryDamaged):
                self._notes[str(each)] = None
            else:
                held[each.entry.request_key] = each.entry
        if len(keys) > MAX_ENTRIES:
            self._notes[
                f"of {len(keys):,} requests the first {MAX_ENTRIES} have parameters and attempts; "
                "trace a request key for those of another"
            ] = None
        images: dict[str, None] = {}
        for key in keys:
            request = self._add(NodeKind.REQUEST, key, ledger=self._store.uri(ledger_key(key)))
            if key in held:
                images |= self._entry(request, held[key], only)
        for row in cells:
            request = self._add(NodeKind.REQUEST, row["request_key"])
            self._link(self._cell(row), request)
            sha256 = row["image_sha256"]
            if row["request_key"] not in held:
                self._add(NodeKind.REQUEST, row["request_key"], state=row["state"])
                self._link_run(row["run_id"], request)
            if sha256 is not None and (only is None or sha256 in only):
                self._link(request, self._add(NodeKind.IMAGE, sha256), sample=row["sample"])
                images[sha256] = None
        self._describe_prompts(cells)
        return list(images)

    def _entry(self, request: str, entry: Entry, only: set[str] | None) -> dict[str, None]:
        delivery = PROVIDER.request_model.delivery_fields
        self._add(
            NodeKind.REQUEST,
            entry.request_key,
            state=entry.state.value,
            reason=entry.reason,
            realm=entry.realm,
            endpoint=entry.endpoint,
            parameters={
                name: value
                for name, value in entry.request.items()
                if name not in delivery and value not in ("", [])
            },
            attempts=[
                # Output URLs are secret: they give access to the image.
                attempt.model_dump(mode="json", exclude={"output"}, exclude_none=True)
                for attempt in entry.attempts
            ],
        )
        for attempt in entry.attempts:
            self._link_run(attempt.run_id, request)
        images: dict[str, None] = {}
        for image in entry.images:
            if only is None or image.sha256 in only:
                node = self._add(
                    NodeKind.IMAGE,
                    image.sha256,
                    uri=self._store.uri(image.key),
                    format=image.format,
                    width=image.width,
                    height=image.height,
                    bytes=image.size,
                    provenance=list(image.marks) or None,
                )
                self._link(request, node, sample=image.sample)
                images[image.sha256] = None
        return images

    def _cell(self, row: Row) -> str:
        of: PartitionManifest = row["of"]
        table = self._add(NodeKind.PROMPT_SET, of.prompt_set)
        prompt = self._add(NodeKind.PROMPT_ROW, _prompt_name(row))
        cell = self._add(
            NodeKind.CELL,
            f"{_prompt_name(row)} seed={of.seed}",
            state=row["state"],
            manifest=self._store.uri(of.table),
            table_fingerprint=of.fingerprint,
        )
        self._link(table, prompt)
        self._link(prompt, cell)
        return cell

    def _link_run(self, run_id: str | None, request: str) -> None:
        if run_id is not None:
            self._link(self._run(run_id), request)

    def _run(self, run_id: str) -> str:
        if f"{NodeKind.RUN}:{run_id}" in self._nodes:
            return f"{NodeKind.RUN}:{run_id}"
        plan = self._plan(run_id) if len(self._plans) < MAX_RUNS else None
        if plan is None:
            return self._add(NodeKind.RUN, run_id)
        finished = self._store.head(run_done_key(run_id)) is not None
        return self._add(
            NodeKind.RUN,
            run_id,
            prompt_set=plan.prompt_set,
            seed=plan.seed,
            table_fingerprint=plan.fingerprint,
            code_version=plan.code_version or "unknown: the run's plan does not say it",
            parameters=dict(plan.parameters),
            plan=self._store.uri(run_plan_key(run_id)),
            finished=finished,
            # Unknown for old, running and dead runs.
            stopped=(not finished and was_stopped(self._store, "generated_images", run_id)) or None,
        )

    def _plan(self, run_id: str) -> RunPlan | None:
        """A run's plan; None, with a note, if it is missing or unreadable."""
        if run_id not in self._plans:
            try:
                self._plans[run_id] = read_plan(self._store, run_id)
            except StorageUnavailable:
                raise
            except StorageError as error:
                self._plans[run_id] = None
                note = f"the plan of run {run_id} is unknown, and with it its code version"
                self._notes[f"{note} ({error})"] = None
        return self._plans[run_id]

    def _describe_prompts(self, cells: Sequence[Row]) -> None:
        """Add prompts and attributes from the prompt sets' snapshots."""
        wanted: dict[tuple[str, str], set[str]] = {}
        for row in cells:
            of: PartitionManifest = row["of"]
            wanted.setdefault((of.prompt_set, of.fingerprint), set()).add(row["prompt_id"])
        for name, fingerprint in sorted(wanted)[:MAX_SNAPSHOTS]:
            current = prompt_set.current(self._store, name)
            is_current = current is not None and current.fingerprint == fingerprint
            self._add(
                NodeKind.PROMPT_SET,
                name,
                table_fingerprint=fingerprint,
                snapshot=self._store.uri(prompt_set_key(name, f"{fingerprint}.parquet")),
                source=current.source if current and is_current else None,
            )
            try:
                prompts = prompt_set.read_prompts_arrow(self._store, name, fingerprint)
            except PromptTableError as error:
                self._notes[str(error)] = None
                continue
            attributes = attributes_of(prompts.column_names)
            for at, prompt_id in enumerate(prompts["prompt_id"].to_pylist()):
                if prompt_id in wanted[name, fingerprint]:
                    row = prompts.slice(at, 1).to_pylist()[0]
                    self._add(
                        NodeKind.PROMPT_ROW,
                        f"{name}/{prompt_id}",
                        prompt=row["prompt"],
                        attributes={k: row[k] for k in attributes if row[k] is not None} or None,
                    )

    def _releases(self, images: Iterable[str]) -> None:
        for row in self.index.find(LookupOrder.RELEASE, images):
            of = row["of"]
            release = self._add(
                NodeKind.RELEASE,
                f"{of.dataset} {of.version}",
                uri=self._store.uri(release_key(of.dataset, of.version, "release.json")),
                created=of.created,
                code_version=of.code_version,
                fingerprint=of.fingerprint,
            )
            image = f"{NodeKind.IMAGE}:{row['image_sha256']}"
            self._link(image, release, split=row["split"], shard=row["shard"], key=row["key"])


def run_rows(store: ObjectStore, run_id: str) -> list[Row]:
    """The rows that a run made, from its own manifest and from the partition's current one.

    If the partition's parameters have changed since, only the run's own manifest has them.
    """
    plan = read_plan(store, run_id)
    folder = manifest_prefix(plan.prompt_set, plan.seed)
    own = [
        PartitionManifest(plan.prompt_set, plan.seed, "", key, plan.fingerprint, 0)
        for key in store.keys(f"{folder}{run_id}-")
    ]
    current = read_partition_manifest(store, plan.prompt_set, plan.seed)
    by_sample: dict[tuple[str, int, str], Row] = {}
    for of in [*own, *([current] if current else [])]:
        for row in _rows(store, of):
            if row["run_id"] == run_id:
                by_sample[row["request_key"], row["sample"], row["prompt_id"]] = row
    return list(by_sample.values())


def _rows(store: ObjectStore, of: PartitionManifest) -> list[Row]:
    rows = manifest.read_manifest_arrow(store, of.table, INDEXED_COLUMNS)
    return [{**row, "of": of} for row in rows.to_pylist()]


def _prompt_name(row: Row) -> str:
    return f"{row['of'].prompt_set}/{row['prompt_id']}"
