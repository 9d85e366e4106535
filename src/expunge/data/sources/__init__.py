"""The sources that come with the package; importing this package registers them. None of them imports torch."""

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
