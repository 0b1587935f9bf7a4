"""Read a file's bytes, decompressed if its name ends in .gz, .bz2, .xz, .zst or .zip.

The size limit holds for what is decompressed. A .zip file holds one file, whose name is only read
for its suffix: nothing is unpacked to disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from bakeoff.core.errors import EnvironmentProblem, PreflightError
from bakeoff.core.safe_read import UnreadableFile, read_bytes

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PK\x03\x04": ".zip",
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
}
_PIECE = 2**24
# RuntimeError: a method of compression that zipfile does not know
_FAILURES = (
    OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
)  # fmt: skip


class FileBytes(NamedTuple):
    """The bytes of a file, decompressed, and the suffix of its format in lower case."""

    raw: bytes
    suffix: str


def format_suffix(path: Path) -> str:
    """Return the suffix of a file's format, in lower case and without that of a compression.

    It is empty for a .zip file without another suffix: only its content shows the format.
    """
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def is_compressed(path: Path) -> bool:
    """Tell whether the name of a file ends as that of a compressed one."""
    return path.suffix.lower() in COMPRESSED


def read_file(path: Path, most: int) -> FileBytes:
    """Read a whole file of at most ``most`` bytes, also after decompression.

    Raises:
        PreflightError: ``data-not-found``, ``data-unreadable``, ``data-format``,
            ``data-too-large``.
        EnvironmentProblem: ``data-package-missing``.
    """
    try:
        raw = read_bytes(path, most)
    except UnreadableFile as error:
        raise _unreadable(path, str(error), error.missing) from error
    compression = path.suffix.lower() if is_compressed(path) else ""
    if not compression:
        _check_content(path, raw)
        return FileBytes(raw, format_suffix(path))
    suffix = format_suffix(path)
    try:
        if compression == ".zip":
            content, suffix = _unzip(path, raw, most)
        else:
            with _open(compression, path, raw) as file:
                content = _read_limited(file, most)
    except _FAILURES as error:
        raise _unreadable(path, f"it is not a whole {compression} file ({error})") from error
    if len(content) > most:
        raise PreflightError(
            "data-too-large",
            f"{path} ({len(raw):,} bytes) unpacks to more than {most:,} bytes.",
            "smaller files, or fewer columns.",
        )
    return FileBytes(content, suffix)


def _open(compression: str, path: Path, raw: bytes) -> Any:
    """Open compressed bytes for reading.

    Raises:
        EnvironmentProblem: ``data-package-missing``.
    """
    file = io.BytesIO(raw)
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file)
    if compression == ".bz2":
        return bz2.BZ2File(file)
    if compression == ".xz":
        return lzma.LZMAFile(file)
    try:
        import pyarrow
    except ImportError as error:
        raise EnvironmentProblem(
            "data-package-missing",
            f"{path} is compressed with Zstandard, and the package pyarrow that reads it is not "
            "installed.",
            "`pip install 'bakeoff[parquet]'`, or decompress the file.",
        ) from error
    return pyarrow.CompressedInputStream(file, "zstd")


def _unzip(path: Path, raw: bytes, most: int) -> tuple[bytes, str]:
    """Return the content of the one file in a .zip file, and its suffix.

    Raises:
        PreflightError: ``data-format``.
    """
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [
            m for m in archive.infolist()
            if not m.is_dir() and not _is_system_file(PurePosixPath(m.filename))
        ]  # fmt: skip
        if len(members) != 1:
            names = ", ".join(repr(m.filename)[1:-1] for m in members[:5])
            more = f" and {len(members) - 5:,} more" if len(members) > 5 else ""
            raise PreflightError(
                "data-format",
                f"{path} holds {len(members)} files" + (f": {names}{more}." if members else "."),
                "unpack it, and give the file or the folder.",
            )
        if members[0].flag_bits & 1:
            raise PreflightError(
                "data-format", f"{path} is encrypted.", "unpack it with its password."
            )
        with archive.open(members[0]) as file:
            suffix = PurePosixPath(members[0].filename).suffix.lower() or format_suffix(path)
            return _read_limited(file, most), suffix


def _read_limited(file: IO[bytes], most: int) -> bytes:
    """Read at most ``most`` bytes and one more, in pieces: pyarrow allocates what is asked for."""
    content = bytearray()
    while len(content) <= most and (piece := file.read(min(_PIECE, most + 1 - len(content)))):
        content += piece
    return bytes(content)


def _is_system_file(name: PurePosixPath) -> bool:
    """Tell whether macOS or Windows added a file to an archive on its own."""
    return "__MACOSX" in name.parts or name.name in (".DS_Store", "Thumbs.db", "desktop.ini")


def _check_content(path: Path, raw: bytes) -> None:
    """Refuse a file of text that begins as another format.

    Raises:
        PreflightError: ``data-format``.
    """
    found = next((kind for magic, kind in _MAGIC.items() if raw.startswith(magic)), None)
    if found is None or found == path.suffix.lower():
        return
    if found == ".zip":
        hint = f"rename it to end in .zip (an Excel file: {SPREADSHEET})"
    else:
        ending = path.name + found if found in COMPRESSED else path.stem + found
        hint = f"rename it to {ending}"
    raise PreflightError(
        "data-format", f"{path} ends in '{path.suffix}', but it is a {found} file.", f"{hint}."
    )


SPREADSHEET = 'save it as "CSV UTF-8 (comma delimited)"'
_UNPICKLED = (
    "bakeoff does not unpickle data: `df.to_json('rows.jsonl', orient='records', lines=True)`"
)
_TEXT = "one JSON object a line: rows.jsonl"
_ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"), SPREADSHEET),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib"), _UNPICKLED),
    **dict.fromkeys((".tar", ".tgz", ".7z", ".rar"), "unpack it, and give the file or the folder"),
    **dict.fromkeys((".txt", ".md", ".yaml", ".yml", ".xml", ".html"), f"write {_TEXT}"),
    ".feather": "`pandas.read_feather(file).to_parquet('rows.parquet')`",
    ".orc": "`pandas.read_orc(file).to_parquet('rows.parquet')`",
    ".lz4": "decompress it",
    ".br": "decompress it",
}


def unknown_format(path: Path, known: tuple[str, ...]) -> PreflightError:
    """Return the error for a file whose format is not read, with advice on its own format."""
    suffix = format_suffix(path)
    if suffix == ".tar" or not is_compressed(path):
        advice = _ADVICE.get(suffix, f"convert it to one of {', '.join(known)}")
    else:
        advice = f"name the format before it, such as rows.jsonl{path.suffix.lower()}"
        advice = _ADVICE.get(suffix, advice)
    return PreflightError("data-format", f"{path} ends in '{path.suffix}'.", f"{advice}.")


def _unreadable(path: Path, why: str, missing: bool = False) -> PreflightError:
    if missing:
        return PreflightError(
            "data-not-found", f"There is no file {path}.", "check `[data]` in the study file."
        )
    return PreflightError(
        "data-unreadable", f"{path} cannot be read: {why}.", "download or copy it again."
    )
