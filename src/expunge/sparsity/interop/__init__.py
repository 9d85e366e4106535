"""Import and export of pruned models: file formats, recorded provenance, adoption."""
