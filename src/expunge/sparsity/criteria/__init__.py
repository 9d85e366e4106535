"""Criteria: what ranks weights and channels."""
