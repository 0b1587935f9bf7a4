"""Greedy generation over a static key-value cache."""
