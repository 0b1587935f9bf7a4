"""The training engine: hand-written, knows tensors and steps, names no method, task or database."""
