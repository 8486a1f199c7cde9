"""Results as text tables, for people; machines get JSON."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def as_text(result: Row | Sequence[Row], *, width: int = 160) -> str:
    """A result as tables: one of the plain values by dotted name, then one for every list of rows.

    Args:
        result: nested mappings, or rows with the same keys.
        width: columns of the terminal.
    """
    if not isinstance(result, Mapping):
        return _table("", result, width)
    rows: dict[str, Sequence[Row]] = {}
    values = _flatten(result, "", rows)
    parts = [_table("", [{"": name, " ": value} for name, value in values.items()], width)] if values else []
    return "".join([*parts, *(_table(title, part, width) for title, part in rows.items())])


def _flatten(data: Row, prefix: str, rows: dict[str, Sequence[Row]]) -> dict[str, Any]:
    """Plain values by dotted name; lists of mappings go into `rows`."""
    values: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            values.update(_flatten(value, f"{prefix}{name}.", rows))
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            rows[f"{prefix}{name}"] = value
        else:
            values[f"{prefix}{name}"] = value
    return values


def _table(title: str, rows: Sequence[Row], width: int) -> str:
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(name for row in rows for name in row))
    headed = any(name.strip() for name in columns)
    table = Table(title=title or None, show_header=headed, title_justify="left")
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in columns))
    text = io.StringIO()
    Console(file=text, width=width, markup=False, highlight=False).print(table)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(one) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(one)}" for name, one in value.items())
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    return "" if value is None else str(value)
