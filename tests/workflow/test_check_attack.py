"""`check` estimates the time of the membership attack, and decides as the run does how many records it is fitted on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.experiments.config.run_config import canonical_config, check_config
from expunge.workflow import check_run


def make_config(folder: Path, records: int, **evaluation: Any) -> Any:
    path = folder / f"{records}.npz"
    if not path.exists():
        labels = np.arange(records) % 2
        np.savez(path, x=labels[:, None].astype(np.float32), y=labels)
    return check_config(
        {
            "data": {"source": "npz", "options": {"path": str(path), "features": "x", "labels": "y"}},
            "split": {"test": 0.5, "validation": 0.1, "non_members": 0.1},
            "model": {"name": "mlp", "options": {"widths": [2]}},
            "training": {"recipe": "one-cycle", "epochs": 1},
            "forget": {"by": "random", "count": 10},
            "method": {"name": "FT"},
            "evaluation": evaluation,
            "runtime": {"device": "cpu"},
        }
    )


def attack_findings(config: Any) -> list[tuple[str, str, str]]:
    check = check_run(config)
    assert check.usable, check.text()
    found = [finding for finding in check.findings if finding.subject == "evaluation"]
    return [(finding.level, finding.message, finding.hint) for finding in found]


def test_the_default_is_limited_and_names_the_key(tmp_path: Path) -> None:
    ((level, message, hint),) = attack_findings(make_config(tmp_path, 40_000))
    assert level == "warning"
    assert "fitted on 10,000 members and 10,000 non-members, about" in message
    assert "would use all 15,990 and 20,000" in message
    assert hint == "evaluation.svc_records=all uses all"


def test_all_records_are_a_warning_with_the_seconds(tmp_path: Path) -> None:
    ((level, message, hint),) = attack_findings(make_config(tmp_path, 40_000, svc_records="all"))
    assert level == "warning"
    assert "fitted on 15,990 members and 20,000 non-members, about" in message
    assert float(message.split("about ")[1].split()[0]) > 30
    assert "svc_records=N" in hint


def test_a_small_attack_is_no_finding(tmp_path: Path) -> None:
    assert attack_findings(make_config(tmp_path, 40_000, svc_records=1_000)) == []
    assert attack_findings(make_config(tmp_path, 500)) == []


def test_the_option_takes_a_number_or_all_and_the_default_hashes_as_before(tmp_path: Path) -> None:
    assert make_config(tmp_path, 500, svc_records="20").evaluation.svc_records == 20
    assert "evaluation" not in canonical_config(make_config(tmp_path, 500))
    for wrong in (1, 0, -5, 2.5, True, "every", [3]):
        with pytest.raises(ConfigError, match=r"evaluation\.svc_records"):
            make_config(tmp_path, 500, svc_records=wrong)
