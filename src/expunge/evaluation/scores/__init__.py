"""Scores: one file for each family. See docs/scores.md."""
