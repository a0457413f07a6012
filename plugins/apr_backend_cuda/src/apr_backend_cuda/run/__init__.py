"""Running steps: their tables, CUDA graphs and sampling."""
