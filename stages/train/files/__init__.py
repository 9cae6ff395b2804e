"""Checkpoints and published folders."""
