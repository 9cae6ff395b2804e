"""Execution of a plan on Ray or in the driver's process."""
