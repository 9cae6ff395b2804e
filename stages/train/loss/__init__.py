"""Formulas, pure torch."""
