"""Schedules: when a mask is made, at once or step by step, before or after training."""
