"""Images in files: how they are listed, indexed, decoded and transformed. Nothing here imports torch."""
