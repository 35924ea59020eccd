"""The runbook: every kind of cause that the code can find has its line, and no line speaks of what it cannot."""

import ast
import re
from pathlib import Path

import pytest

import flows
import hap
from hap.errors import HapError
from hap.monitoring.runbook import Line, line_of, read_runbook

WATCHING = ("hap/monitoring", "flows/looks", "flows/drift.py")
CAUSE = re.compile(r"([a-z_]+):(\w*)")  # a whole one, or the beginning of one that is put together
SECTION = "## `{0}`\n\n**Means.** That.\n\n**Confirm.** See.\n\n**Do.** This.\n"


def causes_in_code() -> set[str]:
    """Every text of the watching code that is a cause, or begins one: "labels:click_rate", f"input:{name}"."""
    root = Path(hap.__file__).parent.parent
    assert root == Path(flows.__file__).parent.parent
    found = set()
    for name in WATCHING:
        for path in [root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                parts = node.values[:1] if isinstance(node, ast.JoinedStr) else [node]
                for part in parts:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str) and CAUSE.fullmatch(part.value):
                        found.add(part.value)
    return found


def test_every_kind_of_cause_in_the_code_has_a_line_and_no_line_is_of_another() -> None:
    runbook, found = read_runbook(), causes_in_code()
    assert {"labels:click_rate", "input:", "logs:missing", "reference:gone"} <= found
    assert [cause for cause in sorted(found) if line_of(runbook, cause) is None] == [], "docs/runbook.md lacks a line"
    kinds = {cause.partition(":")[0] for cause in found} | {"watch"}
    assert {heading.partition(":")[0] for heading in runbook} == kinds


def test_a_kinds_line_is_for_all_its_causes_but_those_that_have_their_own() -> None:
    runbook = read_runbook("Words for readers.\n" + SECTION.format("labels:NAME") + SECTION.format("labels:outage"))
    assert line_of(runbook, "labels:click_rate") == Line("labels:NAME", "That.", "See.", "This.")
    assert line_of(runbook, "labels:outage").heading == "labels:outage" and line_of(runbook, "input:x") is None


def test_the_anchor_is_the_one_that_github_makes() -> None:
    assert [line.anchor for line in read_runbook(SECTION.format("input:NAME") + SECTION.format("labels:click_rate")).values()] == [
        "inputname",
        "labelsclick_rate",
    ]


def test_a_rollback_is_a_remedy_where_the_runbook_names_it_under_do() -> None:
    section = SECTION.format("labels:NAME")
    assert not read_runbook(section.replace("See.", "See `hapctl rollback`."))["labels:NAME"].rolls_back
    assert read_runbook(section.replace("This.", "Type `hapctl rollback --reason TEXT`."))["labels:NAME"].rolls_back


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("## input:NAME\n", "not the one heading of a cause"),
        (SECTION.format("input:NAME") * 2, "not the one heading of a cause"),
        (SECTION.format("input:NAME").replace("**Confirm.** See.\n\n", ""), "needs \\*\\*Means.\\*\\*"),
        (SECTION.format("input:NAME").replace("This.", ""), "each once and with words"),
        (SECTION.format("input:NAME") + "**Do.** More.\n", "each once and with words"),
        (SECTION.format("input:NAME").replace("**Means", "Before. **Means"), "each once and with words"),
    ],
)
def test_a_line_without_its_parts_is_refused(text: str, said: str) -> None:
    with pytest.raises(HapError, match=said):
        read_runbook(text)
