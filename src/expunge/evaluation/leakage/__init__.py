"""Topology leakage: shadow models, what they forget, and the attack on their masks."""
