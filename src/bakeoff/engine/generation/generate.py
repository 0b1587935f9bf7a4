"""Greedy completions of a causal LM: fast, over KV slots, or by transformers' ``generate``.

The fast way sorts prompts by length, the longest first, and gives each a slot of its own. All slots
take one decoding step together; a finished row frees its slot for the next prompt, or the batch
shrinks. Nothing is padded between prompt and completion. A probe compares its tokens with those of
``generate`` before a study uses it. It runs one lane at a time: the slots of a single lane are
always full, so more lanes would not save steps, and a lane that never ends its completions would
delay the others.

Greedy decoding is set explicitly: every field of ``GenerationConfig`` that affects the choice has a
value, because transformers fills unset ones from the model's ``generation_config.json``.

Tensor axes: B = prompts of a pass, or slots in use, T = tokens of a prompt, V = vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bakeoff.engine.generation.decoding import Decoder, check_model, greedy_tokens, text_config
from bakeoff.engine.generation.kv_slots import (
    FastGenerationUnsupported,
    KVSlots,
    bytes_per_token,
    check_cache_layers,
    new_prompt_cache,
)
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
    min_rows: int
    """Number of rows to use if they fit in memory, even if fewer are requested."""

    @classmethod
    def for_device(cls, device: str) -> DecodeSettings:
        """Return the settings for a device type.

        A GPU takes about the same time for one row as for 256; a check of the tokens costs it a
        synchronisation, and each shape a capture.
        """
        return cls(4, 256, True, 256) if device == "cuda" else cls(1, 32, False, 0)


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


@torch.no_grad()
def generate_in_slots(
    model: nn.Module,
    request: GenerationRequest,
    rows: int,
    graphs: bool = False,
    settings: DecodeSettings | None = None,
) -> list[list[int]]:
    """Complete all prompts, ``rows`` of them at once (see ``DecodeSettings.min_rows``).

    ``graphs`` captures and replays steps on CUDA; if that fails, a warning says so.

    Raises:
        FastGenerationUnsupported: with the reason.
    """
    check_model(model)
    if not all(request.prompts):
        raise FastGenerationUnsupported("a prompt without tokens")
    return _SlotGeneration(model, request, rows, graphs, settings).run()


class _SlotGeneration:
    """One run over all prompts; ``completions`` grow as it proceeds."""

    def __init__(
        self,
        model: nn.Module,
        request: GenerationRequest,
        rows: int,
        graphs: bool,
        settings: DecodeSettings | None,
    ) -> None:
        self.model, self.request, self.graphs = model, request, graphs
        self.device = next(model.parameters()).device
        self.settings = settings or DecodeSettings.for_device(self.device.type)
        self.rows = min(rows, len(request.prompts))
        longest = max(len(p) for p in request.prompts)
        needed = longest + request.max_new_tokens + self.settings.steps_per_check
        self.places = round_up(needed, 32)
        """Number of positions of a slot."""
        self.completions: list[list[int]] = [[] for _ in request.prompts]
        order = sorted(range(len(request.prompts)), key=lambda i: -len(request.prompts[i]))
        self.waiting = deque(order)
        self.in_slot: list[int | None] = []
        """Index of the prompt in each slot."""
        self._config = text_config(model)

    def run(self) -> list[list[int]]:
        """Return the tokens of every completion, in the prompts' order."""
        self._start()
        while self.waiting or self._busy_slots():
            beat()
            self._admit()
            if self._busy_slots():
                self._decode()
        return self.completions

    def _start(self) -> None:
        """Run the first prompts, whose cache shows the size of a slot; create the slots."""
        picked = self._next_prompts(self.rows)
        result = self._run_prompts(picked)
        self.rows = self._choose_rows(bytes_per_token(result.cache))
        self.slots = KVSlots(result.cache, self.rows, self.places)
        self.tokens = torch.full((self.rows,), self.request.pad_id, device=self.device)
        self.positions = torch.zeros_like(self.tokens)
        self.decoder = Decoder(self.model, self.slots, self.tokens, self.positions, self.graphs)
        self.in_slot = [None] * self.rows
        self._fill_slots(picked, result)

    def _choose_rows(self, token_bytes: int) -> int:
        """Return the number of rows: the requested one, or more if they are free and fit."""
        free = free_bytes(str(self.device)) or 0
        fit = int(MEMORY_SHARE * free / (token_bytes * self.places))
        return min(len(self.request.prompts), max(self.rows, min(self.settings.min_rows, fit)))

    def _busy_slots(self) -> list[int]:
        return [i for i, prompt in enumerate(self.in_slot) if prompt is not None]

    def _free_slots(self) -> list[int]:
        return [i for i, prompt in enumerate(self.in_slot) if prompt is None]

    def _admit(self) -> None:
        """Fill free slots with waiting prompts, once enough are free for it to pay."""
        enough = min(len(self.waiting), -(-self.rows // REFILL_SHARE))
        if len(self._free_slots()) < enough:
            return
        while self.waiting and (free := self._free_slots()):
            picked = self._next_prompts(len(free))
            self._fill_slots(picked, self._run_prompts(picked))

    def _next_prompts(self, limit: int) -> list[int]:
        """Remove the next prompts from the queue, as many as fit in one pass over prompts."""
        longest = len(self.request.prompts[self.waiting[0]])
        count = min(limit, len(self.waiting), max(1, PROMPT_TOKENS[self.device.type] // longest))
        return [self.waiting.popleft() for _ in range(count)]

    def _run_prompts(self, picked: Sequence[int]) -> PromptResult:
        """Run the model over prompts, padded on the right, where no prompt token sees padding."""
        prompts = [self.request.prompts[i] for i in picked]
        lengths = [len(p) for p in prompts]
        ids = torch.full((len(prompts), max(lengths)), self.request.pad_id)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = torch.tensor(prompt)
        last = torch.tensor(lengths, device=self.device) - 1
        cache = new_prompt_cache(self._config)
        with _last_state_only(self.model, last):
            logits = self.model(
                input_ids=ids.to(self.device), past_key_values=cache, use_cache=True
            ).logits
        if logits.shape[1] > 1:  # the output layer is not called as a module
            logits = logits[torch.arange(len(last), device=self.device), last][:, None]
        check_cache_layers(cache.layers)
        return PromptResult(cache, greedy_tokens(logits))

    def _fill_slots(self, picked: Sequence[int], result: PromptResult) -> None:
        """Put prompts into free slots, and record the first token of their completions."""
        places = self._free_slots()[: len(picked)]
        slots = torch.tensor(places, device=self.device)
        lengths = torch.tensor([len(self.request.prompts[i]) for i in picked], device=self.device)
        self.slots.fill(result.cache, slots)
        self.tokens[slots] = result.first
        self.positions[slots] = lengths
        for place, prompt, token in zip(places, picked, result.first.tolist(), strict=True):
            self.in_slot[place] = prompt
            self._record(place, token)

    def _record(self, slot: int, token: int) -> None:
        """Add a token to the completion in a slot; free the slot at its end."""
        prompt = self.in_slot[slot]
        if prompt is None:
            return
        completion = self.completions[prompt]
        completion.append(token)
        if token in self.request.end_tokens or len(completion) == self.request.max_new_tokens:
            self.in_slot[slot] = None

    def _decode(self) -> None:
        """Take the steps up to the next check of the tokens."""
        width = self._choose_width(len(self._busy_slots()))
        self._compact(width)
        active = [p for p in self.in_slot if p is not None]
        reach = max(len(self.request.prompts[p]) + len(self.completions[p]) - 1 for p in active)
        left = max(self.request.max_new_tokens - len(self.completions[p]) for p in active)
        length = self._choose_length(reach + self.settings.steps_per_check)
        steps = []
        for _ in range(min(self.settings.steps_per_check, left)):
            self.decoder.step(width, length)
            steps.append(self.tokens[:width].clone())
        for tokens in torch.stack(steps).tolist():
            for slot, token in enumerate(tokens):
                self._record(slot, token)

    def _choose_width(self, busy: int) -> int:
        """Return how many slots take the next steps; with few shapes all, a quarter, ..."""
        if not self.settings.few_shapes:
            return busy
        width = self.rows
        while width // 4 >= max(busy, 8):
            width //= 4
        return width

    def _choose_length(self, needed: int) -> int:
        """Return the number of visible positions; with few shapes a multiple that doubles."""
        multiple = self.settings.length_multiple
        length = round_up(needed, multiple)
        if self.settings.few_shapes:
            length = multiple * 2 ** math.ceil(math.log2(length / multiple))
        return min(length, self.places)

    def _compact(self, width: int) -> None:
        """Move completions from slots beyond ``width`` into free ones before it."""
        beyond = [i for i in self._busy_slots() if i >= width]
        if not beyond:
            return
        free = self._free_slots()[: len(beyond)]
        origin, target = (torch.tensor(x, device=self.device) for x in (beyond, free))
        self.slots.move(origin, target)
        for values in (self.tokens, self.positions):
            values[target] = values[origin]
        for old, new in zip(beyond, free, strict=True):
            self.in_slot[new], self.in_slot[old] = self.in_slot[old], None


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
