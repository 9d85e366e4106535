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
from .errors import MALFORMED, BadCertificate, TooLarge, escape
from .folder.files import read_arrays, read_folder
from .limits import BILLION, DEFAULT, GIB, Limits
from .verify import Checker

LIMITS = (
    "A certificate covers the outputs of the patched network on regions. It does not show that information was "
    "removed: the folder contains the base weights and the patterns of the forgotten points."
)


@np.errstate(all="ignore")  # what overflows is judged; nothing but verdicts and refusals is printed
def main(arguments: list[str] | None = None) -> int:
    """Check a folder and return the exit code.

    0: every patch is certified and, with `--points`, every point matches its patch. 1: a patch is not certified, or a
    point does not match its patch. 2: the folder is not a valid certificate, or the check could not be done.
    """
    parser = argparse.ArgumentParser(prog="expunge-check", description=__doc__)
    parser.add_argument("folder", type=Path, help="a certificate folder written by expunge")
    parser.add_argument(
        "--points", type=Path, help="safetensors with `inputs`: the forgotten points, one per patch, in the same order"
    )
    parser.add_argument(
        "--inputs", type=Path, action="append", default=[],
        help="safetensors with `inputs` (retained or test records): count those that open a gate; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--random",
        type=_parse_count,
        default=0,
        help="also count openings for this number of random inputs from the box",
    )
    parser.add_argument("--exact", action="store_true", help="use rational arithmetic (small networks only)")
    parser.add_argument(
        "--max-memory", type=_parse_limit, default=DEFAULT.memory / GIB, metavar="GIB",
        help="refuse checks that need more memory, in GiB (default %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--max-work", type=_parse_limit, default=DEFAULT.work / BILLION, metavar="BILLIONS",
        help="refuse checks that need more work, in billions of multiply-adds (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(arguments)
    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        _print_line(f"{options.json} cannot be written: it is a folder, or its folder does not exist", sys.stderr)
        return 2
    limits = Limits(options.max_memory * GIB, options.max_work * BILLION)
    try:
        checker = Checker(read_folder(options.folder, limits), exact=options.exact, limits=limits)
        points = None if options.points is None else _read_inputs(options.points, limits)
        report = checker.check(points)
        openings = {str(path): _count_openings(checker, _read_inputs(path, limits)) for path in options.inputs}
        if options.random:
            openings["random"] = _count_openings(checker, _draw_random(checker, options.random))
    except TooLarge as error:
        _print_line(f"not checked: {error}", sys.stderr)
        return 2
    except BadCertificate as error:
        _print_line(f"no certificate: {error}", sys.stderr)
        return 2
    except MALFORMED as error:
        _print_line(f"not checked: {error!r}", sys.stderr)
        return 2
    body = {**report.to_json(), "openings": openings, "limits": LIMITS}
    counts = body["counts"]
    _print_line(f"{body['points']} points: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    _print_line(
        f"claim: {report.claim}, epsilon {report.epsilon!r}; recorded logits within {report.replay:.3g} of the bound"
    )
    for name, found in openings.items():
        _print_line(f"gates opened by {name}: {found['opened']} of {found['total']}")
    for note in report.notes:
        _print_line(note)
    _print_line(LIMITS)
    if options.json is not None:
        try:
            options.json.write_text(
                json.dumps(_replace_non_finite(body), indent=2, allow_nan=False) + "\n", encoding="utf-8"
            )
        except OSError as error:
            _print_line(f"{options.json} cannot be written: {error}", sys.stderr)
            return 2
    return 0 if report.passed else 1


def _print_line(line: str, stream: TextIO | None = None) -> None:
    """Print one line with all characters escaped that a terminal would not show as they are."""
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "ascii"
    print(escape(line).encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _replace_non_finite(value: Any) -> Any:
    """Return the value with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _replace_non_finite(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_replace_non_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse_limit(text: str) -> float:
    amount = float(text)
    if not 0 < amount < math.inf:
        raise argparse.ArgumentTypeError(f"a limit is a number above 0, not {text}")
    return amount


def _parse_count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"a number of inputs is at least 0, not {count}")
    return count


def _read_inputs(path: Path, limits: Limits) -> np.ndarray:
    arrays, _ = read_arrays(path, limits)
    if "inputs" not in arrays or arrays["inputs"].dtype != np.float32:
        raise BadCertificate(f"{path.name} has no float32 array `inputs`")
    return arrays["inputs"]


def _count_openings(checker: Checker, x: np.ndarray) -> dict[str, Any]:
    """Return the number of inputs that open a gate, the total, and their indices."""
    if x.shape[1:] != checker.network.input_shape:
        raise BadCertificate("the inputs do not fit the network")
    rows = np.flatnonzero(checker.find_openings(x))
    return {"opened": len(rows), "total": len(x), "rows": rows.tolist()}


def _draw_random(checker: Checker, count: int) -> np.ndarray:
    checker.budget.spend_replays(count, f"{count} random inputs")
    low, high = checker.proofs.low, checker.proofs.high
    draws = np.random.default_rng(0).random((count, len(low)))
    return (low + draws * (high - low)).astype(np.float32).reshape(count, *checker.network.input_shape)
