"""expunge: machine unlearning for classifiers, sparse ones above all."""

__version__ = "0.1.0"
