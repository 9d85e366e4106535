"""Masks from scores: granularity, allocation of the sparsity to layers, and the rule that a mask follows."""
