"""Forgetting: general text, what a trained lane lost of it, and what the report says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.records import final, hits, make_record
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import bakeoff
from bakeoff.analysis.summary import summarise
from bakeoff.core.errors import PreflightError
from bakeoff.core.results import Forgetting, TrialResult
from bakeoff.data import general_text
from bakeoff.data.rows import read_rows, write_split
from bakeoff.engine.accelerators import Switches
from bakeoff.testing.trials import make_trial
from bakeoff.training import forgetting
from bakeoff.training.setup import build_setup

TEXTS = ["turn on the kitchen light please", "what time is it now", "the lamp is red and old"]


def test_default_text_has_twenty_documents() -> None:
    """The default text has twenty documents."""
    found = general_text.load_documents("default", Path())
    assert len(found) == 20
    assert all(len(row["text"]) > 600 for row in found)
    assert general_text.load_documents("off", Path()) == []


def test_user_text(tmp_path: Path) -> None:
    """A user's own text is measured."""
    (tmp_path / "own.txt").write_text("One.\nStill one.\n%\n\nTwo: 5 % of it.\n")
    expected = [{"text": "One.\nStill one."}, {"text": "Two: 5 % of it."}]
    assert general_text.load_documents("own.txt", tmp_path) == expected
    write_split(tmp_path / "own.jsonl", [{"text": " One "}, {"text": "Two"}, {"text": " "}])
    assert general_text.load_documents("own.jsonl", tmp_path) == [{"text": "One"}, {"text": "Two"}]


def test_unusable_text_refused(tmp_path: Path) -> None:
    """A text that cannot be used is refused."""

    def refused(name: str) -> PreflightError:
        with pytest.raises(PreflightError) as caught:
            general_text.load_documents(name, tmp_path)
        return caught.value

    assert refused("none.txt").code == "general-text-missing"
    (tmp_path / "empty.txt").write_text("%\n%\n")
    assert refused("empty.txt").code == "general-text-empty"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert refused("latin.txt").code == "general-text-missing"
    write_split(tmp_path / "rows.jsonl", [{"text": "One"}, {"body": "Two"}])
    assert "Row 2" in refused("rows.jsonl").cause


def bench_of(method: str, base: Path, folder: Path, lanes: bool = False, **conditions: Any) -> Any:
    """Return a bench of two lanes of a method, with general text beside its data."""
    rows = [{"text": t, "label": "a", "json": "{}"} for t in TEXTS]
    for split in ("train", "validation", "test", "general"):
        write_split(folder / "data" / f"{split}.jsonl", rows)
    more: dict[str, Any] = {"general_length": 8, "data": {"general": "its sha256"}}
    trials = [make_trial(method, "sft", seed=s, **more, **conditions) for s in (0, 1)]
    switches = dataclasses.replace(Switches.all_off(), lanes=lanes)
    return build_setup(trials, str(base), folder / "data", switches)


def change_weights(bench: Any) -> None:
    """Change the weights of all lanes as if they had been trained."""
    shape = bench.lanes.stack.values.shape
    with torch.no_grad():
        bench.lanes.stack.values.add_(0.05 * torch.randn(shape, generator=torch.manual_seed(1)))


@pytest.mark.parametrize("method", ["lora", "pissa", "full"])
def test_untrained_model_forgets_nothing(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    """A model that was not trained has forgotten nothing."""
    bench = bench_of(method, tiny_llama, tmp_path)
    for found in forgetting.measure(bench, str(tiny_llama)):
        exact = 0.0 if method != "pissa" else 1e-4
        assert found.losses == pytest.approx(found.base_losses, abs=exact)
        assert found.divergences == pytest.approx([0.0] * len(TEXTS), abs=exact)
        assert all(n <= 7 for n in found.tokens)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "full"])
def test_lanes_match_plain_models(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Lanes are measured as plain models are."""
    bench = bench_of(method, tiny_llama, tmp_path)
    change_weights(bench)
    found = forgetting.measure(bench, str(tiny_llama))
    assert found[0].losses != found[1].losses
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    documents = forgetting.documents(bench)
    for lane, own in enumerate(found):
        bench.lanes.run_single(lane)
        for number, tokens in enumerate(documents):
            ids = torch.tensor([tokens])
            with torch.no_grad():
                one = base(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
                out = bench.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                two = out[0, -len(tokens) : -1].double().log_softmax(-1)
            loss = functional.nll_loss(two, ids[0, 1:], reduction="sum").item()
            divergence = (one.exp() * (one - two)).sum().item()
            assert own.losses[number] == pytest.approx(loss, abs=1e-4)
            assert own.divergences[number] == pytest.approx(divergence, abs=1e-4)
            assert own.divergences[number] > 0


@pytest.mark.parametrize("method", ["lora", "prefix_tuning", "full"])
def test_batched_lanes_match_single_rows(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    """All lanes and documents in one pass are measured as one lane and document at a time."""
    found = []
    for lanes, rows in ((True, 8), (False, 1)):
        bench = bench_of(method, tiny_llama, tmp_path, lanes, evaluation_batch_size=rows)
        change_weights(bench)
        found.append(forgetting.measure(bench, str(tiny_llama)))
    assert len({len(tokens) for tokens in forgetting.documents(bench)}) < len(TEXTS)
    for batched, single in zip(*found, strict=True):
        assert batched.tokens == single.tokens
        assert batched.base_losses == pytest.approx(single.base_losses, rel=1e-5)
        assert batched.losses == pytest.approx(single.losses, rel=1e-5)
        assert batched.divergences == pytest.approx(single.divergences, rel=1e-4, abs=1e-5)


def test_diverged_lane_affects_no_other(tiny_llama: Path, tmp_path: Path) -> None:
    """A lane without finite weights is not measured, and the other lane is as before."""
    bench = bench_of("lora", tiny_llama, tmp_path, lanes=True)
    change_weights(bench)
    before = forgetting.measure(bench, str(tiny_llama))
    bench.lanes.stack.values[1] = math.nan
    assert forgetting.try_measure(bench, str(tiny_llama)) == [before[0], None]


def test_seconds_estimated(tiny_llama: Path, tmp_path: Path) -> None:
    """The estimate of the seconds is of the order of a measurement."""
    bench = bench_of("lora", tiny_llama, tmp_path)
    assert 0 < forgetting.estimate_seconds(bench, str(tiny_llama)) < 30


def sft(study_values: dict[str, Any], model: Path, **table: Any) -> bakeoff.StudySpec:
    study_values["base"] = {"model": str(model)}
    study_values["task"] = {"kind": "sft", "max_length": 64, "max_new_tokens": 2}
    study_values["data"]["columns"] = {"prompt": "{text}\n", "completion": "{label}"}
    study_values["methods"]["contenders"] = ["pissa"]
    study_values["method"] = {}
    study_values["forgetting"] = {"max_length": 24, **table}
    return bakeoff.parse_spec(study_values)


def test_study_reports_adapter_forgetting(
    study_values: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """A study reports what its saved adapters forgot.

    The oracle: plain transformers and PEFT on what was saved, PiSSA as plain LoRA among it.
    """
    (tmp_path / "own.txt").write_text("\n%\n".join(TEXTS))
    spec = sft(study_values, tiny_llama, text="own.txt")
    out = tmp_path / "out"
    report = bakeoff.run(spec, tmp_path, out)
    assert [r["text"] for r in read_rows(out / "data" / "general.jsonl")] == TEXTS
    assert report["front"]["axes"][-1] == "forgetting"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for row in report["methods"]:
        changes = []
        for seed in row["seeds"]:
            change = tokens = 0.0
            for text in TEXTS:
                ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :24]
                base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
                before = plain_loss(base, ids)
                adapter = out / "trials" / seed["trial_id"] / "adapter"
                change += plain_loss(PeftModel.from_pretrained(base, adapter), ids) - before
                tokens += ids.shape[1] - 1
            changes.append(change / tokens)
        assert row["forgetting"]["estimate"] == pytest.approx(np.mean(changes), abs=1e-4)
        assert row["forgetting"]["n_documents"] == len(TEXTS)
    again = bakeoff.run(bakeoff.read_spec(out / "study.toml"), out, out)
    assert again["methods"] == report["methods"]


def plain_loss(model: Any, ids: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[0, :-1]
    return functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()


def test_disabled_measures_nothing(
    study_values: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """Disabled forgetting measures nothing."""
    report = bakeoff.run(sft(study_values, tiny_llama, text="off"), tmp_path, tmp_path / "out")
    assert all(row["forgetting"] is None for row in report["methods"])
    assert not (tmp_path / "out" / "data" / "general.jsonl").exists()


def test_fresh_head_has_no_forgetting(study_values: dict[str, Any], tmp_path: Path) -> None:
    """A randomly initialised output layer predicts no next token."""
    study_values["forgetting"] = {"text": "own.txt"}
    with pytest.raises(PreflightError, match="fresh output layer") as caught:
        bakeoff.run(bakeoff.parse_spec(study_values), tmp_path, tmp_path / "out")
    assert caught.value.code == "forgetting-not-for-task"


def forgot(trial: Any, result: TrialResult, after: tuple[float, ...]) -> Any:

    divergences = tuple(0.1 * x for x in (10.0, 30.0))
    return trial, dataclasses.replace(
        result, forgetting=Forgetting((10, 30), (20.0, 60.0), after, divergences)
    )


def test_nats_per_token_by_hand() -> None:
    pairs = final("lora", {seed: hits(100, 200) for seed in (1, 2)})
    after = {1: (22.0, 64.0), 2: (24.0, 68.0)}
    trials = [forgot(t, r, after[t.seed]) for t, r in pairs]
    row = summarise(make_record(trials, ("lora",)), np.random.default_rng(0))["methods"][0]
    found = row["forgetting"]
    # seed 1: (2 + 4) / 40 tokens, seed 2: (4 + 8) / 40
    assert found["estimate"] == pytest.approx((6 / 40 + 12 / 40) / 2)
    assert found["low"] < found["estimate"] < found["high"]
    assert found["divergence"]["estimate"] == pytest.approx(4 / 40)
    assert (found["n_documents"], found["n_tokens"]) == (2, 40)
    assert found["base_loss"] == pytest.approx(80 / 40)
    assert math.isfinite(found["high"])


def test_unmeasured_trial_excludes_method() -> None:
    """A trial that was not measured excludes its method."""
    pairs = final("lora", {seed: hits(100, 200) for seed in (1, 2)})
    trials = [forgot(*pairs[0], (22.0, 64.0)), pairs[1]]
    row = summarise(make_record(trials, ("lora",)), np.random.default_rng(0))["methods"][0]
    assert row["forgetting"] is None
