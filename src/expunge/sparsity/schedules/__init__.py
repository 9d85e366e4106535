"""Pruning schedules: when the mask is made (before, during or after training) and what is trained then."""
