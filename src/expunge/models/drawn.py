"""Networks that were drawn from their seed in this process: drawn once, copied afterwards, bit for bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from expunge.core.trained import clone_model

#: How many networks are kept: of one run, the original and the retrained one.
KEPT = 2


class DrawnNetworks:
    """The networks that were used last, by what determines them and by seed. They are copied and never changed."""

    def __init__(self) -> None:
        self._networks: OrderedDict[tuple[Any, int], nn.Module] = OrderedDict()

    def get(self, blueprint: Any, seed: int, draw: Callable[[], nn.Module]) -> nn.Module:
        """Return a copy of the network of `blueprint` and `seed`; it is drawn if it is not kept."""
        if (blueprint, seed) not in self._networks:
            self._networks[blueprint, seed] = draw()
        self._networks.move_to_end((blueprint, seed))
        while len(self._networks) > KEPT:
            self._networks.popitem(last=False)
        return clone_model(self._networks[blueprint, seed])

    def find_seed(self, blueprint: Any) -> int | None:
        """A seed with which a network of `blueprint` is kept, or None."""
        return next((seed for kept, seed in reversed(self._networks) if kept == blueprint), None)
