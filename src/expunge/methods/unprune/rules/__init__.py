"""The rules of un-pruning, one file each."""
