"""Lanes: several trials of one method that share a frozen base and one training step."""
