"""The built-in metrics, one file each; ``bakeoff.metrics`` documents what a file defines."""
