"""The sources that come with the package; importing this package registers them. None of them imports torch."""

from . import breast_cancer, digits

__all__ = ["breast_cancer", "digits"]
