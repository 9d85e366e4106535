"""What gradient methods share: the weights that may move, when to stop, and chains of methods (docs/composition.md)."""
