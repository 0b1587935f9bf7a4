"""Data sets of the Hugging Face hub, through ``datasets``.

``hub:org/name`` is a data set on the hub, ``hub:./folder`` one on this machine. Data sets with code
are refused: ``datasets`` 4 and later cannot run it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from bakeoff.core.errors import BakeoffError, EnvironmentProblem, PreflightError, UsageError
from bakeoff.core.names import COMMIT, expand_home
from bakeoff.core.safe_read import DATA_BYTES
from bakeoff.data.rows import FileRows
from bakeoff.data.sources import arrow
from bakeoff.data.sources.directory import split_of

PREFIX = "hub:"
KINDS = ("arrow", "audiofolder", "cache", "csv", "imagefolder", "json", "parquet", "text")
"""Builders of ``datasets`` that only parse; any other may run code or unpickle."""


class Dataset(NamedTuple):
    """A split of a data set: a hub id or folder, the name of the split, the configuration."""

    path: str
    split: str
    config: str | None = None

    @classmethod
    def parse(cls, reference: str, split: str, source: Path) -> Self:
        """Parse ``hub:org/name`` or ``hub:org/name/config``, each with an optional ``:split``.

        A folder is relative to ``source``.
        """
        path, named_split = split_reference(reference, source)
        if path.startswith((".", "/", "~")):
            path = str((source / expand_home(path)).resolve())
            return cls(path, named_split or split)
        organisation, name, config = (*path.split("/", 2), "", "")[:3]
        hub_id = "/".join(filter(None, (organisation, name)))
        return cls(hub_id, named_split or split, config or None)


def split_reference(reference: str, source: Path) -> tuple[str, str]:
    """Return the id or folder of a ``hub:`` reference and the name of its split, maybe empty.

    The name of a folder may itself contain colons: the longest part that is a folder counts.
    """
    text = reference.removeprefix(PREFIX)
    colons = [i for i, c in enumerate(text) if c == ":"]
    if text.startswith((".", "/", "~")):
        for end in (len(text), *reversed(colons)):
            if (source / expand_home(text[:end])).is_dir():
                return text[:end], text[end + 1 :]
    path, _, split = text.partition(":")
    return path, split


def load_train(
    reference: str,
    source: Path,
    config: str | None,
    revision: str | None,
    given: Collection[str],
) -> dict[str, tuple[FileRows, dict[str, Any]]]:
    """Return the rows and origins of train, and of the data set's own validation and test.

    Its own splits are used if ``reference`` names no split, unless they are ``given`` or have no
    labels. A note says what is used and what is not.

    Raises:
        EnvironmentProblem, PreflightError: as ``load``.
    """
    location, named_split = split_reference(reference, source)
    dataset = Dataset.parse(reference, "train", source)
    train, origin = load(dataset, config, revision)
    found = {"train": (train, origin)}
    own = _own_splits(dataset, config, revision)
    others = {s: name for s, name in own.items() if s not in given and name != dataset.split}
    if named_split:
        notes = [
            f"{dataset.path} has a split '{name}' too, which is not used; "
            f'{split} = "{PREFIX}{location}:{name}" uses it.'
            for split, name in others.items()
        ]
        return {"train": (train._replace(notes=(*train.notes, *notes)), origin)}
    used, notes = [], []
    for split, name in others.items():
        rows, its_origin = load(dataset._replace(split=name), config, revision)
        if (column := rows.unlabelled_column) is not None:
            notes.append(f"{dataset.path}: its {name} has no labels in '{column}': it is not used.")
            continue
        found[split] = (rows, its_origin)
        used.append(name)
    if used:
        notes.append(f"{dataset.path} also provides {' and '.join(used)}, by its own splits.")
    found["train"] = (train._replace(notes=(*train.notes, *notes)), origin)
    return found


def _own_splits(dataset: Dataset, config: str | None, revision: str | None) -> dict[str, str]:
    """Return the data set's validation and test splits, by ours: the first of each."""
    with _builder(dataset, config, revision) as builder:
        names = [str(name) for name in builder.info.splits or ()]
    own: dict[str, str] = {}
    for name in names:
        split = split_of(name)
        if split in ("validation", "test") and split not in own:
            own[split] = name
    return own


def load(
    dataset: Dataset, config: str | None, revision: str | None
) -> tuple[FileRows, dict[str, Any]]:
    """Return a split's rows and their origin, including the commit.

    Raises:
        EnvironmentProblem: ``data-package-missing``, ``hub-unreachable``.
        PreflightError: ``data-not-found``, ``data-broken``, ``data-too-large``, ``empty-split``.
    """
    with _builder(dataset, config, revision) as builder:
        _check_size(builder, dataset)
        table = builder.as_dataset(split=dataset.split).with_format("arrow")[:]
        commit = builder.hash if COMMIT.fullmatch(str(builder.hash)) else None
        origin = {
            "from": PREFIX + dataset.path,
            "config": builder.config.name,
            "split": dataset.split,
            "revision": commit or revision,
        }
    name = f"{dataset.path} ({dataset.split})"
    rows = arrow.to_rows(table, name)
    if not rows.rows:
        raise PreflightError("empty-split", f"{name} has no rows.", "another split.")
    return rows, origin


@contextlib.contextmanager
def _builder(dataset: Dataset, config: str | None, revision: str | None) -> Iterator[Any]:
    """Yield the data set's builder, with its files downloaded and its splits known.

    Raises:
        EnvironmentProblem: ``data-package-missing``, ``hub-unreachable``.
        PreflightError: ``data-not-found``, ``data-broken``, ``data-format``.
        UsageError: ``path-malformed``.
    """
    _check_literal(dataset)
    try:
        import datasets
    except ImportError as error:
        raise EnvironmentProblem(
            "data-package-missing",
            f"'{PREFIX}{dataset.path}' needs the package datasets, which is not installed.",
            "`pip install 'bakeoff[datasets]'`, or download its files and give their folder.",
        ) from error
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(
            dataset.path, name=dataset.config or config, revision=revision
        )
        _check_format(builder, dataset)
        # as load_dataset does; the builder resolves the revision once and knows the commit
        builder.download_and_prepare()
        yield builder
    except BakeoffError:
        raise
    except Exception as error:
        raise _as_user_error(error, dataset, datasets.exceptions.DatasetNotFoundError) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _check_literal(dataset: Dataset) -> None:
    """Refuse a folder that ``datasets`` would take for a pattern and read other folders' rows.

    Raises:
        UsageError: ``path-malformed``.
    """
    found = next((mark for mark in ("*", "?", "[", "::") if mark in dataset.path), None)
    if found is not None:
        raise UsageError(
            "path-malformed",
            f"`datasets` takes the folder {dataset.path} for a pattern, because of its '{found}'.",
            "the folder without `hub:`, which is read as it is; or another name for the folder.",
        )


def _check_format(builder: Any, dataset: Dataset) -> None:
    """Refuse formats whose builders unpickle, such as .pth files in WebDataset archives.

    Raises:
        PreflightError: ``data-format``.
    """
    _, _, kind = type(builder).__module__.rpartition(".")
    if kind not in KINDS:
        raise PreflightError(
            "data-format",
            f"'{dataset.path}' is in the format '{kind}', which bakeoff does not read.",
            f"one of {', '.join(KINDS)}.",
        )


def _check_size(builder: Any, dataset: Dataset) -> None:
    """Refuse a split that is larger than ``DATA_BYTES``: all of it is held in memory.

    Raises:
        PreflightError: ``data-too-large``.
    """
    name, _, _ = dataset.split.partition("[")
    split = (builder.info.splits or {}).get(name)
    size = 0 if split is None else int(split.num_bytes or 0)
    if size > DATA_BYTES:
        raise PreflightError(
            "data-too-large",
            f"'{dataset.path}' ({name}) unpacks to {size:,} bytes, more than {DATA_BYTES:,}.",
            "a smaller split, or your own files with the rows that you need.",
        )


def _as_user_error(error: Exception, dataset: Dataset, not_found: type[Exception]) -> BakeoffError:
    """Return an error of ``datasets`` as one with a cause and a hint."""
    why = " ".join(str(error).split())
    if isinstance(error, ConnectionError | TimeoutError):
        return EnvironmentProblem(
            "hub-unreachable",
            f"The hub cannot be reached for '{dataset.path}': {why}.",
            "check the network and HF_HUB_OFFLINE; or download the data set's files elsewhere and "
            "give their folder.",
        )
    if isinstance(error, not_found | FileNotFoundError):
        return PreflightError(
            "data-not-found",
            f"There is no data set '{dataset.path}': {why}.",
            "check its id and `data.revision`; `hf auth login`, if it is private or gated.",
        )
    if isinstance(error, ValueError):  # an unknown configuration or split: the message lists them
        return PreflightError(
            "data-not-found",
            f"'{dataset.path}': {why}.",
            f"`data.config`, and the split as in `{PREFIX}{dataset.path}:train`.",
        )
    return PreflightError(
        "data-broken",
        f"'{dataset.path}' cannot be read ({type(error).__name__}): {why}.",
        "load it with plain `datasets` first; data sets with code are not run.",
    )
