"""`LineageGraph`, the result of a trace: nodes, and links in the direction in which data flow."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nanobanana_pipeline.wording import shortened

__all__ = ["LineageGraph", "Link", "Node", "NodeKind", "as_dot", "as_json", "as_mermaid"]


class NodeKind(StrEnum):
    """Kinds of nodes, in the direction in which data flow."""

    PROMPT_SET = "prompt set"
    PROMPT_ROW = "prompt row"
    CELL = "cell"
    RUN = "run"
    REQUEST = "request"
    IMAGE = "image"
    RELEASE = "release"


@dataclass(frozen=True)
class Node:
    """One object of the pipeline; `name` is unique among its kind, `facts` are JSON values."""

    kind: NodeKind
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Unique in the graph."""
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class Link:
    """The target was made from, or by, the source (ids of nodes), with facts of it."""

    source: str
    target: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LineageGraph:
    """What a trace has found.

    Attributes:
        query: as it was given to `trace`.
        matches: ids of the nodes that the query names; several if it is ambiguous.
        nodes: by id.
        links: each once.
        notes: warnings for the reader.
    """

    query: str
    matches: tuple[str, ...]
    nodes: Mapping[str, Node]
    links: tuple[Link, ...]
    notes: tuple[str, ...] = ()

    def upstream(self, node: str) -> Iterator[tuple[Node, Link]]:
        """Nodes that a node was made from."""
        return ((self.nodes[each.source], each) for each in self.links if each.target == node)

    def downstream(self, node: str) -> Iterator[tuple[Node, Link]]:
        """Nodes that were made from a node."""
        return ((self.nodes[each.target], each) for each in self.links if each.source == node)


def as_json(graph: LineageGraph) -> str:
    """As JSON: ``asked``, ``found``, ``nodes``, ``links`` and ``notes``."""
    record = {
        "asked": graph.query,
        "found": graph.matches,
        "nodes": [
            {"id": node.id, "kind": node.kind, "name": node.name, **node.facts}
            for node in graph.nodes.values()
        ],
        "links": [{"from": link.source, "to": link.target, **link.facts} for link in graph.links],
        "notes": graph.notes,
    }
    return json.dumps(record, indent=1, ensure_ascii=False)


def as_dot(graph: LineageGraph) -> str:
    """For Graphviz (https://graphviz.org/doc/info/lang.html)."""
    numbers = {name: f"n{number}" for number, name in enumerate(graph.nodes)}
    lines = ["digraph lineage {", "  rankdir=LR; node [shape=box];"]
    for name, node in graph.nodes.items():
        label = r"\n".join(_dot_text(line) for line in _label(node))
        bold = ", style=bold" if name in graph.matches else ""
        lines.append(f'  {numbers[name]} [label="{label}"{bold}];')
    for link in graph.links:
        label = _dot_text(_facts_text(link.facts))
        attributes = f' [label="{label}"]' if label else ""
        lines.append(f"  {numbers[link.source]} -> {numbers[link.target]}{attributes};")
    return "\n".join([*lines, "}"])


def as_mermaid(graph: LineageGraph) -> str:
    """For Mermaid, which Markdown pages show (https://mermaid.js.org/syntax/flowchart.html)."""
    numbers = {name: f"n{number}" for number, name in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for name, node in graph.nodes.items():
        label = "<br/>".join(_mermaid_text(line) for line in _label(node))
        lines.append(f'  {numbers[name]}["{label}"]')
    for link in graph.links:
        label = _mermaid_text(_facts_text(link.facts))
        arrow = f'-->|"{label}"|' if label else "-->"
        lines.append(f"  {numbers[link.source]} {arrow} {numbers[link.target]}")
    lines += [f"  style {numbers[name]} stroke-width:3px" for name in graph.matches]
    return "\n".join(lines)


def _label(node: Node) -> list[str]:
    name = f"{node.name[:12]}…" if node.kind in {NodeKind.IMAGE, NodeKind.REQUEST} else node.name
    detail = node.facts.get("prompt") or node.facts.get("state") or node.facts.get("code_version")
    return [str(node.kind), shortened(name), *([shortened(str(detail))] if detail else [])]


def _facts_text(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shortened(str(value))}" for name, value in facts.items())


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _mermaid_text(text: str) -> str:
    """Escape characters that Mermaid could read as syntax."""
    return "".join(
        char if char.isalnum() or char in " .,:/=-_…×" else f"#{ord(char)};" for char in text
    )
