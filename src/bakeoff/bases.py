"""Find the base model's files: a folder, a packaged asset, or a hub id; refuse what is unsafe.

Called by ``api`` before anything is loaded. Nothing is ever unpickled: weights are safetensors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bakeoff import assets
from bakeoff.errors import PreflightError, UsageError
from bakeoff.spec.inputs import BaseSpec

ASSET = "asset:"
READ = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_COMMIT = re.compile(r"[0-9a-f]{40}")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class Base:
    """Where a base lies and what is known of it.

    ``path`` is a folder or a hub id; ``fingerprint`` is the
    sha256 of its files (see ``fingerprint``), None for a hub id, whose revision says it.
    """

    path: str
    published_as: str
    note: str | None
    fingerprint: str | None


def locate(model: str, progress: Callable[[str], None]) -> Base:
    """Return where the base lies, preparing a packaged one if needed.

    Raises:
        PreflightError: ``model-not-found``, ``model-without-weights``, ``pickled-weights``.
    """
    if model.startswith(ASSET):
        name = model.removeprefix(ASSET)
        folder = assets.prepare(name, progress)
        asset = assets.find_asset(name)
        check_folder(folder)
        return Base(str(folder), asset.hub_id or model, asset.note, fingerprint(folder))
    folder = Path(model).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return Base(str(folder.resolve()), str(folder.resolve()), None, fingerprint(folder))
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return Base(model, model, None, None)
    raise PreflightError(
        "model-not-found",
        f"There is no model folder '{model}'.",
        "a folder with config.json and *.safetensors, a hub id such as "
        "'HuggingFaceTB/SmolLM2-135M', or asset:<name> (`bakeoff assets`).",
    )


def consent(base: Base, spec: BaseSpec) -> list[str]:
    """Hold a study's trust in its base's own code to one version of it; return what to say of it.

    The fingerprint of a folder covers its code; a hub model is pinned by its commit.

    Raises:
        UsageError: ``trust-unpinned``.
    """
    if not spec.trust_remote_code:
        return []
    pinned = base.fingerprint is not None or _COMMIT.fullmatch(spec.revision or "")
    if not pinned:
        raise UsageError(
            "trust-unpinned",
            f"[base] trusts the code of {spec.model}, and `revision` does not say which: whoever "
            "owns that repository could change it.",
            "`revision` = the 40 digits of the commit whose code you have read.",
        )
    which = f"at commit {spec.revision}" if base.fingerprint is None else f"in {base.path}"
    return [f"the base's own code is run with your rights: {spec.model}, {which}."]


def check_folder(folder: Path) -> None:
    """Refuse a model folder that lacks a config or has no safetensors weights."""
    if not (folder / "config.json").is_file():
        raise PreflightError(
            "model-not-found", f"{folder} holds no config.json.", "a transformers model folder."
        )
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in PICKLED for p in folder.glob(pattern))
    if pickled:
        raise PreflightError(
            "pickled-weights",
            f"{folder} has pickled weights only ({pickled[0]}), which can run code when loaded.",
            "`model.save_pretrained(folder)` in transformers 5 writes safetensors.",
        )
    raise PreflightError(
        "model-without-weights",
        f"{folder} holds no *.safetensors file.",
        "download the weights too, or check the folder.",
    )


def fingerprint(folder: Path) -> str:
    """Return a sha256 over config, tokenizer and weight files (name, size, first and last MiB).

    Whole files would take minutes on large bases; the first MiB holds the safetensors header.
    """
    digest = hashlib.sha256()
    window = 2**20
    for path in sorted(
        [
            *folder.glob("*.safetensors"),
            *folder.glob("*.py"),  # run only where the study trusts it
            *filter(Path.is_file, map(folder.joinpath, READ)),
        ]
    ):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            digest.update(file.read(window))
            file.seek(max(0, size - window))
            digest.update(file.read(window))
    return digest.hexdigest()
