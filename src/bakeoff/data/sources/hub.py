"""Data sets of the Hugging Face hub, through ``datasets``.

Part of ``sources``. ``hub:org/name`` is a data set of the hub, ``hub:./folder`` one of this
machine. Data sets that bring code are refused: ``datasets`` 4 and later cannot run it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Self

from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError
from bakeoff.core.names import COMMIT
from bakeoff.core.safe_read import DATA_BYTES
from bakeoff.data.rows import Row
from bakeoff.data.sources import parquet

PREFIX = "hub:"
KINDS = ("arrow", "audiofolder", "cache", "csv", "imagefolder", "json", "parquet", "text")
"""Packaged readers of ``datasets`` that only parse; any other would run code or unpickle."""


class Dataset(NamedTuple):
    """A split of a data set: a hub id or a folder, the split's name there, its configuration."""

    path: str
    split: str
    config: str | None = None

    @classmethod
    def named(cls, reference: str, split: str, source: Path) -> Self:
        """Read ``hub:org/name``, ``hub:org/name/config`` or either with ``:split`` behind it.

        A folder is relative to ``source``.
        """
        path, _, own = reference.removeprefix(PREFIX).partition(":")
        if path.startswith((".", "/", "~")):
            path = str((source / Path(path).expanduser()).resolve())
            return cls(path, own or split)
        organisation, name, config = (*path.split("/", 2), "", "")[:3]
        return cls("/".join(filter(None, (organisation, name))), own or split, config or None)


def load(
    wanted: Dataset, config: str | None, revision: str | None
) -> tuple[list[Row], dict[str, Any]]:
    """Return a split's rows, and where they came from with the commit that they are of.

    Raises:
        EnvironmentProblem: ``data-package-missing``, ``hub-unreachable``.
        PreflightError: ``data-not-found``, ``data-broken``, ``data-too-large``, ``empty-split``.
    """
    try:
        import datasets
    except ImportError as error:
        raise EnvironmentProblem(
            "data-package-missing",
            f"'{PREFIX}{wanted.path}' needs the package datasets, which is not installed.",
            "`pip install 'bakeoff[datasets]'`, or download its files and name their folder.",
        ) from error
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(
            wanted.path, name=wanted.config or config, revision=revision
        )
        _check_format(builder, wanted)
        # one builder resolves the revision once: what load_dataset does, with the commit at hand
        builder.download_and_prepare()
        _check_size(builder, wanted)
        table = builder.as_dataset(split=wanted.split).with_format("arrow")[:]
    except BakeoffError:
        raise
    except Exception as error:
        raise _as_user_error(error, wanted, datasets.exceptions.DatasetNotFoundError) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    name = f"{wanted.path} ({wanted.split})"
    rows = parquet.to_rows(table, name)
    if not rows:
        raise PreflightError("empty-split", f"{name} holds no rows.", "another split.")
    commit = builder.hash if COMMIT.fullmatch(str(builder.hash)) else None
    return rows, {
        "from": PREFIX + wanted.path,
        "config": builder.config.name,
        "split": wanted.split,
        "revision": commit or revision,
    }


def _check_format(builder: Any, wanted: Dataset) -> None:
    """Refuse formats whose readers unpickle: `datasets` reads .pth files in WebDataset archives.

    Raises:
        PreflightError: ``data-format``.
    """
    _, _, kind = type(builder).__module__.rpartition(".")
    if kind not in KINDS:
        raise PreflightError(
            "data-format",
            f"'{wanted.path}' is in the format '{kind}', which bakeoff does not read.",
            f"one of {', '.join(KINDS)}.",
        )


def _check_size(builder: Any, wanted: Dataset) -> None:
    """Refuse a split that unpacks to more than a data file may: all of it is held in memory.

    Raises:
        PreflightError: ``data-too-large``.
    """
    name, _, _ = wanted.split.partition("[")
    split = (builder.info.splits or {}).get(name)
    size = 0 if split is None else int(split.num_bytes or 0)
    if size > DATA_BYTES:
        raise PreflightError(
            "data-too-large",
            f"'{wanted.path}' ({name}) unpacks to {size:,} bytes, more than {DATA_BYTES:,}.",
            "a smaller split, or files of your own with what is needed of it.",
        )


def _as_user_error(error: Exception, wanted: Dataset, not_found: type[Exception]) -> BakeoffError:
    """Return what a user can do about an error of ``datasets``."""
    why = " ".join(str(error).split())
    if isinstance(error, ConnectionError | TimeoutError):
        return EnvironmentProblem(
            "hub-unreachable",
            f"The hub cannot be reached for '{wanted.path}': {why}.",
            "check the network and HF_HUB_OFFLINE; or download the data set's files elsewhere and "
            "name their folder.",
        )
    if isinstance(error, not_found | FileNotFoundError):
        return PreflightError(
            "data-not-found",
            f"There is no data set '{wanted.path}': {why}.",
            "check its id and `data.revision`; `hf auth login`, if it is private or gated.",
        )
    if isinstance(error, ValueError):  # an unknown configuration or split: the message lists them
        return PreflightError(
            "data-not-found",
            f"'{wanted.path}': {why}.",
            f"`data.config`, and the split as in `{PREFIX}{wanted.path}:train`.",
        )
    return PreflightError(
        "data-broken",
        f"'{wanted.path}' cannot be read ({type(error).__name__}): {why}.",
        "load it with plain `datasets` first; data sets that bring code are not run.",
    )
