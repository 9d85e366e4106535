"""Bounds on regions: dual ascent, proofs, verification, search for counterexamples."""
