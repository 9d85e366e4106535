"""The store of finished stages: entries by content, hash of the code, environment."""
