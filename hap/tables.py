"""Rows as aligned columns of plain text."""

from typing import Any


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Rows as aligned columns of plain text; numbers to the right."""
    cells = [header, *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(header))]
    numeric = [all(_is_number(row[place]) for row in cells[1:]) and len(cells) > 1 for place in range(len(header))]
    lines = []
    for row in cells:
        parts = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace(",", "").replace("-", "", 1).removesuffix("%").isdigit() or cell == "-"
