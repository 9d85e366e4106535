"""Reference architectures, one file each; each registers itself."""
