"""Patched models: patch sets, gates, look-up of gates, the module."""
