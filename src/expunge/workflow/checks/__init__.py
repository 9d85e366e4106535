"""Parts of `check` that other parts do not need: each returns findings."""
