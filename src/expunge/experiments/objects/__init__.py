"""From the sections of a configuration to objects, in one file for each section: for `check`, runs and stages alike.

A section is a mapping of plain values: `config.split.model_dump(mode="json")`, or that of a stage's configuration. One
file for each, because the key of a stage covers the files that it imports. Nothing here imports torch before it is
needed.
"""
