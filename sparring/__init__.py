"""Iterative self-play preference optimization."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sparring")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"
