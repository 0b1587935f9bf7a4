"""Bases in 4 and 8 bits: trained as plain PEFT and bitsandbytes do, in lanes, to the report."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from bakeoff import api
from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError, UsageError
from bakeoff.core.results import Status
from bakeoff.core.trial import Segment
from bakeoff.data.rows import read_rows
from bakeoff.engine import quantization
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batch_order import step_indices
from bakeoff.engine.lanes.lanes import InitialTensors, RowsMixed
from bakeoff.engine.layers import LayerStack, NotCompilable
from bakeoff.integrations.export_weights import export_weights
from bakeoff.methods import registry
from bakeoff.methods.hook import Incompatible
from bakeoff.study.config import parse_spec
from bakeoff.testing.tiny import rows, save_bert, save_llama, write_jsonl
from bakeoff.testing.trials import (
    OPTIONS,
    build_tiny_setup,
    disable_dropout,
    make_trial,
    train_steps,
)
from bakeoff.training import setup
from bakeoff.training.preflight import cost_probe
from bakeoff.training.preflight.capabilities.quantized import cannot_train_reason

pytest.importorskip("bitsandbytes")

NF4 = {"quantize": "nf4", "quantizer": "bitsandbytes"}
INT8 = {"quantize": "int8", "quantizer": "bitsandbytes"}
TORCHAO = {"quantize": "int8", "quantizer": "torchao"}
ON = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)
RATES = (1e-3, 1e-2, 3e-3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose weights are wide enough that rounding them shows."""
    return save_llama(tmp_path_factory.mktemp("llama"), width=64, spread=0.2)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a BERT."""
    return save_bert(tmp_path_factory.mktemp("bert"), width=64, spread=0.2)


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def plain_base(base: Path) -> Any:
    """Load the base in nf4 as a user of transformers does."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, device_map={"": "cpu"}
    )
    # transformers' own layers train no more on AVX512 once they were evaluated
    quantization.keep_trainable(model)
    return model


def encoded(base: Path) -> list[tuple[list[int], list[int]]]:
    """Tokenise the rows from scratch: input ids, and labels on the completion."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    found = []
    for row in rows():
        prompt = tokenizer(f"Command : {row['text']} JSON")["input_ids"]
        answer = [*tokenizer(row["json"])["input_ids"], tokenizer.eos_token_id]
        found.append((prompt + answer, [-100] * len(prompt) + answer))
    return found


def test_nf4_matches_peft_and_bitsandbytes(llama: Path, tmp_path: Path) -> None:
    """NF4 training equals plain PEFT with bitsandbytes.

    The engine with everything on, against a loop over one example a pass, from scratch.
    """
    trial = make_trial("lora", "sft", rate=5e-3, steps=6, warmup=0.0, decay=0.0, **NF4)
    ours = build_tiny_setup(trial, llama, tmp_path, ON)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=32, lora_alpha=32, target_modules="all-linear"
    )
    plain: Any = peft.get_peft_model(plain_base(llama), config)
    own = dict(plain.named_parameters())
    for name in ours.lanes.stack.names:
        own[name].data.copy_(ours.lanes.stack.tensor(name)[0])
    trained = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
    examples, order = encoded(llama), step_indices(96, 8, trial.seed)
    plain.train()
    expected = []
    for _ in range(6):
        picked = [examples[i] for i in next(order)]
        count = sum(label >= 0 for _, labels in picked for label in labels)
        total = 0.0
        for ids, labels in picked:
            at = torch.tensor([ids])
            logits = plain(input_ids=at, attention_mask=torch.ones_like(at)).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits, torch.tensor(labels[1:]), reduction="sum"
            )
            (loss / count).backward()
            total += loss.item() / count
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total)
    found = train_steps(ours, 6).losses[:, 0]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "oft"])
@pytest.mark.parametrize(
    "how",
    [NF4, pytest.param(TORCHAO, marks=pytest.mark.skipif(not has("torchao"), reason="no torchao"))],
)
def test_quantised_lanes_match_sequential(
    method: str, how: dict[str, str], llama: Path, tmp_path: Path
) -> None:
    """Lanes over a quantised base equal the same trials run sequentially."""
    trials = [make_trial(method, "sft", seed=s, rate=r, **how) for s, r in enumerate(RATES)]
    alone = [train_steps(disable_dropout(build_tiny_setup(t, llama, tmp_path)), 6) for t in trials]
    together = train_steps(disable_dropout(build_tiny_setup(trials, llama, tmp_path, ON)), 6)
    plain = torch.cat([r.gradients for r in alone])
    off = (together.gradients - plain).norm(dim=1) / plain.norm(dim=1)
    assert float(off.max()) < 1e-5
    apart = torch.cat([r.losses for r in alone], 1)
    torch.testing.assert_close(together.losses, apart, atol=1e-4, rtol=0)
    exact = train_steps(
        disable_dropout(
            build_tiny_setup(make_trial(method, "sft", rate=RATES[0]), llama, tmp_path)
        ),
        6,
    )
    moved = (exact.losses[:, 0] - apart[:, 0]).abs().max()
    assert 1e-4 < float(moved) < 0.2, "rounding the base shows, and is not the end of it"


def test_encoder_head_stays_exact(bert: Path, tmp_path: Path) -> None:
    """The fresh head of an encoder is not quantised."""
    at = build_tiny_setup(make_trial("lora", "classify", **NF4), bert, tmp_path)
    packed = [n for n, p in at.model.named_parameters() if quantization.is_packed(p)]
    assert len(packed) == 2 * 6 + 1  # the linear layers of two blocks, and the pooler
    assert not any("classifier" in n or "embed" in n or "LayerNorm" in n for n in packed)
    assert any("classifier" in n for n in at.lanes.stack.names)
    assert float(train_steps(at, 6).losses[-1]) < 2.0


def test_bitsandbytes_int8_runs_sequentially(llama: Path, tmp_path: Path) -> None:
    """8-bit training with bitsandbytes works and never uses lanes.

    Its products ask the whole batch for outliers: a lane would depend on its neighbours.
    """
    trials = [make_trial("lora", "sft", seed=s, rate=r, **INT8) for s, r in enumerate(RATES)]
    taking_turns = dataclasses.replace(ON, lanes=False)
    alone = [train_steps(disable_dropout(build_tiny_setup(t, llama, tmp_path)), 6) for t in trials]
    together = train_steps(
        disable_dropout(build_tiny_setup(trials, llama, tmp_path, taking_turns)), 6
    )
    apart = torch.cat([r.losses for r in alone], 1)
    torch.testing.assert_close(together.losses, apart, atol=1e-4, rtol=0)
    with pytest.raises(RowsMixed, match="outliers over all rows"):
        train_steps(build_tiny_setup(trials, llama, tmp_path, ON), 1)
    segment = Segment(tuple(trials), 0, 6, str(tmp_path), str(llama), {"lanes": "auto"})
    switches, reasons = setup.requested_switches(segment)
    assert switches.lanes is False
    assert reasons == {"lanes": quantization.MIXES_ROWS_REASON}


def test_packed_bytes_keep_dtype(llama: Path, tmp_path: Path) -> None:
    """Packed bytes are never cast and never copied per lane."""
    trial = make_trial("lora", "sft", precision="bf16", **NF4)
    at = build_tiny_setup([trial, dataclasses.replace(trial, seed=1)], llama, tmp_path, ON)
    kinds = {p.dtype for p in at.model.parameters() if quantization.is_packed(p)}
    assert kinds == {torch.uint8}
    assert {p.dtype for n, p in at.model.named_parameters() if "norm" in n} == {torch.bfloat16}
    assert at.lanes.per_seed == {}
    sums = InitialTensors.from_model(at.model, checksums=True).sums
    assert any(name.endswith("q_proj.base_layer.weight") for name in sums)


def test_compiled_layers_share_scales(llama: Path, tmp_path: Path) -> None:
    """A compiled layer shared by all would use the first layer's scales."""
    at = build_tiny_setup(make_trial("lora", "sft", **NF4), llama, tmp_path)
    with pytest.raises(NotCompilable, match="scales outside"):
        LayerStack(at.model).compile()


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("full", "it trains the weights of the base, which are quantised"),
        ("pissa", "it starts by changing weights of the base, which are quantised"),
        ("olora", "it starts by changing weights of the base, which are quantised"),
    ],
)
def test_base_changing_methods_incompatible(
    method: str, why: str, llama: Path, tmp_path: Path
) -> None:
    """Methods that change the base's weights are incompatible."""
    with pytest.raises(Incompatible, match=re.escape(why)):
        build_tiny_setup(make_trial(method, "sft", **NF4), llama, tmp_path)


def test_packed_bytes_as_weights_refused(llama: Path, tmp_path: Path) -> None:
    """Methods that take packed bytes for weights are refused before training.

    HRA on 8 bits attaches and trains: on numbers that are no weights.
    """
    assert "off those on the plain base" in str(
        cannot_train_reason(registry.load("hra", Path()), *INT8.values())
    )
    assert cannot_train_reason(registry.load("lora", Path()), *NF4.values()) is None
    trial = make_trial("hra", "sft", **INT8)
    build_tiny_setup(trial, llama, tmp_path)  # lays the data down
    cost = cost_probe.probe_cost(
        Segment((trial,), 0, 6, str(tmp_path), str(llama), {"lanes": "auto"}).to_json()
    )
    assert cost["status"] == Status.INCOMPATIBLE
    assert "it does not train on a base in int8" in cost["reason"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> tuple[Path, dict[str, Any]]:
    """A study in nf4, from the file to the report, with one contender that cannot."""
    folder = tmp_path_factory.mktemp("nf4")
    data = write_jsonl(folder / "rows.jsonl", rows())
    values = {
        "name": "nf4",
        "base": {"model": str(llama), "quantize": "nf4"},
        "data": {"train": str(data), "columns": OPTIONS["sft"]["columns"]},
        "task": {"kind": "sft", "max_length": 64, "max_new_tokens": 4},
        "methods": {"control": "lora", "contenders": ["dora", "ia3", "pissa"]},
        "budget": {"steps": 6, "batch_size": 8, "settings": 2, "seeds": 2, "validations": 2},
        "engine": {"executor": "inline", "threads": 1, "precision": "fp32"},
    }
    return folder, api.run(parse_spec(values), folder, folder / "run")


def test_nf4_study_completes(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    """A study in NF4 completes with its report."""
    folder, report = finished
    by_name = {m["method"]: m for m in report["methods"]}
    assert [by_name[m]["status"] for m in ("lora", "dora", "ia3")] == ["done"] * 3
    assert by_name["pissa"]["status"] == "incompatible"
    assert "which are quantised" in by_name["pissa"]["reason"]
    assert report["provenance"]["base"]["quantize"] == "nf4"
    assert report["provenance"]["base"]["quantizer"] == "bitsandbytes"
    assert "bitsandbytes" in report["provenance"]["versions"]
    assert by_name["lora"]["engine"]["lanes"] >= 2
    trials = api.read_trials(folder / "run")
    assert {(t.conditions.quantize, t.conditions.quantizer) for t, _ in trials} == {
        ("nf4", "bitsandbytes")
    }
    assert "nf4" in (folder / "run" / "report.html").read_text()


def test_nf4_export(finished: tuple[Path, dict[str, Any]], llama: Path, tmp_path: Path) -> None:
    """Weights trained in NF4 are exported."""
    folder, report = finished
    for method in report["methods"]:
        found = method["artifact"]
        assert found is None if method["method"] == "pissa" else found["same"], found
    made = export_weights(folder / "run", tmp_path / "adapter", "lora")
    assert (made.same, made.differing) == (True, 0)
    made = export_weights(folder / "run", tmp_path / "merged", "lora", "merged")
    assert made.same
    assert made.loss != made.trained_loss
    merged, base = (load_file(f / "model.safetensors") for f in (tmp_path / "merged", llama))
    assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in base.items()}
    changed = [k for k in merged if not torch.equal(merged[k], base[k])]
    assert changed
    assert all("proj" in name for name in changed)


def test_adapter_loads_on_quantised_base(
    finished: tuple[Path, dict[str, Any]], llama: Path
) -> None:
    """The adapter loads with plain PEFT onto the quantised base."""
    folder, _ = finished
    trial, result = next(
        (t, r) for t, r in api.read_trials(folder / "run")
        if t.method.name == "lora" and r is not None and "test" in r.splits
    )  # fmt: skip
    assert result is not None
    adapter = folder / "run" / "trials" / trial.id / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama)
    assert all(
        t.is_floating_point() for t in load_file(adapter / "adapter_model.safetensors").values()
    )
    model: Any = peft.PeftModel.from_pretrained(plain_base(llama), adapter).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(llama)
    answers = []
    for row in read_rows(folder / "run" / "data" / "test.jsonl"):
        ids = tokenizer(f"Command : {row['text']} JSON", return_tensors="pt")["input_ids"]
        out = model.generate(input_ids=ids, do_sample=False, max_new_tokens=4, pad_token_id=0)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert answers == list(result.splits["test"].predictions)


def test_quantization_changes_trial_id() -> None:
    """The quantisation of a base is part of a trial's identity."""
    ids = {make_trial("lora", "sft", **how).id for how in ({}, NF4, INT8, TORCHAO)}
    ids.add(make_trial("lora", "sft", fingerprint="f").id)
    assert len(ids) == 5


def test_missing_quantizer_reported_first(
    study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantiser that is not installed is reported at once."""
    monkeypatch.setitem(quantization.QUANTIZERS, "nf4", ("no_such_package",))
    study_values["base"]["quantize"] = "nf4"
    with pytest.raises(EnvironmentProblem) as caught:
        api.run(parse_spec(study_values), tmp_path, tmp_path / "run")
    assert caught.value.code == "quantizer-missing"
    assert "no_such_package, which is not installed" in caught.value.cause
    assert "pip install" in caught.value.try_
    assert issubclass(EnvironmentProblem, BakeoffError)
    assert not issubclass(EnvironmentProblem, PreflightError)


@pytest.mark.parametrize(
    ("base", "cause"),
    [
        ({"quantize": "nf4", "quantizer": "torchao"}, 'torchao does not support "nf4"'),
        ({"quantizer": "torchao"}, "`quantizer` needs `quantize`"),
        ({"quantize": "fp4"}, "base.quantize"),
    ],
)
def test_unsupported_quantization_refused(
    study_values: dict[str, Any], base: dict[str, str], cause: str
) -> None:
    """A base that cannot be quantised that way is refused."""
    study_values["base"] |= base
    with pytest.raises(UsageError) as caught:
        parse_spec(study_values)
    assert caught.value.code == "study-invalid"
    assert cause in caught.value.cause


def test_auto_takes_first_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes the first installed package."""
    monkeypatch.setattr(
        quantization.importlib.util, "find_spec", lambda name: name == "torchao" or None
    )
    assert quantization.resolve_quantizer("int8", "auto") == "torchao"
    with pytest.raises(EnvironmentProblem):
        quantization.resolve_quantizer("nf4", "auto")
    with pytest.raises(EnvironmentProblem):
        quantization.resolve_quantizer("int8", "bitsandbytes")
