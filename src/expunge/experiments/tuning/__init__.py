"""The search for options of methods, with an equal number of trials for each. See docs/tuning.md."""
