"""Damages certificate folders and runs the checker on each: no traceback, no hang, memory under the cap.

    python checker/tests/file_fuzz.py FOLDER --count 12000 --seed 0

runs in this process under a limit of its address space, prints what was found as JSON, and exits with 1 where a case
failed. Bytes are flipped, cut, inserted, joined, swapped between files; or values of network.json are replaced by
hostile ones and its hash is made to fit, so that the checks after the hashes are reached too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from expunge_check.cli import main as check
from expunge_check.folder.files import hash_array, hash_arrays, hash_value

MEMORY, WORK, SECONDS = 0.125, 20.0, 20.0
FILES = ("certificate.json", "network.json", *(f"{n}.safetensors" for n in ("network", "patches", "proof", "replay")))
HOSTILE: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 10**3, 10**7, 2**31, 2**31 - 1, 2**63, 10**400, 0.5, 1e308, -0.0, 5e-324, True, None, "", "w",
    "\x1b[2K", "\u202e", [], [1], [0, 0], [2**31], [2**16, 2**15], [1] * 20, [[]], {}, {"a": 1}, "relu", "max_pool",
    "average_pool", "concat", "reshape", "conv",
)  # fmt: skip


class Hung(BaseException):
    """A case took too long; no handler of errors catches this."""


def damage(files: dict[str, bytes], draws: np.random.Generator) -> str:
    """Change bytes of one file (or of two) in place; return a description."""
    name, other = (str(n) for n in draws.choice(FILES, 2))
    data = bytearray(files[name])
    kind = str(draws.choice(["bit", "byte", "cut", "insert", "join", "swap", "repeat", "drop", "head", "digits"]))
    at = int(draws.integers(len(data))) if draws.random() < 0.5 else int(draws.integers(min(len(data), 200)))
    if kind == "bit":
        for _ in range(int(draws.integers(1, 4))):
            data[int(draws.integers(len(data)))] ^= 1 << int(draws.integers(8))
    elif kind == "byte":
        data[at] = int(draws.choice([0, 10, 27, 34, 44, 58, 91, 93, 123, 125, 127, 255, draws.integers(256)]))
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = draws.bytes(int(draws.integers(1, 50)))
    elif kind == "join":
        data += files[other]
    elif kind == "swap":
        files[other], data = bytes(data), bytearray(files[other])
    elif kind == "repeat":
        data[at:at] = data[at : at + int(draws.integers(1, 300))]
    elif kind == "drop":
        del data[at : at + int(draws.integers(1, 30))]
    elif kind == "head":
        data[:8] = int(draws.choice([0, 1, len(data), 2**31, 2**40, 2**63 - 1])).to_bytes(8, "little")
    else:  # another number where one stands
        found = list(re.finditer(rb"\d+", bytes(data)))
        if found:
            spot = found[int(draws.integers(len(found)))]
            data[spot.start() : spot.end()] = str(draws.choice([0, 1, 9, 255, 10**6, 2**31, 10**18])).encode()
    files[name] = bytes(data)
    return f"{kind} of {name}"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all members of a JSON value."""
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(member, (*path, key))
    return found


def distort(files: dict[str, bytes], draws: np.random.Generator) -> str:
    """Replace members of network.json by hostile values and correct its hash; return a description."""
    network = json.loads(files["network.json"])
    paths = [p for p in places(network) if p[0] in ("operations", "input_shape", "classes")]
    changes = []
    for _ in range(int(draws.integers(1, 3))):
        path = paths[int(draws.integers(len(paths)))]
        value = HOSTILE[int(draws.integers(len(HOSTILE)))]
        holder = network
        try:
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = json.loads(json.dumps(value))
        except (LookupError, TypeError):
            continue
        changes.append(f"{path} = {value!r}")
    header = json.loads(files["certificate.json"])
    with contextlib.suppress(ValueError, TypeError):  # two replacements can meet in a key that is no string
        body = {name: network[name] for name in ("input_shape", "classes", "operations", "tensors")}
        header["hashes"]["network"] = hash_value(body)
        files["certificate.json"] = json.dumps(header).encode()
        files["network.json"] = json.dumps(network).encode()
    return "; ".join(changes)


def true_of(files: dict[str, bytes]) -> bool:
    """Return whether other readers read an accepted folder in the same way, and its hashes match its arrays."""
    header, network = (json.loads(files[name]) for name in FILES[:2])
    arrays = {name.split(".")[0]: load(files[name]) for name in FILES[2:]}
    whole = all(hash_array(a) == network["tensors"][n]["hash"] for n, a in arrays["network"].items())
    hashes = header["hashes"]
    return whole and all(hash_arrays(arrays[name]) == hashes[name] for name in ("proof", "replay"))


def run_case(files: dict[str, bytes], folder: Path, options: list[str]) -> tuple[int, str, float]:
    """Return the exit code (-1: traceback, -2: timeout), the output and the seconds."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    out, err = io.StringIO(), io.StringIO()
    start = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = check([str(folder), "--max-memory", str(MEMORY), "--max-work", str(WORK), *options])
    except Hung:
        code = -2
        err.write(traceback.format_exc())
    except BaseException:  # SystemExit too: the command ends with an exit code
        code = -1
        err.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return code, out.getvalue() + err.getvalue(), time.process_time() - start


def _stop(*_: object) -> None:
    raise Hung


def _size(name: str) -> int:
    """Return a memory size of this process in bytes."""
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 if found else 0


def fuzz(folders: list[Path], count: int, seed: int) -> dict[str, Any]:
    """Run a number of cases and return their results.

    Args:
        folders: certificates that are accepted.
        count: cases.
        seed: of the draws.
    """
    import warnings

    warnings.simplefilter("ignore")
    draws = np.random.default_rng(seed)
    whole = [{name: (folder / name).read_bytes() for name in FILES} for folder in folders]
    codes: dict[str, int] = {}
    failures: list[dict[str, Any]] = []
    slowest = 0.0
    signal.signal(signal.SIGALRM, _stop)
    with tempfile.TemporaryDirectory() as place:
        for files in whole:  # everything is imported before the memory is limited
            code, text, _ = run_case(files, Path(place), ["--random", "5"])
            if code != 0:
                raise SystemExit(f"a whole folder is not accepted: {text}")
        before = _size("VmHWM")
        limit = _size("VmSize") + int(MEMORY * 2**30) + 2**25
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(count):
            files = dict(whole[number % len(whole)])
            what = damage(files, draws) if draws.random() < 0.6 else distort(files, draws)
            options = ["--exact"] if draws.random() < 0.1 else ["--random", "5"] if draws.random() < 0.1 else []
            code, text, seconds = run_case(files, Path(place), options)
            slowest = max(slowest, seconds)
            codes[str(code)] = codes.get(str(code), 0) + 1
            wrong = code not in (0, 1, 2) or "Traceback" in text or "MemoryError" in text
            wrong = wrong or not all(line.isprintable() for line in text.split("\n"))
            wrong = wrong or (code == 2) != (": certified" not in text and " certified, " not in text)
            wrong = wrong or (code == 0 and not true_of(files))
            if wrong:
                failures.append({"number": number, "what": what, "code": code, "text": text[-1500:]})
    peak = (_size("VmHWM") - before) / 2**20
    found = {"count": count, "codes": codes, "slowest_seconds": slowest, "memory_above_start_mib": peak}
    return {**found, "failures": len(failures), "first_failures": failures[:5]}


def main() -> int:
    """Run the command line; return 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = fuzz(options.folder, options.count, options.seed)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
