"""Classification with a decoder: its output layer reads the last token, wherever padding lies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from bakeoff import api
from bakeoff.core.results import Status
from bakeoff.core.trial import Segment
from bakeoff.data.rows import read_rows
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.packing.pooling import last_token_positions
from bakeoff.study.config import parse_spec
from bakeoff.testing.tiny import rows, write_splits
from bakeoff.testing.trials import build_tiny_setup, disable_dropout, make_trial, train_steps
from bakeoff.training import segment
from bakeoff.training.preflight.parity import probe_accelerators

ON = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)
METHODS = ("lora", "full", "head", "ia3", "oft", "prefix_tuning", "prompt_tuning", "p_tuning")
PADDED = {"prefix_tuning"}


def short_and_long() -> list[dict[str, str]]:
    """Texts of three to eight words."""
    return [
        {**row, "text": " ".join(row["text"].split()[: 3 + i % 6])} for i, row in enumerate(rows())
    ]


@pytest.fixture
def without_padding(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama as many decoders come: no padding token, and a config that names another."""
    folder = tmp_path / "no-pad"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    words = AutoTokenizer.from_pretrained(tiny_llama)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, unk_token="[UNK]", eos_token="[EOS]"
    )
    bare.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 7}))
    return folder


def test_last_token_matches_transformers() -> None:
    """The last token is the one that transformers uses."""
    tokens = [(5, 6, 7), (5, 0, 0), (0, 5), (0, 0), (4,)]
    assert last_token_positions(tokens, pad_id=0) == [2, 0, 1, 0, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", ["tiny_llama", "without_padding"])
def test_score_independent_of_padding(
    method: str, base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An item has the same score by itself and in a padded batch."""
    at = build_tiny_setup(make_trial(method, "classify"), request.getfixturevalue(base), tmp_path)
    at.model.eval()
    pad = int(at.tokenizer.pad_token_id)  # type: ignore[arg-type]
    assert pad == {"tiny_llama": 0, "without_padding": 2}[base]
    examples = at.task.encode(at.tokenizer, short_and_long()[:12])
    assert len({len(e.tokens) for e in examples}) >= 4
    with torch.no_grad():
        whole = at.task.item_losses(at.model, at.task.batch(examples, pad, "cpu", length=16)).sums
        alone = [at.task.item_losses(at.model, at.task.batch([e], pad, "cpu")) for e in examples]
        # a row of its own has no padding: transformers' own pooling is right there
        plain = [
            torch.nn.functional.cross_entropy(
                at.model(**at.task.batch([e], pad, "cpu").inputs).logits, torch.tensor(e.labels)
            )
            for e in examples
        ]
    torch.testing.assert_close(whole, torch.cat([x.sums for x in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, torch.stack(plain), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_lanes_and_packing_keep_results(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Lanes and packing keep the results."""
    on = dataclasses.replace(ON, packing=method not in PADDED)
    trials = [make_trial(method, "classify", seed=s, rate=r) for s, r in enumerate((1e-3, 1e-2))]
    alone = [
        train_steps(disable_dropout(build_tiny_setup(t, tiny_llama, tmp_path)), 6) for t in trials
    ]
    together = train_steps(disable_dropout(build_tiny_setup(trials, tiny_llama, tmp_path, on)), 6)
    plain = torch.cat([r.gradients for r in alone])
    off = (together.gradients - plain).norm(dim=1) / plain.norm(dim=1)
    assert float(off.max()) < 1e-5
    torch.testing.assert_close(
        together.losses, torch.cat([r.losses for r in alone], 1), atol=1e-4, rtol=0
    )


def test_probe_enables_packing_for_decoders(tiny_llama: Path, tmp_path: Path) -> None:
    """The probe enables packing for decoders.

    A cache of keys and values, filled in every pass, would keep them from it.
    """
    data = write_splits(tmp_path / "data")
    found = probe_accelerators(make_trial("lora", "classify"), str(tiny_llama), data, ON)
    assert (found.switches, found.reasons) == (ON, {})


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_answers_are_the_same_in_lanes(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    write_splits(tmp_path / "data")
    trials = [
        make_trial(method, "classify", seed=s, rate=3e-2, phase="search", steps=6) for s in (0, 1)
    ]
    engine = {"switches": dataclasses.asdict(ON), "token_bytes": None}
    whole = Segment(tuple(trials), 0, 6, str(tmp_path), str(tiny_llama), engine, scored=True)
    for trial, lane in zip(trials, segment.run_segment(whole).results, strict=True):
        assert lane.status is Status.DONE, lane.reason
        assert lane.lanes == 2, lane.warnings
        (solo,) = segment.run_segment(dataclasses.replace(whole, trials=(trial,))).results
        pairs = zip(*(r.splits["validation"].predictions for r in (lane, solo)), strict=True)
        assert sum(a != b for a, b in pairs) <= 1, "rounding may turn one item, not more"


def test_decoder_study_learns_in_peft(
    study_values: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    """A study of a decoder learns, and its adapter answers in plain PEFT."""
    study_values["base"]["model"] = str(tiny_llama)
    study_values["methods"] = {"control": "lora", "contenders": ["prompt_tuning"]}
    del study_values["method"]
    study_values["budget"] |= {"steps": 40, "settings": 1, "seeds": 1, "race": "off", "extend": 0}
    study_values["task"]["head_learning_rate"] = 1e-2
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "out")
    found = {m["method"]: m for m in report["methods"]}
    assert found["lora"]["score"]["estimate"] > 0.6, "three labels, a third each"
    assert "packing" in found["lora"]["engine"]["on"]
    finals = {
        t.method.name: r
        for t, r in api.read_trials(tmp_path / "out")
        if t.phase == "final" and r is not None
    }
    test = read_rows(tmp_path / "out" / "data" / "test.jsonl")
    words: Any = AutoTokenizer.from_pretrained(tiny_llama)
    for method, result in finals.items():
        base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=3)
        place = tmp_path / "out" / "trials" / result.trial_id / "adapter"
        model = peft.PeftModel.from_pretrained(base, place).eval()
        said = []
        for row in test:  # one by one: with prompt tuning plain transformers reads padding
            batch = words(row["text"], return_tensors="pt")
            inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
            with torch.no_grad():
                said.append(["lights", "music", "timer"][int(model(**inputs).logits.argmax())])
        assert tuple(said) == result.splits["test"].predictions, method
