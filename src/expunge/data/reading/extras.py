"""Packages that are optional: imported when they are needed, and named with the command that installs them."""

from __future__ import annotations

import importlib
from typing import Any

from expunge.core.errors import ConfigError


def import_extra(module: str, extra: str, why: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: its name.
        extra: the extra of expunge that installs it.
        why: what needs it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{why} needs the package {package} ({error})", hint=f"pip install 'expunge[{extra}]'"
        ) from error
