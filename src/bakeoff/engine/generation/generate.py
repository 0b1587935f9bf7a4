"""Greedy completions of a causal LM: fast, over KV slots, or by transformers' ``generate``.

The fast way sorts prompts by length, the longest first, and gives each a slot of its own. All slots
take one decoding step together; a finished row frees its slot for the next prompt, or the batch
shrinks. Nothing is padded between prompt and completion. A probe compares its tokens with those of
``generate`` before a study uses it.

Several lanes take their steps together: each has its own queue of prompts and the same number of
slots, which are in the order of the lanes. A pass over prompts has the same number of rows for each
lane, too; where a lane has fewer prompts its rows repeat one, and their results are dropped.

Greedy decoding is set explicitly: every field of ``GenerationConfig`` that affects the choice has a
value, because transformers fills unset ones from the model's ``generation_config.json``.

Tensor axes: B = prompts of a pass, or slots in use, both of all lanes, T = tokens of a prompt, V =
vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bakeoff.engine.generation.decoding import (
    Decoder,
    DecodeShape,
    LaneModel,
    LaneSpan,
    PlainModel,
    check_model,
    greedy_tokens,
    text_config,
)
from bakeoff.engine.generation.kv_slots import (
    FastGenerationUnsupported,
    KVSlots,
    bytes_per_token,
    check_cache_layers,
    new_prompt_cache,
)
from bakeoff.engine.generation.lane_queue import LaneQueue
from bakeoff.engine.heartbeat import beat
from bakeoff.engine.packing.layout import round_up
from bakeoff.engine.profiling import free_bytes

GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
REFILL_SHARE = 4
"""New prompts wait until 1/4 of the slots is free: a pass over few prompts costs almost as much."""
MIN_GRAPH_ROWS = 8
"""With few shapes a step has at least this many rows: with fewer it would not be faster."""
PROMPT_TOKENS = {"cuda": 16384, "cpu": 2048}
"""Maximum number of tokens in a pass over prompts."""
MEMORY_SHARE = 0.5
"""Share of a GPU's free memory that rows beyond the requested number may use."""


class GenerationRequest(NamedTuple):
    """Prompts as token ids, and when a completion ends: at an end token or its maximum length."""

    prompts: Sequence[Sequence[int]]
    end_tokens: tuple[int, ...]
    max_new_tokens: int
    pad_id: int

    def trim(self, tokens: Sequence[int]) -> list[int]:
        """Return a completion up to its first end token, and no longer than the limit."""
        end = next((i for i, t in enumerate(tokens) if t in self.end_tokens), len(tokens) - 1)
        return list(tokens[: min(end + 1, self.max_new_tokens)])

    def is_cut(self, completion: Sequence[int]) -> bool:
        """Return whether the limit of new tokens ended a completion, not an end token."""
        ended = bool(completion) and completion[-1] in self.end_tokens
        return len(completion) >= self.max_new_tokens and not ended


class DecodeSettings(NamedTuple):
    """Settings of fast generation that suit a device."""

    steps_per_check: int
    """Steps between two checks of the tokens on the host."""
    length_multiple: int
    """The number of visible positions is rounded up to a multiple of this."""
    few_shapes: bool
    """Whether lengths double and widths fall to a quarter, so that few shapes are captured."""
    lane_rows: int
    """Number of rows of a lane to use if they fit in memory, even if fewer are requested."""
    max_rows: int
    """Maximum number of rows of all lanes, unless more are requested."""
    shares_rows: bool
    """Whether all lanes share the rows; else a lane gets a row for each prompt before the next."""

    @classmethod
    def for_device(cls, device: str) -> DecodeSettings:
        """Return the settings for a device type.

        A GPU takes about the same time for one row as for 256; a check of the tokens costs it a
        synchronisation, and each shape a capture. On a CPU rows of other lanes are not cheaper than
        more rows of one.
        """
        if device == "cuda":
            return cls(4, 256, True, 256, 2048, True)
        return cls(1, 32, False, 0, 0, False)

    def lanes_at_once(self, prompts: int, rows: int) -> int:
        """Return how many lanes with this many prompts can share ``rows`` rows."""
        return rows if self.shares_rows else max(1, rows // prompts)


class PromptResult(NamedTuple):
    """Result of a pass over prompts: their cache and the first new token of each ``[B]``."""

    cache: Any
    first: Tensor


@torch.no_grad()
def generate_plain(model: Any, request: GenerationRequest) -> list[list[int]]:
    """Complete all prompts in one batch, padded on the left, with the model's own ``generate``.

    A completion includes its end token, if it has one.
    """
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    longest = max(len(p) for p in request.prompts)
    ids = torch.full((len(request.prompts), longest), request.pad_id)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(request.prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    config = GenerationConfig(
        **GREEDY,
        max_new_tokens=request.max_new_tokens,
        pad_token_id=request.pad_id,
        eos_token_id=list(request.end_tokens),
    )
    out = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
    )
    return [_trim_after_end(row, request) for row in out[:, longest:].tolist()]


def _trim_after_end(row: list[int], request: GenerationRequest) -> list[int]:
    """Return a completion without the padding after its end token."""
    end = next((i for i, token in enumerate(row) if token in request.end_tokens), len(row) - 1)
    return row[: end + 1]


class _PromptPass(NamedTuple):
    """Prompts of consecutive lanes for one pass over prompts, with ``rows`` rows for each lane."""

    span: LaneSpan
    rows: int
    longest: int
    picked: list[int]
    """Number of prompts of each lane: at most the rows."""

    @property
    def is_half_empty(self) -> bool:
        """Whether fewer than half of its rows have a prompt of their own."""
        return 2 * sum(self.picked) < self.span.width * self.rows


def generate_in_slots(
    model: nn.Module,
    request: GenerationRequest,
    rows: int,
    graphs: bool = False,
    settings: DecodeSettings | None = None,
) -> list[list[int]]:
    """Complete all prompts with a model without lanes, ``rows`` of them at once.

    ``graphs`` captures and replays steps on CUDA; if that fails, a warning says so.

    Raises:
        FastGenerationUnsupported: with the reason.
    """
    span = LaneSpan(0, 1)
    return generate_in_lanes(PlainModel(model), span, request, rows, graphs, settings)[0]


@torch.no_grad()
def generate_in_lanes(
    lanes: LaneModel,
    span: LaneSpan,
    request: GenerationRequest,
    rows: int,
    graphs: bool = False,
    settings: DecodeSettings | None = None,
) -> list[list[list[int]]]:
    """Complete all prompts in each lane, ``[lanes][prompts]``, ``rows`` of each lane at once.

    A single lane runs as the plain model of its trial.

    Raises:
        FastGenerationUnsupported: with the reason.
        RowsMixed: the result of a row would depend on other lanes' rows.
    """
    check_model(lanes.model)
    if not all(request.prompts):
        raise FastGenerationUnsupported("a prompt without tokens")
    return _SlotGeneration(lanes, span, request, rows, graphs, settings).run()


@torch.no_grad()
def choose_rows(
    lanes: LaneModel,
    width: int,
    request: GenerationRequest,
    requested: int,
    settings: DecodeSettings,
) -> int:
    """Return the number of rows of ``width`` lanes together: the requested one, or more that fit.

    Raises:
        FastGenerationUnsupported: with the reason.
    """
    wanted = min(width * min(settings.lane_rows, len(request.prompts)), settings.max_rows)
    if wanted <= requested:
        return requested
    check_model(lanes.model)
    device = next(lanes.model.parameters()).device
    lanes.run_lanes(0, 1, 1)
    cache = new_prompt_cache(text_config(lanes.model))
    token = torch.full((1, 1), request.pad_id, device=device)
    lanes.model(input_ids=token, past_key_values=cache, use_cache=True)
    check_cache_layers(cache.layers)
    row_bytes = bytes_per_token(cache) * _slot_positions(request, settings)
    fit = int(MEMORY_SHARE * (free_bytes(str(device)) or 0) / row_bytes)
    return max(requested, min(wanted, fit))


def _slot_positions(request: GenerationRequest, settings: DecodeSettings) -> int:
    """Return the number of positions of a slot: for the longest prompt and completion."""
    longest = max(len(p) for p in request.prompts)
    return round_up(longest + request.max_new_tokens + settings.steps_per_check, 32)


class _SlotGeneration:
    """One run over all prompts of a span of lanes; their completions grow as it proceeds.

    A lane has the slots from ``(lane - span.first) * width`` on. ``width`` is the number of slots
    of each lane that a step takes; ``rows`` is its maximum. When ``width`` or ``span`` changes, the
    slots in use are moved to their new places.
    """

    def __init__(
        self,
        lanes: LaneModel,
        span: LaneSpan,
        request: GenerationRequest,
        rows: int,
        graphs: bool,
        settings: DecodeSettings | None,
    ) -> None:
        self.lanes, self.span, self.request, self.graphs = lanes, span, request, graphs
        self.device = next(lanes.model.parameters()).device
        self.settings = settings or DecodeSettings.for_device(self.device.type)
        self.rows = self.width = min(rows, len(request.prompts))
        self.total = span.width * self.rows
        """Number of slots of all lanes."""
        self.places = _slot_positions(request, self.settings)
        """Number of positions of a slot."""
        order = sorted(range(len(request.prompts)), key=lambda i: -len(request.prompts[i]))
        ends, limit = request.end_tokens, request.max_new_tokens
        self.queues = {lane: LaneQueue(order, ends, limit) for lane in span.lanes}
        self.decoder: Decoder | None = None
        """None until the first pass, whose cache shows the size of a slot."""
        self._config = text_config(lanes.model)

    def run(self) -> list[list[list[int]]]:
        """Return the tokens of every completion, by lane and in the prompts' order."""
        self._lay_out(self.span, self.rows)
        while unfinished := [lane for lane in self.span.lanes if not self.queues[lane].ended]:
            beat()
            self._drop_ended(unfinished)
            self._admit()
            if any(queue.active for queue in self._active_queues):
                self._decode()
        return [queue.completions for queue in self.queues.values()]

    @property
    def _active_queues(self) -> list[LaneQueue]:
        return [self.queues[lane] for lane in self.span.lanes]

    def _drop_ended(self, unfinished: Sequence[int]) -> None:
        """Go on without the lanes before and after the unfinished ones, if that halves the lanes.

        Lanes of a step are consecutive, and each new span costs captures and a move of the slots.
        """
        span = LaneSpan(unfinished[0], unfinished[-1] - unfinished[0] + 1)
        if 2 * span.width > self.span.width:
            return
        if any(self.queues[lane].waiting for lane in unfinished):  # give them the others' slots
            self.rows = min(len(self.request.prompts), self.total // span.width)
        self._lay_out(span, self.width)

    def _admit(self) -> None:
        """Fill free slots with waiting prompts, once enough are free for it to pay."""
        least = -(-self.rows // REFILL_SHARE)
        queues = self._active_queues
        waiting = sum(len(queue.waiting) for queue in queues)
        enough = sum(min(len(queue.waiting), least) for queue in queues)
        if not waiting or sum(queue.room(self.rows) for queue in queues) < enough:
            return
        self._lay_out(self.span, self.rows)
        planned = self._next_pass(required=True)
        while planned is not None:
            self._run_pass(planned)
            planned = self._next_pass(required=False)

    def _next_pass(self, required: bool) -> _PromptPass | None:
        """Return the next pass over prompts, None if no lane has both prompts and free slots.

        A pass over all lanes that have both is not taken if it would be half empty. If a pass is
        required, it then has fewer lanes.
        """
        rooms = {lane: self.queues[lane].room(self.rows) for lane in self.span.lanes}
        takers = [lane for lane, room in rooms.items() if room]
        if not takers:
            return None
        planned = self._plan_pass(LaneSpan(takers[0], takers[-1] - takers[0] + 1), rooms)
        if not planned.is_half_empty:
            return planned
        if not required:
            return None
        first = last = max(takers, key=lambda lane: rooms[lane])
        enough = rooms[first] / 2
        while rooms.get(first - 1, 0) >= enough:
            first -= 1
        while rooms.get(last + 1, 0) >= enough:
            last += 1
        return self._plan_pass(LaneSpan(first, last - first + 1), rooms)

    def _plan_pass(self, span: LaneSpan, rooms: Mapping[int, int]) -> _PromptPass:
        """Return a pass over the lanes of a span, or over its first ones if not all fit."""
        most = PROMPT_TOKENS[self.device.type]
        prompts = self.request.prompts
        longest = max(len(prompts[self.queues[n].waiting[0]]) for n in span.lanes if rooms[n])
        span = span._replace(width=min(span.width, max(1, most // longest)))
        rows = max(rooms[n] for n in span.lanes)
        rows = min(rows, max(1, most // (longest * span.width)))
        return _PromptPass(span, rows, longest, [min(rows, rooms[n]) for n in span.lanes])

    def _run_pass(self, planned: _PromptPass) -> None:
        """Run the model over the next prompts, and put them into free slots."""
        taken = [
            self.queues[lane].take(count)
            for lane, count in zip(planned.span.lanes, planned.picked, strict=True)
        ]
        some = next(prompt for of_lane in taken for prompt in of_lane)
        padded = [[*own, *[some] * (planned.rows - len(own))] for own in taken]
        self.lanes.run_lanes(*planned.span, planned.rows)
        result = self._run_prompts([prompt for of_lane in padded for prompt in of_lane])
        rows, places, prompts = [], [], []
        first = result.first.tolist()
        for number, (lane, own) in enumerate(zip(planned.span.lanes, taken, strict=True)):
            queue = self.queues[lane]
            for index, (slot, prompt) in enumerate(zip(queue.free, own, strict=False)):
                rows.append(number * planned.rows + index)
                places.append(self._place(lane, slot))
                prompts.append(prompt)
                queue.in_slot[slot] = prompt
                queue.record(slot, [first[rows[-1]]])
        self._fill_slots(result, rows, places, prompts)

    def _place(self, lane: int, slot: int) -> int:
        """Return where a lane's slot is among the slots of all lanes."""
        return (lane - self.span.first) * self.width + slot

    def _run_prompts(self, picked: Sequence[int]) -> PromptResult:
        """Run the model over prompts, padded on the right, where no prompt token sees padding."""
        prompts = [self.request.prompts[i] for i in picked]
        lengths = [len(p) for p in prompts]
        ids = torch.full((len(prompts), max(lengths)), self.request.pad_id)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = torch.tensor(prompt)
        last = torch.tensor(lengths, device=self.device) - 1
        cache = new_prompt_cache(self._config)
        with _last_state_only(self.lanes.model, last):
            logits = self.lanes.model(
                input_ids=ids.to(self.device), past_key_values=cache, use_cache=True
            ).logits
        if logits.shape[1] > 1:  # the output layer is not called as a module
            logits = logits[torch.arange(len(last), device=self.device), last][:, None]
        check_cache_layers(cache.layers)
        return PromptResult(cache, greedy_tokens(logits))

    def _fill_slots(
        self, result: PromptResult, rows: list[int], places: list[int], prompts: list[int]
    ) -> None:
        """Copy rows of a pass, which hold these prompts, to the slots at these places."""
        decoder = self._make_decoder(result)
        slots = torch.tensor(places, device=self.device)
        used = None if len(rows) == len(result.first) else torch.tensor(rows, device=self.device)
        decoder.slots.fill(result.cache, slots, used)
        decoder.tokens[slots] = result.first if used is None else result.first[used]
        lengths = [len(self.request.prompts[i]) for i in prompts]
        decoder.positions[slots] = torch.tensor(lengths, device=self.device)

    def _make_decoder(self, result: PromptResult) -> Decoder:
        """Return the decoder; create it, with its slots, after the first pass."""
        if self.decoder is None:
            slots = KVSlots(result.cache, self.total, self.places)
            tokens = torch.full((self.total,), self.request.pad_id, device=self.device)
            self.decoder = Decoder(self.lanes, slots, tokens, torch.zeros_like(tokens), self.graphs)
        return self.decoder

    def _decode(self) -> None:
        """Take the steps up to the next check of the tokens."""
        assert self.decoder is not None
        queues = self._active_queues
        self._lay_out(self.span, self._choose_width(max(len(q.active) for q in queues)))
        reach, left = 0, 0
        for queue in queues:
            for prompt in queue.active:
                done = len(queue.completions[prompt])
                reach = max(reach, len(self.request.prompts[prompt]) + done - 1)
                left = max(left, self.request.max_new_tokens - done)
        length = self._choose_length(reach + self.settings.steps_per_check)
        shape = DecodeShape(self.span, self.width, length)
        steps = []
        for _ in range(min(self.settings.steps_per_check, left)):
            self.decoder.step(shape)
            steps.append(self.decoder.tokens[: self.span.width * self.width].clone())
        tokens = torch.stack(steps, 1).tolist()
        for number, queue in enumerate(queues):
            for slot in queue.busy:
                queue.record(slot, tokens[number * self.width + slot])

    def _choose_width(self, busy: int) -> int:
        """Return how many slots of each lane take the next steps, of which a lane uses ``busy``.

        With few shapes all, a quarter, ...; else those in use. In lanes fewer slots are a move of
        all of them, so at least a quarter must be free.
        """
        if not self.settings.few_shapes:
            return busy if self.span.width == 1 or 4 * busy <= 3 * self.width else self.width
        width, least = self.rows, -(-MIN_GRAPH_ROWS // self.span.width)
        while width // 4 >= max(busy, least):
            width //= 4
        return width

    def _choose_length(self, needed: int) -> int:
        """Return the number of visible positions; with few shapes a multiple that doubles."""
        multiple = self.settings.length_multiple
        length = round_up(needed, multiple)
        if self.settings.few_shapes:
            length = multiple * 2 ** math.ceil(math.log2(length / multiple))
        return min(length, self.places)

    def _lay_out(self, span: LaneSpan, width: int) -> None:
        """Move what is in slots to its place with ``width`` slots for each lane of a span."""
        origin, target = [], []
        for lane in span.lanes:
            at = (lane - span.first) * width
            for old, new in self.queues[lane].resize(width):
                before = self._place(lane, old)
                if before != at + new:
                    origin.append(before)
                    target.append(at + new)
        self.span, self.width = span, width
        if self.decoder is None or not origin:
            return
        moved, into = (torch.tensor(x, device=self.device) for x in (origin, target))
        self.decoder.slots.move(moved, into)
        for values in (self.decoder.tokens, self.decoder.positions):
            values[into] = values[moved]


@contextlib.contextmanager
def _last_state_only(model: Any, last: Tensor) -> Iterator[None]:
    """Let the output layer see one state per row, at position ``last`` ``[B]``."""
    head = model.get_output_embeddings()
    if head is None:
        yield
        return

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]
        index = last[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, index), *args[1:]

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
