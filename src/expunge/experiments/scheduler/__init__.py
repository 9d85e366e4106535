"""The scheduler: graph of stages, status, worker processes, progress."""
