"""Compare constraints.txt with the packages of this environment, or write it from them (`--write`).

Packages that torch brings for a graphics card (`nvidia-*`, `cuda-*`, `triton`) are left out: the CPU build has none.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

PATH = Path(__file__).parents[1] / "constraints.txt"
OURS = {"expunge", "expunge-check", "pip", "setuptools", "wheel"}


def plain(name: str) -> str:
    """A package's name as indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """`name==version` by plain name, without local versions such as `+cpu`."""
    found = {}
    for one in distributions():
        name = plain(one.name)
        if name not in OURS and not re.match(r"nvidia-|cuda-|triton$", name):
            found[name] = f"{one.name}=={one.version.partition('+')[0]}"
    return found


def main() -> int:
    """1 where something is installed that is not pinned, pinned and not installed, or of another version."""
    comments = [line for line in PATH.read_text().splitlines() if line.startswith("#")]
    have = installed()
    if sys.argv[1:] == ["--write"]:
        PATH.write_text("\n".join([*comments, *sorted(have.values(), key=str.lower)]) + "\n")
        return 0
    pinned = {plain(line.split("==")[0]): line for line in PATH.read_text().splitlines() if not line.startswith("#")}
    wrong = 0
    for name in sorted({*have, *pinned}):
        if have.get(name, "").partition("==")[2] != pinned.get(name, "").partition("==")[2]:
            print(f"installed: {have.get(name, 'nothing')}; constraints.txt: {pinned.get(name, 'nothing')}")
            wrong = 1
    print(
        "constraints.txt does not pin exactly what is installed" if wrong else "constraints.txt pins what is installed"
    )
    return wrong


if __name__ == "__main__":
    sys.exit(main())
