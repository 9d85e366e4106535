"""A pytest plugin: CPU seconds of every test function, with its fixtures, its parameters and the processes it starts.

    PYTHONPATH=.ci CPU_SECONDS=seconds.json pytest -p cpu_seconds

CPU seconds hardly depend on what else the machine does; the durations of pytest do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_SECONDS: dict[str, float] = {}


def _now() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    name, started = item.nodeid.partition("[")[0], _now()
    yield
    _SECONDS[name] = _SECONDS.get(name, 0.0) + _now() - started


def pytest_sessionfinish() -> None:
    text = json.dumps({name: round(seconds, 3) for name, seconds in _SECONDS.items()}, indent=0, sort_keys=True)
    Path(os.environ["CPU_SECONDS"]).write_text(text + "\n")
