"""Masks from scores: granularity, allocation over layers, the rule that a mask follows."""
