"""Pruning criteria: functions that score weights or channels."""
