"""Parts of the benchmark of plans on Dask and Ray (`benchmarks/engines.py`)."""
