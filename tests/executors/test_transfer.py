"""What travels to a machine without the study folder, and what may come home from it."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bakeoff.core.trial import Segment
from bakeoff.core.trial_dir import MANIFEST
from bakeoff.core.versions import installed_versions
from bakeoff.study.executors import _transfer
from bakeoff.study.executors.ray import _NodeWorker
from bakeoff.testing.tiny import write_splits
from bakeoff.testing.trials import make_trial

FUNCTION = "bakeoff.training.segment:run"


def laid_out(folder: Path) -> None:
    folder.mkdir()
    data = write_splits(folder / "data")
    shutil.copy(data / "validation.jsonl", data / "test.jsonl")


@pytest.fixture
def begun(tiny_bert: Path, tmp_path: Path) -> Segment:
    """A study folder with its data, and the first of two segments of a trial."""
    laid_out(tmp_path / "study")
    trial = make_trial("lora", "classify", steps=4)
    return Segment((trial,), 0, 2, str(tmp_path / "study"), str(tiny_bert))


def carried(segment: Segment) -> dict[str, Any]:
    """Work a segment off as a worker does that sees nothing of the study folder."""
    payload = segment.to_json()
    packed = _transfer.pack_shared_files(payload), _transfer.pack_checkpoints(payload)
    text, written = _NodeWorker(logging.WARNING).work(FUNCTION, json.dumps(payload), *packed)
    answer: dict[str, Any] = json.loads(text)
    assert answer["error"] is None
    assert written is not None
    _transfer.unpack_outputs(written, payload)
    (result,) = answer["value"]["results"]
    return {k: v for k, v in result.items() if not k.endswith("_seconds")}


def test_transferred_segments_match_local(begun: Segment, tmp_path: Path) -> None:
    """Transferred segments give the same results as segments in the folder."""
    from bakeoff.training import segment as training

    second = dataclasses.replace(begun, start=2, stop=4)
    sent = [carried(begun), carried(second)]
    home = tmp_path / "study" / "trials" / begun.trials[0].id
    laid_out(tmp_path / "plain")
    plain = []
    for part in (begun, second):
        own = dataclasses.replace(part, folder=str(tmp_path / "plain"))
        (result,) = training.run(own.to_json())["results"]
        plain.append({k: v for k, v in result.items() if not k.endswith("_seconds")})
    assert json.loads(json.dumps(plain)) == sent
    assert [r["status"] for r in sent] == ["stopped", "done"]
    there = tmp_path / "plain" / "trials" / begun.trials[0].id
    files = {p.relative_to(there) for p in there.rglob("*") if p.is_file()}
    assert {p.relative_to(home) for p in home.rglob("*") if p.is_file()} == files
    assert (
        json.loads((home / MANIFEST).read_text()).keys()
        == json.loads((there / MANIFEST).read_text()).keys()
    )
    weights = "adapter/adapter_model.safetensors"
    assert (home / weights).read_bytes() == (there / weights).read_bytes()


def archive(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "study.db", "data/train.jsonl", "../out", "trials/{id}/../../study.db", "trials/{id}",
        "/tmp/out", "trials/0123456789ab/result.json", "tokens/a/b",
    ],
)  # fmt: skip
def test_forbidden_paths_rejected(begun: Segment, name: str) -> None:
    """No file is placed where a worker may not write."""
    before = set(Path(begun.folder).parent.rglob("*"))
    with pytest.raises(ValueError, match="may not write"):
        _transfer.unpack_outputs(archive(name.format(id=begun.trials[0].id)), begun.to_json())
    assert set(Path(begun.folder).parent.rglob("*")) == before


def test_links_in_outputs_refused(begun: Segment) -> None:
    """A link in a worker's outputs is refused."""
    name = f"trials/{begun.trials[0].id}/result.json"
    with pytest.raises(ValueError, match="may not write"):
        _transfer.unpack_outputs(archive(name, tarfile.SYMTYPE), begun.to_json())


def test_user_metric_is_transferred(tmp_path: Path) -> None:
    """A metric of the user is transferred by itself."""
    (tmp_path / "score.py").write_text("own = 1\n")
    (tmp_path / "secret.txt").write_text("no\n")
    payload = {"metric": "score.py:score", "options": {}, "folder": str(tmp_path)}
    _transfer.unpack([_transfer.pack_shared_files(payload)], tmp_path / "there")
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["score.py"]
    for outside in ("../secret.txt:score", "accuracy", ":score"):
        with tarfile.open(
            fileobj=io.BytesIO(_transfer.pack_shared_files({**payload, "metric": outside}))
        ) as tar:
            assert tar.getnames() == []


@pytest.mark.parametrize("name", ["../over.txt", "/over.txt", "a/../../over.txt"])
def test_unpack_stays_in_folder(tmp_path: Path, name: str) -> None:
    """A worker unpacks nothing outside its own folder."""
    with pytest.raises(ValueError, match="outside"):
        _transfer.unpack([archive(name)], tmp_path / "there")
    assert list(tmp_path.rglob("over.txt")) == []


def test_unpack_refuses_symbolic_links(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no regular file"):
        _transfer.unpack([archive("data/link", tarfile.SYMTYPE)], tmp_path / "there")


def test_unpack_resolves_hard_links(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one").write_text("text")
    (tmp_path / "data" / "two").hardlink_to(tmp_path / "data" / "one")
    payload = {"folder": str(tmp_path), "trials": []}
    _transfer.unpack([_transfer.pack_shared_files(payload)], tmp_path / "there")
    assert (tmp_path / "there" / "data" / "two").read_text() == "text"


def test_known_versions_compared() -> None:
    """Versions are compared if both are known."""
    own = installed_versions()
    assert _transfer.version_mismatch(own) is None
    assert "peft" in (_transfer.version_mismatch({**own, "peft": "0.0.1"}) or "")
    assert _transfer.version_mismatch({**own, "never-installed": "1"}) is None
