"""The arithmetic of a network: operations, shapes, bounds of rounding, fractions, interference of gates."""
