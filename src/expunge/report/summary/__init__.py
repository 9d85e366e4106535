"""What a reader sees first: the warnings, the summary box, and the gaps to Retrain."""
