"""Shared by all readers of files: size limits, strict JSON, and the header of safetensors files."""
