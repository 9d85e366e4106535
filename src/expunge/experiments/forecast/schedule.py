"""When the last of several dependent stages ends, if a number of workers share them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from .history import Estimate, find_range


def simulate(seconds: Mapping[str, float], inputs: Mapping[str, Sequence[str]], workers: int) -> float:
    """Seconds until all stages are finished, when every free worker takes the first stage that is ready.

    Args:
        seconds: stage to its duration, in the order of the plan.
        inputs: stage to the stages that it needs; those that are not in `seconds` are finished.
        workers: number of workers.

    Example:
        >>> simulate({"a": 2.0, "b": 3.0, "c": 1.0}, {"c": ["a", "b"]}, workers=2)
        4.0
        >>> simulate({"a": 2.0, "b": 3.0, "c": 1.0}, {"c": ["a", "b"]}, workers=1)
        6.0
    """
    place = {name: number for number, name in enumerate(seconds)}
    waits = {name: sum(needed in place for needed in set(inputs.get(name, ()))) for name in seconds}
    followers: dict[str, list[str]] = {}
    for name in seconds:
        for needed in set(inputs.get(name, ())):
            followers.setdefault(needed, []).append(name)
    names = list(seconds)
    ready = [place[name] for name in names if waits[name] == 0]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < max(1, workers):
            first = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[names[first]], first))
        now, finished = heapq.heappop(running)
        for name in followers.get(names[finished], ()):
            waits[name] -= 1
            if waits[name] == 0:
                heapq.heappush(ready, place[name])
    return now


def spread_of_total(estimates: Sequence[Estimate]) -> float:
    """Relative standard deviation of the sum of the durations.

    The deviations of single stages are independent; the error of a mean is that of all stages that rest on it.

    Example:
        >>> alike = [Estimate(10.0, spread=0.2, group="a")] * 100
        >>> round(spread_of_total(alike), 3)
        0.02
        >>> round(spread_of_total([Estimate(10.0, error=0.2, group="a")] * 100), 3)
        0.2
    """
    total = independent = 0.0
    shared: dict[str, float] = {}
    for found in estimates:
        seconds = found.seconds or 0.0
        total += seconds
        independent += (found.spread * seconds) ** 2
        shared[found.group] = shared.get(found.group, 0.0) + found.error * seconds
    return math.sqrt(independent + sum(value**2 for value in shared.values())) / total if total > 0 else 0.0


def find_end(
    estimates: Mapping[str, Estimate], inputs: Mapping[str, Sequence[str]], workers: int
) -> tuple[float, float, float]:
    """Seconds until all stages are finished, and the range of about 95 %; stages of unknown duration take none.

    Args:
        estimates: stage to its estimate, in the order of the plan.
        inputs: see `simulate`.
        workers: number of workers.
    """
    seconds = simulate({name: found.seconds or 0.0 for name, found in estimates.items()}, inputs, workers)
    low, high = find_range(seconds, spread_of_total(list(estimates.values())))
    return seconds, low, high
