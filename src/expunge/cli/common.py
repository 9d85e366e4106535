"""What the commands share: printing, and reading a configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from expunge.core.errors import printable
from expunge.core.hashing import canonical_json

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON on standard output.")]
Trusted = Annotated[
    tuple[str, ...], Parameter(name="--trust", help="A package that files may name; may be repeated (SECURITY.md).")
]


def print_result(value: Any, text: str, as_json: bool) -> None:
    print(json.dumps(json.loads(canonical_json(value)), indent=2) if as_json else printable(text))


def read_config(config: Path, overrides: Sequence[str], trust: Sequence[str]) -> Any:
    from expunge.core.trust import read_user_trust
    from expunge.experiments import load_config

    return load_config(config, overrides, trust=read_user_trust(trust))
