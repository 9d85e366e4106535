"""The network of a patch: traced operations, execution, regions, rounding."""
