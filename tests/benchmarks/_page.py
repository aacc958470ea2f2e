"""Markdown of measured tables, and the blocks of a page that a benchmark writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.harness import Table

MACHINE = "machine"
_UNSTEADY = 0.75  # a fastest round below this part of the median is told
_OPEN, _CLOSE = "<!-- bench:{} -->", "<!-- /bench:{} -->"


def number(value: float) -> str:
    """Three digits: 0.0123, 1.23, 12.3, 123, 1230."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):.0f}"
    return f"{value:.3g}"


def grid(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines)


def single(table: Table, *, ratio: str, names: Mapping[str, str] | None = None) -> str:
    """One table, one line per row: median, smallest and largest, and `ratio`, the baseline's time over the row's."""
    memory = ["extra MB"] if table.megabytes else []
    cells = {}
    for name, values in table.rows.items():
        figures = [number(table.median(name)), f"{number(min(values))} to {number(max(values))}"]
        figures += [number(table.ratio(name)), *(number(table.megabytes[name]) for _ in memory)]
        cells[(names or {}).get(name, name)] = figures
    return grid("", ["CPU ms", "range", ratio, *memory], cells)


def pivot(tables: Iterable[Table], columns: Sequence[str], rows: Iterable[str]) -> str:
    """Several tables with the same rows side by side: the medians. A row that no table has is left out."""
    tables = list(tables)
    cells = {}
    for name in rows:
        if any(name in table.rows for table in tables):
            cells[name] = [number(table.median(name)) if name in table.rows else "" for table in tables]
    return grid("CPU ms", columns, cells)


def spread_note(tables: Sequence[Table]) -> str:
    """How many rounds, how far they scatter, and which rows are so unsteady that a median says little."""
    counts = [len(values) for table in tables for values in table.rows.values()]
    rounds = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(max(counts))
    percent = 100 * max(table.spread() for table in tables)
    note = f"Medians of {rounds} rounds, which scatter by {percent:.0f} % at most (median distance from the median)."
    unsteady = [
        f"{name}, {table.title.split(':')[0]} ({number(min(values))} ms)"
        for table in tables
        for name, values in table.rows.items()
        if min(values) < _UNSTEADY * table.median(name)
    ]
    return f"{note} The fastest round lies far below the median: {'; '.join(unsteady)}." if unsteady else note


def skipped_notes(tables: Iterable[Table]) -> list[str]:
    """One sentence per row that could not be measured."""
    reasons = {name: reason for table in tables for name, reason in table.skipped.items()}
    return [f"Not measured: {name} ({reason})." for name, reason in reasons.items()]


def describe(machine: Mapping[str, str]) -> str:
    """The machine in one line."""
    software = [key for key in machine if key not in ("processor", "cores", "threads", "python")]
    versions = ", ".join(f"{name} {machine[name]}" for name in software if machine[name] != "absent")
    hardware = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread"
    return f"Measured on: {hardware}; Python {machine['python']}, {versions}."


def check_markers(text: str, names: Iterable[str]) -> None:
    """Raise ValueError unless each name has one opening marker followed by one closing one."""
    for name in names:
        opening, closing = _OPEN.format(name), _CLOSE.format(name)
        found = text.count(opening), text.count(closing)
        if found != (1, 1) or text.index(opening) > text.index(closing):
            msg = (
                f"the page must have one block `{opening}` ... `{closing}` for the tables of {name!r}, found "
                f"{found[0]} and {found[1]} markers in this order. Add it where the tables belong."
            )
            raise ValueError(msg)


def write_report(text: str, blocks: Mapping[str, str], machine: Mapping[str, str], *, whole: bool) -> str:
    """The page with the blocks of some benchmarks, or of all of them (`whole`), replaced.

    The block "machine" says where the page was measured. A block from elsewhere carries a line of its own.
    """
    line = describe(machine)
    if whole:
        text = fill(text, MACHINE, line)
    elsewhere = "" if line in text else f"\n\n{line}"
    for name, block in blocks.items():
        text = fill(text, name, block.strip() + elsewhere)
    return text


def fill(text: str, name: str, block: str) -> str:
    """The page with the block called `name` replaced; everything else stays as it is.

    Raises:
        ValueError: if the page has no such block, or more than one.
    """
    check_markers(text, [name])
    opening, closing = _OPEN.format(name), _CLOSE.format(name)
    content = f"{opening}\n\n{block.strip()}\n\n{closing}"
    pattern = re.escape(opening) + ".*?" + re.escape(closing)
    return re.sub(pattern, lambda _: content, text, flags=re.DOTALL)
