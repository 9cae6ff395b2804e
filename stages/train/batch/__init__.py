"""Rows of tables, their order, and batches of them."""
