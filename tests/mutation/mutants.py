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
        pair = (text.splitlines(keepends=True) for text in (self.before, self.after))
        changed = difflib.unified_diff(*pair, n=0)
        return "".join(line for line in changed if not line.startswith(("---", "+++", "@@")))


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """All mutants of a module, in order. Log lines, messages and annotations are left alone."""
    encoded = source.encode()
    starts = [0]
    for line in encoded.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    seen: Counter[str] = Counter()
    for node, statement, function in _places(ast.parse(source).body, None):
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


Place: TypeAlias = tuple[ast.AST, ast.stmt, ast.AST | None]
"""A node, its statement, and its function."""


def _places(body: list[ast.stmt], function: ast.AST | None) -> Iterator[Place]:
    for statement in body:
        if _is_left_alone(statement):
            continue
        yield statement, statement, function
        if isinstance(statement, ast.FunctionDef):
            for default in (*statement.args.defaults, *statement.args.kw_defaults):
                if default is not None:
                    yield from ((node, statement, None) for node in _expressions(default))
            yield from _places(statement.body, statement)
            continue
        for name, value in ast.iter_fields(statement):
            if name in ("annotation", "decorator_list", "bases", "keywords", "target"):
                continue
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.stmt):
                    yield from _places([each], function)
                elif isinstance(each, ast.ExceptHandler):
                    yield from _places(each.body, function)
                elif isinstance(each, ast.withitem):
                    yield from ((n, statement, function) for n in _expressions(each.context_expr))
                elif isinstance(each, ast.expr):
                    yield from ((node, statement, function) for node in _expressions(each))


def _is_left_alone(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Nonlocal():
            return True
        case ast.Expr(value=ast.Constant()):  # a docstring
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log")))):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False


def _expressions(node: ast.AST) -> Iterator[ast.AST]:
    """An expression and those within it. In an f-string Python 3.11 tells no positions."""
    if isinstance(node, ast.JoinedStr):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _expressions(child)


def _changes(node: ast.AST, function: ast.AST | None) -> Iterator[Change]:
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield from _negated("condition", test)
        case ast.Try(handlers=handlers):
            for handler in handlers:
                if handler.type is not None:
                    yield "handler dropped", handler.type, ast.Tuple([])
        case ast.Raise() | ast.Expr() | ast.AugAssign() | ast.Delete() if function:
            yield "dropped", node, None
        case ast.Assign(targets=[target]) if function and not _is_only_binding(target, function):
            yield "dropped", node, None
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield "returns None", node, ast.Return(ast.Constant(None))
        case ast.Continue():
            yield "dropped", node, None
        case ast.Break():
            yield "goes on", node, ast.Continue()
        case ast.Compare(ops=ops):
            for index, operator in enumerate(ops):
                other = copy.deepcopy(node)
                other.ops[index] = SWAPPED[type(operator)]()  # type: ignore[call-overload]
                yield f"{type(operator).__name__} {index} flipped", node, other
        case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in SWAPPED:
            other = copy.deepcopy(node)
            other.op = SWAPPED[type(op)]()
            yield f"{type(op).__name__} swapped", node, other
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not dropped", node, operand
        case ast.Constant(value=bool(value)):
            yield "flipped", node, ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "one more", node, ast.Constant(value + 1)
        case ast.Call():
            yield from _changes_of_call(node)
        case ast.comprehension(ifs=conditions):
            for condition in conditions:
                yield "filter dropped", condition, ast.Constant(True)
                yield from _negated("filter", condition)


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
    """Whether a name is set here alone: without that every use is a NameError."""
    if not isinstance(target, ast.Name):
        return isinstance(target, ast.Tuple)
    names = (node for node in ast.walk(function) if isinstance(node, ast.Name))
    return sum(n.id == target.id and isinstance(n.ctx, ast.Store) for n in names) == 1


def _lines_of(statement: ast.stmt) -> range:
    """Of a simple statement, or of a compound one's head."""
    body = getattr(statement, "body", None)
    end = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return range(statement.lineno, max(end, statement.lineno) + 1)
