"""Things a person runs by hand, from the root of the repository: `python -m scripts.NAME`."""
