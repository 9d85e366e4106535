"""Scores and reports of models in this process."""
