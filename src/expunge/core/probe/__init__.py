"""Records with which a model can be tried, of the type that it takes."""

from .batch import find_input_fields, make_probe, run_on_random_records

__all__ = ["find_input_fields", "make_probe", "run_on_random_records"]
