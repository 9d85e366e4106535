"""Methods that are defined by the weights that they may change."""
