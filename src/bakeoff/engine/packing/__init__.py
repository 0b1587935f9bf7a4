"""Packing: rows are concatenated, so that no padding is computed."""
