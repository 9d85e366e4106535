"""Find and delete every stored artefact that saw given records. Importing this does not import torch."""

from .artefacts import Artefact, Purge
from .run import find_artefacts, purge, read_purge_ids

__all__ = ["Artefact", "Purge", "find_artefacts", "purge", "read_purge_ids"]
