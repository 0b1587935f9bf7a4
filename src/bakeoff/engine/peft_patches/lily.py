"""Lily: marked as depending on padding.

``peft/tuners/lily/layer.py`` (``Linear.forward``) mixes its experts by the router's mean over all
tokens of the batch, padding included (``router_probability.reshape(-1, num_B).mean(dim=0)``). That
works under vmap, but a lane's result depends on the padding of its batch. So the padded length must
not depend on the other lanes, and tokens cannot be packed. Fix upstream: exclude padding from the
mean.
"""

PATCHES = {"peft.tuners.lily.layer.Linear.sees_padding": True}
