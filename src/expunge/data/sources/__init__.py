"""The built-in data sources: each file registers its own, and is imported when it is named. None imports torch."""
