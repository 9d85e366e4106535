"""The command line: parse the arguments, call one function, print the result. Importing this does not import torch."""

from __future__ import annotations

import atexit
import gc
import sys


def main() -> None:
    """Run the command line on `sys.argv` and exit with its exit code: the entry point of the command `expunge`.

    >>> import sys
    >>> from expunge.cli import main
    >>> arguments, sys.argv = sys.argv, ["expunge", "--version"]
    >>> try:
    ...     main()
    ... except SystemExit as error:
    ...     print("exit code", error.code)
    ... finally:
    ...     sys.argv = arguments
    0...
    exit code 0
    """
    # Imports make many objects and no garbage: collecting would take a tenth of start-up, and more at the exit.
    gc.disable()
    from .app import run

    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    sys.exit(run(sys.argv[1:]))


__all__ = ["main"]
