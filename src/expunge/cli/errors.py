"""From an error to what the user reads and the exit code: no traceback of ours, and the right one to blame."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import sysconfig
import traceback
from pathlib import Path

from expunge.core.errors import ExpungeError, Interrupted, printable

DEFECT = 70
OWN_CODE = 1
NO_ROOM = 2
BROKEN_PIPE = 141
_PACKAGE = Path(__file__).resolve().parents[1]


def report_error(error: BaseException) -> int:
    """Print an error on standard error; returns the exit code.

    2: the user can mend it; 130: interrupted; 1: code of the user's own raised; 70: a defect of expunge.
    """
    text, code = explain(error)
    if text:
        print(f"expunge: {printable(text)}", file=sys.stderr)
    if code in (DEFECT, OWN_CODE):
        if os.environ.get("EXPUNGE_DEBUG"):
            print(printable("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        else:
            print("  hint: EXPUNGE_DEBUG=1 prints the traceback", file=sys.stderr)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """What to say about an error, and the exit code."""
    if isinstance(error, ExpungeError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", Interrupted.exit_code
    if isinstance(error, BrokenPipeError):
        return "", BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}the disk is full\n  hint: free some space, then run the same command again", NO_ROOM
    if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__ or "can't allocate" in str(error):
        first = next(iter(str(error).splitlines()), "")
        return f"memory ran out ({first})\n  hint: smaller batches, a smaller model, or another device", NO_ROOM
    name, place = type(error).__name__, _raised_in(error)
    if place is not None:
        return f"{place}: code of your own raised {name}: {error}", OWN_CODE
    return f"this is a defect of expunge, please report it ({name}: {error})", DEFECT


def _raised_in(error: BaseException) -> str | None:
    """File and line of the innermost frame outside installed libraries; None where that frame is in expunge."""
    libraries = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if not path.is_file():  # <frozen importlib>, <string>
            continue
        path = path.resolve()
        if path.is_relative_to(_PACKAGE):
            return None
        if not any(path.is_relative_to(library) for library in libraries):
            return f"{path}:{line}"
    return None


def settle_output() -> None:
    """Write out standard output; where that cannot be, drop it, so that Python does not stumble over it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
