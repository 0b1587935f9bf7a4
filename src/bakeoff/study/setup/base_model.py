"""Find the base model: a folder, a packaged asset, or a hub id; refuse unsafe or incomplete files.

Nothing is ever unpickled: weights must be safetensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bakeoff.core.errors import PreflightError, UsageError
from bakeoff.core.names import COMMIT, expand_home, is_hub_id, is_within
from bakeoff.core.safe_read import (
    CONFIG_BYTES,
    INDEX,
    SHARD_NAME,
    UnreadableFile,
    read_header,
    read_json,
)
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
"""Timeout for asking a hub for a commit."""
UNPINNED_WARNING = (
    "the commit of {model} is unknown: each start uses whatever its hub has then. Set `revision` "
    "under [base] to the 40 digits of a commit. [base-commit-unknown]"
)
ADAPTER = "adapter_config.json"
LFS_POINTER = b"version https://git-lfs"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class ResolvedBase:
    """The location and the identity of a base model.

    ``path`` is a folder or a hub id. ``fingerprint`` is the sha256 of the folder's files (see the
    function), or the ``commit`` of a hub id; None if it is unknown.
    """

    path: str
    published_as: str
    note: str | None
    fingerprint: str | None
    commit: str | None = None


def locate_base(
    model: str, progress: Callable[[str], None], revision: str | None = None
) -> ResolvedBase:
    """Locate a base model, and prepare it if it is a packaged asset.

    ``revision`` applies to hub models.

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
    folder = expand_home(model)
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
    """Return the commit (40 digits) of a hub model's branch or tag, or None if it is unknown.

    If the hub does not answer, the local cache is used: its record of the branch, or the only
    commit that was downloaded.
    """
    if COMMIT.fullmatch(revision or ""):
        return revision
    import huggingface_hub
    from huggingface_hub import constants

    try:
        return huggingface_hub.model_info(model, revision=revision, timeout=HUB_SECONDS).sha
    except Exception:  # no network, no such model, no access: loading reports the cause
        return _cached_commit(model, revision, Path(constants.HF_HUB_CACHE))


def _cached_commit(model: str, revision: str | None, cache: Path) -> str | None:
    from huggingface_hub import constants, file_download

    name = file_download.repo_folder_name(repo_id=model, repo_type="model")
    folder = cache / name
    ref = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    if ref.is_file() and is_within(ref, folder):
        text = ref.read_text(encoding="utf-8", errors="replace").strip()
        return text if COMMIT.fullmatch(text) else None
    commits = [p.name for p in (folder / "snapshots").glob("*") if COMMIT.fullmatch(p.name)]
    return commits[0] if revision is None and len(commits) == 1 else None


def check_trust(base: ResolvedBase, spec: BaseSpec) -> list[str]:
    """Check that trusted code of the base is pinned to one version; return warnings for the user.

    A folder's fingerprint covers its code. A hub model is pinned by its commit, which the study
    file must name if its code is trusted.

    Raises:
        UsageError: ``trust-unpinned``.
    """
    if not spec.trust_remote_code:
        return [UNPINNED_WARNING.format(model=spec.model)] if base.fingerprint is None else []
    of_hub = base.fingerprint is None or base.commit is not None
    if of_hub and not COMMIT.fullmatch(spec.revision or ""):
        raise UsageError(
            "trust-unpinned",
            f"[base] trusts the code of {spec.model} without a `revision`: the owner of that "
            "repository could change it at any time.",
            "`revision` = the 40 digits of the commit whose code you have read.",
        )
    which = f"at commit {spec.revision}" if of_hub else f"in {base.path}"
    return [f"the base's own code is run with your rights: {spec.model}, {which}. [base-code]"]


def check_folder(folder: Path) -> None:
    """Check that a model folder has a config and all of its safetensors weights.

    Raises:
        PreflightError: ``model-not-found``, ``model-without-weights``, ``pickled-weights``,
            ``base-incomplete``.
    """
    if not (folder / "config.json").is_file() and (folder / ADAPTER).is_file():
        raise PreflightError(
            "base-is-adapter",
            f"{folder} holds an adapter{_named_base(folder)}, not a model.",
            "`model` under [base] = the model that the adapter was trained on; or merge them: "
            "`PeftModel.merge_and_unload`, then `save_pretrained`.",
        )
    gguf = sorted(folder.glob("*.gguf"))
    if gguf and not any(folder.glob("*.safetensors")):
        raise PreflightError(
            "model-without-weights",
            f"{folder} has only GGUF weights ({gguf[0].name}), which are for inference.",
            "the safetensors model that they were made from; or convert them: "
            "`AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)`, the same with "
            "AutoTokenizer, and `save_pretrained` to a new folder.",
        )
    if not (folder / "config.json").is_file():
        raise PreflightError(
            "model-not-found", f"{folder} has no config.json.", "a transformers model folder."
        )
    if weights := sorted(folder.glob("*.safetensors")):
        check_shards(folder, weights)
        return
    pickled = sorted(p.name for pattern in PICKLE_PATTERNS for p in folder.glob(pattern))
    if pickled:
        raise PreflightError(
            "pickled-weights",
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when loaded.",
            "load it in transformers 5 and write it to a new folder: `model.save_pretrained` and "
            "`tokenizer.save_pretrained` write safetensors.",
        )
    raise PreflightError(
        "model-without-weights",
        f"{folder} has no *.safetensors file.",
        "download the weights too, or check the folder.",
    )


def _named_base(folder: Path) -> str:
    """Return the base that an adapter's config names, as a clause; empty if it names none."""
    try:
        named = read_json(folder / ADAPTER, CONFIG_BYTES)["base_model_name_or_path"]
    except (UnreadableFile, KeyError, TypeError):
        return ""
    return f" for the base '{str(named)[:120]}'" if named else ""


def check_shards(folder: Path, weights: Sequence[Path]) -> None:
    """Check that a folder's download is complete: no shard is missing or truncated.

    Raises:
        PreflightError: ``base-incomplete``, naming the file.
    """
    whole = folder / WEIGHTS_FILE
    shards = [] if whole in weights else _index_shards(folder)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise _incomplete(folder, f"its index lists {missing[0]}, which is missing")
    for path in [whole] if whole in weights else map(folder.joinpath, shards):
        if _is_lfs_pointer(path):
            raise PreflightError(
                "base-incomplete",
                f"The base model in {folder} is incomplete: {path.name} is a pointer of Git LFS.",
                "`git lfs pull` in that folder fetches the weights; or download it again.",
            )
        damage = _find_truncation(path)
        if damage is not None:
            raise _incomplete(folder, f"{path.name} {damage}")


def _index_shards(folder: Path) -> list[str]:
    """Return the shards that an index lists; empty for a broken index, which loading reports."""
    try:
        index = read_json(folder / INDEX, 16 * CONFIG_BYTES)
        shards = {str(name) for name in index["weight_map"].values()}
    except (UnreadableFile, KeyError, TypeError, AttributeError):
        return []
    return sorted(filter(SHARD_NAME.fullmatch, shards))


def _find_truncation(path: Path) -> str | None:
    """Return how a safetensors file is damaged, or None.

    The file is a length, a header and the tensors end to end, so the header implies its size.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header = read_header(file, size)
    except ValueError:
        return "has a broken header"
    if header is None:
        return "is not a safetensors file, or only the beginning of one"
    return None if size == header.end else f"has {size:,} of {header.end:,} bytes"


def _is_lfs_pointer(path: Path) -> bool:
    """Tell whether a file was cloned without Git LFS: then it holds a few lines of text."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _incomplete(folder: Path, why: str) -> PreflightError:
    return PreflightError(
        "base-incomplete",
        f"The base model in {folder} is incomplete: {why}.",
        "download it again, completely.",
    )


def fingerprint(folder: Path) -> str:
    """Return a sha256 over config, tokenizer and weight files (name, size, first and last MiB).

    Hashing whole files would take minutes for large models. The first MiB holds the safetensors
    header.
    """
    digest = hashlib.sha256()
    window = 2**20
    for path in sorted(
        [
            *folder.glob("*.safetensors"),
            *folder.glob("*.py"),  # run only if the study trusts it
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
