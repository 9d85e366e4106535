"""Dask over two networks with a store on S3, and an entry that is damaged there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from .clusters import find_free_port, start_dask, start_s3, two_namespaces
from .plans import MEDIUM, ONE_THREAD, QUICK, SMALL, command_line, keep_reference, read_table, run, write_plan


def measure_networks(folder: Path, quick: bool) -> dict[str, Any]:
    plan = write_plan(folder, QUICK if quick else MEDIUM, "networks")
    reference = keep_reference(plan, folder)
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
        "equal_to_the_process_pool": read_table(folder / "networks.json") == read_table(reference),
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
    with start_s3([], "127.0.0.1", find_free_port()):
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
