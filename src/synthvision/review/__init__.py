"""Decide which candidates enter a data set."""
