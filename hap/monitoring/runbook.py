"""The runbook: for every kind of cause what it means, how to confirm it, and what to do. One source, docs/runbook.md.

Its form: a heading ## `KIND:NAME` for each kind, or for one cause alone, and below it three paragraphs or more that begin with
**Means.**, **Confirm.** and **Do.** What stands before the first heading is for its readers alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hap.errors import HapError
from hap.project import project_file

SOURCE = "docs/runbook.md"
PARTS = ("Means", "Confirm", "Do")
_HEADING = re.compile(r"^## `([a-z_]+:[A-Za-z0-9_]+)`$")
_PART = re.compile(rf"^\*\*({'|'.join(PARTS)})\.\*\*\s*", re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """What the runbook says of a kind of cause, in Markdown."""

    heading: str  # KIND:NAME
    means: str
    confirm: str
    do: str

    @property
    def anchor(self) -> str:
        """The heading's anchor, as GitHub makes it."""
        return re.sub(r"[^\w-]", "", self.heading.lower())

    @property
    def rolls_back(self) -> bool:
        """Whether going back to the former version can be a remedy."""
        return "hapctl rollback" in self.do


def read_runbook(text: str | None = None) -> dict[str, Line]:
    """Every line by its heading; of the packaged runbook where no text is given.

    Raises:
        HapError: a heading is no cause, stands twice, or lacks a part.
    """
    if text is None:
        text = project_file(SOURCE).read_text(encoding="utf-8")
    lines: dict[str, Line] = {}
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        heading = _HEADING.match(title.rstrip())
        if heading is None or heading[1] in lines:
            raise HapError(f"{SOURCE}: {title!r} is not the one heading of a cause; write ## `KIND:NAME`")
        found = _PART.split(body)
        parts = {name: words.strip() for name, words in zip(found[1::2], found[2::2], strict=True)}
        if found[0].strip() or [name for name in PARTS if not parts.get(name)] or len(found) != 1 + 2 * len(PARTS):
            raise HapError(f"{SOURCE}: {title!r} needs {', '.join(f'**{name}.**' for name in PARTS)}, each once and with words")
        lines[heading[1]] = Line(heading[1], *(parts[name] for name in PARTS))
    return lines


def line_of(runbook: Mapping[str, Line], cause: str) -> Line | None:
    """The line of a cause: its own where it has one, else its kind's."""
    return runbook.get(cause) or runbook.get(f"{cause.partition(':')[0]}:NAME")
