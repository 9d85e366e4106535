"""The built-in data sources. Importing this package registers them; none of them imports torch."""

from . import adult, breast_cancer, cifar_binary, digits, har, idx, location30, mosaic, npz, python, table

__all__ = [
    "adult",
    "breast_cancer",
    "cifar_binary",
    "digits",
    "har",
    "idx",
    "location30",
    "mosaic",
    "npz",
    "python",
    "table",
]
