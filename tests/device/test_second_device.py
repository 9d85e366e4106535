"""Everything that takes a device runs on one that is not the CPU, and gives what the CPU gives (`second.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent
#: Largest absolute difference from the CPU: another order of sums at most; half precision for 2:4.
CHECKS = {
    "training": 0.0,
    "criteria": 0.0,
    "schedules": 0.0,
    "methods_of_fine_tuning": 0.0,
    "batch_norm_modes": 0.0,
    "references": 0.0,
    "un_pruning": 0.0,
    "curvature_of_the_loss": 1e-4,
    "influence_methods": 1e-4,
    "scores": 0.0,
    "ensembles": 1e-6,
    "patched_network": 1e-6,
    "tensors_2_4": 1e-2,
    "a_forgotten_move_is_an_error": 0.0,
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this release of PyTorch has no devices written in Python")
    done = subprocess.run([sys.executable, str(HERE / "checks.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    checks: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["checks"]
    assert checks.keys() == CHECKS.keys()
    return checks


@pytest.mark.parametrize("name", CHECKS)
def test_as_on_the_cpu(found: dict[str, Any], name: str) -> None:
    assert found[name]["error"] is None, found[name]["error"]
    assert found[name]["operations"] > 0
    assert found[name]["difference"] <= CHECKS[name]
