"""Fast generation of answers, and the probe that compares it with plain ``generate``."""

from __future__ import annotations

import logging
from typing import Any

from bakeoff.core.trial import Conditions
from bakeoff.engine.accelerators import explain_failure
from bakeoff.engine.device import autocast, is_out_of_memory, retry_with_half
from bakeoff.engine.generation.generate import (
    DecodeSettings,
    GenerationRequest,
    generate_in_slots,
    generate_plain,
)
from bakeoff.engine.generation.token_ties import ROUNDING, first_differences

PROBE_PROMPTS = 12
"""Number of prompts in the probe, from the shortest to the longest."""
PROBE_ROWS = 4
"""Rows that the probe generates at once: fewer than prompts, so that slots are reused."""
PROBE_TOKENS = 24
"""Most tokens of an answer in the probe."""

log = logging.getLogger(__name__)


def generate_fast(
    model: Any, request: GenerationRequest, c: Conditions, graphs: bool
) -> list[list[int]]:
    """Return the tokens of every answer; fewer rows are generated at once when memory runs out."""
    settings = DecodeSettings.for_device(c.device.split(":", maxsplit=1)[0])

    def generate(rows: int) -> list[list[int]]:
        limited = settings
        if rows != c.evaluation_batch_size:
            # memory has run out: the device's preferred number of rows must not raise the limit
            limited = settings._replace(min_rows=0)
            log.info("out of memory: answers are generated in %d rows", rows)
        with autocast(c.device, c.precision):
            return generate_in_slots(model, request, rows, graphs, limited)

    return retry_with_half(generate, c.evaluation_batch_size)


def generation_mismatch(
    model: Any, request: GenerationRequest, c: Conditions, graphs: bool
) -> str | None:
    """Return why fast generation differs from plain ``generate``, or None if it does not.

    Tokens whose logits are within rounding of each other (``token_ties``) count as the same.
    """
    few = _probe_request(request)
    settings = DecodeSettings.for_device(c.device.split(":", maxsplit=1)[0])._replace(min_rows=0)
    with autocast(c.device, c.precision):
        try:
            fast = generate_in_slots(model, few, PROBE_ROWS, graphs, settings)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return explain_failure(error)
        differences = list(first_differences(model, few, fast, generate_plain(model, few)))
    wrong = [d for d in differences if not d.gap <= ROUNDING[c.precision]]
    if not wrong:
        return None
    gap = max(d.gap for d in wrong)
    return (
        f"{len(wrong)} of {len(few.prompts)} answers differ from plain generate (the logits of two "
        f"tokens differ by {gap:.2g} of the largest)"
    )


def _probe_request(request: GenerationRequest) -> GenerationRequest:
    """Return a small request: a few prompts of all lengths, with short answers."""
    by_length = sorted(request.prompts, key=len)
    count = min(PROBE_PROMPTS, len(by_length))
    places = [round(i * (len(by_length) - 1) / max(1, count - 1)) for i in range(count)]
    return request._replace(
        prompts=[by_length[i] for i in places],
        max_new_tokens=min(request.max_new_tokens, PROBE_TOKENS),
    )
