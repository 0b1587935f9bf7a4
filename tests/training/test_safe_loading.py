"""A base that is not all there is refused, and the file that is not whole is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from bakeoff import api
from bakeoff.core.errors import BakeoffError, PreflightError
from bakeoff.core.trial import Segment
from bakeoff.study.config import parse_spec
from bakeoff.study.setup import base_model
from bakeoff.testing.tiny import write_splits
from bakeoff.testing.trials import make_trial
from bakeoff.training.preflight import checks

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECOND = "model-00002-of-00002.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 76528\n"


def sharded(base: Path, to: Path) -> Path:
    """Copy a base with its weights in two shards and an index, as larger ones are published."""
    shutil.copytree(base, to)
    tensors = load_file(to / "model.safetensors")
    (to / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, to / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (to / "model.safetensors.index.json").write_text(json.dumps(index))
    return to


def answer(base: Path | str, folder: Path, task: str = "sft") -> dict[str, Any]:
    """Have a worker check a study on this base."""
    data = write_splits(folder / "data")
    shutil.copyfile(data / "validation.jsonl", data / "test.jsonl")
    metric = {"sft": "exact_match", "classify": "accuracy"}[task]
    trial = make_trial("lora", task, metric=metric)
    return checks.check_study(Segment((trial,), 0, 10, str(folder), str(base)).to_json())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda m: cut(m / SECOND), f"{SECOND} has "),
        (lambda m: (m / SECOND).unlink(), f"its index lists {SECOND}, which is missing"),
        (lambda m: (m / SECOND).write_bytes(b""), f"{SECOND} is not a safetensors file"),
        (lambda m: (m / SECOND).write_text(POINTER), f"{SECOND} is a pointer of Git LFS"),
        (
            lambda m: (m / SECOND).write_bytes((9).to_bytes(8, "little") + b'{"a": [1]'),
            f"{SECOND} has a broken header",
        ),
    ],
    ids=["cut off", "missing", "empty", "a pointer to it", "no header"],
)
def test_incomplete_download_refused(
    harm: Callable[[Path], object], says: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """A base that was downloaded incompletely is refused.

    Faults 38 and 43: seen by the files' own headers, before anything is loaded.
    """
    model = sharded(tiny_llama, tmp_path / "model")
    base_model.check_folder(model)
    harm(model)
    with pytest.raises(PreflightError) as error:
        base_model.locate_base(str(model), print)
    assert (error.value.code, error.value.exit_code) == ("base-incomplete", 3)
    assert says in error.value.cause
    assert "download it again" in error.value.try_


def test_unused_weight_files_ignored(tiny_llama: Path, tmp_path: Path) -> None:
    """Weight files that are not loaded are not checked.

    An index of before, and another program's weights, beside a file that is whole.
    """
    model = sharded(tiny_llama, tmp_path / "model")
    shutil.copyfile(tiny_llama / "model.safetensors", model / "model.safetensors")
    (model / SECOND).write_bytes(b"")
    (model / "consolidated.safetensors").write_bytes(b"half")
    base_model.check_folder(model)


@pytest.mark.parametrize("gone", ["tokenizer.json", "generation_config.json"])
def test_base_without_tokenizer_refused(gone: str, tiny_llama: Path, tmp_path: Path) -> None:
    """A base without its tokenizer is refused.

    Fault 38: and what a base can do without is not missed.
    """
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (model / gone).unlink()
    error = answer(model, tmp_path)["error"]
    if gone == "generation_config.json":
        assert error is None
    else:
        assert (error["code"], error["exit"]) == ("base-not-loadable", 3)
        assert "tokenizer" in error["cause"]


@pytest.mark.parametrize(
    ("task", "gone"), [("sft", "layers.1.mlp"), ("classify", "layer.1.attention.output")]
)
def test_missing_weights_not_initialised(
    task: str, gone: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Missing weights are not initialised at random.

    Fault 43: transformers would draw them, and say so in a line that nobody reads.
    """
    base = {"sft": tiny_llama, "classify": tiny_bert}[task]
    model = Path(shutil.copytree(base, tmp_path / "model"))
    assert answer(model, tmp_path, task)["error"] is None, "a fresh output layer is meant to be"
    tensors = load_file(model / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if gone not in n}
    assert len(kept) < len(tensors)
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    error = answer(model, tmp_path, task)["error"]
    assert error["code"] == "base-incomplete"
    assert gone in error["cause"]


def test_base_deeper_than_weights(tiny_llama: Path, tmp_path: Path) -> None:
    """A base with more layers than its weights is refused.

    Fault 43: the config of another model.
    """
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    error = answer(model, tmp_path)["error"]
    assert error["code"] == "base-incomplete"
    assert "layers.2" in error["cause"]


def cached(base: Path, hub: Path, name: str) -> None:
    """Lay a base down as the hub's own downloads do."""
    place = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(base, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def test_hub_base_offline(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a downloaded hub base is loaded; another gives instructions.

    Fault 38: without a network, one that was downloaded is loaded; of others it is said how.
    """
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tiny_llama, tmp_path / "hub", "org/there")
    assert answer("org/there", tmp_path)["error"] is None
    error = answer("org/absent", tmp_path)["error"]
    assert error["code"] == "base-not-loadable"
    assert "`hf auth login`, if it is private or gated" in error["try"]
    assert "`hf download org/absent`" in error["try"]


def test_hub_base_without_commit_warned(study_values: dict[str, Any]) -> None:
    """A hub base without its commit is listed as an issue.

    Fault 38: what a branch holds may be another base tomorrow.
    """
    unknown = base_model.ResolvedBase("org/model", "org/model", None, None)
    found = base_model.ResolvedBase("org/model", "org/model", None, COMMIT, COMMIT)
    local = base_model.ResolvedBase("/models/x", "/models/x", None, "sum")
    spec = parse_spec(study_values).base
    assert [len(base_model.check_trust(b, spec)) for b in (unknown, found, local)] == [1, 0, 0]


def test_hub_branch_pinned_to_commit(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub branch is pinned to the commit that it stands for.

    Fault 38: without a network by what was downloaded, of a branch or of the only commit.
    """
    hub, other = tmp_path / "hub", "b" * 40
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tiny_llama, hub, "org/there")
    assert base_model.locate_base("org/there", print) == base_model.ResolvedBase(
        "org/there", "org/there", None, COMMIT, COMMIT
    )
    assert base_model.resolve_commit("org/there", other) == other
    assert base_model.resolve_commit("org/there", "v2") is None
    assert base_model.resolve_commit("org/there", "../../main") is None
    assert base_model.resolve_commit("org/absent") is None
    shutil.rmtree(hub / "models--org--there" / "refs")
    assert base_model.resolve_commit("org/there") == COMMIT
    shutil.copytree(
        hub / "models--org--there/snapshots" / COMMIT, hub / "models--org--there/snapshots" / other
    )
    assert base_model.resolve_commit("org/there") is None


def test_hub_branch_commit_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is asked for the commit of a branch."""
    asked: list[tuple[str, str | None]] = []

    def model_info(model: str, revision: str | None, timeout: float) -> SimpleNamespace:
        asked.append((model, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    assert base_model.resolve_commit("org/model", "main") == COMMIT
    assert asked == [("org/model", "main")]


def test_hub_study_resumes_at_commit(
    tiny_bert: Path, study_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of a hub base resumes at the commit it started with.

    Fault 38: and is refused where the branch has moved, until the commit is written down.
    """
    hub, other = tmp_path / "hub", "b" * 40
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(tiny_bert, hub, "org/there")
    study_values["base"]["model"] = "org/there"
    study = tmp_path / "study"
    report = api.run(parse_spec(study_values), tmp_path, study)
    assert report["complete"]
    assert report["provenance"]["base"]["fingerprint"] == COMMIT
    assert not any("commit" in w for w in report["warnings"])
    trials = api.read_trials(study)
    assert {t.conditions.revision for t, _ in trials} == {COMMIT}
    (hub / "models--org--there" / "refs" / "main").write_text(other)
    with pytest.raises(BakeoffError) as refused:
        api.run(parse_spec(study_values), tmp_path, study)
    assert refused.value.code == "study-differs"
    assert other in refused.value.cause
    study_values["base"]["revision"] = COMMIT
    api.run(parse_spec(study_values), tmp_path, study)
    assert api.read_trials(study) == trials
