"""Hash the source code that a module uses inside its package, without importing it.

A stage is recomputed if and only if the code that it runs has changed. The hash is over the syntax trees of the stage's
file and of everything that it imports from the same package, directly or indirectly, also inside functions. Comments,
docstrings, formatting and imports for type checkers do not count. A name that a package's `__init__` re-exports is
followed to the module that defines it. Files that a registry looks up by name (methods, models) are found by their
decorator.
"""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

from expunge.core.errors import ConfigError
from expunge.core.hashing import hash_bytes
from expunge.core.trust import find_module_file

#: The directory of this package; `expunge.core.files` is `core/files.py` in it.
_ROOT = Path(__file__).resolve().parents[2]
_Stamp = tuple[int, int]


def hash_source_files(modules: Iterable[str]) -> dict[str, str]:
    """Hash every module that `modules` import, directly or indirectly, and `modules` themselves.

    Returns:
        Dotted name to hash, sorted.

    Raises:
        ConfigError: one of `modules` has no source file.
    """
    found: dict[str, str] = {}
    todo = list(modules)
    for module in todo:
        if _file(module) is None:
            raise ConfigError("the module has no source file", where=module)
    while todo:
        module = todo.pop()
        path = _file(module)
        if module in found or path is None:
            continue
        found[module], imports = _digest(module, path, _stamp(path))
        for source, name in imports:
            todo.extend([source] if name is None else _find_definition(source, name, 0))
    return dict(sorted(found.items()))


def find_registered_module(package: str, name: str) -> str:
    """Find the module of a package that registers `name` with a decorator `@register...("name", ...)`, ignoring case.

    A name of the form `package.module:factory` is custom: its module is returned (and read, not imported). If no module
    registers the name, the package itself is returned, and the stage raises the error.
    """
    if ":" in name:
        return name.partition(":")[0]
    directory = _ROOT / package
    for path in sorted(directory.rglob("*.py")):
        if name.casefold() in _registered(path, _stamp(path)):
            return ".".join(["expunge", *path.relative_to(_ROOT).with_suffix("").parts])
    return f"expunge.{package}"


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _file(module: str) -> Path | None:
    top, _, rest = module.partition(".")
    parts = rest.split(".") if rest else []
    if top == "expunge":
        return _module_file(_ROOT, parts)
    origin = find_module_file(module)
    return None if origin is None or not origin.endswith(".py") else Path(origin)


def _module_file(base: Path, parts: list[str]) -> Path | None:
    path = base.joinpath(*parts)
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    file = path.with_suffix(".py")
    return file if parts and file.is_file() else None


def _is_package(module: str) -> bool:
    path = _file(module)
    return path is not None and path.name == "__init__.py"


@functools.lru_cache(maxsize=1024)
def _tree(path: Path, stamp: _Stamp) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not Python source ({error})", where=path) from error


class _CodeOnly(ast.NodeTransformer):
    """Removes docstrings and blocks under TYPE_CHECKING."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = body[1:] or [ast.Pass()]
        if isinstance(node, ast.If) and isinstance(node.test, (ast.Name, ast.Attribute)):
            name = node.test.id if isinstance(node.test, ast.Name) else node.test.attr
            if name == "TYPE_CHECKING":
                node.body = [ast.Pass()]
        return node


@functools.lru_cache(maxsize=1024)
def _digest(module: str, path: Path, stamp: _Stamp) -> tuple[str, frozenset[tuple[str, str | None]]]:
    tree = copy.deepcopy(_tree(path, stamp))
    _CodeOnly().visit(tree)
    digest = hash_bytes(ast.dump(tree, annotate_fields=False).encode())
    return digest, frozenset(_imports(module, tree))


def _imports(module: str, tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """The imports of a module from its own package: (module, None), or (module, name) of `from module import name`."""
    top = module.partition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.partition(".")[0] == top)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            if source.partition(".")[0] == top:
                yield from ((source, alias.name) for alias in node.names)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts[: len(parts) - node.level + (1 if _is_package(module) else 0)]
    return ".".join([*above, node.module] if node.module else above)


def _find_definition(module: str, name: str, depth: int) -> list[str]:
    """Find the module that defines `name`, imported as `from module import name`.

    A package may re-export the name directly or, by `__getattr__`, on first use; its imports for type checkers then
    name the module. If a lazy package does not name it, all modules of the package count.
    """
    path = _file(module)
    if path is None or path.name != "__init__.py":
        return [module]
    tree = _tree(path, _stamp(path))
    if depth < 8:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _find_definition(_absolute(module, node), alias.name, depth + 1)
    below = f"{module}.{name}"
    if _file(below) is not None:
        return [below]
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    return [module, *(f"{module}.{file.stem}" for file in sorted(path.parent.glob("*.py")) if lazy and file != path)]


@functools.lru_cache(maxsize=1024)
def _registered(path: Path, stamp: _Stamp) -> frozenset[str]:
    names = set()
    for node in ast.walk(_tree(path, stamp)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
                    function = call.func
                    called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                    if called.startswith("register"):
                        names.add(str(call.args[0].value).casefold())
    return frozenset(names)
