"""AdamW and the learning-rate schedule, the same for every method, with separate lanes.

Tensor axes: K = lanes, P = trained parameters of a lane, G = parameter groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.engine.lanes.parameter_stack import ParameterStack


def learning_rate_factor(step: int, steps: int, warmup: float, decay: float) -> float:
    """Return the factor on the peak learning rate at ``step`` of ``steps`` (counted from 0).

    Warm-up, stable, decay (WSD, arXiv 2404.06395): a linear rise over the first ``warmup`` share of
    the steps, a plateau, a linear fall to 0 over the last ``decay`` share. On the plateau, a trial
    that will be stopped and one that will continue take the same steps; under a cosine schedule
    they would not.
    """
    rising = warmup * steps
    falling = decay * steps
    up = (step + 1) / rising if rising > 0 else 1.0
    down = (steps - step) / falling if falling > 0 else 1.0
    return max(0.0, min(1.0, up, down))


@dataclass(frozen=True)
class LaneRecipe:
    """Optimiser settings of one lane: peak rate of each parameter group, decay and clipping."""

    learning_rates: tuple[float, ...]
    weight_decay: float
    clip: float


class LaneAdamW:
    """Fused AdamW over the rows of a stack, each lane with its own rates; no host sync.

    A lane whose loss or gradient is not finite, or whose loss exceeds ``max_loss``, is frozen from
    that step on: its row gets no more updates, and the other rows are unaffected. ``alive`` is
    ``[K]``, ``rates`` ``[K, G]``; ``diverged_at`` ``[K]`` counts steps from 1, 0 if not diverged.
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
        self._init_state()

    def _init_state(self) -> None:
        """Create AdamW's state now, at rates of 0: a CUDA graph needs it before the capture."""
        self.adamw.step()
        for state in self.adamw.state.values():
            state["step"].zero_()

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return copies of the optimizer state of a lane."""
        return {
            f"{key}.{g}": value.detach().clone()
            for g, state in enumerate(self._states(lane))
            for key, value in state.items()
        }

    @torch.no_grad()
    def restore(self, lane: int, saved: Mapping[str, Tensor], steps_taken: int) -> None:
        """Restore a saved ``state`` in place, after ``steps_taken`` steps."""
        for g, state in enumerate(self._states(lane)):
            for key, value in state.items():
                value.copy_(saved[f"{key}.{g}"])
        self.steps_taken.fill_(steps_taken)

    def never_updated(self, lane: int) -> bool:
        """Return whether every gradient of the lane was exactly 0 so far."""
        moments = (state[key] for state in self._states(lane) for key in ("exp_avg", "exp_avg_sq"))
        return not any(bool(moment.any()) for moment in moments)

    def _states(self, lane: int) -> list[dict[str, Tensor]]:
        """Return AdamW's state of each of the lane's parameter groups."""
        groups = len(self.stack.spans)
        own = self.adamw.param_groups[lane * groups : (lane + 1) * groups]
        return [self.adamw.state[group["params"][0]] for group in own]

    @torch.no_grad()
    def clip_and_mask(self, losses: Tensor) -> None:
        """Clip each lane's gradient and zero those of diverged lanes; ``losses`` is ``[K]``."""
        gradients = self.stack.gradients
        norms = torch.linalg.vector_norm(gradients, dim=1)
        healthy = torch.isfinite(losses) & (losses <= self.max_loss) & torch.isfinite(norms)
        self.steps_taken += 1
        fresh = self.alive & ~healthy
        self.diverged_at.copy_(torch.where(fresh, self.steps_taken, self.diverged_at))
        self.alive &= healthy
        # the formula of torch.nn.utils.clip_grad_norm_, with one norm per lane
        shrink = torch.clamp(self.clip / (norms + 1e-6), max=1.0)
        gradients.mul_(shrink[:, None]).masked_fill_(~self.alive[:, None], 0.0)

    @torch.no_grad()
    def step(self, factor: Tensor) -> None:
        """Update with the masked gradients; ``factor`` is the schedule's, a device scalar."""
        torch.mul(self.peaks, (factor * self.alive)[:, None], out=self.rates)
        self.adamw.step()
