"""Reference architectures: one file for each network, which registers itself."""
