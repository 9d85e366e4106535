"""Corrections: requests that change labels or features of training records, and the records with the new values."""
