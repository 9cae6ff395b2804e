"""Evaluation suites of others: their formulas, and the packages that judge them."""
