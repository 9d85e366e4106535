"""The base network of patches: tracing, execution, linear regions, rounding bounds."""
