"""Figures of result files: dots of every seed, curves over passes, lines over an axis of the plan."""
