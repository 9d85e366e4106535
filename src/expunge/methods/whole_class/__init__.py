"""Methods for whole classes."""
