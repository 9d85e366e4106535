"""Mutants: small changes of a module, by syntax. Used by mutate.py."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from typing import Any

COMPARISONS = {
    ast.Eq: ("!=", "<=", ">="), ast.NotEq: ("==",), ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"), ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*", "//"), ast.Mod: ("%", "//"),
    ast.FloorDiv: ("//", "/"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
PAIRS = (
    ("any", "all"), ("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("argmin", "argmax"), ("floor", "ceil"),
    ("union", "intersection"),
)  # fmt: skip
SWAPPED = {"mean": "sum", "median": "mean", "std": "var", **dict(PAIRS), **{new: old for old, new in PAIRS}}
#: Functions whose two arguments can be swapped, or whose result only feeds a loop.
SYMMETRIC = {"min", "max", "minimum", "maximum", "isinstance", "getattr", "zip"}
#: Functions of one argument, and methods without any, whose call can be left out.
DROPPED = {"abs", "sorted", "round", "float", "int", "list", "tuple", "set", "clone_model"}
DROPPED_METHODS = {
    "abs", "clone", "detach", "sort", "clamp", "double", "float", "mean", "copy", "casefold", "contiguous", "strip",
}  # fmt: skip


class Source:
    """The text of a module, with its nodes by position."""

    def __init__(self, text: str) -> None:
        self.text, self.module, self.raw = text, ast.parse(text), text.encode()
        self.offsets = [0]
        for line in text.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line.encode()))

    def span(self, node: Any) -> tuple[int, int]:
        start = self.offsets[node.lineno - 1] + node.col_offset
        return start, self.offsets[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.raw[start:end].decode()

    def is_at(self, node: ast.AST) -> bool:
        """Whether the text at the position of an expression is that expression."""
        if not isinstance(node, ast.expr):
            return False
        try:
            return ast.dump(ast.parse(self.of(node), mode="eval").body) == ast.dump(node)
        except (SyntaxError, IndexError, UnicodeDecodeError):
            return False

    def replace(self, start: int, end: int, new: str) -> str:
        return (self.raw[:start] + new.encode() + self.raw[end:]).decode()

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> tuple[int, int, str]:
        """Replace the operator `old` between two nodes (parentheses and comments keep their places)."""
        start, end = self.span(left)[1], self.span(right)[0]
        place = self.raw[start:end].find(old.encode())
        assert place >= 0, self.raw[start:end]
        return start + place, start + place + len(old.encode()), new


def skipped(source: Source) -> list[tuple[int, int]]:
    """Spans without behaviour that a test should fix: annotations, messages of errors, decorators, imports, reprs."""
    spans = []
    for node in ast.walk(source.module):
        nodes: list[ast.AST | None] = []
        if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
            nodes = [node]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes = [*node.decorator_list, node if node.name == "__repr__" else None]
        elif isinstance(node, ast.AnnAssign):
            nodes = [node.annotation]
        elif isinstance(node, ast.Expr):
            nodes = [node if isinstance(node.value, ast.Constant) else None]
        elif isinstance(node, ast.If):
            nodes = [node if ast.unparse(node.test) == "TYPE_CHECKING" else None]
        elif isinstance(node, ast.Call):
            nodes = [node if ast.unparse(node.func) == "cast" else None]
        elif isinstance(node, ast.Assign):
            named = ast.unparse(node.targets[0])
            nodes = [node if named == "__all__" or "Callable[" in ast.unparse(node.value) else None]
        if isinstance(node, ast.FunctionDef):
            every = [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]
            nodes += [*(argument.annotation for argument in every), node.returns]
        spans += [source.span(found) for found in nodes if found is not None]
    return spans


def changes_of(node: ast.AST, source: Source) -> Iterator[tuple[str, tuple[int, int, str]]]:
    """Yield `(what, (start, end, new text))` for one node."""
    start, end = source.span(node) if hasattr(node, "lineno") else (0, 0)

    def whole(new: str) -> tuple[int, int, str]:
        return start, end, new

    if isinstance(node, ast.Compare):
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            old = ast.unparse(ast.Compare(ast.Name("a"), [operator], [ast.Name("b")]))[2:-2]
            for new in COMPARISONS[type(operator)]:
                yield f"{old} to {new}", source.between(left, right, old, new)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        old, *others = OPERATORS[type(node.op)]
        for new in others:
            yield f"{old} to {new}", source.between(node.left, node.right, old, new)
    elif isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield f"{old} to {new}", source.between(node.values[0], node.values[1], old, new)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield "drop unary operator", whole(source.of(node.operand))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "other boolean", whole(str(not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        for number in (node.value + 1, node.value - 1):
            yield "other number", whole(f"({number})" if number < 0 else str(number))
    elif isinstance(node, ast.If | ast.While):
        yield "not", (*source.span(node.test), f"not ({source.of(node.test)})")
    elif isinstance(node, ast.Break | ast.Continue):
        yield "break to continue or back", whole("continue" if isinstance(node, ast.Break) else "break")
    elif isinstance(node, ast.For):
        yield "no iteration", (*source.span(node.iter), "[]")
    elif isinstance(node, ast.IfExp):
        yield (
            "swap branches",
            whole(f"({source.of(node.orelse)} if {source.of(node.test)} else {source.of(node.body)})"),
        )
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "drop statement", whole("pass")
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load):
        yield "drop slice", whole(source.of(node.value))
    elif isinstance(node, ast.Dict) and None in node.keys and len(node.keys) == 2:
        parts = [
            ("**" if key is None else source.of(key) + ": ") + source.of(value)
            for key, value in zip(node.keys, node.values, strict=True)
        ]
        yield "swap precedence", whole("{" + ", ".join(reversed(parts)) + "}")
    elif isinstance(node, ast.Call):
        yield from changes_of_call(node, source)


def changes_of_call(node: ast.Call, source: Source) -> Iterator[tuple[str, tuple[int, int, str]]]:
    start, end = source.span(node)
    head, plain = source.span(node.func), not node.keywords
    arguments = [] if any(isinstance(each, ast.Starred) for each in node.args) else node.args
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    if isinstance(node.func, ast.Name) and plain:
        if name in DROPPED and len(arguments) == 1:
            yield f"drop {name}", (start, end, source.of(arguments[0]))
        if name in ("min", "max") and len(arguments) == 2:
            yield from ((f"drop {name}", (start, end, source.of(argument))) for argument in arguments)
    if isinstance(node.func, ast.Attribute) and name in DROPPED_METHODS and plain and not node.args:
        yield f"drop .{name}()", (start, end, source.of(node.func.value))
    if name in SWAPPED:
        yield f"{name} to {SWAPPED[name]}", (head[1] - len(name), head[1], SWAPPED[name])
    if len(arguments) == 2 and name not in SYMMETRIC:
        (a, b), (c, d) = source.span(arguments[0]), source.span(arguments[1])
        new = source.raw[c:d] + source.raw[b:c] + source.raw[a:b]
        yield "swap arguments", (a, d, new.decode())
    for keyword in node.keywords:
        if keyword.arg and not name.endswith("Error"):
            a, b = source.span(keyword)
            after = source.raw[b:].lstrip()
            comma = len(source.raw) - len(after) + 1 if after.startswith(b",") else b
            yield f"drop keyword {keyword.arg}", (a, comma, "")


def find_places(source: Source) -> list[list[tuple[str, tuple[int, int, str]]]]:
    """What can be made of each place of a module, in the order of the places."""
    spans = skipped(source)
    found: dict[tuple[int, int], list[tuple[str, tuple[int, int, str]]]] = {}
    strings = [node for node in ast.walk(source.module) if isinstance(node, ast.JoinedStr)]
    inside = {id(node) for string in strings for node in ast.walk(string)}
    for node in ast.walk(source.module):
        if id(node) in inside and not source.is_at(node):
            continue  # Python 3.11 gives wrong positions for some nodes of f-strings
        for what, change in changes_of(node, source):
            if not any(start <= change[0] < end for start, end in spans):
                found.setdefault(change[:2], []).append((what, change))
    return [found[place] for place in sorted(found)]


def make_mutant(source: Source, what: str, change: tuple[int, int, str]) -> dict[str, Any] | None:
    """Apply a change; None if it is not Python or changes nothing."""
    start, end, _ = change
    text = source.replace(*change)
    try:
        if ast.dump(ast.parse(text)) == ast.dump(source.module):
            return None
    except SyntaxError:
        return None
    lines = difflib.unified_diff(source.text.splitlines(), text.splitlines(), n=0, lineterm="")
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    span = [source.raw[:offset].count(b"\n") + 1 for offset in (start, max(start, end - 1))]
    return {"what": what, "lines": span, "diff": changed, "text": text}
