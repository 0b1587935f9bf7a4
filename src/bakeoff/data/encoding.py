"""Decode a text file: UTF-8, UTF-16 or UTF-32 with a byte order mark, or the encoding asked for.

No encoding is guessed: a file that is not UTF-8 is refused with what its bytes look like.
"""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Iterable
from typing import NamedTuple

from bakeoff.core.errors import PreflightError
from bakeoff.data.issues import format_numbers

_BOM = "\ufeff"
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_SAMPLE = 2**20
"""How many bytes are inspected for what an undecodable file looks like."""
_NOT_CHARACTERS = {
    "idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7",
}  # fmt: skip
"""Codecs that are no encoding of a text file, or not the same on every machine."""


class DecodedText(NamedTuple):
    """The text of a file, and what was assumed about its encoding."""

    text: str
    notes: tuple[str, ...] = ()


def check_encoding(name: str) -> str:
    """Return the name of an encoding of text files as Python spells it.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        codec = codecs.lookup(name)
        is_text = codec._is_text_encoding and codec.name not in _NOT_CHARACTERS
    except LookupError:
        is_text = False
    if not is_text:
        raise ValueError(
            f"'{name}' is no encoding; for example cp1252 (Windows, Western), latin1, cp1251, "
            "shift_jis, gb18030, utf-16"
        )
    return codec.name


def decode_text(
    name: str, raw: bytes, encoding: str | None = None, tabular: bool = False
) -> DecodedText:
    """Decode a file's bytes; ``name`` is its path for messages.

    A byte order mark decides before ``encoding``, and UTF-8 decides before an encoding of one byte
    a character, which would read it as other letters. ``tabular``: the first line is a header.

    Raises:
        PreflightError: ``data-not-utf8``, ``data-bom``, ``data-nul``, naming the lines.
    """
    marked = next((kind for mark, kind in _MARKS if raw.startswith(mark)), None)
    notes: tuple[str, ...] = ()
    if marked is not None:
        text = _decode_marked(name, raw, marked)
        notes = (f"{name} is {marked}, by its byte order mark.",)
    elif encoding is None or raw.startswith(codecs.BOM_UTF8):
        text = _decode_utf8(name, raw)
    else:
        text, notes = _decode_as(name, raw, encoding)
    if "\0" in text:
        raise _nul_error(name, text, raw)
    if _BOM in text:
        _check_no_inner_bom(name, text, tabular)
    return DecodedText(text, notes)


def _decode_utf8(name: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8_error(name, raw, error.start) from error


def _decode_marked(name: str, raw: bytes, kind: str) -> str:
    try:
        return raw.decode(kind)
    except UnicodeDecodeError as error:
        raise PreflightError(
            "data-not-utf8",
            f"{name} begins with the byte order mark of {kind} and is broken at byte "
            f"{error.start + 1:,}: {error.reason}.",
            "copy or download it again: it may have been truncated.",
        ) from error


def _decode_as(name: str, raw: bytes, encoding: str) -> tuple[str, tuple[str, ...]]:
    if _is_single_byte(encoding) and not raw.isascii() and _is_utf8(raw):
        note = f"{name} is UTF-8: data.encoding = '{encoding}' was not applied to it."
        return raw.decode("utf-8"), (note,)
    try:
        return raw.decode(encoding), ()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PreflightError(
            "data-not-utf8",
            f"{name} is not {encoding} (data.encoding): byte 0x{raw[error.start]:02x} in line "
            f"{line}.",
            "the encoding that it was written in, or none if it is UTF-8.",
        ) from error


def _is_single_byte(encoding: str) -> bool:
    """Tell whether every byte is one character, as in cp1252."""
    return len(bytes(range(256)).decode(encoding, errors="replace")) == 256


def _not_utf8_error(name: str, raw: bytes, first: int) -> PreflightError:
    if (error := _utf16_error(name, raw)) is not None:
        return error
    lines = raw.split(b"\n")
    broken = [n for n, line in enumerate(lines, 1) if not _is_utf8(line)]
    cause = f"{name} is not UTF-8: byte 0x{raw[first]:02x} in {format_numbers('line', broken)}."
    if any(not line.isascii() and _is_utf8(line) for line in lines):
        cause += " Its other lines are."
        hint = "write those lines again in UTF-8: the file mixes two encodings."
    elif not _looks_western(raw):
        hint = (
            "`encoding` under [data], with the encoding that the file was written in, such as "
            '"cp1251", "gb18030", "shift_jis" or "euc-kr".'
        )
    elif _decodes(raw, "cp1252"):
        hint = (
            "`encoding = \"cp1252\"` under [data], if it is in Windows' Western encoding (Excel's "
            "CSV); else the encoding that it was written in."
        )
    else:
        hint = "`encoding` under [data], with the encoding that the file was written in."
    return PreflightError("data-not-utf8", cause, hint)


def _looks_western(raw: bytes) -> bool:
    """Tell whether bytes beyond ASCII are mostly single ones, as accents between plain letters.

    Chinese, Japanese, Korean and Cyrillic encodings have runs of them.
    """
    runs = [len(run) for run in _HIGH_RUN.findall(raw[:_SAMPLE])]
    return sum(length == 1 for length in runs) >= 0.7 * len(runs) > 0


def _decodes(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _is_utf8(raw: bytes) -> bool:
    return _decodes(raw, "utf-8")


def _utf16_error(name: str, raw: bytes) -> PreflightError | None:
    """Return the error for UTF-16 without a byte order mark, by its NUL bytes; None for others."""
    start = raw[:200]
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if start[offset::2].count(0) > 0.4 * len(start[offset::2]) and len(start) > 3:
            return PreflightError(
                "data-not-utf8",
                f"{name} looks like UTF-16 without a byte order mark: every second byte is 0.",
                f'`encoding = "{encoding}"` under [data].',
            )
    return None


def _nul_error(name: str, text: str, raw: bytes) -> PreflightError:
    if (error := _utf16_error(name, raw)) is not None:
        return error
    lines = (n for n, line in enumerate(text.split("\n"), 1) if "\0" in line)
    return PreflightError(
        "data-nul",
        f"{name} contains NUL bytes in {format_numbers('line', list(lines))}: it was damaged, or "
        "it is not a text file.",
        "copy or export it again.",
    )


def _check_no_inner_bom(name: str, text: str, tabular: bool) -> None:
    lines: Iterable[int] = [
        n for n, line in enumerate(text.split("\n"), 1) if line.startswith(_BOM)
    ]
    if tabular and _BOM in text.partition("\n")[0]:
        lines = dict.fromkeys([1, *lines])  # in a column's name, at any position
    if numbers := list(lines):
        raise PreflightError(
            "data-bom",
            f"{name} has a byte order mark inside, in {format_numbers('line', numbers)}: "
            "files that start with one were concatenated, or a header was inserted.",
            f"`sed -i 's/\\xef\\xbb\\xbf//g' {shlex.quote(name)}` removes all of them.",
        )
