"""Patched models: patch sets, gates, index of gates, the module."""
