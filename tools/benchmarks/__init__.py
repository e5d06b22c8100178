"""Measurements of segkit beside its peers; `tools/benchmark.py` is the command line."""
