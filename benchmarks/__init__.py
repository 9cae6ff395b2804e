"""Benchmarks: our stages beside their peers, each a module to run: `python -m benchmarks.sample`."""
