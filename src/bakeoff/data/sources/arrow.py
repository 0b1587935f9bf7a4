"""Rows from Arrow tables: Parquet and Arrow files, and data sets of ``datasets``. Needs pyarrow.

Rows are stored as JSON: times become ISO 8601, durations seconds, decimals and UUIDs text, maps
objects. Labels that ``datasets`` numbered get their names. Bytes (images, audio) are left out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from bakeoff.core.errors import EnvironmentProblem, PreflightError
from bakeoff.core.safe_read import DATA_BYTES
from bakeoff.data.issues import Place
from bakeoff.data.rows import FileRows, LocatedRow, Row, check_row_bounds, check_unique_columns

MAX_BATCH_ROWS = 1024
"""Limit for the rows that are decoded before their size is checked."""
_MAX_NAMES = 4
"""Number of a label's names that a note shows."""
_FEATURES = b"huggingface"
"""Key of a schema's metadata where ``datasets`` keeps the features of the columns."""

Convert = Callable[[Any], Any]


def import_pyarrow(path: Path, kind: str) -> Any:
    """Return the package pyarrow, which reads the file.

    Raises:
        EnvironmentProblem: ``data-package-missing``.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise EnvironmentProblem(
            "data-package-missing",
            f"{path} is {kind}, and the package pyarrow that reads it is not installed.",
            "`pip install 'bakeoff[parquet]'`, or convert the file to JSONL.",
        ) from error
    return pyarrow


def read_arrow(path: Path) -> FileRows:
    """Read every row of an Arrow file, as ``save_to_disk`` of ``datasets`` writes it.

    Raises:
        PreflightError: ``data-broken``, ``data-format``, ``data-too-large``, ``duplicate-column``.
        EnvironmentProblem: ``data-package-missing``.
    """
    pyarrow = import_pyarrow(path, "Arrow")
    try:
        if path.stat().st_size > DATA_BYTES:
            raise too_large(path, DATA_BYTES)
        with pyarrow.memory_map(str(path)) as file:
            is_stream = file.read(6) != b"ARROW1"
            file.seek(0 if is_stream else 8)
            _check_uncompressed(path, file)
            file.seek(0)
            reader = pyarrow.ipc.open_stream if is_stream else pyarrow.ipc.open_file
            with reader(file) as batches:
                count = 0 if is_stream else batches.num_record_batches
                content = batches if is_stream else map(batches.get_batch, range(count))
                table = collect(path, content, batches.schema, DATA_BYTES)
                return to_rows(table, path.name)
    except (pyarrow.ArrowException, ValueError, OSError, struct.error) as error:
        raise PreflightError(
            "data-broken",
            f"{path} cannot be read as Arrow: {error}.",
            "save it again, or convert it to Parquet or JSONL.",
        ) from error


def _check_uncompressed(path: Path, file: Any) -> None:
    """Refuse compressed buffers, whose size is only known after decompression.

    Raises:
        PreflightError: ``data-format``.
    """
    import pyarrow

    for message in pyarrow.ipc.MessageReader.open_stream(file):
        if _is_compressed(message.metadata.to_pybytes()):
            raise PreflightError(
                "data-format",
                f"{path} is a compressed Arrow (Feather) file.",
                "`pandas.read_feather(file).to_parquet('rows.parquet')`.",
            )


def _is_compressed(message: bytes) -> bool:
    """Tell whether the FlatBuffers table of an IPC message names a compression."""

    def field(table: int, slot: int) -> int | None:
        """Return the position of a table's field, None if it is absent."""
        vtable = table - struct.unpack_from("<i", message, table)[0]
        (size,) = struct.unpack_from("<H", message, vtable)
        entry = 4 + 2 * slot
        offset = struct.unpack_from("<H", message, vtable + entry)[0] if entry < size else 0
        return table + offset if offset else None

    def follow(position: int | None) -> int:
        """Return the table that a field refers to."""
        if position is None:
            raise struct.error("a message without content")
        return position + int(struct.unpack_from("<I", message, position)[0])

    root = follow(0)
    kind_at = field(root, 1)
    kind = message[kind_at] if kind_at is not None else 0
    if kind not in (2, 3):  # 2: dictionary, 3: rows
        return False
    batch = follow(field(root, 2))
    if kind == 2:
        batch = follow(field(batch, 1))
    return field(batch, 3) is not None


def collect(path: Path, batches: Iterable[Any], schema: Any, most: int) -> Any:
    """Return a table of all batches; dictionaries are decoded a few rows at a time.

    A value that many rows share is stored once, so a small file can grow to more than the memory
    holds.

    Raises:
        PreflightError: ``data-too-large``.
    """
    import pyarrow

    pieces, size, decoded = [], 0, None
    for batch in batches:
        for start in range(0, batch.num_rows, MAX_BATCH_ROWS):
            piece = _decode_dictionaries(batch.slice(start, MAX_BATCH_ROWS))
            size += max(piece.nbytes, 8 * piece.num_rows)
            if size > most:
                raise too_large(path, most)
            pieces.append(piece)
            decoded = decoded or piece.schema
    return pyarrow.Table.from_batches(pieces, decoded or schema)


def _decode_dictionaries(batch: Any) -> Any:
    import pyarrow

    columns = [
        column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    fields = [
        field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)
    ]
    schema = pyarrow.schema(fields, batch.schema.metadata)
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def too_large(path: Path, most: int) -> PreflightError:
    """Return the error for a file that unpacks to more than ``most`` bytes."""
    return PreflightError(
        "data-too-large",
        f"{path} ({path.stat().st_size:,} bytes) unpacks to more than {most:,} bytes.",
        "smaller files, or fewer columns.",
    )


def to_rows(table: Any, name: str, uuids: Collection[str] = ()) -> FileRows:
    """Return the rows of an Arrow table as JSON values; ``name`` is the file name of their places.

    ``uuids`` are the columns whose bytes are UUIDs.

    Raises:
        PreflightError: ``duplicate-column``, ``data-broken``, and see ``check_row_bounds``.
    """
    names = table.column_names
    check_unique_columns(f"{name} has the column", names)
    features = _features(table.schema)
    plan = _Plan(name, frozenset(uuids))
    converts = {f.name: plan.convert(f.type, features.get(f.name), f.name) for f in table.schema}
    kept = table.select([n for n in names if converts[n] is not None])
    columns = [(n, convert) for n, convert in converts.items() if convert is not None]
    rows: list[Row] = [
        LocatedRow({n: convert(row[n]) for n, convert in columns}, Place(name, "row", number))
        for number, row in enumerate(_python_rows(kept), 1)
    ]
    check_row_bounds(name, rows, kept.nbytes)
    named = {f.name: _label_names(features.get(f.name)) for f in table.schema}
    labels = {column: names for column, names in named.items() if names is not None}
    return FileRows(rows, plan.notes(), labels)


def _python_rows(table: Any) -> Iterator[Mapping[str, Any]]:
    if not table.num_columns:  # to_pylist gives no rows then
        return iter([{}] * table.num_rows)
    return iter(table.to_pylist())


def _features(schema: Any) -> Mapping[str, Any]:
    """Return the features that ``datasets`` wrote beside a schema; none if there are none."""
    try:
        features = json.loads((schema.metadata or {})[_FEATURES])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, Mapping) else {}


class _Plan:
    """How the values of a table's columns become JSON, and what is to be said about it."""

    def __init__(self, name: str, uuids: frozenset[str]) -> None:
        self._name = name
        self._uuids = uuids
        self._bytes: list[str] = []
        self._names: dict[str, list[str]] = {}

    def notes(self) -> tuple[str, ...]:
        """Return a line for what was left out, and one for each column of named labels."""
        notes = []
        if self._bytes:
            notes.append(f"{self._name} has columns of bytes, left out: {', '.join(self._bytes)}.")
        for column, names in self._names.items():
            shown = ", ".join(f"{i} = {n}" for i, n in enumerate(names[:_MAX_NAMES]))
            more = ", ..." if len(names) > _MAX_NAMES else ""
            notes.append(f"{self._name} names the labels of '{column}': {shown}{more}.")
        return tuple(notes)

    def convert(self, kind: Any, feature: Any, path: str) -> Convert | None:
        """Return the function for values of this type; None if they are left out.

        ``feature`` is the description of ``datasets``, or None; ``path`` the name for a note.
        """
        import pyarrow

        types = pyarrow.types
        if isinstance(kind, pyarrow.BaseExtensionType):
            if kind.extension_name == "arrow.uuid":
                return _optional(str)
            return self.convert(kind.storage_type, feature, path)
        if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
            return self.convert(kind.value_type, feature, path)
        if _is_bytes(kind):
            if path in self._uuids:
                return _optional(lambda value: str(UUID(bytes=value)))
            self._bytes.append(path)
            return None
        if types.is_struct(kind):
            return self._convert_struct(kind, feature, path)
        if types.is_map(kind):
            return self._convert_map(kind, path)
        if _is_list(kind):
            inner = self.convert(kind.value_type, _item_feature(feature), path)
            return None if inner is None else _optional(lambda value: [inner(v) for v in value])
        names = _label_names(feature)
        if names is not None and types.is_integer(kind):
            self._names[path] = names
            return lambda value: _label(value, names)
        return _to_json_value

    def _convert_struct(self, kind: Any, feature: Any, path: str) -> Convert | None:
        fields = [kind.field(i) for i in range(kind.num_fields)]
        names = {field.name for field in fields}
        if "bytes" in names and names <= {"bytes", "path"}:  # an image or audio of `datasets`
            self._bytes.append(path)
            return None
        converts = {
            f.name: self.convert(f.type, _field_feature(feature, f.name), f"{path}.{f.name}")
            for f in fields
        }
        kept = [(name, convert) for name, convert in converts.items() if convert is not None]
        if fields and not kept:
            return None
        return _optional(lambda value: {name: convert(value[name]) for name, convert in kept})

    def _convert_map(self, kind: Any, path: str) -> Convert | None:
        import pyarrow

        inner = self.convert(kind.item_type, None, path)
        if inner is None:
            return None
        types = pyarrow.types
        if not (types.is_string(kind.key_type) or types.is_large_string(kind.key_type)):
            return _optional(lambda value: [[_to_json_value(k), inner(v)] for k, v in value])

        def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            value = {key: inner(item) for key, item in pairs}
            if len(value) < len(pairs):
                raise PreflightError(
                    "data-broken",
                    f"{self._name}: a map in '{path}' has a key twice: one would be lost.",
                    "give each key a value of its own.",
                )
            return value

        return _optional(to_object)


def _optional(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _is_bytes(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    tests = (
        types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _is_list(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    tests = (
        types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view,
        types.is_large_list_view,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _item_feature(feature: Any) -> Any:
    """Return the feature of a list's items."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature.get("feature") if isinstance(feature, Mapping) else None


def _field_feature(feature: Any, name: str) -> Any:
    """Return the feature of a field; a ``Sequence`` of objects is stored as an object of lists."""
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "Sequence" and isinstance(feature.get("feature"), Mapping):
        return {"_type": "Sequence", "feature": feature["feature"].get(name)}
    return feature.get(name)


def _label_names(feature: Any) -> list[str] | None:
    if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    valid = isinstance(names, list) and names and all(isinstance(n, str) for n in names)
    return names if valid else None


def _label(value: int | None, names: list[str]) -> int | str | None:
    """Return a label's name; None for -1, by which ``datasets`` marks a row without a label."""
    if value is None or value == -1:
        return None
    return names[value] if 0 <= value < len(names) else value


def _to_json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _to_json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_value(v) for v in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Decimal | UUID) else value
