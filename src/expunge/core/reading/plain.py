"""Values of numpy as those of Python, as options and files have them."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_plain(value: Any) -> Any:
    """A scalar of numpy as a number of Python, also within lists and tuples; any other value unchanged.

    Example:
        >>> as_plain(np.int64(3)), as_plain((np.float32(0.5), "x"))
        (3, (0.5, 'x'))
    """
    if isinstance(value, np.generic):
        return value.item()
    return type(value)(map(as_plain, value)) if type(value) in (list, tuple) else value
