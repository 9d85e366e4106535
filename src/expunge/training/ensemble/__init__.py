"""Ensembles: many models trained at once on the same records. See docs/models.md."""
