"""Configurations and plans: reading, validation, line numbers for errors."""
