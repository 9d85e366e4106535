"""Readers of file formats: arrays, images, lists of ids."""
