"""The built-in metrics, one file each; see ``bakeoff.metrics`` for what a file defines."""
