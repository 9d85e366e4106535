"""The parts of the training loop: what a step computes, and one pass over a set of records."""
