"""Stages of a run, one file each; `registry` lists them."""
