"""Plans on Dask and Ray: speed with two workers against one, kills, two networks with a store on S3, corrupted files.

    python benchmarks/engines.py speed [--rounds 2]   wall seconds of a plan that trains 32 models, in turn
    python benchmarks/engines.py waiting [--rounds 2] the same with stages that wait: whatever else the machine does
    python benchmarks/engines.py kills [--kills 20]   SIGKILL of a random worker, or of the driver, while a plan runs
    python benchmarks/engines.py networks             Dask over two network namespaces, store on moto's S3 server (root)
    python benchmarks/engines.py corrupted            a file of an entry on S3 is changed; it is computed again

Each part adds its section to benchmarks/results/engines.json, or to `--result FILE`. With `--folder DIR`, stores and
what has been measured stay there, and the same command goes on after an interruption: `speed` after the last engine
that it has timed, `kills` after the last kill. `--quick` runs a part in a minute or two with a small plan, and writes
only a file that was named.

It needs the extras `dask`, `ray` and `remote`, and for the last two parts `moto`, `flask` and `flask-cors`
(`make test-engines` installs all of them). "Equal" means: the hashes of all unlearned models and all scores of
all cells (RTE, a time, excepted) equal those of the process pool, bit for bit. Each worker is a process with one
thread; it has run a small plan before the clock starts, so nothing is imported or started while it runs.

`waiting` runs a plan of 29 stages that wait 4.2 s each (122 s): it measures what engines add, on a busy machine too.
Other work on the machine takes cores away, and from two workers more than from one. So `speed` also has the time that
a run would have taken with a core for each worker: the time in which workers had no stage (wall - stage seconds /
workers) plus the CPU seconds that they used, over the number of workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_parts.kills import measure_kills
from engine_parts.networks import measure_corrupted, measure_networks
from engine_parts.speed import measure_speed, time_engine

RESULT = Path(__file__).parent / "results" / "engines.json"


def add_section(path: Path | None, name: str, body: dict[str, Any]) -> None:
    """Print a section, and write it beside the others of a result file."""
    from _common import machine

    section = {"machine": machine(), **body}
    if path is not None:
        found = json.loads(path.read_text()) if path.exists() else {"benchmark": "engines"}
        path.write_text(json.dumps({**found, name: section}, indent=2) + "\n")
    print(json.dumps(section, indent=2))


@contextlib.contextmanager
def open_folder(path: Path | None, part: str) -> Iterator[Path]:
    """A folder of a part: one that stays, or a temporary one."""
    if path is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    else:
        folder = path.resolve() / part
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "waiting", "kills", "networks", "corrupted", "part"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--quick", action="store_true")
    for option in ("--engine", "--workers"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    parser.add_argument("--waits", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "part":  # `speed` calls it
        print(json.dumps(time_engine(given.engine, int(given.workers), given.folder, given.waits, given.quick)))
        return
    rounds = given.rounds or (1 if given.quick else 2)
    with open_folder(given.folder, f"{given.part}-quick" if given.quick else given.part) as folder:
        if given.part in ("speed", "waiting"):
            body = measure_speed(folder, rounds, given.part == "waiting", given.quick)
        elif given.part == "kills":
            body = measure_kills(folder, given.kills or (4 if given.quick else 20), given.seed, given.quick)
        elif given.part == "networks":
            body = measure_networks(folder, given.quick)
        else:
            body = measure_corrupted(folder)
    add_section(given.result or (None if given.quick else RESULT), given.part, body)


if __name__ == "__main__":
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # Ray starts workers at 15
    main()
