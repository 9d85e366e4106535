"""Training steps on several processes: each computes the gradient of its part of every batch (docs/scaling.md)."""
