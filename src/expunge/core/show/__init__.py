"""Short descriptions of objects, for `repr` and for notebooks: bounded, deterministic, and without record ids.

A class defines `_summarise` and takes `__repr__ = repr_text` and `_repr_html_ = repr_html`. A class with many, long or
nested fields takes `__repr__ = repr_fields`, which prints the fields as a dataclass does, but shortens each.

None of the functions raises: a fact that cannot be computed is replaced by the name of the error.
"""

from .fields import plural, repr_fields, shorten, shorten_mapping, shorten_names, show_shape, truncate
from .summary import Bar, Summary, repr_html, repr_text

__all__ = [
    "Bar",
    "Summary",
    "plural",
    "repr_fields",
    "repr_html",
    "repr_text",
    "shorten",
    "shorten_mapping",
    "shorten_names",
    "show_shape",
    "truncate",
]
