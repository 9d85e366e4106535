"""Which exceptions come out of custom code: the one place that decides it, for entries of every kind.

Custom code is a plug-in, a module beside a configuration, a package that the owner agreed to run, or a registered
function or class that is not of this package.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError
from expunge.core.trust.gate import list_agreed_modules

from .kinds import REGISTRIES
from .plugins import find_plug_ins

#: The directory of the package `expunge`.
_PACKAGE = Path(__file__).resolve().parents[2]


def is_custom(definition: Any) -> bool:
    """Whether a function or class is defined outside this package.

    >>> from expunge.core.registry.custom_code import is_custom
    >>> is_custom(is_custom), is_custom(print)
    (False, True)
    """
    return not f"{getattr(definition, '__module__', '')}.".startswith("expunge.")


def find_custom_code(error: BaseException) -> str | None:
    """File and line of the innermost frame of custom code that an exception passed through; None if there is none.

    Frames of this package and of libraries are passed: a custom function that gives expunge or torch a wrong argument
    is the cause, wherever the exception is raised. Code of a file that is neither in this package nor in an installed
    library is custom, and so is that of plug-ins and of packages that the owner agreed to run, wherever they are.
    """
    libraries = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    named = _list_custom_packages()
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if not path.is_file():  # <frozen importlib>, <string>
            continue
        path = path.resolve()
        is_library = any(path.is_relative_to(library) for library in libraries)
        if path.is_relative_to(_PACKAGE):
            continue
        if not is_library or str(frame.f_globals.get("__name__")).partition(".")[0] in named:
            return f"{path}:{line}"
    return None


def _list_custom_packages() -> set[str]:
    """Top-level names of plug-ins, of registered code and of agreed code, wherever it is installed."""
    modules = {plug_in.module for registry in REGISTRIES.values() for plug_in in find_plug_ins(registry.group)}
    modules |= {home[0] for registry in REGISTRIES.values() for home in registry.list_homes()}
    return {module.partition(".")[0] for module in modules | set(list_agreed_modules())} - {"expunge"}


@contextlib.contextmanager
def naming(kind: str, name: str, definition: Any, error: type[ExpungeError] = ConfigError) -> Iterator[None]:
    """Within the block, an exception out of a custom entry becomes an error that names the entry, and where it failed.

    Errors that a user can fix are raised as they are, and so are interruptions, a full disk and a lack of memory. An
    exception of an entry of this package is raised as it is too: it is a bug.

    Args:
        kind: `method`, `criterion`, ...
        name: the name or reference of the entry.
        definition: the registered function or class.
        error: class of the error.

    >>> from expunge.core.registry.custom_code import naming
    >>> with naming("score", "mine", print):
    ...     {}["no such key"]
    Traceback (most recent call last):
        ...
    expunge.core.errors.ConfigError: score mine: its code raised KeyError: 'no such key'
      hint: ...
    """
    try:
        yield
    except Exception as failure:
        if isinstance(failure, ExpungeError) or not is_custom(definition) or _is_resource(failure):
            raise
        place = find_custom_code(failure) or _find_definition(definition)
        where = f"{kind} {name}" if place is None else f"{kind} {name} ({place})"
        what = f"its code raised {type(failure).__name__}: {failure}"
        raise error(what, where=where, hint=_find_hint(failure)) from failure


def _is_resource(failure: Exception) -> bool:
    full = isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(failure, MemoryError) or "OutOfMemoryError" in type(failure).__name__


def _find_definition(definition: Any) -> str | None:
    """File and line of a definition; of a callable without source: None."""
    try:
        return f"{inspect.getsourcefile(definition)}:{inspect.getsourcelines(definition)[1]}"
    except (TypeError, OSError):
        return None


def _find_hint(failure: Exception) -> str:
    """Where the exception was raised, if that is in expunge, and how to see everything."""
    frames = traceback.extract_tb(failure.__traceback__)
    last = Path(frames[-1].filename).resolve() if frames else None
    raised = ""
    if last is not None and last.is_relative_to(_PACKAGE) and frames[-1].name != "naming":
        raised = f"raised in {last.relative_to(_PACKAGE.parent)}:{frames[-1].lineno}; "
    return f"{raised}EXPUNGE_DEBUG=1 prints the traceback"
