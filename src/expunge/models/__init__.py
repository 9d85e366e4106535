"""Reference and custom architectures: build them, load weights, save and load trained models.

A new network is one new file in `architectures` that registers itself; it is imported when it is named.
"""

from expunge.core.lazy import import_on_use

from .architecture import Architecture, architecture, model_names, model_options, model_table, register_model
from .initial import InitialWeights
from .inspect import Finding, ModelFacts, describe_model
from .normalise import Normalise, measure_normalisation
from .saved_model import adopt_plain_weights, load_trained, save_trained, write_trained
from .trainable import check_trainable
from .weights import load_tensors, load_weights, match_names

__all__ = [
    "Architecture",
    "Finding",
    "InitialWeights",
    "ModelFacts",
    "Normalise",
    "adopt_plain_weights",
    "architecture",
    "check_trainable",
    "describe_model",
    "load_tensors",
    "load_trained",
    "load_weights",
    "match_names",
    "measure_normalisation",
    "model_names",
    "model_options",
    "model_table",
    "register_model",
    "save_trained",
    "write_trained",
]

import_on_use(__name__)
