"""Named inputs of a model, and the one tensor a record in which they are stored. Importing it does not import torch."""

from .field import Field
from .input_fields import InputFields

__all__ = ["Field", "InputFields"]
