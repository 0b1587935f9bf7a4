"""Incomplete and unusable bases: each refusal names the cause, and its hint helps."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bakeoff.core.errors import PreflightError
from bakeoff.study.setup.base_model import check_folder
from bakeoff.tasks._base import load_tokenizer
from bakeoff.training.preflight import base_errors
from bakeoff.training.preflight.base_errors import load_error

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def error_of(load: Callable[[], object], path: Path) -> PreflightError:
    """Return the error that a study reports for what transformers raises."""
    try:
        load()
    except PreflightError as error:
        return error
    except Exception as error:  # transformers raises many kinds
        return load_error(str(path), error)
    raise AssertionError("it loads")


def tokenizer_error(base: Path) -> PreflightError:
    return error_of(lambda: load_tokenizer(str(base), None), base)


def without_tokenizer(base: Path) -> Path:
    for file in base.glob("*token*"):
        file.unlink()
    return base


def test_sentencepiece_file_names_its_packages(base: Path) -> None:
    """A tokenizer that is a SentencePiece file alone needs two packages, and not tiktoken."""
    without_tokenizer(base)
    (base / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    error = tokenizer_error(base)
    assert error.code == "base-not-loadable"
    assert "`pip install sentencepiece protobuf`" in error.try_
    assert "tiktoken" not in f"{error}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [line.partition(">")[0] for line in extras["optional-dependencies"]["sentencepiece"]]
    assert f"`pip install {' '.join(wanted)}`" in error.try_
    assert "bakeoff[sentencepiece]" in error.try_


def test_only_missing_packages_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sentencepiece alone transformers still asks for tiktoken; protobuf is what lacks."""
    without_tokenizer(base)
    (base / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    monkeypatch.setattr(base_errors, "_is_installed", lambda module: module == "sentencepiece")
    error = load_error(str(base), ValueError("`tiktoken` is required to read a `tiktoken` file."))
    assert "`pip install protobuf`" in error.try_


def test_tiktoken_file_named(base: Path) -> None:
    """A `tokenizer.model` that is text belongs to tiktoken."""
    without_tokenizer(base)
    (base / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    error = load_error(str(base), ValueError("`tiktoken` is required to read a `tiktoken` file."))
    assert error.try_ == "`pip install tiktoken`."


def test_no_tokenizer(base: Path) -> None:
    """A folder without tokenizer files needs them, and no package; following the hint helps."""
    kept = {file.name: file.read_bytes() for file in base.glob("tokenizer*")}
    error = tokenizer_error(without_tokenizer(base))
    assert "no tokenizer" in error.cause
    assert "pip install" not in error.try_
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert name in error.try_
        (base / name).write_bytes(kept[name])
    assert load_tokenizer(str(base), None)("play a song")["input_ids"]


def test_damaged_tokenizer(base: Path) -> None:
    """A tokenizer file that ends too early is said to be damaged."""
    (base / "tokenizer.json").write_text('{"version":')
    assert "damaged" in tokenizer_error(base).cause


@pytest.mark.parametrize(
    ("changes", "cause", "hint"),
    [
        ({"model_type": "t5", "d_model": 32}, "no CausalLM for its kind of model (T5)", "decoder"),
        ({"model_type": "vit"}, "(ViT)", "decoder"),
        ({"model_type": "frobnicate"}, "'frobnicate'", "--upgrade transformers"),
        ({"hidden_size": 64}, "other shapes", "download it again"),
    ],
)
def test_config_of_another_model(
    base: Path, changes: dict[str, object], cause: str, hint: str
) -> None:
    """A config that does not fit gives one sentence, not transformers' list of all models."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **changes}))
    error = error_of(lambda: AutoModelForCausalLM.from_pretrained(base), base)
    assert cause in error.cause
    assert hint in error.try_
    assert len(error.cause) < 250


def test_no_classifier_of_this_kind(base: Path) -> None:
    """The same for a classifier."""
    (base / "config.json").write_text('{"model_type": "mamba", "hidden_size": 32}')
    error = error_of(lambda: AutoModelForSequenceClassification.from_pretrained(base), base)
    assert "SequenceClassification" in error.cause


@pytest.mark.parametrize(
    ("files", "code", "told"),
    [
        (
            {"adapter_config.json": b'{"base_model_name_or_path": "org/base"}'},
            "base-is-adapter",
            "org/base",
        ),
        ({"adapter_config.json": b"[1]"}, "base-is-adapter", "merge_and_unload"),
        ({"model-Q4_K_M.gguf": b"GGUF"}, "model-without-weights", "gguf_file"),
        ({"config.json": b"{}", "m.gguf": b"GGUF"}, "model-without-weights", "m.gguf"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "pickled-weights", "save_pretrained"),
        (
            {
                "config.json": b"{}",
                "model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            },
            "base-incomplete",
            "git lfs pull",
        ),
        (
            {
                "config.json": b"{}",
                "model-00001-of-00002.safetensors": b"",
                "model.safetensors.index.json": b'{"weight_map": '
                b'{"a": "model-00001-of-00002.safetensors", '
                b'"b": "model-00002-of-00002.safetensors"}}',
            },
            "base-incomplete",
            "model-00002-of-00002.safetensors",
        ),
    ],
)
def test_folders_without_a_model(
    tmp_path: Path, files: dict[str, bytes], code: str, told: str
) -> None:
    """An adapter, GGUF or pickled weights, LFS pointers, a missing shard: each is named."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PreflightError) as refused:
        check_folder(tmp_path)
    assert refused.value.code == code
    assert told in f"{refused.value.cause} {refused.value.try_}"
