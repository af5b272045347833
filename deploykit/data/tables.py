"""Tables: .jsonl, .csv, .tsv and .parquet, by column."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.data import Dataset, texts
from deploykit.errors import InputError, MissingError, nearest
from deploykit.runtime.install import pip_install
from deploykit.runtime.manifest import Modality

ROLES: dict[str, tuple[Modality, tuple[str, ...]]] = {
    "text": ("text", ("text", "sentence", "content", "document", "passage", "query", "body")),
    "image": ("image", ("image", "img", "picture")),
    "audio": ("audio", ("audio", "wav", "waveform", "speech")),
}
LABELS = ("label", "labels", "class", "target")
PAIR = ("a", "b", "score")
Columns = Mapping[str, Sequence[Any]]


def read(path: Path, columns: Mapping[str, str]) -> Dataset:
    """One column of a table as inputs, another as labels where it has one; or two columns as scored pairs.

    ``columns`` maps a role (``text``, ``image``, ``audio``, ``label``, or ``input``: find out which) to a column; or
    ``a``, ``b`` and ``score``, all three.
    """
    for role in columns:
        if role not in (*ROLES, *PAIR, "label", "input"):
            raise InputError(f"'{role}' is no role of a column", hint=nearest(role, [*ROLES, "label", *PAIR]))
    table = _load(path, columns)
    if set(columns) & set(PAIR):
        return _read_pairs(path, table, columns)
    modality, column = _input_column(path, table, columns)
    values = table[column]
    if not values:
        raise InputError(f"'{path.name}' has no rows", hint="give a table with at least one row")
    name = columns.get("label") or next((c for c in LABELS if c in table), None)
    if name is not None:
        _column(path, table, name)
    inputs = [_value(v, modality, path, column, row) for row, v in enumerate(values, start=1)]
    return Dataset(path.name, modality, inputs, list(table[name]) if name else None)


def _read_pairs(path: Path, table: Columns, columns: Mapping[str, str]) -> Dataset:
    """Two columns and the score of each row; an input that stands in several rows is kept once."""
    missing = [role for role in PAIR if role not in columns]
    others = sorted(set(columns) - set(PAIR))
    if missing or others:
        fact = f"the pairs of '{path.name}' lack '{missing[0]}'" if missing else f"scored pairs take no '{others[0]}'"
        raise InputError(fact, hint=f"write {path.name}#a=COLUMN,b=COLUMN,score=COLUMN")
    first, second, scores = (_column(path, table, columns[role]) for role in PAIR)
    modality = _modality(first, table[first])
    places: dict[Any, int] = {}
    pairs = []
    for row, (a, b, score) in enumerate(zip(table[first], table[second], table[scores], strict=True), start=1):
        ends = [_value(v, modality, path, c, row) for v, c in ((a, first), (b, second))]
        i, j = (places.setdefault(value, len(places)) for value in ends)
        pairs.append((i, j, _score(score, path, scores, row)))
    if not pairs:
        raise InputError(f"'{path.name}' has no rows", hint="give a table with at least one row")
    return Dataset(path.name, modality, list(places), None, pairs)


def _score(value: Any, path: Path, column: str, row: int) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        fact = f"'{path.name}' row {row}: column '{column}' holds no number but {value!r}"
        raise InputError(fact, hint="fill it in; columns of a table without a header are numbered from 1")
    return score


def _load(path: Path, columns: Mapping[str, str]) -> Columns:
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    if path.suffix.lower() == ".jsonl":
        return _jsonl(path)
    return _csv(path, numbered=any(c.isdigit() for c in columns.values()))


def _jsonl(path: Path) -> Columns:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(texts.lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"'{path.name}' line {number} is not JSON: {error}", hint="one object a line") from None
        if not isinstance(row, (dict, str)):
            raise InputError(f"'{path.name}' line {number} is neither an object nor a string", hint="one object a line")
        rows.append(row if isinstance(row, dict) else {"text": row})
    names = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _csv(path: Path, *, numbered: bool) -> Columns:
    """Tab-separated files are read without quoting, as tools that write them do not quote."""
    lines = texts.lines(path)
    if path.suffix.lower() == ".tsv" or lines[0].count("\t") > lines[0].count(","):
        found = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line]
    else:
        found = _unquoted(path, lines)
    if not found:
        raise InputError(f"'{path.name}' has no rows", hint="give a table with at least one row")
    if numbered:
        header = [str(i) for i in range(1, max(len(row) for _, row in found) + 1)]
    else:
        _, header = found.pop(0)
    for number, row in found:
        if any(row[len(header) :]):
            fact = f"'{path.name}' line {number} has {len(row)} fields, and the header names {len(header)}"
            raise InputError(
                fact,
                hint="put quotes around a text with commas; columns of a table without a header are numbered from 1",
            )
    return {name: [row[i] if i < len(row) else None for _, row in found] for i, name in enumerate(header)}


def _unquoted(path: Path, lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The rows of comma-separated lines, each with the number of its first line; blank lines are none."""
    end = "the end"
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line + "\n" for line in [*lines, end]), strict=False)
    rows, first = [], 1
    for row in reader:
        rows.append((first, row))
        first = reader.line_num + 1
    number, last = rows.pop()
    if last != [end]:  # the csv module takes everything behind an open quote as one text, and says nothing
        hint = 'close it, and write a quote inside a quoted text twice: ""'
        raise InputError(f"'{path.name}' line {number} opens a quote that is never closed", hint=hint)
    return [(number, row) for number, row in rows if row]


def _parquet(path: Path) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise MissingError(
            "reading .parquet needs pyarrow, which is not installed", hint=pip_install("parquet")
        ) from None
    try:
        return dict(parquet.read_table(path).to_pydict())
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"'{path.name}' is not a readable parquet file: {error}", hint="fetch it again") from None


def _input_column(path: Path, table: Columns, columns: Mapping[str, str]) -> tuple[Modality, str]:
    for role, (modality, _) in ROLES.items():
        if role in columns:
            return modality, _column(path, table, columns[role])
    if "input" in columns:
        column = _column(path, table, columns["input"])
        return _modality(column, table[column]), column
    for modality, names in ROLES.values():
        for name in names:
            if name in table:
                return modality, name
    if len(table) == 1:
        column = next(iter(table))
        return _modality(column, table[column]), column
    hint = f"name it: {path.name}#COLUMN, one of {', '.join(table)}"
    raise InputError(f"'{path.name}' does not tell which column is the input", hint=hint)


def _column(path: Path, table: Columns, name: str) -> str:
    if name not in table:
        raise InputError(f"'{path.name}' has no column '{name}'", hint=nearest(name, list(table)))
    return name


def _modality(column: str, values: Sequence[Any]) -> Modality:
    """By its well-known name, else text for strings, image for encoded bytes."""
    for modality, names in ROLES.values():
        if column in names:
            return modality
    return "image" if values and isinstance(values[0], (bytes, dict)) else "text"


def _value(value: Any, modality: Modality, path: Path, column: str, row: int) -> Any:
    if modality == "text":
        if not isinstance(value, str):
            raise InputError(
                f"'{path.name}' row {row}: column '{column}' holds no text but {value!r}", hint="fill it in"
            )
        return value
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    name = value.get("path") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise InputError(
            f"'{path.name}' row {row}: column '{column}' holds neither bytes nor a path", hint="fill it in"
        )
    return path.parent / name
