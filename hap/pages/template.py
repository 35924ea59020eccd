"""How pages are rendered: one file with everything in it, every text from data escaped."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

# A page runs nothing and loads nothing; what it is made of is in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@cache
def environment() -> "Environment":
    """The templates of this folder; `style.css` is what they share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.globals["policy"] = POLICY
    made.filters["count"] = lambda value: f"{value:,}"
    return made
