"""Damaged folders by the hundred, in a process of limited memory (EXPUNGE_FUZZ=10000 for more)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from checker_case import written
from hostile_folders import SOURCE

SCRIPT = Path(__file__).parents[1] / "helpers" / "file_fuzz.py"


def test_damaged_folders_give_a_verdict_or_an_error(small, tmp_path):
    written(tmp_path / "cnn", "small-cnn", claim="real")
    count = int(os.environ.get("EXPUNGE_FUZZ", "400"))
    command = [sys.executable, str(SCRIPT), str(small), str(tmp_path / "cnn"), "--count", str(count), "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == 0, found["first_failures"]
    assert found["count"] == count
    assert found["codes"]["2"] > count / 2  # most are refused; some damage what nothing depends on
    assert set(found["codes"]) <= {"0", "1", "2"}
    assert found["memory_above_start_mib"] < 128
