"""The training half on a GPU: bf16, device memory, the same contract. Skipped without CUDA."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.core_methods import CASES
from transformers import LlamaConfig, LlamaForCausalLM

from bakeoff.core.trial import Segment, Trial
from bakeoff.engine.packing.attention import attend
from bakeoff.engine.packing.layout import Layout, make_layout
from bakeoff.study.executors import Options
from bakeoff.study.executors.process import Process
from bakeoff.testing.tiny import rows, tokenizer, write_jsonl, write_splits
from bakeoff.testing.trials import make_trial
from bakeoff.training import segment
from bakeoff.training.preflight import cost_probe, machine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def on_gpu(method: str, task: str) -> Trial:
    trial = make_trial(method, task)
    found = machine.detect_machine(
        {"device": "auto", "precision": "auto", "threads": 1, "workers": 1}
    )
    assert (found["device"], found["precision"]) == ("cuda:0", "bf16")
    changes: dict[str, Any] = {"device": found["device"], "precision": found["precision"]}
    if task == "sft":
        changes["metric"] = "json_match"
    return dataclasses.replace(trial, conditions=dataclasses.replace(trial.conditions, **changes))


@pytest.mark.parametrize(("method", "task"), CASES)
def test_trial_cost_and_pair_follow_probe(
    method: str, task: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """A trial, its cost and a pair run with the accelerators that the probe chose."""
    write_jsonl(write_splits(tmp_path / "data") / "test.jsonl", rows())
    trial = on_gpu(method, task)
    one = Segment((trial,), 0, 30, str(tmp_path), str(bases[task]))
    (result,) = segment.run(one.to_json())["results"]
    assert result["status"] == "done", result["traceback"] or result["reason"]
    assert len(result["splits"]["test"]["scores"]) == len(rows())
    cost = cost_probe.probe_cost(one.to_json())
    assert cost["status"] == "done", cost["reason"]
    assert cost["memory_kind"] == "device"
    assert cost["train_peak_bytes"] > cost["base_bytes"] > 0
    print(method, task, cost["engine"])  # what is off, and why: read with pytest -s
    pair = (trial, dataclasses.replace(trial, seed=trial.seed + 1))
    both = dataclasses.replace(one, trials=pair, engine=cost["engine"])
    for lane in segment.run(both.to_json())["results"]:
        assert lane["status"] == "done", lane["traceback"] or lane["reason"]
        assert lane["curve"][-1]["validation_loss"] == pytest.approx(
            result["curve"][-1]["validation_loss"], rel=0.5, abs=0.3
        )


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of SmolLM2-135M, with the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("135m")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, head_dim=64,
        num_attention_heads=9, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_probe_measures_one_method_with_and_without_graphs(smollm: Path, tmp_path: Path) -> None:
    """The peak counts a step's activations in both cases, and the base is the base alone."""
    write_splits(tmp_path / "data")
    trial = on_gpu("lora", "sft")
    costs = [
        cost_probe.probe_cost(
            Segment(
                (trial,) * 4, 0, 30, str(tmp_path), str(smollm), {"lanes": "auto", "graphs": graphs}
            ).to_json()
        )
        for graphs in ("on", "off")
    ]
    print([c["probe_seconds"] for c in costs])  # pytest -s
    captured, plain = costs
    assert captured["engine"]["switches"]["graphs"]
    assert captured["train_peak_bytes"] == pytest.approx(plain["train_peak_bytes"], rel=0.2)
    weights = sum(p.stat().st_size for p in smollm.glob("*.safetensors"))
    assert captured["base_bytes"] == pytest.approx(weights, rel=0.05)
    assert captured["lanes_timed"] == 4
    assert 0 < captured["lanes_ratio"] <= 4.5


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "oft", "full"])
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_trials_over_a_quantised_base(
    method: str, quantize: str, smollm: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    write_jsonl(write_splits(tmp_path / "data") / "test.jsonl", rows())
    trial = on_gpu(method, "sft")
    c = dataclasses.replace(trial.conditions, quantize=quantize, quantizer="bitsandbytes")
    pair = [dataclasses.replace(trial, conditions=c, seed=s) for s in (0, 1)]
    wishes = {"lanes": "auto", "checkpointing": "auto"}
    one = Segment((pair[0],), 0, 30, str(tmp_path), str(smollm), wishes)
    cost = cost_probe.probe_cost(one.to_json())
    print(method, quantize, cost["reason"], cost["engine"], cost["base_bytes"])  # pytest -s
    if method == "full" or (method, quantize) == ("dora", "int8"):
        assert cost["status"] == "incompatible"
        return
    assert cost["status"] == "done", cost["reason"]
    assert cost["engine"]["switches"]["lanes"] is (quantize == "nf4")
    both = dataclasses.replace(one, trials=tuple(pair), engine=cost["engine"])
    alone = dataclasses.replace(one, engine=cost["engine"])
    (solo,) = segment.run(alone.to_json())["results"]
    laned = segment.run(both.to_json())["results"]
    for lane in (solo, *laned):
        assert lane["status"] == "done", lane["traceback"] or lane["reason"]
    assert laned[0]["curve"][-1]["validation_loss"] == pytest.approx(
        solo["curve"][-1]["validation_loss"], rel=0.5, abs=0.3
    )


@pytest.mark.parametrize("causal", [True, False])
def test_short_lane_beside_long_finite(causal: bool) -> None:
    """A lane with little text stays finite in a batch with a long one.

    The kernel writes no slot beyond the longest example; what is left of a row may be longer.
    """
    sizes = [40] * 16 + [9] * 16
    where = make_layout(sizes, lanes=2, length=40, tokens=640)
    where = Layout(*(x.cuda() for x in where))
    shapes = [(2, heads, 640, 64) for heads in (8, 2, 2)]
    q, k, v = (
        torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes
    )
    none = torch.empty(0, dtype=torch.int32, device="cuda")
    waste = torch.full((2, 8, 640, 64), torch.nan, device="cuda", dtype=torch.bfloat16)
    del waste  # what the kernel leaves out would be read from here
    out, _ = attend(q, k, v, *where, 64**-0.5, causal, 0.0, none, none)
    assert bool(out.isfinite().all())
    for gradient in torch.autograd.grad(out.float().square().sum(), [q, k, v]):
        assert bool(gradient.isfinite().all())


def fail_in_a_kernel(value: dict[str, Any]) -> dict[str, Any]:
    """Work off a segment; in one that says so a kernel's assertion fails, as on a wrong index."""
    if value.pop("fails"):

        def broken(*_: Any) -> Any:
            ids = torch.tensor([7], device="cuda")
            torch.zeros(3, device="cuda")[ids].sum().item()

        segment._train_and_score = broken
    return segment.run(value)


def test_worker_replaced_after_gpu_loss(tiny_llama: Path, tmp_path: Path) -> None:
    """A worker that lost its GPU is replaced."""
    write_jsonl(write_splits(tmp_path / "data") / "test.jsonl", rows())
    trials = tuple(dataclasses.replace(on_gpu("lora", "sft"), seed=s) for s in (0, 1))
    both = Segment(trials, 0, 30, str(tmp_path), str(tiny_llama)).to_json()
    through = Process(1)
    first, second = through.map(
        f"{__name__}:fail_in_a_kernel", [{**both, "fails": True}, {**both, "fails": False}]
    )
    through.close()
    assert first.value is None, "no result may come of a process without its GPU"
    assert "CUDA error" in (first.error or "")
    assert [r["status"] for r in (second.value or {})["results"]] == ["done", "done"]


def test_lanes_exceeding_memory_cap(smollm: Path, tmp_path: Path) -> None:
    """Lanes that exceed a memory cap lose no work.

    The allocator's own limit, between what one trial takes and what eight do: a real one.
    """
    few = dataclasses.replace(on_gpu("lora", "sft").conditions, steps=6, batch_size=32)
    one = dataclasses.replace(on_gpu("lora", "sft"), conditions=few, phase="search")
    one = dataclasses.replace(one, setting={"learning_rate": 3e-4})
    trials = [dataclasses.replace(one, seed=s) for s in range(8)]
    switches = {"lanes": True, "packing": True, "loss": True, "compile": False, "graphs": False}
    wishes = {"switches": switches, "token_bytes": None, "pass_tokens": None, "rescue": True}

    def ran(name: str, own: list[Trial]) -> tuple[list[dict[str, Any]], int]:
        (tmp_path / name).mkdir()
        write_jsonl(write_splits(tmp_path / name / "data") / "test.jsonl", rows())
        group = Segment(tuple(own), 0, 6, str(tmp_path / name), str(smollm), wishes)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        found: list[dict[str, Any]] = segment.run(group.to_json())["results"]
        for lane in found:
            assert lane["status"] == "done", lane["traceback"] or lane["reason"]
        return found, torch.cuda.max_memory_reserved()

    _, lone = ran("alone", trials[:1])
    before, peak = ran("whole", trials)
    cap = (lone + peak) // 2
    print(f"one trial {lone >> 20} MiB, eight {peak >> 20}, cap {cap >> 20}")
    assert peak > 1.2 * lone
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.mem_get_info()[1])
    failures = torch.cuda.memory_stats()["num_ooms"]
    try:
        after, most = ran("capped", trials)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    failures = torch.cuda.memory_stats()["num_ooms"] - failures
    print(f"{failures} allocations refused, {most >> 20} MiB at most")
    assert failures > 0, "the cap was never met"
    assert most <= cap
    for free, held in zip(before, after, strict=True):
        assert held["curve"][-1]["validation_loss"] == pytest.approx(
            free["curve"][-1]["validation_loss"], abs=0.005
        )


def which_gpu(_: dict[str, Any]) -> dict[str, Any]:
    """Say which GPU is this process's first one, once both workers have been started."""
    time.sleep(3)
    torch.zeros(1, device="cuda:0")
    return {"uuid": str(torch.cuda.get_device_properties(0).uuid)}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_workers_take_a_gpu_each() -> None:
    through = Process(2, Options(one_gpu_each=True))
    outcomes = list(through.map(f"{__name__}:which_gpu", [{}, {}]))
    through.close()
    assert len({(o.value or {})["uuid"] for o in outcomes}) == 2
