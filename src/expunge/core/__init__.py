"""The words of the design: masks, splits, requests, trained models, outcomes; errors, hashes, seeds, files."""
