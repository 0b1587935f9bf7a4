"""Fast generation of answers, and the probe that compares it with plain ``generate``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from bakeoff.core.trial import Conditions
from bakeoff.engine.accelerators import explain_failure
from bakeoff.engine.device import autocast, device_type, is_out_of_memory, retry_with_half
from bakeoff.engine.generation.decoding import LaneModel, LaneSpan, PlainModel
from bakeoff.engine.generation.generate import (
    DecodeSettings,
    GenerationRequest,
    choose_rows,
    generate_in_lanes,
    generate_plain,
)
from bakeoff.engine.generation.token_ties import ROUNDING, TokenDifference, first_differences

PROBE_PROMPTS = 12
"""Number of prompts in the probe, from the shortest to the longest."""
PROBE_ROWS = 4
"""Rows that the probe generates at once: fewer than prompts, so that slots are reused."""
PROBE_TOKENS = 24
"""Most tokens of an answer in the probe."""

log = logging.getLogger(__name__)

Tokens = list[list[int]]
"""The tokens of each answer of a lane."""


class GenerationMismatch(NamedTuple):
    """How fast generation differs from plain: with one lane, and with two; None: it does not."""

    generation: str | None
    lanes: str | None


def generate_fast(
    model: Any, request: GenerationRequest, c: Conditions, graphs: bool
) -> list[list[int]]:
    """Return the tokens of every answer of a model without lanes."""
    return generate_fast_in_lanes(PlainModel(model), (1, 1), request, c, graphs)[0]


def generate_fast_in_lanes(
    lanes: LaneModel,
    counts: tuple[int, int],
    request: GenerationRequest,
    c: Conditions,
    graphs: bool,
) -> list[Tokens]:
    """Return the tokens of every answer of every lane, ``[lanes][prompts]``.

    ``counts`` is the number of lanes and the maximum in a pass. When memory runs out, the rows of
    all lanes are halved; in the end one lane at a time generates one row.
    """
    settings = _settings(c)
    count, width = counts
    with autocast(c.device, c.precision):
        most = choose_rows(lanes, width, request, c.evaluation_batch_size, settings)

    def generate(rows: int) -> list[Tokens]:
        together = min(width, settings.lanes_at_once(len(request.prompts), rows))
        found: list[Tokens] = []
        for span in _divide(count, together):
            log.debug("answers of %d lanes in %d rows each", span.width, rows // span.width)
            with autocast(c.device, c.precision):
                found += generate_in_lanes(
                    lanes, span, request, rows // span.width, graphs, settings
                )
        return found

    return retry_with_half(generate, most, "answers")


def _divide(count: int, width: int) -> list[LaneSpan]:
    """Divide lanes into spans of at most ``width``, of nearly equal size."""
    parts = -(-count // width)
    bounds = [round(i * count / parts) for i in range(parts + 1)]
    return [LaneSpan(a, b - a) for a, b in zip(bounds, bounds[1:], strict=False)]


def generation_mismatch(
    model: Any, request: GenerationRequest, c: Conditions, graphs: bool
) -> str | None:
    """Return why fast generation differs from plain ``generate``, or None if it does not.

    Tokens whose logits are within rounding of each other (``token_ties``) count as the same.
    """
    return probe_generation(PlainModel(model), request, c, graphs, in_lanes=False).generation


def probe_generation(
    lanes: LaneModel, request: GenerationRequest, c: Conditions, graphs: bool, in_lanes: bool
) -> GenerationMismatch:
    """Compare fast generation with plain ``generate``: lane 0, and with ``in_lanes`` lanes 0 and 1.

    The two lanes generate half of the prompts together.
    """
    few, plain = _probe_request(request), []
    with autocast(c.device, c.precision):
        fast = _try_generation(lanes, LaneSpan(0, 1), few, c, graphs)
        if isinstance(fast, str):
            return GenerationMismatch(fast, None)
        lanes.run_lanes(0, 1, 1)
        plain.append(generate_plain(lanes.model, few))
        different = _difference(lanes, few, fast, plain, ROUNDING[c.precision])
        if different is not None or not in_lanes:
            return GenerationMismatch(different, None)
        half = few._replace(prompts=few.prompts[::2])
        fast = _try_generation(lanes, LaneSpan(0, 2), half, c, graphs)
        if isinstance(fast, str):
            return GenerationMismatch(None, fast)
        lanes.run_lanes(1, 1, 1)
        plain = [plain[0][::2], generate_plain(lanes.model, half)]
        return GenerationMismatch(
            None, _difference(lanes, half, fast, plain, ROUNDING[c.precision])
        )


def _try_generation(
    lanes: LaneModel, span: LaneSpan, few: GenerationRequest, c: Conditions, graphs: bool
) -> list[Tokens] | str:
    """Return the answers of a span of lanes, or why it fails.

    Raises:
        RuntimeError: memory ran out with a single lane.
    """
    try:
        return generate_in_lanes(lanes, span, few, PROBE_ROWS // span.width, graphs, _settings(c))
    except Exception as error:
        if is_out_of_memory(error) and span.width == 1:
            raise
        return explain_failure(error)


def _difference(
    lanes: LaneModel,
    few: GenerationRequest,
    fast: Sequence[Tokens],
    plain: Sequence[Tokens],
    rounding: float,
) -> str | None:
    """Return how the answers of the first lanes differ, None if only within rounding."""
    differences: list[TokenDifference] = []
    for lane, (ours, theirs) in enumerate(zip(fast, plain, strict=True)):
        lanes.run_lanes(lane, 1, 1)
        differences += first_differences(lanes.model, few, ours, theirs)
    wrong = [d.gap for d in differences if not d.gap <= rounding]
    if not wrong:
        return None
    return (
        f"{len(wrong)} of {len(few.prompts) * len(fast)} answers differ from plain generate (the "
        f"logits of two tokens differ by {max(wrong):.2g} of the largest)"
    )


def _settings(c: Conditions) -> DecodeSettings:
    return DecodeSettings.for_device(device_type(c.device))


def _probe_request(request: GenerationRequest) -> GenerationRequest:
    """Return a small request: a few prompts of all lengths, with short answers."""
    by_length = sorted(request.prompts, key=len)
    count = min(PROBE_PROMPTS, len(by_length))
    places = [round(i * (len(by_length) - 1) / max(1, count - 1)) for i in range(count)]
    return request._replace(
        prompts=[by_length[i] for i in places],
        max_new_tokens=min(request.max_new_tokens, PROBE_TOKENS),
    )
