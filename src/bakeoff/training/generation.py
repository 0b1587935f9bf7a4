"""Generated answers in a study: fast where a probe found the plain tokens, plainly elsewhere.

Used by ``evaluate``, which scores the answers, and by ``parity``, which probes each method once.
"""

from __future__ import annotations

from typing import Any

from bakeoff.core.errors import first_line
from bakeoff.core.trial import Conditions
from bakeoff.engine.device import autocast, is_out_of_memory, retry_with_half
from bakeoff.engine.generation.generate import (
    DecodeSettings,
    GenerationRequest,
    generate_in_slots,
    generate_plain,
)
from bakeoff.engine.generation.kv_slots import FastGenerationUnsupported
from bakeoff.engine.generation.token_ties import ROUNDING, first_differences

PROBE_PROMPTS = 12
"""Prompts of the probe, from the shortest to the longest."""
PROBE_ROWS = 4
"""Rows of the probe: fewer than prompts, so that slots are given on."""
PROBE_TOKENS = 24
"""Tokens of an answer of the probe, at most."""


def generate_fast(
    model: Any, asked: GenerationRequest, c: Conditions, graphs: bool
) -> list[list[int]]:
    """Return the tokens of every answer, generated fast; fewer at once where memory runs out."""
    pace = DecodeSettings.of(c.device.split(":", maxsplit=1)[0])

    def work(rows: int) -> list[list[int]]:
        # once it has run out, no more rows are taken than asked for
        own = pace if rows == c.evaluation_batch_size else pace._replace(rows=0)
        with autocast(c.device, c.precision):
            return generate_in_slots(model, asked, rows, graphs, own)

    return retry_with_half(work, c.evaluation_batch_size)


def generation_mismatch(
    model: Any, asked: GenerationRequest, c: Conditions, graphs: bool
) -> str | None:
    """Return why fast generation does not give plain ``generate``'s tokens, None where it does.

    Tokens whose logits are within rounding of each other (``engine.ties``) count as the same.
    """
    few = _probe_request(asked)
    pace = DecodeSettings.of(c.device.split(":", maxsplit=1)[0])._replace(rows=0)
    with autocast(c.device, c.precision):
        try:
            ours = generate_in_slots(model, few, PROBE_ROWS, graphs, pace)
        except FastGenerationUnsupported as error:
            return str(error)
        except Exception as error:  # whatever a model raises of a cache it does not know
            if is_out_of_memory(error):
                raise
            return first_line(error)
        found = list(first_differences(model, few, ours, generate_plain(model, few)))
    wrong = [d for d in found if not d.gap <= ROUNDING[c.precision]]
    if not wrong:
        return None
    gap = max(d.gap for d in wrong)
    return (
        f"{len(wrong)} of {len(few.prompts)} answers are not plain generate's (two tokens' logits "
        f"differ by {gap:.2g} of the largest)"
    )


def _probe_request(asked: GenerationRequest) -> GenerationRequest:
    by_length = sorted(asked.prompts, key=len)
    count = min(PROBE_PROMPTS, len(by_length))
    places = [round(i * (len(by_length) - 1) / max(1, count - 1)) for i in range(count)]
    return asked._replace(
        prompts=[by_length[i] for i in places], most=min(asked.most, PROBE_TOKENS)
    )
