"""Tables with typed columns: Parquet and Arrow files, saved Hugging Face datasets, data frames."""
