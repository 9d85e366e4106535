"""Run the stages of a plan on an existing engine: Dask or Ray. See docs/engines.md."""
