"""How often one sparse `forget` run loads its data, builds its network and traces it, in one process.

    python benchmarks/build_counts.py [--callers]

The run trains digits with a small CNN, prunes coupled channels, un-prunes them, and scores both models. A load is a
call of the data source's reader, a build draws the initial weights of a network, a trace is one of `torch.fx`. With
`--callers`, the functions of expunge that asked for each are listed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from _common import write_result

import expunge
from expunge.data import registry
from expunge.models.drawn import DrawnNetworks
from expunge.workflow import forget

CONFIG = """
data: {source: digits}
split: {limit: 300}
model: {name: small-cnn, options: {widths: [8, 16]}}
training: {recipe: one-cycle, epochs: 2}
sparsity: {sparsity: 0.5, layers: [conv, linear], criterion: filter-l1, granularity: filter, scope: layer}
forget: {by: random, count: 20}
method: {name: Un-prune, options: {method: FT, method_options: {epochs: 1}}}
runtime: {device: cpu}
"""


class Counts:
    """Counts calls by kind, and by the stage and the functions of expunge that made them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.callers: Counter[tuple[str, str]] = Counter()

    def count(self, kind: str) -> None:
        """Count one call and its callers, the innermost last."""
        names = [f"{Path(frame.filename).stem}.{frame.name}" for frame in traceback.extract_stack()
                 if "expunge" in frame.filename]  # fmt: skip
        skipped = ("__init__.", "loop.", "store.", "run_stages.", "forget.forget")
        self.calls[kind] += 1
        self.callers[kind, " > ".join(n for n in names if not n.startswith(skipped))] += 1


def watch(counts: Counts) -> None:
    """Count loads, builds and traces from now on."""
    get, trace, find = DrawnNetworks.get, torch.fx.Tracer.trace, registry.get_source

    def counted_get(self: Any, blueprint: Any, seed: int, draw: Any) -> Any:
        def counted_draw() -> Any:
            counts.count("builds")
            return draw()

        return get(self, blueprint, seed, counted_draw)

    def counted_trace(self: Any, *arguments: Any, **keywords: Any) -> Any:
        counts.count("traces")
        return trace(self, *arguments, **keywords)

    def counted_source(name: str) -> Any:
        source = find(name)

        def load(*arguments: Any, **keywords: Any) -> Any:
            counts.count("loads")
            return source.load(*arguments, **keywords)

        load.__module__ = source.load.__module__
        return dataclasses.replace(source, load=load)

    DrawnNetworks.get = counted_get
    torch.fx.Tracer.trace = counted_trace
    registry.get_source = counted_source
    registry.Source.check_options = lambda self, options: None


def main() -> None:
    """Run the configuration once and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", action="store_true", help="list the callers")
    arguments = parser.parse_args()
    counts = Counts()
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "run.yaml").write_text(CONFIG)
        config = expunge.load_config(Path(directory) / "run.yaml")
        watch(counts)
        forget(config, Path(directory) / "unlearned", store=Path(directory) / "store")
    for kind in ("loads", "builds", "traces"):
        sys.stdout.write(f"{kind}: {counts.calls[kind]}\n")
        for (found, callers), number in counts.callers.items():
            if arguments.callers and found == kind:
                sys.stdout.write(f"    {number} x {callers}\n")
    write_result("build_counts", {kind: counts.calls[kind] for kind in ("loads", "builds", "traces")})


if __name__ == "__main__":
    main()
