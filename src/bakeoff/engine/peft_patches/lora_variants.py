"""VeLoRA and MonteCLoRA: LoRA variants whose forward pass branches on the values of tensors.

VeLoRA (``peft/tuners/lora/velora.py``): ``_normalize_projection`` evaluates ``if norm == 0``, and
``VeloraFunction`` is an ``autograd.Function`` without ``setup_context``, which functorch refuses.
The projection is the mean of the layer's inputs, padding included. Here it is the mean over real
tokens, which is PEFT's on rows without padding, and the compressed gradient of A is that of a term
whose value is 0. Fix upstream: ``torch.where``, the plain formula, a mask.

MonteCLoRA (``MontecloraLinearVariant.forward``, ``peft/tuners/lora/variants.py:1191``) evaluates
``torch.isnan(...).any()``, and its sampler draws from PyTorch's global stream, stores the draws on
the module and factorises diagonal matrices by ``cholesky``, which waits for the device. Here draws
are by key (``lanes.dropout``), factors are square roots, and the penalty repeats the draws of the
pass. A lane whose sample is not a number has diverged; PEFT would train on without the sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bakeoff.engine.accelerators import Unsupported
from bakeoff.engine.lanes.vmap_escape import is_batched
from bakeoff.engine.packing.tokens import mean_over_tokens, own_row

MIN_VARIANCE, MIN_ALPHA = 1e-3, 1e-6
"""Lower limits of PEFT's ``wishart_reparameterization`` and ``dirichlet_reparameterization``."""


Forward = Callable[..., Tensor]
"""PEFT's own forward of a variant."""


class StateInLayer(Unsupported):
    """A layer keeps a state from batch to batch, which lanes would share."""


def velora_forward(
    own: Forward, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
) -> Tensor:
    """Add VeLoRA's update; in training, A's gradient comes from the compressed input."""
    if not (module.training and torch.is_grad_enabled()):
        return own(module, active_adapter, x, result, **kwargs)
    if module.lora_velora_init_type[active_adapter] == "batch_average_once":
        if is_batched(x):
            raise StateInLayer("its layers keep a projection of the first batch")
        return own(module, active_adapter, x, result, **kwargs)
    a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
    groups = module.lora_velora_num_groups[active_adapter]
    x = module.lora_dropout[active_adapter](x)
    with torch.no_grad():
        projection = _projection(module, active_adapter, x)
        compressed = _grouped(x, groups) @ projection.to(x.dtype)  # [..., groups]
    # PEFT restores the inputs from the compressed ones to multiply the gradient by them; the same
    # gradient flows through A projected on the groups
    scale = module.lora_velora_scale[active_adapter]
    projected = (_grouped(a.weight, groups) @ projection.to(a.weight.dtype)) * scale
    term = functional.linear(compressed, projected.to(compressed.dtype))
    after_a = functional.linear(x, a.weight.detach(), a.bias)
    after_a = after_a + (term - term.detach()).to(after_a.dtype)
    out: Tensor = result + b(after_a) * module.scaling[active_adapter]
    return out


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Return ``[..., D]`` as ``[..., groups, D / groups]``, filled up with zeros."""
    width = -(-x.shape[-1] // groups) * groups
    whole = functional.pad(x, (0, width - x.shape[-1]))
    return whole.reshape(*x.shape[:-1], groups, -1)


def _projection(module: Any, adapter: str, x: Tensor) -> Tensor:
    """Return the unit vector that inputs are compressed by, ``[D / groups]``."""
    fixed: Tensor = module.lora_velora_embed[adapter]
    if module.lora_velora_init_type[adapter] == "random":
        return fixed
    groups = module.lora_velora_num_groups[adapter]
    mean = _grouped(mean_over_tokens(x, x), groups).mean(0).float()
    norm = torch.linalg.vector_norm(mean)
    flat = torch.full_like(mean, len(mean) ** -0.5)
    return torch.where(norm > 0, mean / norm, flat).to(fixed.dtype)


def monteclora_forward(
    own: Forward, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
) -> Tensor:
    """Add MonteCLoRA's update, in training with the mean of its samples added to A."""
    sampler: Any = dict(module.lora_monteclora_sampler.items()).get(active_adapter)
    if not module.training or getattr(sampler, "keyed", None) is None:
        return own(module, active_adapter, x, result, **kwargs)
    a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
    count, size, rank = sampler.num_samples, sampler.in_features, sampler.out_features
    few = _small_draws(sampler)
    normals = sampler.keyed.normals((few + count * size * rank,))
    sample = _sample(sampler, normals[:few])
    noise = (sample.weights @ normals[few:].view(count, -1)).view(size, rank)
    noise = sampler.sample_scaler * noise * sample.variances.sqrt()
    weight = a.weight * sample.weights.sum() + noise.T
    x = module.lora_dropout[active_adapter](x.to(a.weight.dtype))
    out: Tensor = result + b(functional.linear(x, weight)) * module.scaling[active_adapter]
    return out


class Sample(NamedTuple):
    """Variances ``[r]`` of the noise, and weights ``[n]`` of the samples."""

    variances: Tensor
    weights: Tensor


def _small_draws(sampler: Any) -> int:
    """Return how many normals the variances and the weights are drawn from."""
    rank: int = sampler.out_features
    return int(sampler.num_samples) + rank * rank


def _sample(sampler: Any, normals: Tensor) -> Sample:
    """Return what the sampler draws for one pass.

    The diagonal of a Wishart matrix of identity scale is independent chi-squared variates.
    """
    count, rank = sampler.num_samples, sampler.out_features
    squares = normals[count:].view(rank, rank).square().sum(1)
    variances = (torch.exp(2 * sampler.std_prior) * squares).clamp(min=MIN_VARIANCE)
    alpha = torch.exp(sampler.expert_weights_prior).clamp(min=MIN_ALPHA)
    center = torch.log(alpha) - torch.log(alpha).mean()
    spread = (1 - 2 / count) / alpha + (1 / alpha).sum() / count**2
    spread = spread.clamp(min=MIN_ALPHA) + MIN_ALPHA
    return Sample(variances, torch.softmax(spread.sqrt() * normals[:count] + center, -1))


def variational_loss(self: Any) -> tuple[Tensor | float, Tensor | float]:
    """Return the divergences from the priors and the weights' concentration in the last pass."""
    if not self.training or self.keyed is None or self.keyed.keys is None:
        own: tuple[Tensor | float, Tensor | float] = self.original_class.get_variational_loss(self)
        return own
    with self.keyed.repeated_call(own_row(self.keyed.keys, self.std_prior.detach())[0]):
        sample = _sample(self, self.keyed.normals((_small_draws(self),)))
    rank, count = self.out_features, self.num_samples
    scales = 2 * self.std_prior  # logarithms of the variances
    wishart = 0.5 * rank * (scales.exp() - scales - 1).sum()
    variances = sample.variances
    normal = 0.5 * count * (variances - torch.log(variances) - 1).sum()
    alpha = torch.exp(self.expert_weights_prior)
    divergence = _dirichlet_divergence(alpha, torch.full_like(alpha, self.dirichlet_prior))
    concentration = sample.weights.square().sum() if self.use_entropy else 0.0
    return self.kl_loss_weight * (divergence + wishart + normal), concentration


def _dirichlet_divergence(alpha: Tensor, prior: Tensor) -> Tensor:
    """Return PEFT's ``dirichlet_kl``, with the prior created on the device."""
    whole = torch.lgamma(alpha.sum()) - torch.lgamma(prior.sum())
    parts = torch.lgamma(alpha) - torch.lgamma(prior)
    slopes = torch.digamma(alpha) - torch.digamma(alpha.sum())
    return whole + parts.sum() + ((alpha - prior) * slopes).sum()


_FORWARDS = {"VeloraLinearVariant": velora_forward, "MontecloraLinearVariant": monteclora_forward}
"""Replacements by the name of PEFT's class, which older versions lack."""


def on_install(self: Any) -> None:
    """Replace the forward of a LoRA layer's variants."""
    for variant in self.lora_variant.values():
        replacement = _FORWARDS.get(type(variant).__name__)
        if replacement is not None:
            variant.forward = functools.partial(replacement, type(variant).forward)


_SAMPLER = "peft.tuners.lora.monteclora.MontecloraSampler"
PATCHES = {
    "peft.tuners.lora.layer.Linear.on_install": on_install,
    f"{_SAMPLER}.get_variational_loss": variational_loss,
    f"{_SAMPLER}.keyed": None,
}
