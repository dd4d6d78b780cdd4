"""`nanobanana trace`: where a picture comes from, and what became of a prompt or a run."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from nanobanana_pipeline.cli.terminal import make_console, print_plain
from nanobanana_pipeline.lineage.trace.graph import (
    LineageGraph,
    Node,
    NodeKind,
    as_dot,
    as_json,
    as_mermaid,
)
from nanobanana_pipeline.lineage.trace.trace import trace
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.bucket import open_bucket

__all__ = ["trace_command"]

KIND_ORDER = list(NodeKind)
LINKS_SHOWN = 20
"""So many of a kind below one thing; machines get them all."""
UNCUT = sys.maxsize
"""Columns of a page that is no screen."""


class Graph(StrEnum):
    """How a graph is written."""

    DOT = "dot"
    MERMAID = "mermaid"


def trace_command(
    what: Annotated[
        str,
        typer.Argument(
            help="A picture's file, SHA-256, s3:// address or place in a release "
            "(NAME/VERSION/KEY); a prompt's id, a run's, a request key, or a provider's id. The "
            "first 6 characters of a run, a key or a SHA-256 are enough."
        ),
    ],
    *,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    graph: Annotated[
        Graph | None, typer.Option(help="Print a graph for Graphviz or Mermaid instead.")
    ] = None,
) -> None:
    """Show where a picture comes from, and what became of a prompt or a run. Writes nothing."""
    lineage = trace(open_bucket(Settings.load_without_key(), claim=False), what)
    if as_json_:
        typer.echo(as_json(lineage))
    elif graph is not None:
        typer.echo(as_dot(lineage) if graph is Graph.DOT else as_mermaid(lineage))
    else:
        console = make_console()
        if not console.is_terminal:
            console.width = UNCUT  # a tree has no soft wrap: whatever is wider is cut off
        for found in lineage.matches[:LINKS_SHOWN]:
            console.print(_tree(lineage, lineage.nodes[found]), markup=True)
    for note in lineage.notes:
        print_plain(Console(stderr=True), note)


def _tree(lineage: LineageGraph, root: Node) -> Tree:
    """What was asked for, with what it was made of above what was made of it."""
    tree = Tree(f"[bold]{_title(root)}")
    _add_facts(tree, root.facts)
    if list(lineage.upstream(root.id)):
        _grow(tree.add("[bold]made of"), lineage, root, up=True)
    if list(lineage.downstream(root.id)):
        _grow(tree.add("[bold]went into"), lineage, root, up=False)
    return tree


def _grow(branch: Tree, lineage: LineageGraph, node: Node, *, up: bool) -> None:
    neighbours = lineage.upstream(node.id) if up else lineage.downstream(node.id)
    by_kind = sorted(neighbours, key=lambda each: KIND_ORDER.index(each[0].kind))
    for _, alike in groupby(by_kind, key=lambda each: each[0].kind):
        found = list(alike)
        for other, link in found[:LINKS_SHOWN]:
            told = ", ".join(f"{k} {v}" for k, v in link.facts.items() if v is not None)
            twig = branch.add(f"{_title(other)}{escape(f' ({told})') if told else ''}")
            _add_facts(twig, other.facts)
            _grow(twig, lineage, other, up=up)
        if len(found) > LINKS_SHOWN:
            branch.add(f"and {len(found) - LINKS_SHOWN:,} more: --json has them all")


def _title(node: Node) -> str:
    return f"[cyan]{node.kind}[/] {escape(node.name)}"


def _add_facts(tree: Tree, facts: Mapping[str, Any]) -> None:
    """A line for each fact; what has parts gets a branch of its own."""
    for name, value in facts.items():
        if value is None or value in ("", [], {}):
            continue
        label = f"[dim]{escape(name.replace('_', ' '))}[/]"
        if isinstance(value, Mapping):
            _add_facts(tree.add(label), value)
        elif isinstance(value, list) and isinstance(value[0], Mapping):
            for number, each in enumerate(value, 1):
                _add_facts(tree.add(f"{label} {number}"), each)
        else:
            tree.add(f"{label} {escape(_text(value))}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
