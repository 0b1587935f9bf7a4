"""From examples to what a step needs on the device: batches for all lanes, and packed layouts.

Stands between a task's batches and the loop. Each lane sees its own seed's examples; where lanes
ride together their batches lie one after another in one. Sizes are rounded so that shapes repeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils import _pytree as pytree

from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batch_order import step_indices
from bakeoff.engine.lanes.dropout import StepPart
from bakeoff.engine.lanes.lanes import Lanes
from bakeoff.engine.layers import LayerStack, use_packed_attention
from bakeoff.engine.loss import Fused
from bakeoff.engine.packing.attention import NotPackable
from bakeoff.engine.packing.layout import Layout, choose_buckets, make_layout, pick_bucket, round_up

ROW_MULTIPLE = {"cpu": 8, "cuda": 32}
"""Packed rows are this many tokens long, or a multiple of it."""
GRAPH_SHAPES = 10
"""Row sizes that a graphed study uses: each costs a capture, a second or two."""


class TokenizedExample(Protocol):
    """One example: its tokens, and its labels (negative: not supervised)."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids."""
        ...

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels."""
        ...


class Batcher(Protocol):
    """What a task does for the feed."""

    def batch(
        self, examples: Any, pad_id: int, device: str, length: int | None, units: int | None
    ) -> Any:
        """Pad examples into one batch."""
        ...


class Pass(NamedTuple):
    """One forward and backward pass: a batch of ``width`` lanes from ``first``, and its layout.

    ``cut`` says what of its one lane's step it holds; None: the whole step of each of its lanes.
    """

    batch: Any
    layout: Layout | None
    first: int
    width: int
    part: StepPart | None


class StepBatch(NamedTuple):
    """What one step needs, pass by pass."""

    passes: tuple[Pass, ...]

    @property
    def n_tokens(self) -> tuple[int, ...]:
        """Real tokens of each pass."""
        return tuple(p.batch.n_tokens for p in self.passes)

    @property
    def widths(self) -> tuple[int, ...]:
        """How many lanes each pass holds."""
        return tuple(p.width for p in self.passes)

    @property
    def slots(self) -> int:
        """Tokens that the layers see, padding included."""
        return sum(
            p.batch.inputs["input_ids"].numel() if p.layout is None else p.layout.gather.numel()
            for p in self.passes
        )

    def to(self, device: str) -> StepBatch:
        """Return this on ``device``; from pinned memory nothing is waited for."""
        moved: StepBatch = pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(device, non_blocking=True), self
        )
        return moved

    def pin_memory(self) -> StepBatch:
        """Return this in pinned memory."""
        held: StepBatch = pytree.tree_map_only(torch.Tensor, lambda t: t.pin_memory(), self)
        return held


class StepShape(NamedTuple):
    """The sizes of a step: padded length, packed row, targets of a lane; None is as it comes."""

    length: int | None
    row: int | None
    units: int | None


class BatchBuilder:
    """Makes step batches for the lanes of one model, under fixed switches."""

    def __init__(
        self,
        lanes: Lanes,
        task: Batcher,
        batch_size: int,
        pad_id: int,
        device: str,
        switches: Switches,
    ) -> None:
        self.lanes = lanes
        self.task = task
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.device = device
        self.switches = switches
        self.width = len(lanes) if switches.lanes else 1
        """Most lanes of one pass; lowered when memory runs out."""
        self.pass_tokens: int | None = None
        """Most packed tokens of one pass, all its lanes counted; None: no limit."""
        self.may_recompute = False
        """Layers may be computed again where memory runs out and no pass can be smaller."""
        self.stack: LayerStack | None = None
        self.packing = switches.packing
        self.virtual_tokens = 0
        self._looked = False
        self._last: tuple[Sequence[Sequence[TokenizedExample]], Sequence[StepShape]] = (), ()
        Fused.use(switches.loss, switches.compile)
        if switches.packing:
            use_packed_attention(lanes.model)
        if switches.packing or switches.checkpointing:
            self.stack = LayerStack(lanes.model)
            self.stack.checkpointing = switches.checkpointing
        if switches.packing and switches.compile and self.stack is not None:
            self.stack.compile()

    @property
    def active_switches(self) -> Switches:
        """The switches as they are by now: what did not fit in memory has changed them."""
        if self.stack is None or not self.stack.checkpointing:
            return self.switches
        return replace(self.switches, checkpointing=True, graphs=False)

    @property
    def row_multiple(self) -> int:
        """What packed rows are rounded up to."""
        return ROW_MULTIPLE[self.device.split(":", maxsplit=1)[0]]

    def training(
        self, examples: Sequence[TokenizedExample], seeds: Sequence[int], start: int = 0
    ) -> Iterator[StepBatch]:
        """Yield each step's batches from ``start`` on, each lane in its own seed's order, for ever.

        Raises:
            NotPackable: the layers see something else than the examples' tokens.
        """
        self._look(examples)
        shapes = self._shapes(examples, seeds)
        orders = [step_indices(len(examples), self.batch_size, s, start) for s in seeds]
        while True:
            picked = [[examples[i] for i in next(order)] for order in orders]
            self._last = picked, shapes
            yield self.step(picked, shapes)

    def longest(self, examples: Sequence[TokenizedExample]) -> StepBatch:
        """Return a step of the longest examples, the same for every lane: what must fit."""
        self._look(examples)
        order = sorted(examples, key=lambda e: len(e.tokens))[-self.batch_size :]
        self._last = [order] * len(self.lanes), ()
        return self.step(*self._last)

    def split_last_step(self) -> StepBatch | None:
        """Return the last training step in smaller passes; None when it cannot be made smaller."""
        return self.step(*self._last) if self.reduce_pass_size() else None

    def reduce_pass_size(self) -> bool:
        """Halve the lanes of a pass, then its examples, then recompute; False when all is done."""
        if self.width > 1:
            self.width = self.width // 2
            return True
        parts = [part for own in self._last[0] for part in self._parts(own) if len(part) > 1]
        if parts:
            self.pass_tokens = max(self._tokens(part) for part in parts) // 2
            return True
        return self.may_recompute and self._recompute()

    def evaluation(self, examples: Sequence[TokenizedExample], rows: int) -> Iterator[StepBatch]:
        """Yield all examples once, the same for every lane, sorted by length; ``rows`` in all."""
        order = sorted(examples, key=lambda e: len(e.tokens))
        share = max(1, rows // self.width)
        for start in range(0, len(order), share):
            for part in self._parts(order[start : start + share]):
                yield self.step([part] * len(self.lanes), ())

    def step(
        self, picked: Sequence[Sequence[TokenizedExample]], shapes: Sequence[StepShape]
    ) -> StepBatch:
        """Return one step's passes: ``picked`` holds the examples of each lane."""
        most = self._most
        row = round_up(max(self._tokens(own) for own in picked), self.row_multiple)
        if most is not None and row > most:  # not even one lane's examples fit together
            made = [p for lane, own in enumerate(picked) for p in self._cut(own, lane, shapes)]
        else:
            width = min(self.width, len(picked) if most is None else most // row)
            # passes of equal width where that goes: fewer shapes
            width = -(-len(picked) // -(-len(picked) // width))
            made = [
                self._pass(picked[i : i + width], i, shapes) for i in range(0, len(picked), width)
            ]
        step = StepBatch(tuple(made))
        return step.pin_memory() if self.device.startswith("cuda") else step

    @property
    def _most(self) -> int | None:
        """Most tokens of one pass: the user's limit and the memory's."""
        limits = [n for n in (self.switches.micro_tokens, self.pass_tokens) if n is not None]
        return min(limits, default=None)

    def _parts(self, own: Sequence[TokenizedExample]) -> list[Sequence[TokenizedExample]]:
        """Cut examples into runs that fit a pass, in their order; one alone is never cut."""
        most, parts, start = self._most, [], 0
        for stop in range(1, len(own) + 1):
            last = stop == len(own)
            if last or (
                most is not None
                and round_up(self._tokens(own[start : stop + 1]), self.row_multiple) > most
            ):
                parts.append(own[start:stop])
                start = stop
        return parts

    def _cut(
        self, own: Sequence[TokenizedExample], lane: int, shapes: Sequence[StepShape]
    ) -> Iterator[Pass]:
        """Yield the passes of one lane whose examples do not fit together."""
        parts = self._parts(own)
        if len(parts) == 1:
            yield self._pass([own], lane, shapes)
            return
        # a padded length that dropout counts by stays; sizes of whole steps are too large
        fixed = [StepShape(shapes[-1].length, None, None)] if shapes and self._fixed else []
        row = token = 0
        for part in parts:
            made = self._pass([part], lane, fixed)
            slots = 0 if made.layout is None else made.layout.gather.shape[1]
            cut = StepPart(row, token, len(part), slots, part is parts[-1])
            yield made._replace(part=cut)
            row += len(part)
            token += self._tokens(part)

    def _recompute(self) -> bool:
        """Let layers be computed again in the backward pass; False where they are so already."""
        if self.stack is None:
            try:
                self.stack = LayerStack(self.lanes.model)
            except NotPackable:
                return False
        if self.stack.checkpointing:
            return False
        self.stack.checkpointing = True
        return True

    def _pass(
        self, picked: Sequence[Sequence[TokenizedExample]], first: int, shapes: Sequence[StepShape]
    ) -> Pass:
        row = max(self._tokens(own) for own in picked)
        units = max(_count_supervised(own) for own in picked)
        longest = max(len(e.tokens) for own in picked for e in own)
        shape = _smallest_fitting(shapes, StepShape(longest, row, units)) or StepShape(
            None, None, None
        )
        every = [e for own in picked for e in own]
        in_all = None if shape.units is None else shape.units * len(picked)
        batch = self.task.batch(every, self.pad_id, "cpu", shape.length, in_all)
        if not self.packing:
            return Pass(batch, None, first, len(picked), None)
        length = batch.inputs["input_ids"].shape[1] + self.virtual_tokens
        tokens = shape.row or round_up(row, self.row_multiple)
        sizes = [n + self.virtual_tokens for n in batch.lengths]
        where = make_layout(sizes, len(picked), length, tokens)
        return Pass(batch, where, first, len(picked), None)

    @property
    def _fixed(self) -> bool:
        """Whether what is computed depends on the padded length."""
        return bool(self.lanes.dropouts) or self.lanes.sees_padding

    def _tokens(self, own: Sequence[TokenizedExample]) -> int:
        return sum(len(e.tokens) + self.virtual_tokens for e in own)

    def _shapes(
        self, examples: Sequence[TokenizedExample], seeds: Sequence[int]
    ) -> tuple[StepShape, ...]:
        """Return the sizes that steps are rounded up to.

        Where dropout draws, the padded length must not depend on who else rides: it is the longest
        example's. A graph needs every size fixed, so the steps of one pass are looked through.
        """
        fixed = self._fixed
        if not self.switches.graphs and not fixed:
            return ()
        length = round_up(max(len(e.tokens) for e in examples), 8)
        if not self.switches.graphs:
            return (StepShape(length, None, None),)
        steps = -(-len(examples) // self.batch_size) + 1
        rows, units, lengths = [], [], []
        for seed in dict.fromkeys(seeds):
            order = step_indices(len(examples), self.batch_size, seed)
            for _ in range(4 * steps):
                own = [examples[i] for i in next(order)]
                rows.append(self._tokens(own))
                units.append(_count_supervised(own))
                lengths.append(max(len(e.tokens) for e in own))
        widest = (length + self.virtual_tokens) * self.batch_size
        top = StepShape(length, round_up(widest, self.row_multiple), None)
        sizes = choose_buckets(rows, GRAPH_SHAPES, self.row_multiple)
        chosen = []
        for size in sizes:
            held = [i for i, r in enumerate(rows) if pick_bucket(r, sizes) <= size]
            most = round_up(max(units[i] for i in held), self.row_multiple)
            longest = length if fixed else round_up(max(lengths[i] for i in held), 8)
            chosen.append(StepShape(longest, size, most))
        return (*chosen, top)

    def _look(self, examples: Sequence[TokenizedExample]) -> None:
        """Find out how many virtual tokens a method puts before each example.

        Raises:
            NotPackable: the layers see something else than the examples' tokens.
        """
        if not self.packing or self.stack is None or self._looked:
            return
        self._looked = True
        if self.lanes.sees_padding:
            raise NotPackable("a layer averages over all tokens, padding included")
        self.lanes.run_single(0)
        batch = self.task.batch(list(examples[:2]), self.pad_id, self.device, None, None)
        seen: list[torch.Size] = []

        def watch(_: Any, args: Any, kwargs: Any) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            seen.append(states.shape if isinstance(states, torch.Tensor) else torch.Size())
            raise _StopForward

        handle = self.stack.layers[0].register_forward_pre_hook(watch, with_kwargs=True)
        try:
            with torch.no_grad():
                self.lanes.model(**batch.inputs)
        except _StopForward:
            pass
        finally:
            handle.remove()
        rows, length = batch.inputs["input_ids"].shape
        if not seen or len(seen[0]) != 3 or seen[0][0] != rows or seen[0][1] < length:
            raise NotPackable(f"the layers see {tuple(seen[0]) if seen else 'nothing'}")
        self.virtual_tokens = seen[0][1] - length


class _StopForward(Exception):
    pass


def _count_supervised(own: Sequence[TokenizedExample]) -> int:
    return sum(label >= 0 for e in own for label in e.labels)


def _smallest_fitting(shapes: Sequence[StepShape], needed: StepShape) -> StepShape | None:
    """Return the first shape that holds a step of the needed sizes."""
    for shape in shapes:
        sizes = zip(shape, needed, strict=True)
        if all(have is None or need is None or have >= need for have, need in sizes):
            return shape
    return None
