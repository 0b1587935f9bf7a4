"""Lanes: several trials of one method share a frozen base and one training step."""
