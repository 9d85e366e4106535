"""Bounds on a region: dual ascent, proofs, verification, falsification."""
