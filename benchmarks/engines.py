"""Plans on Dask and Ray: speed with two workers against one, kills, two networks with a store on S3, corrupted files.

    python benchmarks/engines.py speed [--rounds 2]   wall seconds of a plan that trains 32 models, in turn
    python benchmarks/engines.py waiting [--rounds 2] the same with stages that wait: whatever else the machine does
    python benchmarks/engines.py kills [--kills 20]   SIGKILL of a random worker, or of the driver, while a plan runs
    python benchmarks/engines.py networks             Dask over two network namespaces, store on moto's S3 server (root)
    python benchmarks/engines.py corrupted            a file of an entry on S3 is changed; it is computed again

Each part adds its section to benchmarks/results/engines.json. It needs the extras `dask`, `ray` and `remote`, and for
the last two parts `moto`, `flask` and `flask-cors`. "Equal" means: the hashes of all unlearned models and all scores of
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
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "engines.json"
PLAN = """
name: engines
base:
  data: {{source: digits}}
  model: {{name: small-cnn}}
  training: {{recipe: one-cycle, epochs: {epochs}}}
  forget: {{by: random, fraction: 0.1}}
  runtime: {{device: cpu}}
grid:
  method: [{{name: Retrain}}, {{name: FT}}]
  seed: {seeds}
"""
#: Epochs and seeds: for the clock, for kills and networks, and to warm the workers.
LARGE, MEDIUM, SMALL = (104, range(16)), (8, range(16)), (1, range(100, 104))
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def write_plan(folder: Path, size: tuple[int, range], name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(PLAN.format(epochs=size[0], seeds=list(size[1])))
    return path


def read_table(path: Path) -> Any:
    """Hashes and scores of all cells, without times."""
    cells = json.loads(path.read_text())["cells"]
    return [
        (cell["labels"], cell["state"], cell.get("hashes"), {k: v for k, v in cell["scores"].items() if k != "RTE"})
        for cell in cells
    ]


def run(plan: Path, store: str, results: Path, **options: Any) -> float:
    """Run a plan in this process; returns wall seconds."""
    from expunge.experiments import load_plan, run_plan

    loaded = load_plan(plan)
    started = time.perf_counter()
    done = run_plan(loaded, store=store, results=results, **options)
    seconds = time.perf_counter() - started
    assert done.exit_code == 0, done.failures
    return seconds


def command_line(plan: Path, store: str, results: Path, scheduler: str) -> list[str]:
    arguments = ["bench", "run", str(plan), "--store", store, "--results", str(results), "--scheduler", scheduler]
    return [sys.executable, "-m", "expunge.cli", *arguments]


# ---- speed


def time_engine(engine: str, workers: int, folder: Path, waits: bool) -> dict[str, Any]:
    """Start workers, warm them, and time the large plan; in a process of its own (`part`)."""
    large, small = write_plan(folder, LARGE, "large"), write_plan(folder, SMALL, "small")
    stages: dict[str, str] = {}
    if waits:
        large, stages = build_waiting(folder)
    if engine == "dask":
        import distributed

        cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
        options = {"scheduler": f"dask://{cluster.scheduler_address.removeprefix('tcp://')}"}
    elif engine == "ray":
        import ray

        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        options = {"scheduler": "ray", "workers": workers}
    else:
        options = {"workers": workers}
    if engine != "processes":
        run(small, str(folder / f"warm-{engine}-{workers}"), folder / "warm.json", **options)
    store = str(folder / f"store-{engine}-{workers}-{os.getpid()}")
    before = read_busy()
    used = -count_cpu_seconds()
    wall = run(large, store, folder / f"{engine}-{workers}.json", stages=stages, **options)
    used += count_cpu_seconds()
    busy = [after - start for after, start in zip(read_busy(), before, strict=True)]
    from expunge.experiments import read_results

    stages = read_results(folder / f"{engine}-{workers}.json")["made"]["seconds"]
    return {
        "seconds": round(wall, 1),
        "stage_seconds": round(stages, 1),
        "worker_cpu_seconds": round(used, 1),
        "with_a_core_each": round(wall - stages / workers + used / workers, 1),
        "machine_busy": round(busy[0] / sum(busy), 3),
    }


def build_waiting(folder: Path) -> tuple[Path, dict[str, str]]:
    """The plan and the stages of the tests' laboratory, which compute nothing and wait; it is built once."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
    from laboratory import Lab, build

    lab = Lab(folder, "waiting_stages")
    if not lab.plan.exists():
        lab = build(folder, "waiting_stages")
        lab.behave("time.sleep(4.2)")
    sys.path.append(str(folder))
    return lab.plan, lab.stages


def count_cpu_seconds() -> float:
    """CPU seconds of the processes that this one has started, so far."""
    import psutil

    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def read_busy() -> list[float]:
    """Busy and idle seconds of all cores since the machine started."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return [(sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), idle / os.sysconf("SC_CLK_TCK")]


def measure_speed(folder: Path, rounds: int, waits: bool) -> dict[str, Any]:
    names = [("dask", 1), ("dask", 2), ("ray", 1), ("ray", 2)]
    found: dict[str, list[Any]] = {f"{engine} {workers}": [] for engine, workers in names}
    reference = call_part("processes", 2, folder, waits)
    expected = read_table(folder / "processes-2.json")
    equal = True
    for turn in range(rounds):
        for engine, workers in names if turn % 2 == 0 else reversed(names):
            found[f"{engine} {workers}"].append(call_part(engine, workers, folder, waits))
            equal = equal and read_table(folder / f"{engine}-{workers}.json") == expected
            print(engine, workers, found[f"{engine} {workers}"][-1], flush=True)
    ratios = {
        key: {
            engine: [
                round(one[key] / two[key], 3)
                for one, two in zip(found[f"{engine} 1"], found[f"{engine} 2"], strict=True)
            ]
            for engine in ("dask", "ray")
        }
        for key in ("seconds", "with_a_core_each")
    }
    return {
        "plan": "29 stages of 4.2 s" if waits else {"epochs": LARGE[0], "seeds": len(LARGE[1])},
        "processes 2": reference,
        **found,
        "one_to_two_workers": ratios,
        "equal_to_the_process_pool": equal,
        "cells": len(expected),
    }


def call_part(engine: str, workers: int, folder: Path, waits: bool) -> dict[str, Any]:
    """`time_engine` in a process of its own; with the CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(folder)])
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
    command = [sys.executable, __file__, "part", engine, str(workers), str(folder), *(["waits"] if waits else [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout.splitlines()[-1]), "cpu_seconds": round(used, 1)}


# ---- kills


@contextlib.contextmanager
def start_dask(folder: Path, port: int, wrap: list[list[str]], host: str = "127.0.0.1") -> Iterator[list[Any]]:
    """A scheduler, and a worker with a nanny for each command prefix; yields their processes."""
    python = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    first = wrap[0]
    environment = {**os.environ, **ONE_THREAD}
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([*first, *python, "--host", host, "--port", str(port), "--no-dashboard"],
                                env=environment, **options)]  # fmt: skip
    try:
        for number, prefix in enumerate(wrap):
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"{host}:{port}", "--nthreads", "1"]
            worker += ["--no-dashboard", "--local-directory", str(folder / f"dask-{number}"), "--name", f"w{number}"]
            own = {**environment, "EXPUNGE_CACHE_DIR": str(folder / f"cache-{number}")}
            started.append(subprocess.Popen([*prefix, *worker], env=own, **options))
        yield started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def find_worker_processes(nannies: list[Any]) -> list[int]:
    """Process ids of the workers that nannies have started."""
    import psutil

    found = []
    for nanny in nannies:
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(nanny.pid).children(recursive=True)
            found += [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    return found


def count_entries(store: str) -> int:
    return len(list(Path(store).glob("entries/*/*/entry.json")))


def measure_kills(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    plan, store = write_plan(folder, MEDIUM, "kills"), str(folder / "killed")
    run(plan, str(folder / "kept"), folder / "kept.json", workers=2)
    killed = {"worker": 0, "driver": 0}
    runs, port = 0, 18786
    with start_dask(folder, port, [[], []]) as processes:
        started = time.perf_counter()
        while True:
            command = command_line(plan, store, folder / "killed.json", f"dask://127.0.0.1:{port}")
            with open(folder / "driver.log", "ab") as log:
                driver = subprocess.Popen(
                    command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.DEVNULL, stderr=log
                )
            runs += 1
            while driver.poll() is None and sum(killed.values()) < kills:
                before = count_entries(store)
                while driver.poll() is None and count_entries(store) == before:
                    time.sleep(0.1)  # a stage is finished between two kills
                with contextlib.suppress(subprocess.TimeoutExpired):
                    driver.wait(draw.uniform(0, 2))
                    break
                workers = find_worker_processes(processes[1:])
                if draw.random() < 0.25 or not workers:
                    driver.kill()
                    driver.wait()
                    killed["driver"] += 1
                else:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(draw.choice(workers), signal.SIGKILL)
                        killed["worker"] += 1
            code = driver.wait()
            print(f"run {runs}: exit code {code}, killed {killed}", flush=True)
            if code == 0 and sum(killed.values()) >= kills:
                break
            if code == 0:  # all finished before the last kill: some stages again
                entries = sorted(Path(store).glob("entries/train/*"))
                for entry in draw.sample(entries, len(entries) // 2):
                    shutil.rmtree(entry)
                for kind in ("forget", "score"):
                    shutil.rmtree(Path(store) / "entries" / kind)
        seconds = time.perf_counter() - started
    left = [str(path) for path in Path(store).glob("entries/*/.*")]
    return {
        "kills": killed,
        "seed": seed,
        "runs": runs,
        "seconds": round(seconds, 1),
        "partly_written_entries": len(left),
        "equal_to_the_process_pool": read_table(folder / "killed.json") == read_table(folder / "kept.json"),
    }


# ---- two networks, and a store on S3


@contextlib.contextmanager
def two_namespaces() -> Iterator[list[list[str]]]:
    """Two network namespaces joined by a pair of virtual interfaces; yields the command prefixes."""
    names = ["expunge-a", "expunge-b"]
    commands = [["ip", "netns", "add", name] for name in names]
    commands += [
        ["ip", "link", "add", "exp-a", "netns", names[0], "type", "veth", "peer", "name", "exp-b", "netns", names[1]]
    ]
    for name, device, number in zip(names, ("exp-a", "exp-b"), (1, 2), strict=True):
        prefix = ["ip", "-n", name]
        commands += [[*prefix, "addr", "add", f"10.77.0.{number}/24", "dev", device]]
        commands += [[*prefix, "link", "set", device, "up"], [*prefix, "link", "set", "lo", "up"]]
    try:
        for command in commands:
            subprocess.run(command, check=True)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextlib.contextmanager
def start_s3(prefix: list[str], host: str, port: int) -> Iterator[None]:
    """moto's S3 server with a bucket `store`; the environment names it, with made-up credentials."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "made-up-id", "AWS_SECRET_ACCESS_KEY": "made-up-secret"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    code = f"from moto.server import main; main(['-H', '{host}', '-p', '{port}'])"
    server = subprocess.Popen(
        [*prefix, sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    make = "import boto3; boto3.client('s3').create_bucket(Bucket='store')"
    try:
        for _ in range(60):
            time.sleep(1)
            if (
                subprocess.run([*prefix, sys.executable, "-c", make], stderr=subprocess.DEVNULL, check=False).returncode
                == 0
            ):
                break
        yield
    finally:
        server.terminate()
        server.wait()


def measure_networks(folder: Path) -> dict[str, Any]:
    plan = write_plan(folder, MEDIUM, "networks")
    run(plan, str(folder / "kept"), folder / "kept.json", workers=2)
    with contextlib.ExitStack() as stack:
        prefixes = stack.enter_context(two_namespaces())
        stack.enter_context(start_s3(prefixes[0], "10.77.0.1", 5000))
        stack.enter_context(start_dask(folder, 8786, prefixes, "10.77.0.1"))
        command = command_line(plan, "s3://store/plans", folder / "networks.json", "dask://10.77.0.1:8786")
        own = {**os.environ, **ONE_THREAD, "EXPUNGE_CACHE_DIR": str(folder / "cache-driver")}
        started = time.perf_counter()
        for _ in range(30):
            done = subprocess.run([*prefixes[0], *command], env=own, capture_output=True, text=True, check=False)
            if "nothing answers there" not in done.stderr:
                break
            time.sleep(1)
        seconds = time.perf_counter() - started
        assert done.returncode == 0, done.stderr
    computed = [len(list((folder / f"cache-{number}").glob("stores/*/locks/*.lock"))) for number in (0, 1)]
    return {
        "seconds": round(seconds, 1),
        "stages_computed_in_each_namespace": computed,
        "equal_to_the_process_pool": read_table(folder / "networks.json") == read_table(folder / "kept.json"),
        "credentials_in_output_or_results": find_secrets(done.stdout + done.stderr, folder),
    }


def find_secrets(text: str, folder: Path) -> int:
    """How often the made-up credentials are in an output, or in a file of a working copy or of results."""
    secrets = ("made-up-id", "made-up-secret")
    files = [path for path in [*folder.rglob("*.json"), *folder.rglob("*.log")] if path.is_file()]
    texts = [text, *(path.read_text(errors="replace") for path in files)]
    return sum(one.count(secret) for one in texts for secret in secrets)


def measure_corrupted(folder: Path) -> dict[str, Any]:
    """Change one byte of the weights of an original model on S3, remove what was made from it, and run again."""
    import fsspec

    plan, cache = write_plan(folder, SMALL, "corrupted"), folder / "cache"
    os.environ["EXPUNGE_CACHE_DIR"] = str(cache)
    with start_s3([], "127.0.0.1", 5001):
        store = "s3://store/corrupted"
        run(plan, store, folder / "before.json", scheduler="dask", workers=2)
        files = fsspec.filesystem("s3", use_listings_cache=False)
        entry = sorted(files.glob("store/corrupted/entries/train/*"))[0]
        name = json.loads(files.cat_file(f"{entry}/entry.json"))["files"]["model.safetensors"]["sha256"]
        content = bytearray(files.cat_file(f"{entry}/{name}"))
        content[len(content) // 2] ^= 1
        files.pipe_file(f"{entry}/{name}", bytes(content))
        for kind in ("forget", "score"):
            files.rm(f"store/corrupted/entries/{kind}", recursive=True)
        shutil.rmtree(cache)
        log: list[str] = []
        from expunge.experiments.scheduler.progress import NullReporter

        class Log(NullReporter):
            def log(self, text: str) -> None:
                log.append(text)

        run(plan, store, folder / "after.json", scheduler="dask", workers=2, reporter=Log())
        repaired = bytes(files.cat_file(f"{entry}/{name}")) != bytes(content)
    return {
        "found": [line for line in log if "damaged" in line],
        "repaired": repaired,
        "equal": read_table(folder / "before.json") == read_table(folder / "after.json"),
    }


def add_section(name: str, body: dict[str, Any]) -> None:
    from _common import machine

    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"benchmark": "engines"}
    found[name] = {"machine": machine(), **body}
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found[name], indent=2))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["speed", "waiting", "kills", "networks", "corrupted", "part"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.part == "part":
        print(
            json.dumps(time_engine(given.rest[0], int(given.rest[1]), Path(given.rest[2]), "waits" in given.rest[3:]))
        )
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.part in ("speed", "waiting"):
            add_section(given.part, measure_speed(folder, given.rounds, given.part == "waiting"))
        elif given.part == "kills":
            add_section("kills", measure_kills(folder, given.kills, given.seed))
        elif given.part == "networks":
            add_section("networks", measure_networks(folder))
        else:
            add_section("corrupted", measure_corrupted(folder))


if __name__ == "__main__":
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # Ray starts workers at 15
    main()
