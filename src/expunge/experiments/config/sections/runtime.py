"""The section `runtime` of a configuration."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from expunge.core.reading.limits import WORKERS
from expunge.experiments.config.validation import Section


class RuntimeConfig(Section):
    """Device, precision, memory format, the processes that read streamed records, and those that train."""

    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    workers: int = pydantic.Field(default=0, ge=0, le=WORKERS)
    devices: int = pydantic.Field(default=1, ge=1, le=WORKERS)
    strategy: Literal["auto", "ddp"] = "auto"
    sync_batchnorm: bool = True
    compile: bool = False

    @property
    def keys(self) -> dict[str, Any]:
        """What a result depends on, to its last bit: all but the processes that read records.

        Options that came later are named if they have an effect, so that keys without them stay.
        """
        found = self.model_dump(mode="json", include={"device", "precision", "channels_last"})
        if self.devices > 1:
            found |= {"devices": self.devices, "sync_batchnorm": self.sync_batchnorm}
        return found | ({"compile": True} if self.compile else {})
