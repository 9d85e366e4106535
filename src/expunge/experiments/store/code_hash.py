"""Hash the source code that a module uses inside its package, without importing it.

A stage is recomputed if and only if the code that it runs has changed. The hash is over the syntax trees of the stage's
file and of everything that it imports from the same package, directly or indirectly, also inside functions. Comments,
docstrings, formatting and imports for type checkers do not count. A name that a package's `__init__` re-exports is
followed to the module that defines it.

A registry imports what a name means when it is looked up, so the modules of named code are given too
(`core.registry.find_named_modules`). The code of a plug-in includes what it imports from its own top-level package and
from expunge; that of a module beside a plan also what it imports from other modules there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from expunge.core.errors import ConfigError
from expunge.core.trust import find_module_file, is_beside

from .module_facts import ModuleFacts, read_module_facts

#: The directory of this package; `expunge.core.files` is `core/files.py` in it.
_ROOT = str(Path(__file__).resolve().parents[2])


def hash_source_files(modules: Iterable[str]) -> dict[str, str]:
    """Hash every module that `modules` import, directly or indirectly, and `modules` themselves.

    Returns:
        Dotted name to hash, sorted.

    Raises:
        ConfigError: one of `modules` has no source file.
    """
    source = _Source()
    found: dict[str, str] = {}
    todo = list(modules)
    for module in todo:
        if source.find_file(module) is None:
            raise ConfigError("the module has no source file", where=module)
    while todo:
        module = todo.pop()
        if module in found or source.find_file(module) is None:
            continue
        facts = source.read_facts(module)
        found[module] = facts.digest
        for imported, name in facts.imports:
            origin = source.resolve(module, imported)
            if source.follows(module, origin):
                todo.extend(source.find_definition(origin, name, 0) if name else [origin])
    return dict(sorted(found.items()))


def find_source_files(modules: Iterable[str]) -> list[str]:
    """Return the modules that can be found, of those that a configuration names; imports nothing.

    A module that does not exist is left out: what names it is either no reference, or an error of the stage that runs.

    """
    return [name for name in sorted(modules) if name.startswith("expunge.") or find_module_file(name) is not None]


def _read_facts(path: str) -> ModuleFacts:
    status = os.stat(path)
    return read_module_facts(path, (status.st_mtime_ns, status.st_size))


def _module_file(base: str, parts: list[str]) -> str | None:
    path = os.path.join(base, *parts)
    package = os.path.join(path, "__init__.py")
    if os.path.isfile(package):
        return package
    file = f"{path}.py"
    return file if parts and os.path.isfile(file) else None


class _Source:
    """Files and facts of modules, looked up once in its lifetime."""

    def __init__(self) -> None:
        self._files: dict[str, str | None] = {}
        self._facts: dict[str, ModuleFacts] = {}
        self._beside: dict[str, bool] = {}

    def find_file(self, module: str) -> str | None:
        """The source file of a module, or None."""
        if module not in self._files:
            top, _, rest = module.partition(".")
            if top == "expunge":
                self._files[module] = _module_file(_ROOT, rest.split(".") if rest else [])
            else:
                origin = find_module_file(module)
                self._files[module] = None if origin is None or not origin.endswith(".py") else origin
        return self._files[module]

    def is_package(self, module: str) -> bool:
        path = self.find_file(module)
        return path is not None and os.path.basename(path) == "__init__.py"

    def read_facts(self, module: str) -> ModuleFacts:
        """The facts of a module that has a source file."""
        if module not in self._facts:
            path = self.find_file(module)
            assert path is not None
            self._facts[module] = _read_facts(path)
        return self._facts[module]

    def follows(self, module: str, imported: str) -> bool:
        """Whether the code of `module` includes that of a module that it imports."""
        top, other = module.partition(".")[0], imported.partition(".")[0]
        return other in (top, "expunge") or (top != "expunge" and self.is_beside(top) and self.is_beside(other))

    def is_beside(self, top: str) -> bool:
        if top not in self._beside:
            self._beside[top] = is_beside(top)
        return self._beside[top]

    def resolve(self, module: str, imported: str) -> str:
        """The absolute name of a module that `module` imports as `imported`, with a dot for each relative level."""
        name = imported.lstrip(".")
        level = len(imported) - len(name)
        if not level:
            return name
        parts = module.split(".")
        above = parts[: len(parts) - level + (1 if self.is_package(module) else 0)]
        return ".".join([*above, name] if name else above)

    def find_definition(self, module: str, name: str, depth: int) -> list[str]:
        """Find the module that defines `name`, imported as `from module import name`.

        A package may re-export the name directly or, by `__getattr__`, on first use; its imports for type checkers then
        name the module. If a lazy package does not name it, all modules of the package count.
        """
        if not self.is_package(module):
            return [module]
        facts = self.read_facts(module)
        if depth < 8 and name in facts.origins:
            source, original = facts.origins[name]
            return self.find_definition(self.resolve(module, source), original, depth + 1)
        below = f"{module}.{name}"
        if self.find_file(below) is not None:
            return [below]
        folder = Path(self.find_file(module) or "").parent
        files = sorted(folder.glob("*.py")) if facts.lazy else []
        return [module, *(f"{module}.{file.stem}" for file in files if file.name != "__init__.py")]
