"""Makes mutants of a Python module: copies in which one small thing is wrong."""

import ast
import copy
import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = ["Mutant", "mutants_of"]

SWAPPED: Final[dict[type[ast.AST], type[ast.AST]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
OTHER_CALLS: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
Change: TypeAlias = tuple[str, ast.AST, ast.AST | None]
"""What is done, the node, and what replaces it; None if it is dropped."""


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        name: where it is and what was done, unique among all mutants of a source.
        path: of the module, from the root of the repository.
        lines: those of its statement; None if it runs while the module is imported.
        before, after: the module's source.
    """

    name: str
    path: str
    lines: range | None
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The change, without context."""
        before, after = (text.splitlines(keepends=True) for text in (self.before, self.after))
        changed = difflib.unified_diff(before, after, n=0)
        return "".join(line for line in changed if not line.startswith(("---", "+++", "@@")))


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """All mutants of a module, in order. Log lines, messages and annotations are left alone."""
    encoded = source.encode()
    starts = [0]
    for line in encoded.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    seen: Counter[str] = Counter()
    for node, statement, function in _places(ast.parse(source), None, None):
        for kind, replaced, other in _changes(node, function):
            assert isinstance(replaced, ast.stmt | ast.expr)
            begin = starts[replaced.lineno - 1] + replaced.col_offset
            end = starts[(replaced.end_lineno or 0) - 1] + (replaced.end_col_offset or 0)
            text = "pass" if other is None else ast.unparse(other)
            text = f"({text})" if isinstance(replaced, ast.expr) else text
            after = (encoded[:begin] + text.encode() + encoded[end:]).decode()
            ast.parse(after)
            lines = _lines_of(statement) if function else None
            name = f"{path}:{replaced.lineno}:{replaced.col_offset}: {kind}"
            seen[name] += 1
            name += f" ({seen[name]})" if seen[name] > 1 else ""
            yield Mutant(name, path, lines, source, after)


def _places(
    node: ast.AST, statement: ast.stmt | None, function: ast.AST | None
) -> Iterator[tuple[ast.AST, ast.stmt | None, ast.AST | None]]:
    """A node and all within it, each with its statement and its function."""
    yield node, statement, function
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        if isinstance(node, ast.FunctionDef):
            function = node if name == "body" else None
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_left_alone(child):
                within = child if isinstance(child, ast.stmt) else statement
                yield from _places(child, within, function)


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr():  # Python 3.11 does not tell the positions in it
            return True
        case ast.Expr(value=ast.Constant()):  # a docstring
            return True
        case ast.Assign(targets=[ast.Name(id="model_config")]):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log")))):
            return True
    return False


def _changes(node: ast.AST, function: ast.AST | None) -> Iterator[Change]:
    if function is not None:
        yield from _changes_of_statement(node, function)
    match node:
        case ast.Compare(ops=ops):
            for index, operator in enumerate(ops):
                other = copy.deepcopy(node)
                other.ops[index] = SWAPPED[type(operator)]()  # type: ignore[call-overload]
                yield f"{type(operator).__name__} {index} flipped", node, other
        case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in SWAPPED:
            swapped = copy.deepcopy(node)
            swapped.op = SWAPPED[type(op)]()  # type: ignore[assignment]
            yield f"{type(op).__name__} swapped", node, swapped
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not dropped", node, operand
        case ast.IfExp(test=test):
            yield from _negated("condition", test)
        case ast.Constant(value=bool(value)):
            yield "flipped", node, ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "one more", node, ast.Constant(value + 1)
        case ast.Call():
            yield from _changes_of_call(node)
        case ast.comprehension(ifs=conditions):
            for condition in conditions:
                yield "filter dropped", condition, ast.Constant(value=True)
                yield from _negated("filter", condition)


def _changes_of_statement(node: ast.AST, function: ast.AST) -> Iterator[Change]:
    match node:
        case ast.If(test=test) | ast.While(test=test):
            yield from _negated("condition", test)
        case ast.Try(handlers=handlers):
            for handler in handlers:
                if handler.type is not None:
                    yield "handler dropped", handler.type, ast.Tuple([])
        case ast.Assign(targets=[target]) if _is_only_binding(target, function):
            return  # without it every use is a NameError
        case ast.Assign() | ast.AugAssign() | ast.Delete() | ast.Expr() | ast.Raise():
            yield "dropped", node, None
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield "returns None", node, ast.Return(ast.Constant(None))
        case ast.Continue():
            yield "dropped", node, None
        case ast.Break():
            yield "goes on", node, ast.Continue()


def _negated(what: str, test: ast.expr) -> Iterator[Change]:
    """Unless that is what another change does to the test."""
    match test:
        case ast.UnaryOp(op=ast.Not()):
            return
        case ast.Compare(ops=[ast.Eq() | ast.NotEq() | ast.Is() | ast.IsNot() | ast.In()]):
            return
    yield f"{what} negated", test, ast.UnaryOp(ast.Not(), test)


def _changes_of_call(node: ast.Call) -> Iterator[Change]:
    if isinstance(node.func, ast.Name) and node.func.id in OTHER_CALLS:
        other = copy.deepcopy(node)
        other.func = ast.Name(OTHER_CALLS[node.func.id])
        yield f"{node.func.id} swapped", node, other
    for index in range(len(node.args) - 1):
        other = copy.deepcopy(node)
        other.args[index : index + 2] = reversed(other.args[index : index + 2])
        yield f"arguments {index} and {index + 1} swapped", node, other
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            other = copy.deepcopy(node)
            del other.keywords[index]
            yield f"{keyword.arg}= dropped", node, other


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _is_only_binding(target: ast.expr, function: ast.AST) -> bool:
    """Whether a name is set here alone."""
    if not isinstance(target, ast.Name):
        return isinstance(target, ast.Tuple)
    names = (node for node in ast.walk(function) if isinstance(node, ast.Name))
    return sum(n.id == target.id and isinstance(n.ctx, ast.Store) for n in names) == 1


def _lines_of(statement: ast.stmt | None) -> range:
    """Of a simple statement, or of a compound one's head."""
    assert statement is not None
    body = getattr(statement, "body", None)
    end = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return range(statement.lineno, max(end, statement.lineno) + 1)
