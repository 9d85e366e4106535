"""The command `expunge-check`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from . import __version__
from .errors import MALFORMED, BadCertificate, TooLarge, printable
from .files import read_arrays, read_folder
from .limits import BILLION, DEFAULT, GIB, Limits
from .verify import Checker

LIMITS = (
    "A certificate says what the patched network answers on regions. It does not say that information was removed: the "
    "base weights are inside, and the patterns of the forgotten points are in the file."
)


def main(arguments: list[str] | None = None) -> int:
    """Check a folder, and say by the exit code what was found.

    0: every patch is certified and, where points were given, speaks of its point. 1: a patch is not certified, or a
    point is not that of its patch. 2: the folder is no certificate, or what was asked for cannot be done.
    """
    parser = argparse.ArgumentParser(prog="expunge-check", description=__doc__)
    parser.add_argument("folder", type=Path, help="a certificate folder written by expunge")
    parser.add_argument("--points", type=Path, help="safetensors with `inputs`: the forgotten points, one a patch")
    parser.add_argument(
        "--inputs", type=Path, action="append", default=[],
        help="safetensors with `inputs` (retained records, test records): which open a gate?",
    )  # fmt: skip
    parser.add_argument("--random", type=_count, default=0, help="also try so many random inputs from the box")
    parser.add_argument("--exact", action="store_true", help="rational arithmetic (small networks only)")
    parser.add_argument(
        "--max-memory", type=_amount, default=DEFAULT.memory / GIB, metavar="GIB",
        help="refuse what needs more memory, in GiB (default %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--max-work", type=_amount, default=DEFAULT.work / BILLION, metavar="BILLIONS",
        help="refuse what needs more work, in billions of multiply-adds (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the verdicts here")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(arguments)
    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        _say(f"{options.json} cannot be written: it is a folder, or its folder does not exist", sys.stderr)
        return 2
    limits = Limits(options.max_memory * GIB, options.max_work * BILLION)
    try:
        checker = Checker(read_folder(options.folder, limits), exact=options.exact, limits=limits)
        points = None if options.points is None else _inputs(options.points, limits)
        report = checker.check(points)
        openings = {str(path): _openings(checker, _inputs(path, limits)) for path in options.inputs}
        if options.random:
            openings["random"] = _openings(checker, _random(checker, options.random))
    except TooLarge as error:
        _say(f"not checked: {error}", sys.stderr)
        return 2
    except BadCertificate as error:
        _say(f"no certificate: {error}", sys.stderr)
        return 2
    except MALFORMED as error:
        _say(f"not checked: {error!r}", sys.stderr)
        return 2
    body = {**report.to_json(), "openings": openings, "limits": LIMITS}
    counts = body["counts"]
    _say(f"{body['points']} points: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    _say(f"claim: {report.claim}, epsilon {report.epsilon!r}; recorded logits within {report.replay:.3g} of the bound")
    for name, found in openings.items():
        _say(f"gates opened by {name}: {found['opened']} of {found['total']}")
    for note in report.notes:
        _say(note)
    _say(LIMITS)
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(_finite(body), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            _say(f"{options.json} cannot be written: {error}", sys.stderr)
            return 2
    return 0 if report.passed else 1


def _say(line: str, stream: TextIO | None = None) -> None:
    """Print one line of which a terminal shows every character, whatever a file made of it."""
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "ascii"
    print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _amount(text: str) -> float:
    amount = float(text)
    if not 0 < amount < math.inf:
        raise argparse.ArgumentTypeError(f"a limit is a number above 0, not {text}")
    return amount


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"a number of inputs is at least 0, not {count}")
    return count


def _inputs(path: Path, limits: Limits) -> np.ndarray:
    arrays, _ = read_arrays(path, limits)
    if "inputs" not in arrays or arrays["inputs"].dtype != np.float32:
        raise BadCertificate(f"{path.name} holds no float32 array `inputs`")
    return arrays["inputs"]


def _openings(checker: Checker, x: np.ndarray) -> dict[str, Any]:
    """How many inputs open a gate, of how many, and their numbers."""
    if x.shape[1:] != checker.network.input_shape:
        raise BadCertificate("the inputs do not fit the network")
    rows = np.flatnonzero(checker.openings(x))
    return {"opened": len(rows), "total": len(x), "rows": rows.tolist()}


def _random(checker: Checker, count: int) -> np.ndarray:
    checker.budget.spend_replays(count, f"{count} random inputs")
    low, high = checker.proofs.low, checker.proofs.high
    draws = np.random.default_rng(0).random((count, len(low)))
    return (low + draws * (high - low)).astype(np.float32).reshape(count, *checker.network.input_shape)
