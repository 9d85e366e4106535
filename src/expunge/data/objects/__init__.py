"""Records from Python objects: datasets, data frames, arrays (`Records.from_dataset`)."""
