"""Lily: said to compute with padding.

``peft/tuners/lily/layer.py`` (``Linear.forward``) mixes its experts by the router's mean over all
tokens of the batch, padding included (``router_probability.reshape(-1, num_B).mean(dim=0)``). Under
vmap that runs: but a lane's outcome depends on how far its batch is padded, so the length must be
the same whoever rides, and tokens cannot be packed. Remedy upstream: leave padding out of the mean.
"""

PATCHES = {"peft.tuners.lily.layer.Linear.sees_padding": True}
