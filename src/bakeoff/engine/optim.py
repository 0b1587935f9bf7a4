"""The optimizer and the learning-rate schedule: the same for every method, lane by lane its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.engine.lanes.parameter_stack import ParameterStack


def learning_rate_factor(step: int, steps: int, warmup: float, decay: float) -> float:
    """Return the factor on the peak learning rate at ``step`` of ``steps`` (counted from 0).

    Warm-up, stable, decay (WSD, arXiv 2404.06395): a linear rise over the first ``warmup`` share of
    the steps, a plateau, a linear fall to 0 over the last ``decay`` share. A trial stopped on the
    plateau and one that goes on have shared the same steps, which a cosine would not give.
    """
    rising = warmup * steps
    falling = decay * steps
    up = (step + 1) / rising if rising > 0 else 1.0
    down = (steps - step) / falling if falling > 0 else 1.0
    return max(0.0, min(1.0, up, down))


@dataclass(frozen=True)
class LaneRecipe:
    """How one lane optimises: the peak rate of each parameter group, and its weight decay."""

    learning_rates: tuple[float, ...]
    weight_decay: float
    clip: float


class LaneAdamW:
    """AdamW over the rows of a stack, fused, each lane with its own rates; no host sync.

    A lane whose loss or gradient is not finite, or whose loss exceeds ``max_loss``, is frozen from
    that step on: its row takes no update any more, its neighbours' rows are not touched by it.
    ``alive`` is ``[K]``; ``diverged_at`` ``[K]`` counts steps from 1, 0 where the lane lives.
    """

    def __init__(
        self, stack: ParameterStack, recipes: Sequence[LaneRecipe], max_loss: float
    ) -> None:
        self.stack = stack
        self.max_loss = max_loss
        device = stack.values.device
        self.clip = torch.tensor([r.clip for r in recipes], device=device)
        self.peaks = torch.tensor([r.learning_rates for r in recipes], device=device)
        self.alive = torch.ones(len(stack), dtype=torch.bool, device=device)
        self.diverged_at = torch.zeros(len(stack), dtype=torch.long, device=device)
        self.steps_taken = torch.zeros((), dtype=torch.long, device=device)
        self.rates = torch.zeros_like(self.peaks)
        groups = [
            {"params": [row], "lr": self.rates[lane, g], "weight_decay": recipe.weight_decay}
            for lane, recipe in enumerate(recipes)
            for g, row in enumerate(stack.rows(lane))
        ]
        on_gpu = device.type == "cuda"
        self.adamw = torch.optim.AdamW(groups, fused=True, capturable=on_gpu)
        self._make_state()

    def _make_state(self) -> None:
        """Let AdamW make its state now, at rates of 0: a CUDA graph must find it there."""
        self.adamw.step()
        for state in self.adamw.state.values():
            state["step"].zero_()

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return copies of what this lane's next step depends on beside its values."""
        return {
            f"{key}.{g}": held.detach().clone()
            for g, state in enumerate(self._states(lane))
            for key, held in state.items()
        }

    @torch.no_grad()
    def restore(self, lane: int, saved: Mapping[str, Tensor], taken: int) -> None:
        """Put a saved ``state`` back, in place; ``taken`` counts the steps before it."""
        for g, state in enumerate(self._states(lane)):
            for key, held in state.items():
                held.copy_(saved[f"{key}.{g}"])
        self.steps_taken.fill_(taken)

    def never_updated(self, lane: int) -> bool:
        """Tell whether every gradient that the lane was given so far was exactly 0."""
        held = (state[key] for state in self._states(lane) for key in ("exp_avg", "exp_avg_sq"))
        return not any(bool(moment.any()) for moment in held)

    def _states(self, lane: int) -> list[dict[str, Tensor]]:
        """Return AdamW's state of each of the lane's parameter groups."""
        groups = len(self.stack.spans)
        own = self.adamw.param_groups[lane * groups : (lane + 1) * groups]
        return [self.adamw.state[group["params"][0]] for group in own]

    @torch.no_grad()
    def mask(self, losses: Tensor) -> None:
        """Clip each lane's gradient, clear a diverged lane's; ``losses`` is ``[K]``."""
        gradients = self.stack.gradients
        norms = torch.linalg.vector_norm(gradients, dim=1)
        healthy = torch.isfinite(losses) & (losses <= self.max_loss) & torch.isfinite(norms)
        self.steps_taken += 1
        fresh = self.alive & ~healthy
        self.diverged_at.copy_(torch.where(fresh, self.steps_taken, self.diverged_at))
        self.alive &= healthy
        # torch.nn.utils.clip_grad_norm_'s formula, a norm a lane
        shrink = torch.clamp(self.clip / (norms + 1e-6), max=1.0)
        gradients.mul_(shrink[:, None]).masked_fill_(~self.alive[:, None], 0.0)

    @torch.no_grad()
    def step(self, factor: Tensor) -> None:
        """Update with the masked gradients; ``factor`` is the schedule's, a device scalar."""
        torch.mul(self.peaks, (factor * self.alive)[:, None], out=self.rates)
        self.adamw.step()
