"""Turn errors into messages and exit codes, without tracebacks, and tell user errors from bugs of expunge."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback

from expunge.core.errors import ExpungeError, Interrupted, printable

BUG = 70
CUSTOM_CODE = 1
OUT_OF_SPACE = 2
BROKEN_PIPE = 141


def report_error(error: BaseException) -> int:
    """Print an error on standard error; returns the exit code.

    Exit codes: 2 for errors that the user can fix, 130 for an interruption, 1 for an exception in custom code, 70 for a
    bug of expunge.
    """
    text, code = describe_error(error)
    if text:
        print(f"expunge: {printable(text)}", file=sys.stderr)
    is_bug = code in (BUG, CUSTOM_CODE)
    if os.environ.get("EXPUNGE_DEBUG") and (is_bug or isinstance(error, ExpungeError)):
        print(printable("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    elif is_bug:
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
    from expunge.core.registry.custom_code import find_custom_code

    name, place = type(error).__name__, find_custom_code(error)
    if place is not None:
        return f"{place}: custom code raised {name}: {error}", CUSTOM_CODE
    return f"this is a bug of expunge, please report it ({name}: {error})", BUG


def flush_output() -> None:
    """Flush standard output; if that fails, redirect it to the null device, so that Python does not fail at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
