"""Sections of a configuration that have a file of their own: `forget`, `split`, `training`."""
