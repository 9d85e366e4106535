"""Results of plans: files, claims, summaries, tables, figures."""
