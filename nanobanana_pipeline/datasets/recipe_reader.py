"""YAML that remembers the line of everything it says, so that faults can be named with theirs."""

from typing import Any, Final

import yaml

from nanobanana_pipeline.errors import RecipeError

__all__ = ["Document", "Trail", "read_document"]

Trail = tuple[str | int, ...]
"""Where something stands in a document: keys and positions, from the outside in."""

_SCALARS: Final = (str, int, float, bool, type(None))


class Document:
    """One YAML mapping.

    Attributes:
        said: its values: mappings with texts for keys, lists, and scalars.
        faults: what is wrong with it though it can be read, by place.
    """

    def __init__(self, source: str) -> None:
        self.said: dict[str, Any] = {}
        self.faults: dict[Trail, str] = {}
        self._source = source
        self._lines: dict[Trail, int] = {(): 1}

    def nearest(self, trail: Trail) -> Trail:
        """The longest beginning of a trail that stands in the document."""
        while trail not in self._lines:
            trail = trail[:-1]
        return trail

    def line(self, trail: Trail) -> int:
        """The line, from 1, of a place, or of what would hold it."""
        return self._lines[self.nearest(trail)]

    def place(self, trail: Trail) -> str:
        """For messages: ``recipes/a.yaml:12: filters.blank``."""
        dotted = ".".join(map(str, trail))
        return f"{self._source}:{self.line(trail)}" + (f": {dotted}" if dotted else "")

    def read(self, loader: "_Loader", node: Any, trail: Trail = ()) -> Any:  # noqa: ANN401
        """A node's plain value; keeps its line, and what is wrong with it."""
        self._lines.setdefault(trail, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(loader, each, (*trail, i)) for i, each in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, trail)
        try:
            value = loader.construct_object(node)
        except (ValueError, yaml.constructor.ConstructorError):
            value = loader
        if isinstance(value, _SCALARS):
            return value
        self.faults[trail] = f"{node.value!r} is no valid {node.tag.rpartition(':')[2]}"
        return None

    def _mapping(self, loader: "_Loader", node: yaml.MappingNode, trail: Trail) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.faults[trail] = "has a key that is no text"
                continue
            # The text itself: a column may be called "no" or "2024".
            name = str(key.value)
            if name in found:
                self.faults[*trail, name] = "is given twice"
            self._lines[*trail, name] = key.start_mark.line + 1
            found[name] = self.read(loader, value, (*trail, name))
        return found


def read_document(source: str, text: str) -> Document:
    """Read a YAML document; messages call it `source`.

    Raises:
        RecipeError: it is no YAML, or no mapping.
    """
    document = Document(source)
    try:
        _refuse_aliases(text)
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{source}:{line}: no valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: no valid YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{source}:1: must be a mapping of fields, from name: on")
    document.said = document.read(loader, node)
    return document


class _Loader(yaml.CSafeLoader):
    """YAML without texts that turn into dates. In C: a hundred recipes are read in no time."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _refuse_aliases(text: str) -> None:
    """They have no use in a recipe, and one behind another they can grow without bound."""
    if "*" in text:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.AliasToken):
                problem = "aliases (*) have no place in a recipe: write it out"
                raise yaml.composer.ComposerError(None, None, problem, token.start_mark)
