"""Step batches for all lanes: examples to padded batches and packed layouts on the device.

Each lane sees the examples of its own seed. Lanes that train together have their batches
concatenated, lane after lane. Sizes are rounded up so that shapes repeat.

Tensor axes: K = lanes, B = examples of a lane, L = padded length, T = slots of a packed row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils import _pytree as pytree

from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batch_order import step_indices
from bakeoff.engine.device import autocast, device_type
from bakeoff.engine.fused_layers import fuse_frozen_layers
from bakeoff.engine.lanes.dropout import StepPart
from bakeoff.engine.lanes.lanes import Lanes
from bakeoff.engine.layers import LayerStack, use_packed_attention
from bakeoff.engine.loss import SupervisedPositions, align_lanes, set_chunked_loss
from bakeoff.engine.packing.attention import NotPackable
from bakeoff.engine.packing.layout import (
    Layout,
    choose_buckets,
    make_layout,
    pick_bucket,
    round_up,
)

ROW_MULTIPLE = {"cpu": 8, "cuda": 32}
"""Packed rows are this many tokens long, or a multiple of it."""
GRAPH_SHAPES = 10
"""Most row sizes with CUDA graphs: each costs a capture of up to two seconds, and memory."""
CAPTURE_STEPS = 12
"""Replayed steps that take as long as a capture: it runs the step three times without a graph."""


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
    """The part of a task that makes padded batches."""

    def batch(
        self, examples: Any, pad_id: int, device: str, length: int | None, units: int | None
    ) -> Any:
        """Pad examples into one batch."""
        ...


class Pass(NamedTuple):
    """One forward and backward pass: a batch of ``width`` lanes from ``first``, and its layout.

    ``part`` describes which part of a single lane's step it holds; None: the whole step of each of
    its lanes.
    """

    batch: Any
    layout: Layout | None
    first: int
    width: int
    part: StepPart | None


class StepBatch(NamedTuple):
    """The passes of one optimizer step."""

    passes: tuple[Pass, ...]

    @property
    def n_tokens(self) -> tuple[int, ...]:
        """Number of real tokens in each pass."""
        return tuple(p.batch.n_tokens for p in self.passes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of lanes in each pass."""
        return tuple(p.width for p in self.passes)

    @property
    def slots(self) -> int:
        """Number of tokens that the layers process, padding included."""
        return sum(
            p.batch.inputs["input_ids"].numel() if p.layout is None else p.layout.gather.numel()
            for p in self.passes
        )

    def to(self, device: str) -> StepBatch:
        """Return a copy on ``device``; copying from pinned memory does not block."""
        moved: StepBatch = pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(device, non_blocking=True), self
        )
        return moved

    def pin_memory(self) -> StepBatch:
        """Return a copy in pinned memory."""
        pinned: StepBatch = pytree.tree_map_only(torch.Tensor, lambda t: t.pin_memory(), self)
        return pinned


class StepShape(NamedTuple):
    """Sizes of a step: padded length, packed row, targets of a lane; None: not rounded up."""

    length: int | None
    row: int | None
    units: int | None


class BatchBuilder:
    """Builds step batches for the lanes of one model, under fixed switches.

    It owns the model's acceleration: it installs packed attention, the layer stack and the chunked
    loss on this model only.
    """

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
        """Maximum number of lanes in a pass; lowered when memory runs out."""
        self.pass_tokens: int | None = None
        """Maximum number of packed tokens in a pass, over all its lanes; None: no limit."""
        self.may_recompute = False
        """Layers may be recomputed if memory runs out and no pass can be made smaller."""
        self.stack: LayerStack | None = None
        self.packing = switches.packing
        self.virtual_tokens = 0
        self._inspected = False
        self._last: tuple[Sequence[Sequence[TokenizedExample]], Sequence[StepShape]] = (), ()
        set_chunked_loss(lanes.model, on=switches.loss, compiled=switches.compile)
        if switches.fused:
            fuse_frozen_layers(lanes.model)
        if switches.packing:
            use_packed_attention(lanes.model)
        if switches.packing or switches.checkpointing:
            self.stack = LayerStack(lanes.model)
            self.stack.checkpointing = switches.checkpointing
        if switches.packing and switches.compile and self.stack is not None:
            self.stack.compile()

    @property
    def active_switches(self) -> Switches:
        """The switches in effect now: running out of memory can turn checkpointing on."""
        if self.stack is None or not self.stack.checkpointing:
            return self.switches
        return replace(self.switches, checkpointing=True, graphs=False)

    @property
    def row_multiple(self) -> int:
        """The size that packed rows are rounded up to a multiple of."""
        return ROW_MULTIPLE[device_type(self.device)]

    def training_steps(
        self,
        examples: Sequence[TokenizedExample],
        seeds: Sequence[int],
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[StepBatch]:
        """Yield training steps without end, from step ``start``, each lane in its seed's order.

        The last one taken is before ``stop``, if given: few steps are not worth many graphs.

        Raises:
            NotPackable: the layers receive something other than the examples' tokens.
        """
        self._count_virtual_tokens(examples)
        shapes = self._choose_shapes(examples, seeds, stop)
        orders = [step_indices(len(examples), self.batch_size, s, start) for s in seeds]
        while True:
            picked = [[examples[i] for i in next(order)] for order in orders]
            self._last = picked, shapes
            yield self.step(picked, shapes)

    def longest_step(self, examples: Sequence[TokenizedExample]) -> StepBatch:
        """Return a step of the longest examples, the same for every lane: the peak memory."""
        self._count_virtual_tokens(examples)
        order = sorted(examples, key=lambda e: len(e.tokens))[-self.batch_size :]
        self._last = [order] * len(self.lanes), ()
        return self.step(*self._last)

    def split_last_step(self) -> StepBatch | None:
        """Return the last training step in smaller passes; None if they cannot be smaller."""
        return self.step(*self._last) if self.reduce_pass_size() else None

    def reduce_pass_size(self) -> bool:
        """Halve the lanes of a pass, then its examples, then recompute; return False at the end."""
        if self.width > 1:
            self.width = self.width // 2
            return True
        lanes = self._last[0]
        parts = [part for lane in lanes for part in self._split_to_fit(lane) if len(part) > 1]
        if parts:
            self.pass_tokens = max(self._count_tokens(part) for part in parts) // 2
            return True
        return self.may_recompute and self._enable_checkpointing()

    def evaluation_steps(
        self, examples: Sequence[TokenizedExample], rows: int
    ) -> Iterator[StepBatch]:
        """Yield all examples once, the same for every lane, by length; ``rows`` over all lanes."""
        order = sorted(examples, key=lambda e: len(e.tokens))
        share = max(1, rows // self.width)
        for start in range(0, len(order), share):
            for part in self._split_to_fit(order[start : start + share]):
                yield self.step([part] * len(self.lanes), ())

    def step(
        self, picked: Sequence[Sequence[TokenizedExample]], shapes: Sequence[StepShape]
    ) -> StepBatch:
        """Return one step's passes: ``picked`` holds the examples of each lane."""
        limit = self._token_limit
        # lanes of a pass share its row size, so the fullest lane decides how many fit
        row = round_up(max(self._count_tokens(lane) for lane in picked), self.row_multiple)
        if limit is not None and row > limit:  # not even one lane's examples fit in a pass
            passes = [p for i, lane in enumerate(picked) for p in self._split_step(lane, i, shapes)]
        else:
            width = min(self.width, len(picked) if limit is None else limit // row)
            # 5 lanes at width 4 become 3 + 2, not 4 + 1: passes of nearly equal width repeat
            # shapes, which saves compilations and graph captures
            width = -(-len(picked) // -(-len(picked) // width))
            passes = [
                self._build_pass(picked[i : i + width], i, shapes)
                for i in range(0, len(picked), width)
            ]
        step = StepBatch(tuple(passes))
        return step.pin_memory() if self.device.startswith("cuda") else step

    @property
    def _token_limit(self) -> int | None:
        """Maximum number of tokens in a pass: the user's limit or the memory's."""
        limits = [n for n in (self.switches.micro_tokens, self.pass_tokens) if n is not None]
        return min(limits, default=None)

    def _split_to_fit(
        self, examples: Sequence[TokenizedExample]
    ) -> list[Sequence[TokenizedExample]]:
        """Split examples into consecutive parts that fit in a pass; never split an example."""
        limit, parts, start = self._token_limit, [], 0
        for stop in range(1, len(examples) + 1):
            last = stop == len(examples)
            if last or (
                limit is not None
                and round_up(self._count_tokens(examples[start : stop + 1]), self.row_multiple)
                > limit
            ):
                parts.append(examples[start:stop])
                start = stop
        return parts

    def _split_step(
        self, examples: Sequence[TokenizedExample], lane: int, shapes: Sequence[StepShape]
    ) -> Iterator[Pass]:
        """Yield the passes of one lane whose examples do not fit in one pass."""
        parts = self._split_to_fit(examples)
        if len(parts) == 1:
            yield self._build_pass([examples], lane, shapes)
            return
        # ``shapes`` are sizes of whole steps, too large for a part. Only the padded length is
        # kept, and only where results depend on it: dropout indexes its noise by position in the
        # padded row, so a shorter padding would drop other elements.
        fixed = (
            [StepShape(shapes[-1].length, None, None)]
            if shapes and self._depends_on_padding
            else []
        )
        row = token = 0
        for part in parts:
            one = self._build_pass([part], lane, fixed)
            slots = 0 if one.layout is None else one.layout.gather.shape[1]
            # the offsets let dropout give each example the noise it has in an undivided step
            yield one._replace(part=StepPart(row, token, len(part), slots, part is parts[-1]))
            row += len(part)
            token += self._count_tokens(part)

    def _enable_checkpointing(self) -> bool:
        """Recompute layers in the backward pass; return False if they already are."""
        if self.stack is None:
            try:
                self.stack = LayerStack(self.lanes.model)
            except NotPackable:
                return False
        if self.stack.checkpointing:
            return False
        self.stack.checkpointing = True
        return True

    def _build_pass(
        self,
        picked: Sequence[Sequence[TokenizedExample]],
        first: int,
        shapes: Sequence[StepShape],
    ) -> Pass:
        """Return the pass of consecutive lanes from ``first``, rounded up to one of ``shapes``."""
        row = max(self._count_tokens(lane) for lane in picked)
        units = max(_count_supervised(lane) for lane in picked)
        longest = max(len(e.tokens) for lane in picked for e in lane)
        needed = StepShape(longest, row, units)
        shape = _smallest_fitting(shapes, needed) or StepShape(None, None, None)
        examples = [e for lane in picked for e in lane]
        total_units = None if shape.units is None else shape.units * len(picked)
        batch = self.task.batch(examples, self.pad_id, "cpu", shape.length, total_units)
        if (
            len(picked) > 1
            and self.lanes.trains_output_layer
            and isinstance(batch.targets, SupervisedPositions)
        ):
            rows = len(examples) // len(picked)
            aligned = align_lanes(batch.targets, len(picked), rows, shape.units)
            batch = batch._replace(targets=aligned)
        if not self.packing:
            return Pass(batch, None, first, len(picked), None)
        length = batch.inputs["input_ids"].shape[1] + self.virtual_tokens
        tokens = shape.row or round_up(row, self.row_multiple)
        sizes = [n + self.virtual_tokens for n in batch.lengths]
        where = make_layout(sizes, len(picked), length, tokens)
        return Pass(batch, where, first, len(picked), None)

    @property
    def _depends_on_padding(self) -> bool:
        """Whether results depend on the padded length."""
        return bool(self.lanes.dropouts)

    def _count_tokens(self, examples: Sequence[TokenizedExample]) -> int:
        return sum(len(e.tokens) + self.virtual_tokens for e in examples)

    def _choose_shapes(
        self, examples: Sequence[TokenizedExample], seeds: Sequence[int], n_steps: int | None
    ) -> tuple[StepShape, ...]:
        """Return the sizes that steps are rounded up to, ascending."""
        fixed = self._depends_on_padding
        if not self.switches.graphs and not fixed:
            return ()
        # With dropout a lane's result must not depend on which other lanes share its batch, so
        # the padded length is that of the longest example of all, for every step and lane.
        length = round_up(max(len(e.tokens) for e in examples), 8)
        if not self.switches.graphs:
            return (StepShape(length, None, None),)
        # A CUDA graph fixes every size, and each distinct shape costs a capture. Which sizes will
        # occur is known in advance from the seeds: measure the steps of four passes over the
        # data, and choose the few row sizes that waste the fewest slots on them.
        steps = -(-len(examples) // self.batch_size) + 1
        rows, units, lengths = [], [], []
        for seed in dict.fromkeys(seeds):
            order = step_indices(len(examples), self.batch_size, seed)
            for _ in range(4 * steps):
                picked = [examples[i] for i in next(order)]
                rows.append(self._count_tokens(picked))
                units.append(_count_supervised(picked))
                lengths.append(max(len(e.tokens) for e in picked))
        # a later step can still be larger than all of these: the last shape holds any step
        widest = (length + self.virtual_tokens) * self.batch_size
        top = StepShape(length, round_up(widest, self.row_multiple), None)
        most = (
            GRAPH_SHAPES
            if n_steps is None
            else worthwhile_buckets(rows, n_steps, self.row_multiple)
        )
        sizes = choose_buckets(rows, most, self.row_multiple)
        chosen = []
        for size in sizes:
            # targets and padded length grow with the bucket, so that shapes stay in one order
            inside = [i for i, r in enumerate(rows) if pick_bucket(r, sizes) <= size]
            most = round_up(max(units[i] for i in inside), self.row_multiple)
            longest = length if fixed else round_up(max(lengths[i] for i in inside), 8)
            chosen.append(StepShape(longest, size, most))
        return (*chosen, top)

    def _count_virtual_tokens(self, examples: Sequence[TokenizedExample]) -> None:
        """Measure how many virtual tokens a method puts before each example, once.

        Raises:
            NotPackable: the layers receive something other than the examples' tokens.
        """
        if not self.packing or self.stack is None or self._inspected:
            return
        self._inspected = True
        self.lanes.run_single(0)
        batch = self.task.batch(list(examples[:2]), self.pad_id, self.device, None, None)
        seen: list[torch.Size] = []

        def watch(_: Any, args: Any, kwargs: Any) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            seen.append(states.shape if isinstance(states, torch.Tensor) else torch.Size())
            raise _StopForward

        handle = self.stack.layers[0].register_forward_pre_hook(watch, with_kwargs=True)
        try:
            # only shapes count here, and trained fp32 tensors meet a base in bf16
            with torch.no_grad(), autocast(self.device, "bf16"):
                self.lanes.model(**batch.inputs)
        except _StopForward:
            pass
        finally:
            handle.remove()
        rows, length = batch.inputs["input_ids"].shape
        if not seen or len(seen[0]) != 3 or seen[0][0] != rows or seen[0][1] < length:
            raise NotPackable("the first layer does not receive one state for each token")
        self.virtual_tokens = seen[0][1] - length


class _StopForward(Exception):
    """Ends a forward pass once the first layer's input is known."""


def worthwhile_buckets(sizes: Sequence[int], n_steps: int, multiple: int) -> int:
    """Return the number of row sizes whose captures and padded slots take the least time.

    ``sizes`` are the tokens of some steps, ``n_steps`` the number of steps that will be taken, and
    row sizes are multiples of ``multiple``.
    """
    whole = sum(sizes)

    def steps(count: int) -> float:
        """Return the time of captures and padding, in replayed steps."""
        chosen = choose_buckets(sizes, count, multiple)
        padded = np.take(chosen, np.searchsorted(chosen, sizes)).sum() - whole
        return float(count * CAPTURE_STEPS + n_steps * padded / whole)

    return min(range(1, GRAPH_SHAPES + 1), key=steps)


def _count_supervised(examples: Sequence[TokenizedExample]) -> int:
    return sum(label >= 0 for e in examples for label in e.labels)


def _smallest_fitting(shapes: Sequence[StepShape], needed: StepShape) -> StepShape | None:
    """Return the first shape that holds a step of the needed sizes."""
    for shape in shapes:
        sizes = zip(shape, needed, strict=True)
        if all(have is None or need is None or have >= need for have, need in sizes):
            return shape
    return None
