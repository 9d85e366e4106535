"""Turn errors into messages and exit codes, without tracebacks, and tell user errors from bugs of expunge."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import sysconfig
import traceback
from pathlib import Path

from expunge.core.errors import ExpungeError, Interrupted, printable

BUG = 70
CUSTOM_CODE = 1
OUT_OF_SPACE = 2
BROKEN_PIPE = 141
_PACKAGE = Path(__file__).resolve().parents[1]


def report_error(error: BaseException) -> int:
    """Print an error on standard error; returns the exit code.

    Exit codes: 2 for errors that the user can fix, 130 for an interruption, 1 for an exception in custom code, 70 for a
    bug of expunge.
    """
    text, code = describe_error(error)
    if text:
        print(f"expunge: {printable(text)}", file=sys.stderr)
    if code in (BUG, CUSTOM_CODE):
        if os.environ.get("EXPUNGE_DEBUG"):
            print(printable("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        else:
            print("  hint: EXPUNGE_DEBUG=1 prints the traceback", file=sys.stderr)
    return code


def describe_error(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code for an error."""
    if isinstance(error, ExpungeError):
        return str(error), error.exit_code
    interrupted = isinstance(error, SystemExit) and error.code == Interrupted.exit_code  # what cyclopts makes of it
    if isinstance(error, KeyboardInterrupt) or interrupted:
        return "interrupted", Interrupted.exit_code
    if isinstance(error, BrokenPipeError):
        return "", BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}the disk is full\n  hint: free some space, then run the same command again", OUT_OF_SPACE
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:80]}...: the name is too long for this system\n  hint: choose a shorter one", 2
    if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__ or "can't allocate" in str(error):
        first = next(iter(str(error).splitlines()), "")
        return f"memory ran out ({first})\n  hint: smaller batches, a smaller model, or another device", OUT_OF_SPACE
    name, place = type(error).__name__, _find_custom_code(error)
    if place is not None:
        return f"{place}: custom code raised {name}: {error}", CUSTOM_CODE
    return f"this is a bug of expunge, please report it ({name}: {error})", BUG


def _find_custom_code(error: BaseException) -> str | None:
    """File and line of the innermost frame outside installed libraries; None if that frame is in expunge."""
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


def flush_output() -> None:
    """Flush standard output; if that fails, redirect it to the null device, so that Python does not fail at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
