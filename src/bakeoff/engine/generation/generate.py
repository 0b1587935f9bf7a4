"""Greedy answers of a causal LM: fast over slots, or plainly by transformers' ``generate``.

Used by tasks whose answers are generated, and by ``evaluate``. Fast: prompts sorted by length, the
longest first, each in a slot of its own (``slots``); all slots take one step together
(``decoding``), and a row that is finished leaves: its slot goes to the next prompt, or the batch
shrinks. Nothing is padded between prompt and answer. A probe (``answering``) holds it to the plain
way's tokens before a study relies on it. It takes one lane at a time: the slots of one lane are
kept full already, so lanes together would not take fewer steps, and one that never ends its answers
would hold up the others.

Greedy is said, not assumed: every field of ``GenerationConfig`` that shapes the choice is set,
because transformers fills unset ones from the model's own ``generation_config.json``.
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
"""Prompts wait until a quarter of the slots is free: a pass over few costs nearly as much."""
PROMPT_TOKENS = {"cuda": 16384, "cpu": 2048}
"""Most tokens of one pass over prompts."""
MEMORY_SHARE = 0.5
"""How much of a GPU's free memory more rows than asked for may take."""


class GenerationRequest(NamedTuple):
    """Prompts as token ids, and when an answer ends: a token of ``ends``, or ``most`` tokens."""

    prompts: Sequence[Sequence[int]]
    ends: tuple[int, ...]
    most: int
    pad: int


class DecodeSettings(NamedTuple):
    """How a device likes its steps."""

    every: int
    """Steps between two looks at the tokens."""
    length_multiple: int
    """Multiples that the places in view come in."""
    few_shapes: bool
    """Whether the places double and the rows fall to a quarter: each shape is captured once."""
    rows: int
    """Rows that are taken where they fit, even if fewer are asked for."""

    @classmethod
    def of(cls, device: str) -> DecodeSettings:
        """Return what suits a device: a GPU takes one row or 256 in about the same time.

        There a look at the tokens costs a wait, and each shape a capture.
        """
        return cls(4, 256, True, 256) if device == "cuda" else cls(1, 32, False, 0)


class PromptResult(NamedTuple):
    """What a pass over prompts gives: their cache and the first token of each answer ``[B]``."""

    cache: Any
    first: Tensor


@torch.no_grad()
def generate_plain(model: Any, asked: GenerationRequest) -> list[list[int]]:
    """Answer all prompts in one batch, padded on the left, by the model's own ``generate``.

    An answer ends with its end token, where it has one.
    """
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    longest = max(len(p) for p in asked.prompts)
    ids = torch.full((len(asked.prompts), longest), asked.pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(asked.prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    config = GenerationConfig(
        **GREEDY,
        max_new_tokens=asked.most,
        pad_token_id=asked.pad,
        eos_token_id=list(asked.ends),
    )
    out = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
    )
    return [_trim_after_end(row, asked) for row in out[:, longest:].tolist()]


def _trim_after_end(row: list[int], asked: GenerationRequest) -> list[int]:
    """Return an answer without what fills the batch up behind its end."""
    end = next((i for i, token in enumerate(row) if token in asked.ends), len(row) - 1)
    return row[: end + 1]


@torch.no_grad()
def generate_in_slots(
    model: nn.Module,
    asked: GenerationRequest,
    rows: int,
    graphs: bool = False,
    pace: DecodeSettings | None = None,
) -> list[list[int]]:
    """Answer all prompts, ``rows`` of them at once (see ``Pace.rows``).

    ``graphs`` captures and replays steps on CUDA; where that fails, a warning says so.

    Raises:
        NotFast: the model cannot be served so.
    """
    check_model(model)
    if not all(asked.prompts):
        raise FastGenerationUnsupported("a prompt without tokens")
    return _SlotGeneration(model, asked, rows, graphs, pace).answers()


class _SlotGeneration:
    """One run over all prompts; ``said`` fills up as it goes."""

    def __init__(
        self,
        model: nn.Module,
        asked: GenerationRequest,
        rows: int,
        graphs: bool,
        pace: DecodeSettings | None,
    ) -> None:
        self.model, self.asked, self.graphs = model, asked, graphs
        self.device = next(model.parameters()).device
        self.pace = pace or DecodeSettings.of(self.device.type)
        self.rows = min(rows, len(asked.prompts))
        longest = max(len(p) for p in asked.prompts)
        self.places = _round_up(longest + asked.most + self.pace.every, 32)
        self.said: list[list[int]] = [[] for _ in asked.prompts]
        order = sorted(range(len(asked.prompts)), key=lambda i: -len(asked.prompts[i]))
        self.waiting = deque(order)
        self.riding: list[int | None] = []
        """Which prompt is in each slot."""
        self._config = text_config(model)

    def answers(self) -> list[list[int]]:
        """Return the tokens of every answer, in the prompts' order."""
        self._open()
        while self.waiting or self._taken():
            beat()
            self._admit()
            if self._taken():
                self._decode()
        return self.said

    def _open(self) -> None:
        """Take the first prompts, which show what a slot holds; make the slots."""
        picked = self._next(self.rows)
        found = self._prompt(picked)
        self.rows = self._fitting(bytes_per_token(found.cache))
        self.slots = KVSlots(found.cache, self.rows, self.places)
        self.tokens = torch.full((self.rows,), self.asked.pad, device=self.device)
        self.positions = torch.zeros_like(self.tokens)
        self.decoder = Decoder(self.model, self.slots, self.tokens, self.positions, self.graphs)
        self.riding = [None] * self.rows
        self._seat(picked, found)

    def _fitting(self, bytes_each: int) -> int:
        """Return how many rows are taken: as many as asked for, more where they pay and fit."""
        free = free_bytes(str(self.device)) or 0
        fit = int(MEMORY_SHARE * free / (bytes_each * self.places))
        return min(len(self.asked.prompts), max(self.rows, min(self.pace.rows, fit)))

    def _taken(self) -> list[int]:
        return [i for i, prompt in enumerate(self.riding) if prompt is not None]

    def _free(self) -> list[int]:
        return [i for i, prompt in enumerate(self.riding) if prompt is None]

    def _admit(self) -> None:
        """Give free slots to those who wait, once it pays."""
        enough = min(len(self.waiting), -(-self.rows // REFILL_SHARE))
        if len(self._free()) < enough:
            return
        while self.waiting and (free := self._free()):
            picked = self._next(len(free))
            self._seat(picked, self._prompt(picked))

    def _next(self, most: int) -> list[int]:
        """Take the next prompts off the queue, as many as one pass over prompts carries."""
        longest = len(self.asked.prompts[self.waiting[0]])
        count = min(most, len(self.waiting), max(1, PROMPT_TOKENS[self.device.type] // longest))
        return [self.waiting.popleft() for _ in range(count)]

    def _prompt(self, picked: Sequence[int]) -> PromptResult:
        """Run the model over prompts, padded on the right: what is behind one, it never sees."""
        prompts = [self.asked.prompts[i] for i in picked]
        lengths = [len(p) for p in prompts]
        ids = torch.full((len(prompts), max(lengths)), self.asked.pad)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)] = torch.tensor(prompt)
        last = torch.tensor(lengths, device=self.device) - 1
        cache = new_prompt_cache(self._config)
        with _last_state_only(self.model, last):
            logits = self.model(
                input_ids=ids.to(self.device), past_key_values=cache, use_cache=True
            ).logits
        if logits.shape[1] > 1:  # its output layer is not called as a module
            logits = logits[torch.arange(len(last), device=self.device), last][:, None]
        check_cache_layers(cache.layers)
        return PromptResult(cache, greedy_tokens(logits))

    def _seat(self, picked: Sequence[int], found: PromptResult) -> None:
        """Put prompts into free slots, and take down the first token of their answers."""
        places = self._free()[: len(picked)]
        slots = torch.tensor(places, device=self.device)
        lengths = torch.tensor([len(self.asked.prompts[i]) for i in picked], device=self.device)
        self.slots.fill(found.cache, slots)
        self.tokens[slots] = found.first
        self.positions[slots] = lengths
        for place, prompt, token in zip(places, picked, found.first.tolist(), strict=True):
            self.riding[place] = prompt
            self._hear(place, token)

    def _hear(self, place: int, token: int) -> None:
        """Take a token down; whoever is finished leaves."""
        prompt = self.riding[place]
        if prompt is None:
            return
        self.said[prompt].append(token)
        if token in self.asked.ends or len(self.said[prompt]) == self.asked.most:
            self.riding[place] = None

    def _decode(self) -> None:
        """Take the steps up to the next look."""
        taken = self._taken()
        width = self._width(len(taken))
        self._close_up(width)
        riders = [p for p in self.riding if p is not None]
        reach = max(len(self.asked.prompts[p]) + len(self.said[p]) - 1 for p in riders)
        left = max(self.asked.most - len(self.said[p]) for p in riders)
        length = self._length(reach + self.pace.every)
        heard = []
        for _ in range(min(self.pace.every, left)):
            self.decoder.step(width, length)
            heard.append(self.tokens[:width].clone())
        for tokens in torch.stack(heard).tolist():
            for place, token in enumerate(tokens):
                self._hear(place, token)

    def _width(self, taken: int) -> int:
        """Return how many slots take the next steps: where shapes are few, all or a quarter, ..."""
        if not self.pace.few_shapes:
            return taken
        width = self.rows
        while width // 4 >= max(taken, 8):
            width //= 4
        return width

    def _length(self, needed: int) -> int:
        """Return how many places are in view: a multiple, or the grain doubled so many times."""
        length = _round_up(needed, self.pace.length_multiple)
        if self.pace.few_shapes:
            length = self.pace.length_multiple * 2 ** math.ceil(
                math.log2(length / self.pace.length_multiple)
            )
        return min(length, self.places)

    def _close_up(self, width: int) -> None:
        """Move who is in slots beyond ``width`` into the free ones before."""
        strays = [i for i in self._taken() if i >= width]
        if not strays:
            return
        holes = self._free()[: len(strays)]
        origin, target = (torch.tensor(x, device=self.device) for x in (strays, holes))
        self.slots.move(origin, target)
        for held in (self.tokens, self.positions):
            held[target] = held[origin]
        for old, new in zip(strays, holes, strict=True):
            self.riding[new], self.riding[old] = self.riding[old], None


@contextlib.contextmanager
def _last_state_only(model: Any, last: Tensor) -> Iterator[None]:
    """Let the output layer see one state a row: the one at ``last`` ``[B]``."""
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


def _round_up(count: int, of: int) -> int:
    return -(-count // of) * of
