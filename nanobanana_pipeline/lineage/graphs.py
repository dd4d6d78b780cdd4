"""What a trace has found, as a graph: nodes, and links in the direction in which data flow."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nanobanana_pipeline.wording import shortened

__all__ = ["Lineage", "Link", "Node", "NodeKind", "as_dot", "as_json", "as_mermaid"]


class NodeKind(StrEnum):
    """What a node is; data flow from the first to the last."""

    PROMPT_SET = "prompt set"
    PROMPT_ROW = "prompt row"
    CELL = "cell"
    RUN = "run"
    REQUEST = "request"
    IMAGE = "image"
    RELEASE = "release"


@dataclass(frozen=True)
class Node:
    """One thing.

    Attributes:
        kind: what it is.
        name: what it is called, and found by.
        facts: what is known of it; fit for JSON.
    """

    kind: NodeKind
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its own in the graph."""
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class Link:
    """One thing was made of, or by, another.

    Attributes:
        source, target: ids of nodes.
        facts: of this link alone, such as which sample an image is.
    """

    source: str
    target: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lineage:
    """What a trace has found.

    Attributes:
        asked: in the words of whoever asked.
        found: ids of the nodes that were meant; several where a name is that of several things.
        nodes: by id.
        links: each once.
        notes: what whoever reads it must know.
    """

    asked: str
    found: tuple[str, ...]
    nodes: Mapping[str, Node]
    links: tuple[Link, ...]
    notes: tuple[str, ...] = ()

    def above(self, node: str) -> Iterator[tuple[Node, Link]]:
        """What a node was made of."""
        return ((self.nodes[each.source], each) for each in self.links if each.target == node)

    def below(self, node: str) -> Iterator[tuple[Node, Link]]:
        """What was made of a node."""
        return ((self.nodes[each.target], each) for each in self.links if each.source == node)


def as_json(lineage: Lineage) -> str:
    """For machines: ``asked``, ``found``, ``nodes``, ``links`` and ``notes``."""
    told = {
        "asked": lineage.asked,
        "found": lineage.found,
        "nodes": [
            {"id": node.id, "kind": node.kind, "name": node.name, **node.facts}
            for node in lineage.nodes.values()
        ],
        "links": [{"from": link.source, "to": link.target, **link.facts} for link in lineage.links],
        "notes": lineage.notes,
    }
    return json.dumps(told, indent=1, ensure_ascii=False)


def as_dot(lineage: Lineage) -> str:
    """For Graphviz (https://graphviz.org/doc/info/lang.html)."""
    numbers = {name: f"n{number}" for number, name in enumerate(lineage.nodes)}
    lines = ["digraph lineage {", "  rankdir=LR; node [shape=box];"]
    for name, node in lineage.nodes.items():
        label = r"\n".join(_dot_text(line) for line in _label(node))
        bold = ", style=bold" if name in lineage.found else ""
        lines.append(f'  {numbers[name]} [label="{label}"{bold}];')
    for link in lineage.links:
        label = _dot_text(_facts_text(link.facts))
        told = f' [label="{label}"]' if label else ""
        lines.append(f"  {numbers[link.source]} -> {numbers[link.target]}{told};")
    return "\n".join([*lines, "}"])


def as_mermaid(lineage: Lineage) -> str:
    """For Mermaid, which Markdown pages show (https://mermaid.js.org/syntax/flowchart.html)."""
    numbers = {name: f"n{number}" for number, name in enumerate(lineage.nodes)}
    lines = ["flowchart LR"]
    for name, node in lineage.nodes.items():
        label = "<br/>".join(_mermaid_text(line) for line in _label(node))
        lines.append(f'  {numbers[name]}["{label}"]')
    for link in lineage.links:
        label = _mermaid_text(_facts_text(link.facts))
        arrow = f'-->|"{label}"|' if label else "-->"
        lines.append(f"  {numbers[link.source]} {arrow} {numbers[link.target]}")
    lines += [f"  style {numbers[name]} stroke-width:3px" for name in lineage.found]
    return "\n".join(lines)


def _label(node: Node) -> list[str]:
    name = f"{node.name[:12]}…" if node.kind in {NodeKind.IMAGE, NodeKind.REQUEST} else node.name
    said = node.facts.get("prompt") or node.facts.get("state") or node.facts.get("code_version")
    return [str(node.kind), shortened(name), *([shortened(str(said))] if said else [])]


def _facts_text(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shortened(str(value))}" for name, value in facts.items())


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _mermaid_text(text: str) -> str:
    """Texts of others as entities where Mermaid would read more into them."""
    return "".join(
        char if char.isalnum() or char in " .,:/=-_…×" else f"#{ord(char)};" for char in text
    )
