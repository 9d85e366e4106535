"""What the methods of this folder check of their options."""

from __future__ import annotations

from expunge.core.errors import MethodError
from expunge.training import batchnorm


def check_without_retain_set(method: str, batch_norm: str) -> None:
    """Raise an error unless the treatment of BatchNorm is known and does not read D_r.

    Args:
        method: its name, for the message.
        batch_norm: a key of `batchnorm.MODES`.
    """
    if batchnorm.check_mode(batch_norm) == "re-estimate":
        raise MethodError(
            "re-estimated statistics read D_r, and this method works without it",
            where=f"{method}.batch_norm",
            hint="use frozen or train; to re-estimate, run a method on D_r afterwards",
        )
