"""First contact: a user's own model and data. `adopt` a model, `forget` rows of its data, evaluate, report, save.

Thin objects around `Trained`, `Outcome` and `Scores`: everything that they do can be done with the functions of the
other packages.
"""

from expunge.core.lazy import import_on_use

from .adopt import adopt
from .adopted import AdoptedModel
from .model import ModelWithData, Unlearned
from .table import MethodRow, MethodTable

__all__ = ["AdoptedModel", "MethodRow", "MethodTable", "ModelWithData", "Unlearned", "adopt"]

import_on_use(__name__)
