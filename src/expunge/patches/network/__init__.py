"""The network behind the patches: tracing, execution, linear regions, rounding bounds."""
