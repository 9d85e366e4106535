"""Compression: smaller tensors of a pruned model, as files and as networks."""
