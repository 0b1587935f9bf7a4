"""Find the base model's files: a folder, a packaged asset, or a hub id; refuse what is unsafe.

Called by ``api`` before anything is loaded. Nothing is ever unpickled: weights are safetensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bakeoff.core.errors import PreflightError, UsageError
from bakeoff.core.names import COMMIT, is_hub_id, is_within
from bakeoff.core.safe_read import CONFIG_BYTES, UnreadableFile, read_json
from bakeoff.core.safetensors_files import INDEX, SHARD_NAME, read_header
from bakeoff.data import assets
from bakeoff.data.assets import ASSET
from bakeoff.study.config.inputs import BaseSpec

WEIGHTS_FILE = "model.safetensors"
FINGERPRINTED_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
HUB_SECONDS = 10.0
"""How long a hub may take to say which commit it has."""
UNPINNED_WARNING = (
    "which commit of {model} this is could not be found out: it is whatever its hub has at each "
    "start. `revision` under [base], the 40 digits of a commit, says which."
)
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class ResolvedBase:
    """Where a base lies and what is known of it.

    ``path`` is a folder or a hub id; ``fingerprint`` is the sha256 of its files (see
    ``fingerprint``), for a hub id its ``commit``, None where that could not be found out.
    """

    path: str
    published_as: str
    note: str | None
    fingerprint: str | None
    commit: str | None = None


def locate_base(
    model: str, progress: Callable[[str], None], revision: str | None = None
) -> ResolvedBase:
    """Return where the base lies, preparing a packaged one if needed; ``revision`` is of a hub's.

    Raises:
        PreflightError: ``model-not-found``, ``model-without-weights``, ``pickled-weights``,
            ``base-incomplete``.
    """
    if model.startswith(ASSET):
        name = model.removeprefix(ASSET)
        folder = assets.prepare(name, progress)
        asset = assets.find_asset(name)
        check_folder(folder)
        return ResolvedBase(str(folder), asset.hub_id or model, asset.note, fingerprint(folder))
    folder = Path(model).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return ResolvedBase(str(folder.resolve()), str(folder.resolve()), None, fingerprint(folder))
    if is_hub_id(model):
        commit = resolve_commit(model, revision)
        return ResolvedBase(model, model, None, commit, commit)
    raise PreflightError(
        "model-not-found",
        f"There is no model folder '{model}'.",
        "a folder with config.json and *.safetensors, a hub id such as "
        "'HuggingFaceTB/SmolLM2-135M', or asset:<name> (`bakeoff assets`).",
    )


def resolve_commit(model: str, revision: str | None = None) -> str | None:
    """Return the commit that a hub's branch or tag stands at, 40 digits; None: it is not known.

    The hub is asked; where it does not answer, the downloads on this machine: their note of the
    branch, else the one commit that is there.
    """
    if COMMIT.fullmatch(revision or ""):
        return revision
    import huggingface_hub
    from huggingface_hub import constants

    try:
        return huggingface_hub.model_info(model, revision=revision, timeout=HUB_SECONDS).sha
    except Exception:  # no network, none such, not for us: who loads it says which
        return _cached_commit(model, revision, Path(constants.HF_HUB_CACHE))


def _cached_commit(model: str, revision: str | None, cache: Path) -> str | None:
    from huggingface_hub import constants, file_download

    name = file_download.repo_folder_name(repo_id=model, repo_type="model")
    folder = cache / name
    note = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    if note.is_file() and is_within(note, folder):
        text = note.read_text(encoding="utf-8", errors="replace").strip()
        return text if COMMIT.fullmatch(text) else None
    there = [p.name for p in (folder / "snapshots").glob("*") if COMMIT.fullmatch(p.name)]
    return there[0] if revision is None and len(there) == 1 else None


def check_trust(base: ResolvedBase, spec: BaseSpec) -> list[str]:
    """Hold a study's trust in its base's own code to one version of it; return what to say of both.

    The fingerprint of a folder covers its code; a hub model is pinned by its commit, and code is
    trusted only where the user wrote that down.

    Raises:
        UsageError: ``trust-unpinned``.
    """
    if not spec.trust_remote_code:
        return [UNPINNED_WARNING.format(model=spec.model)] if base.fingerprint is None else []
    of_hub = base.fingerprint is None or base.commit is not None
    if of_hub and not COMMIT.fullmatch(spec.revision or ""):
        raise UsageError(
            "trust-unpinned",
            f"[base] trusts the code of {spec.model}, and `revision` does not say which: whoever "
            "owns that repository could change it.",
            "`revision` = the 40 digits of the commit whose code you have read.",
        )
    which = f"at commit {spec.revision}" if of_hub else f"in {base.path}"
    return [f"the base's own code is run with your rights: {spec.model}, {which}."]


def check_folder(folder: Path) -> None:
    """Refuse a model folder that lacks a config, has no safetensors weights, or not all of them."""
    if not (folder / "config.json").is_file():
        raise PreflightError(
            "model-not-found", f"{folder} holds no config.json.", "a transformers model folder."
        )
    if weights := sorted(folder.glob("*.safetensors")):
        check_shards(folder, weights)
        return
    pickled = sorted(p.name for pattern in PICKLE_PATTERNS for p in folder.glob(pattern))
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


def check_shards(folder: Path, weights: Sequence[Path]) -> None:
    """Refuse a folder whose download has not come to its end: shards cut off, or not there.

    Raises:
        PreflightError: ``base-incomplete``, naming the file.
    """
    whole = folder / WEIGHTS_FILE
    shards = [] if whole in weights else _index_shards(folder)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise _incomplete(folder, f"its index names {missing[0]}, which is not there")
    for path in [whole] if whole in weights else map(folder.joinpath, shards):
        why = _find_truncation(path)
        if why is not None:
            raise _incomplete(folder, f"{path.name} {why}")


def _index_shards(folder: Path) -> list[str]:
    """Return the shards that an index names; a broken one is told by whoever loads the base."""
    try:
        index = read_json(folder / INDEX, 16 * CONFIG_BYTES)
        named = {str(name) for name in index["weight_map"].values()}
    except (UnreadableFile, KeyError, TypeError, AttributeError):
        return []
    return sorted(filter(SHARD_NAME.fullmatch, named))


def _find_truncation(path: Path) -> str | None:
    """Say why a safetensors file is not whole, by its header; None where it is.

    The header's length, the header, the tensors end to end: so the header tells the file's size.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header = read_header(file, size)
    except ValueError:
        return "has a broken header"
    if header is None:
        return "is no safetensors file, or its beginning alone"
    return None if size == header.end else f"has {size:,} of {header.end:,} bytes"


def _incomplete(folder: Path, why: str) -> PreflightError:
    return PreflightError(
        "base-incomplete",
        f"The base in {folder} is not whole: {why}.",
        "download it again, to the end.",
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
            *filter(Path.is_file, map(folder.joinpath, FINGERPRINTED_FILES)),
        ]
    ):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            digest.update(file.read(window))
            file.seek(max(0, size - window))
            digest.update(file.read(window))
    return digest.hexdigest()
