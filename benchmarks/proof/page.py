"""results.json as one HTML page that opens anywhere: pictures inside, nothing loaded."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from benchmarks.proof.study import SHOWN_AT
from benchmarks.proof.variants import VARIANTS
from hap.params import NEGATIVES

CAPTIONS = {
    "differences": "GAUC of ghcl+bce minus that of every other loss, by kind of negative. Right of zero: ghcl+bce is better. "
    "Paired: equal seeds, equal requests.",
    "sizes": "GAUC by kind against cost; light is the published one, x the same but wide, a star ours with interests. In the paper's "
    "figure 3 sizes differ on hard kinds, hardly on easy ones.",
    "routing": f"Left: Recall@{SHOWN_AT} of the final list against the share that the expressive model rescores, over requests with all "
    "their candidates. Right: the same against the operations it takes, both relative to the expressive model on all candidates.",
    "training-light": "Training of the light model: GAUC on held-out requests of the training days after each epoch; band: the seeds.",
    "training-expressive": "The same of the expressive model. Where a plateau comes before the rise, stopping early shows a false tie.",
}


def render(results: dict[str, Any], drawn: dict[str, dict[str, Path]]) -> str:
    """The page.

    Args:
        drawn: world -> figure -> PNG file.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": _shown, "signed": _signed}
    pictures = {
        name: [(CAPTIONS[what], base64.b64encode(path.read_bytes()).decode()) for what, path in files.items()]
        for name, files in drawn.items()
    }
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.render(results=results, pictures=pictures, kinds=NEGATIVES, k=SHOWN_AT, variants=VARIANTS)


def _shown(one: dict[str, Any], digits: int = 3) -> str:
    """value [lo, hi]; a dash for what is undefined."""
    return f"{_number(one['value'], digits, '')} [{_number(one['lo'], digits, '')}, {_number(one['hi'], digits, '')}]"


def _signed(one: dict[str, Any], digits: int = 4) -> str:
    return f"{_number(one['value'], digits, '+')} [{_number(one['lo'], digits, '+')}, {_number(one['hi'], digits, '+')}]"


def _number(value: float | None, digits: int, sign: str) -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}"
