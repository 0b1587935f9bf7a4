"""Rows from the user's files to validated splits; no tensors."""
