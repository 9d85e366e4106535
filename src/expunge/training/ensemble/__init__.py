"""Ensembles: training many models on subsets of the same records. See docs/models.md."""

from .member import Member
from .memorised import HeldOutLosses, measure_held_out_losses
from .train import Ensemble, train_ensemble

__all__ = ["Ensemble", "HeldOutLosses", "Member", "measure_held_out_losses", "train_ensemble"]
