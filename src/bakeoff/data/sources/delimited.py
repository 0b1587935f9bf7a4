"""Rows of CSV and TSV files, and how their cells are delimited and quoted.

The dialect is decided by the whole file: it must give every line as many cells as the header, with
every quote closed. Commas come first in a .csv file. In a .tsv file quotes are text unless they
quote: many TSV files are never quoted. Standard library only.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bakeoff.core.errors import PreflightError
from bakeoff.data.issues import MAX_SHOWN, Place, format_numbers
from bakeoff.data.rows import LocatedRow, Row, check_not_broken, check_unique_columns

_CELL_LIMIT = 2**31 - 1
"""Limit for the characters of a CSV cell; Python's default of 131,072 refuses long documents."""
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_EXCEL_DELIMITER = re.compile(r'"?sep=(.)"?\r?\n?')
_PANDAS_INDEX = re.compile(r"(Unnamed: \d+(\.\d+)*)?")
"""The name of an index column, as pandas writes it, and as it calls it when it reads it again."""
_OTHER_ESCAPE = re.compile(r'(?<!\\)(\\\\)*\\[^"\\]')
_ENOUGH = 10
"""Number of rows on a line of their own that show a column's categories."""
_FEW = 0.2
"""A column of categories has at most this share of different values."""


class _Dialect(NamedTuple):
    delimiter: str
    quoted: bool = True
    spaced: bool = False
    """Spaces after a delimiter do not belong to the cell."""
    escaped: bool = False
    """A quote inside a quoted cell follows a backslash instead of being doubled."""

    def reader(self, lines: Iterable[str]) -> Any:
        """Return a reader that raises for a quote that is not closed where its cell ends."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            skipinitialspace=self.spaced,
            doublequote=not self.escaped,
            escapechar="\\" if self.escaped else None,
            strict=True,
        )


class _Record(NamedTuple):
    """The cells of a row, and its lines (from 1)."""

    cells: list[str]
    first: int
    last: int


class _Table(NamedTuple):
    """All records of a file, the header first."""

    dialect: _Dialect
    records: list[_Record]

    @property
    def width(self) -> int:
        """Number of cells of the header."""
        return len(self.records[0].cells)


def parse_delimited(name: str, text: str, tabs: bool) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows of a CSV file, or of a TSV file (``tabs``), and what was assumed about it.

    ``name`` is the file's, for places. The first line names the columns; every cell is text.

    Raises:
        PreflightError: ``data-broken``, ``stray-quote``, ``duplicate-column``, naming the lines.
    """
    before = csv.field_size_limit(_CELL_LIMIT)
    try:
        # newline="": a quoted cell may hold line ends, and the csv module finds the real ones
        lines = list(io.StringIO(text, newline=""))
        table, notes = _read_table(name, lines, tabs)
        if table is None:
            return [], notes
        _check_no_swallowed_rows(name, table, lines)
        notes += _quote_notes(name, table, lines)
        rows, more = _to_rows(name, table)
        return rows, notes + more
    finally:
        csv.field_size_limit(before)


def _read_table(name: str, lines: list[str], tabs: bool) -> tuple[_Table | None, tuple[str, ...]]:
    """Find the dialect and read the records; None for a file without a header.

    Raises:
        PreflightError: no dialect fits.
    """
    stated = _EXCEL_DELIMITER.fullmatch(lines[0]) if lines else None
    if stated:
        lines[0] = "\n"  # blank: the numbers of the other lines stay
    header = next((line for line in lines if line.strip()), "")
    if not header:
        return None, ()
    usual = stated[1] if stated else "\t" if tabs else ","
    others = [] if stated else [d for d in _DELIMITERS if d != usual]
    candidates = [usual, *(d for d in others if d in header)]
    single = None
    for delimiter in candidates:
        table = _read_as(lines, delimiter)
        if table is not None and table.width > 1:
            return table, _dialect_notes(name, table, None if delimiter == usual else delimiter)
        single = single or (table if delimiter == usual else None)
    if single is not None:
        return single, ()
    delimiter = next((d for d in candidates if d in header), usual)
    raise _unfit_error(name, lines, delimiter)


def _read_as(lines: list[str], delimiter: str) -> _Table | None:
    """Read the records with this delimiter, if some way of quoting fits the whole file."""
    if delimiter == "\t":
        return _read_tabs(lines)
    dialects = [_Dialect(delimiter), _Dialect(delimiter, spaced=True)]
    if _escapes_quotes(lines):
        dialects.append(_Dialect(delimiter, escaped=True))
    tables = (_read_fitting(lines, dialect) for dialect in dialects)
    return next((table for table in tables if table is not None), None)


def _escapes_quotes(lines: list[str]) -> bool:
    """Tell whether backslashes stand only before quotes and backslashes; else they are text."""
    return any('\\"' in line for line in lines) and not any(map(_OTHER_ESCAPE.search, lines))


def _read_tabs(lines: list[str]) -> _Table | None:
    plain = _read_fitting(lines, _Dialect("\t", quoted=False))
    if plain is not None and not any('"' in line for line in lines):
        return plain
    quoted = _read_fitting(lines, _Dialect("\t"))
    if plain is None or quoted is None:
        return plain or quoted
    return quoted if _has_writers_quotes(plain) else plain


def _has_writers_quotes(plain: _Table) -> bool:
    """Tell whether quotes are a writer's, in a table that can be read with and without them.

    A writer quotes all cells, the header's too, or just those that need it: cells with a quote,
    which it doubles; for Excel also those with a comma.
    """
    header, *rows = (record.cells for record in plain.records)
    cells = [cell for row in (header, *rows) for cell in row]
    quoted = [cell for cell in cells if cell.startswith('"')]
    bare = [cell for cell in cells if not cell.startswith('"')]
    if any('"' in cell for cell in bare):
        return False
    if any(len(cell) < 2 or not cell.endswith('"') for cell in quoted):  # it spans lines
        return False
    if any(cell.startswith('"') for cell in header):
        return True
    marks = ['""'] if any("," in cell for cell in bare) else ['""', ","]
    return all(any(mark in cell[1:-1] for mark in marks) for cell in quoted)


def _read_fitting(lines: list[str], dialect: _Dialect) -> _Table | None:
    """Read the records; None if a quote is not closed or a row is not as wide as the header."""
    records: list[_Record] = []
    try:
        for record in _records(lines, dialect, 0):
            if records and not _is_as_wide(record.cells, len(records[0].cells)):
                return None
            records.append(record)
    except csv.Error:
        return None
    return _Table(dialect, records) if records else None


def _records(lines: list[str], dialect: _Dialect, start: int) -> Iterator[_Record]:
    """Yield the records from a line (from 0) on, without blank lines.

    Raises:
        csv.Error: a quote that is not closed.
    """
    reader = dialect.reader(lines[start:] if start else lines)
    first = start + 1
    for cells in reader:
        last = start + reader.line_num
        if len(cells) > 1 or (cells and cells[0].strip()) or first != last:
            yield _Record(cells, first, last)
        first = last + 1


def _is_as_wide(cells: Sequence[str], width: int) -> bool:
    return len(cells) == width or (len(cells) > width and not any(map(str.strip, cells[width:])))


def _unfit_error(name: str, lines: list[str], delimiter: str) -> PreflightError:
    """Return the error for a file that fits no dialect, with the lines that do not."""
    dialect = _Dialect(delimiter, quoted=delimiter != "\t")
    stray: list[int] = []
    wrong: dict[int, str] = {}
    width, at = 0, 0
    while at < len(lines) and len(stray) <= MAX_SHOWN:
        try:
            for record in _records(lines, dialect, at):
                at = record.last
                width = width or len(record.cells)
                if not _is_as_wide(record.cells, width):
                    more = len(record.cells) > width
                    wrong[record.first] = (
                        f" has {'more' if more else 'fewer'} cells than the header"
                    )
                    if record.last > record.first:
                        stray.append(record.first)
            break
        except csv.Error:
            at += next(n for n, line in enumerate(lines[at:], 1) if line.strip())
            stray.append(at)
    if stray:
        others = " and perhaps more" if len(stray) > MAX_SHOWN else ""
        return PreflightError(
            "stray-quote",
            f"{name}: a quote opens a cell in {format_numbers('line', stray[:MAX_SHOWN])}{others} "
            "and is not closed where a cell ends. The rows after it would become part of its "
            "text.",
            'a quote inside a quoted cell is written twice (`"say ""no"" to it"`), and a cell that '
            "begins with one is quoted; or write JSONL.",
        )
    try:
        check_not_broken(name, "line", wrong, _ragged_hint(lines, wrong, delimiter))
    except PreflightError as error:
        return error
    return PreflightError("data-broken", f"{name} is no table.", "write JSONL.")


def _ragged_hint(lines: list[str], wrong: dict[int, str], delimiter: str) -> str:
    if any(lines[n - 1].lstrip().startswith("#") for n in wrong) or lines[0].startswith("#"):
        return "remove the lines of comments."
    named = _DELIMITERS.get(delimiter, repr(delimiter))
    if delimiter == "\t":
        return "every line has as many tabs as the header; write JSONL for texts with tabs."
    return (
        f"every line has as many cells as the header, between {named}; a cell that holds "
        f"{named} or line ends is quoted."
    )


def _check_no_swallowed_rows(name: str, table: _Table, lines: list[str]) -> None:
    """Refuse quoted cells whose lines are rows of the file, by the categories in their cells.

    Raises:
        PreflightError: ``stray-quote``.
    """
    width, delimiter = table.width, table.dialect.delimiter
    long = [record for record in table.records[1:] if record.last > record.first]
    if not long or width < 2:
        return
    short = [r.cells for r in table.records[1:] if r.last == r.first]
    if len(short) < _ENOUGH:  # most rows may have been swallowed
        split = (line.rstrip("\r\n").split(delimiter) for line in lines[1:])
        short = [cells for cells in split if len(cells) == width]
    categories = {}
    for column in range(width):
        values = {cells[column].strip().strip('"') for cells in short} - {""}
        if values and len(short) >= _ENOUGH and len(values) <= max(2, _FEW * len(short)):
            categories[column] = values
    if not categories:
        return

    def is_row(line: str) -> bool:
        cells = line.rstrip("\r\n").split(delimiter)
        return len(cells) == width and all(
            cells[column].strip().strip('"') in values for column, values in categories.items()
        )

    swallowed = [r for r in long if all(map(is_row, lines[r.first - 1 : r.last]))]
    if swallowed:
        first = swallowed[0]
        others = [record.first for record in swallowed[1:]]
        more = f"; so do those in {format_numbers('line', others)}" if others else ""
        raise PreflightError(
            "stray-quote",
            f"{name}: a quoted cell from line {first.first} to {first.last} holds rows of the "
            f"file{more}: a quote is stray.",
            'a quote that is text stands in a quoted cell, twice (`"say ""no"" to it"`); or write '
            "JSONL.",
        )


def _dialect_notes(name: str, table: _Table, guessed: str | None) -> tuple[str, ...]:
    notes = []
    if guessed is not None:
        notes.append(f"{name} is delimited by {_DELIMITERS[guessed]}, by its header.")
    if table.dialect.spaced:
        notes.append(f"{name} has spaces after its delimiters: they are left out.")
    if table.dialect.escaped:
        notes.append(f'{name} has quotes after backslashes (`\\"`): they are read as quotes.')
    return tuple(notes)


def _quote_notes(name: str, table: _Table, lines: list[str]) -> tuple[str, ...]:
    """Say where quotes are text; that is certain in a cell that no quote opens."""
    if not table.dialect.quoted:
        begins = [r.first for r in table.records if any(c.startswith('"') for c in r.cells)]
        if not begins:
            return ()
        where = format_numbers("line", begins)
        return (f"{name} is not quoted: the quotes in {where} are part of the text.",)
    if table.dialect.escaped:
        return ()
    inside = [
        r.first
        for r in table.records
        if any('"' in c for c in r.cells) and '""' not in "".join(lines[r.first - 1 : r.last])
    ]
    if not inside:
        return ()
    where = format_numbers("line", inside)
    return (f"{name} has quotes inside cells that are not quoted ({where}): they are text.",)


def _to_rows(name: str, table: _Table) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows with the header's names, without what has no name.

    Raises:
        PreflightError: ``duplicate-column``, ``data-broken`` for a header that is repeated.
    """
    header, *records = table.records
    names, width = header.cells, table.width
    empty = [r.first for r in records if width > 1 and not any(map(str.strip, r.cells))]
    if empty:
        records = [r for r in records if any(map(str.strip, r.cells))]
    kept, notes = _named_columns(name, names, records)
    check_unique_columns(f"The header of {name} has", [names[column] for column in kept])
    repeated = {r.first: " repeats the header" for r in records if width > 1 and r.cells == names}
    hint = "remove these lines: files with a header each were concatenated."
    check_not_broken(name, "line", repeated, hint)
    if empty:
        notes += (f"{name} has rows of empty cells, left out: {format_numbers('line', empty)}.",)
    if any(len(r.cells) > width for r in records):
        notes += (f"{name} has empty cells after its last column: they are left out.",)
    return [
        LocatedRow({names[c]: r.cells[c] for c in kept}, Place(name, "line", r.first))
        for r in records
    ], notes


def _named_columns(
    name: str, names: Sequence[str], records: Sequence[_Record]
) -> tuple[list[int], tuple[str, ...]]:
    """Return the columns to keep, and a note on those without a name and on pandas' index."""
    index, empty, nameless = [], [], []
    for column, title in enumerate(names):
        if not _PANDAS_INDEX.fullmatch(title.strip()):
            continue
        cells = [record.cells[column].strip() for record in records]
        if not any(cells):
            empty.append(column)
        elif all(map(str.isdecimal, cells)) and len(set(cells)) == len(cells):
            index.append(column)
        elif not title.strip():
            nameless.append(column)
    if len(names) == 1:
        return [0], ()
    notes = []
    if empty:
        notes.append(f"{name} has empty columns, left out: {_numbers(empty)}.")
    if index:
        notes.append(f"{name} has row numbers as pandas writes them, left out: {_numbers(index)}.")
    if nameless:
        notes.append(f"{name} has columns without a name, left out: {_numbers(nameless)}.")
    left_out = {*index, *empty, *nameless}
    return [column for column in range(len(names)) if column not in left_out], tuple(notes)


def _numbers(columns: Sequence[int]) -> str:
    return format_numbers("column", [column + 1 for column in columns])
