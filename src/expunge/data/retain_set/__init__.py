"""A retain set whose records are gone, and a stand-in for it."""
