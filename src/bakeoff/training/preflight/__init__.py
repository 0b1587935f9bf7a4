"""Checks, probes and measurements on the real base before any training."""
