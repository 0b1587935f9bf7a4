"""Answers of several lanes in one decoding step are those of each lane's plain model."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bakeoff.engine.accelerators import Switches
from bakeoff.engine.generation import decoding, generate
from bakeoff.engine.generation.decoding import DecodeShape, LaneSpan
from bakeoff.engine.generation.generate import (
    DecodeSettings,
    GenerationRequest,
    choose_rows,
    generate_in_lanes,
    generate_plain,
)
from bakeoff.engine.lanes.lanes import Lanes
from bakeoff.testing.tiny import save_llama, write_splits
from bakeoff.testing.trials import build_tiny_setup, make_trial
from bakeoff.training import evaluate, generation
from bakeoff.training.preflight.parity import probe_accelerators

CPU = DecodeSettings.for_device("cpu")
GPU_LIKE = DecodeSettings.for_device("cuda")._replace(length_multiple=16)
"""How a GPU is paced, small enough that all its shapes come up."""
ON = dataclasses.replace(Switches.all_off(), lanes=True, generation=True, lane_generation=True)
ENDS = (5, 7, 9, 11)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose answers differ from prompt to prompt: its weights are large."""
    return save_llama(tmp_path_factory.mktemp("spread"), spread=0.5)


@pytest.fixture(scope="module")
def make_lanes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Lanes]:
    """Make lanes of a method, each with weights of its own, away from their initial values."""

    def make(method: str, count: int = 3) -> Lanes:
        trials = [make_trial(method, "sft", seed=seed) for seed in range(count)]
        setup = build_tiny_setup(trials, base, tmp_path_factory.mktemp(method), ON)
        torch.manual_seed(0)
        for name in setup.lanes.stack.names:
            tensor = setup.lanes.stack.tensor(name)
            with torch.no_grad():
                tensor.add_(0.1 * torch.randn_like(tensor))
        setup.model.eval()
        return setup.lanes

    return make


@pytest.fixture(scope="module")
def lora(make_lanes: Callable[..., Lanes]) -> Lanes:
    """Four lanes of LoRA."""
    return make_lanes("lora", 4)


def make_request(count: int = 13, ends: tuple[int, ...] = ENDS, most: int = 8) -> GenerationRequest:
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 40) for _ in range(rng.randint(1, 30))] for _ in range(count)]
    return GenerationRequest(prompts, ends, most, 0)


def generate_lane_by_lane(
    lanes: Lanes, request: GenerationRequest, span: LaneSpan
) -> list[list[list[int]]]:
    answers = []
    for lane in span.lanes:
        lanes.run_single(lane)
        answers.append(generate_plain(lanes.model, request))
    return answers


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[DecodeShape]:
    """The shapes of all steps taken in a test."""
    seen: list[DecodeShape] = []
    step = decoding.Decoder.step

    def record(self: Any, shape: DecodeShape) -> None:
        seen.append(shape)
        step(self, shape)

    monkeypatch.setattr(decoding.Decoder, "step", record)
    return seen


@pytest.mark.parametrize("method", ["lora", "dora", "oft", "vera", "ia3", "full"])
def test_tokens_are_those_of_each_lane(
    method: str, make_lanes: Callable[..., Lanes], shapes: list[DecodeShape]
) -> None:
    lanes, request, span = make_lanes(method), make_request(), LaneSpan(0, 3)
    expected = generate_lane_by_lane(lanes, request, span)
    assert expected[0] != expected[1] != expected[2]
    for settings in (CPU, GPU_LIKE):
        assert generate_in_lanes(lanes, span, request, 4, settings=settings) == expected
    assert all(shape.span.width > 1 for shape in shapes[:3])


@pytest.mark.parametrize("settings", [CPU, GPU_LIKE], ids=["cpu", "gpu"])
@pytest.mark.parametrize(
    ("span", "prompts", "rows"),
    [((0, 4), 5, 1), ((0, 4), 13, 5), ((1, 3), 13, 64), ((0, 2), 1, 8), ((2, 1), 13, 3)],
)
def test_any_number_of_slots(
    lora: Lanes, span: tuple[int, int], prompts: int, rows: int, settings: DecodeSettings
) -> None:
    """More prompts than slots or fewer, one prompt, some of the lanes, a single lane."""
    lanes = LaneSpan(*span)
    for ends in ((), ENDS):  # none ends early, or some
        request = make_request(prompts, ends)
        expected = generate_lane_by_lane(lora, request, lanes)
        assert generate_in_lanes(lora, lanes, request, rows, settings=settings) == expected


@pytest.mark.parametrize("settings", [CPU, GPU_LIKE], ids=["cpu", "gpu"])
@pytest.mark.parametrize("lane", [0, 2, 3])
def test_lane_that_never_ends(
    lane: int,
    settings: DecodeSettings,
    make_lanes: Callable[..., Lanes],
    shapes: list[DecodeShape],
) -> None:
    """The others end, and the steps go on without them."""
    lanes, request, span = make_lanes("full", 4), make_request(21, most=30), LaneSpan(0, 4)
    with torch.no_grad():  # all logits are zero: token 0 for ever
        lanes.stack.tensor("model.norm.weight")[lane].zero_()
    expected = generate_lane_by_lane(lanes, request, span)
    assert all(answer == [0] * 30 for answer in expected[lane])
    assert generate_in_lanes(lanes, span, request, 4, settings=settings) == expected
    assert shapes[0] == (span, 4, shapes[0].length)
    assert shapes[-1].span == LaneSpan(lane, 1)
    assert max(shape.rows for shape in shapes) > 4, "its prompts get the slots of the others"


def test_diverged_lane_leaves_others(make_lanes: Callable[..., Lanes]) -> None:
    """Values that are not finite stay in their lane, whatever slots are moved and reused."""
    lanes, request, span = make_lanes("lora"), make_request(), LaneSpan(0, 3)
    lanes.stack.values[1].fill_(float("nan"))
    expected = generate_lane_by_lane(lanes, request, span)
    answers = generate_in_lanes(lanes, span, request, 4, settings=GPU_LIKE)
    assert [answers[0], answers[2]] == [expected[0], expected[2]]


def test_passes_bounded_over_all_lanes(lora: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over prompts is bounded over all lanes, and rarely repeats a prompt."""
    monkeypatch.setitem(generate.PROMPT_TOKENS, "cpu", 60)
    passes: list[torch.Size] = []
    forward = lora.model.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        if kwargs["past_key_values"].get_seq_length() == 0:
            passes.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    request, span = make_request(), LaneSpan(0, 4)
    expected = generate_lane_by_lane(lora, request, span)
    monkeypatch.setattr(lora.model, "forward", record)
    assert generate_in_lanes(lora, span, request, 5) == expected
    assert all(rows * longest <= 60 or rows == 1 for rows, longest in passes)
    assert sum(rows for rows, _ in passes) <= 1.5 * 4 * len(request.prompts)


def conditions(**changes: Any) -> Any:
    return dataclasses.replace(make_trial("lora", "sft").conditions, **changes)


def generate_counting(
    lanes: Lanes, c: Any, width: int, monkeypatch: pytest.MonkeyPatch, fits: int
) -> list[tuple[int, int]]:
    """Check the answers of all lanes with memory for few rows; return (lanes, rows) tried."""
    tried, real = [], generation.generate_in_lanes

    def tight(own: Any, span: LaneSpan, request: Any, rows: int, *rest: Any) -> Any:
        tried.append((span.width, rows))
        if span.width * rows > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(own, span, request, rows, *rest)

    request = make_request(10, most=3)
    expected = generate_lane_by_lane(lanes, request, LaneSpan(0, len(lanes)))
    with monkeypatch.context() as patch:
        patch.setattr(generation, "generate_in_lanes", tight)
        counts = (len(lanes), width)
        assert generation.generate_fast_in_lanes(lanes, counts, request, c, False) == expected
    return tried


def test_rows_are_halved_until_they_fit(lora: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last resort is one row of one lane at a time."""
    gpu_like = GPU_LIKE._replace(lane_rows=16, max_rows=32)
    monkeypatch.setattr(generation.DecodeSettings, "for_device", lambda _: gpu_like)
    c = conditions()
    assert generate_counting(lora, c, 4, monkeypatch, 9) == [(4, 8), (4, 4), (4, 2)]
    assert generate_counting(lora, c, 3, monkeypatch, 99) == [(2, 15), (2, 15)]
    tried = generate_counting(lora, c, 4, monkeypatch, 1)
    assert tried[:-4] == [(4, 8), (4, 4), (4, 2), (4, 1), (2, 1)]
    assert tried[-4:] == [(1, 1)] * 4


def test_lanes_share_rows_on_cpu(lora: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a lane joins only where rows are left over: ten prompts, and 8, 20 or 64 rows."""
    for rows, expected in ((8, [(1, 8)] * 4), (20, [(2, 10)] * 2), (64, [(4, 16)])):
        c = conditions(evaluation_batch_size=rows)
        assert generate_counting(lora, c, 4, monkeypatch, 99) == expected


def test_rows_by_memory(lora: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than requested are used if they fit into half of the free memory."""
    request, settings = make_request(300), DecodeSettings.for_device("cuda")
    assert choose_rows(lora, 4, request, 64, settings) == 4 * 256
    assert choose_rows(lora, 12, request, 64, settings) == 2048
    assert choose_rows(lora, 12, request, 4096, settings) == 4096
    token_bytes = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head width, fp32
    slot = token_bytes * 64  # 30 + 8 + 4 positions, rounded up
    monkeypatch.setattr(generate, "free_bytes", lambda _: 2 * 100 * slot)
    assert choose_rows(lora, 4, request, 64, settings) == 100
    assert choose_rows(lora, 4, request, 200, settings) == 200


def test_probe_turns_lanes_off_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: list[DecodeShape]
) -> None:
    """Where answers in lanes are wrong, one lane after another generates them."""
    data = write_splits(tmp_path / "data")
    requested = dataclasses.replace(ON, lane_generation=False)
    trial = make_trial("lora", "sft")
    good = probe_accelerators(trial, str(base), data, requested)
    assert good == (ON, {})
    assert {shape.span for shape in shapes} == {LaneSpan(0, 1), LaneSpan(0, 2)}
    step = decoding.Decoder._step

    def mix_lanes(self: Any, shape: DecodeShape) -> None:
        step(self, shape)
        if shape.span.width > 1:
            tokens = self.tokens[: 2 * shape.rows]
            tokens.copy_(tokens.roll(shape.rows))

    monkeypatch.setattr(decoding.Decoder, "_step", mix_lanes)
    wrong = probe_accelerators(trial, str(base), data, requested)
    assert wrong.switches == requested
    assert list(wrong.reasons) == ["lane_generation"]
    assert "answers differ from plain generate" in wrong.reasons["lane_generation"]

    def refuse(*_: Any) -> None:
        raise decoding.FastGenerationUnsupported("no decoding here")

    monkeypatch.setattr(decoding.Decoder, "_step", refuse)
    none = probe_accelerators(trial, str(base), data, requested)
    assert not none.switches.generation
    assert none.reasons == dict.fromkeys(("generation", "lane_generation"), "no decoding here")


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
@pytest.mark.parametrize("in_lanes", [True, False])
def test_segment_answers(
    method: str, in_lanes: bool, base: Path, tmp_path: Path, shapes: list[DecodeShape]
) -> None:
    """Answers are those of each trial's plain model; a method with virtual tokens uses no slots."""
    fast = method == "lora"
    on = dataclasses.replace(ON, generation=fast, lane_generation=fast and in_lanes)
    trials = [make_trial(method, "sft", seed=s, evaluation_batch_size=40) for s in range(3)]
    setup = build_tiny_setup(trials, base, tmp_path, on)
    rows = setup.rows("validation")[:10]
    answers = evaluate.predict_all(setup, rows)
    request = setup.task.prompts(setup.tokenizer, rows)
    for lane in range(3):
        setup.lanes.run_single(lane)
        plain = setup.task.answers(setup.tokenizer, request, generate_plain(setup.model, request))
        assert answers[lane] == plain
    spans = {shape.span for shape in shapes}
    expected = {LaneSpan(0, 3)} if in_lanes else {LaneSpan(lane, 1) for lane in range(3)}
    assert spans == (expected if fast else set())


def test_plain_base_has_one_lane(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    request = make_request()
    answers = generation.generate_fast(model, request, conditions(), graphs=False)
    assert answers == generate_plain(model, request)
