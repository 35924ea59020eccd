"""The watchers on a workspace with a bundle in it: what is compared with what, and what a day may lack."""

import datetime as dt
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.judge import score_days
from flows.looks import estimate, funnel, served
from flows.looks.served import Days, scored
from flows.looks.subject import Subject
from flows.scratch import gate_copy, scored_folder
from hap import durable
from hap.evaluation.auc import gauc, request_aucs
from hap.evaluation.evidence import MEMBERS
from hap.logs.simulator import simulate
from hap.monitoring.findings import Look
from hap.monitoring.report import Labels
from hap.params import KINDS, Params
from hap.registry.versions import verdict_path
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.serving.bundle import read_bundle
from hap.training.feed import is_heldout
from hap.workspace import Workspace, init_workspace
from tests.conftest import FIRST_DAY
from tests.serving.handmade import make_bundle

DAYS = [FIRST_DAY + dt.timedelta(days=place) for place in range(4)]
WINDOW, JUDGED, DAY = DAYS[:2], DAYS[2], DAYS[3]
REQUESTS = 150


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """v1, trained on two days, judged on the third; the fourth is looked at."""
    ws = init_workspace(tmp_path_factory.mktemp("looks") / "ws")
    params = ws.params()
    simulate(ws.logs(params), FIRST_DAY, len(DAYS), REQUESTS, 3, params.features)
    for day in DAYS:
        collect_day(ws, params, day)
    bundle = make_bundle(gate_copy(ws, 1), info={"window": [str(day) for day in WINDOW], "seed": 1})
    scores, rows = score_days(bundle, partitions.parquet_files(ws, [JUDGED]), "")
    table = {member: {k: gauc(one) for k, one in request_aucs(scores[member], rows.kind, rows.offsets).items()} for member in MEMBERS}
    durable.write_json(verdict_path(ws, 1), {"verdict": "pass", "version": 1, "days": [str(JUDGED)], "requests": REQUESTS, "gauc": table})
    return ws


@pytest.fixture
def ws(watched: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(watched.root, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def subject(ws: Workspace, *, day: dt.date = DAY, complete: bool = False, requests: int = 2000, labels: Labels = "matured") -> Subject:
    """Of samples alone, unless the logs are to be read for whole requests."""
    params = ws.params()
    update = {
        "logs": params.logs.model_copy(update={"complete": complete}),
        "funnel": params.funnel.model_copy(update={"requests": requests}),
    }
    return Subject(ws, params.model_copy(update=update), day, 1, tuple(WINDOW), labels)


def rewritten(ws: Workspace, change: Callable[[pa.Table], pa.Table], day: dt.date = DAY) -> None:
    (path,) = (ws.samples / f"day={day}").glob("*.parquet")
    pq.write_table(change(pq.read_table(path)), path)


def closed_as(ws: Workspace, **changed: Any) -> None:
    path = ws.samples / f"day={DAY}" / partitions.MANIFEST
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | changed))


def values(found: Look) -> dict[str, float | None]:
    return {one.name: one.value for one in found.figures}


def causes(found: Look) -> set[str]:
    return {finding.cause for finding in found.findings}


def with_flat(table: pa.Table, column: str, values_of: Callable[[np.ndarray], Any]) -> pa.Table:
    """The table with other values in a list column."""
    lists = table[column].combine_chunks()
    flat = pa.array(values_of(lists.flatten().to_numpy(zero_copy_only=False)), type=lists.type.value_type)
    return table.set_column(table.schema.get_field_index(column), column, pa.ListArray.from_arrays(lists.offsets, flat))


def test_whole_requests_are_routed_as_served_and_compared_with_the_judged_day(ws: Workspace) -> None:
    whole = subject(ws, complete=True, requests=60)
    bundle = read_bundle(gate_copy(ws, 1))
    assert served.reference_of(whole, bundle, {"days": [str(JUDGED)]}) == Days((JUDGED,))
    now = scored(whole, bundle, Days((DAY,)), whole=True)
    counts = np.diff(now.offsets)
    assert len(now.user) == 60 and now.whole and (counts > 100).all()  # sampled ones have about thirty
    assert np.bincount(now.owner[now.routed], minlength=60).tolist() == np.ceil(0.3 * counts - 1e-9).tolist()
    found = funnel.look(whole)
    assert values(found)["funnel.routed_share"] == pytest.approx(now.routed.mean())
    quality = estimate.look(whole)
    assert values(quality)["estimate.auc"] is not None and values(quality)["realized.auc"] is not None
    assert not {one for one in causes(found) | causes(quality) if not one.startswith(("funnel:", "quality:"))}
    shutil.rmtree(ws.root / "logs" / "candidates")
    shutil.rmtree(scored_folder(ws, 1))
    sampled = funnel.look(whole)  # the logs expired: samples are what is left
    assert values(sampled)["funnel.routed_share"] is not None and "funnel:scores" not in causes(sampled)


def test_scores_are_kept_and_a_look_repeats_itself(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = funnel.look(subject(ws, requests=80))
    assert len(list(scored_folder(ws, 1).iterdir())) == 2  # the day and its reference
    for path in scored_folder(ws, 1).iterdir():
        path.write_bytes(path.read_bytes()[:100])  # torn: made again
    assert funnel.look(subject(ws, requests=80)) == first
    monkeypatch.setattr(served, "score_days", None)
    assert funnel.look(subject(ws, requests=80)) == first


def test_gauc_of_the_judged_day_is_what_the_verdict_said(ws: Workspace) -> None:
    found = funnel.look(subject(ws, day=JUDGED))
    for one in found.figures:
        if one.name.startswith("funnel.gauc"):
            assert one.value == pytest.approx(one.reference), one.name


def test_without_a_verdict_or_on_the_judged_day_the_reference_is_what_training_held_out(ws: Workspace) -> None:
    bundle = read_bundle(gate_copy(ws, 1))
    held = Days((WINDOW[-1],), heldout=True)
    assert served.reference_of(subject(ws), bundle, None) == held
    assert served.reference_of(subject(ws, day=JUDGED), bundle, {"days": [str(JUDGED)]}) == held
    chosen = served._drawn(ws, ws.params(), held, 1)[WINDOW[-1]]
    (path,) = (ws.samples / f"day={WINDOW[-1]}").glob("*.parquet")
    table = pq.read_table(path, columns=["request_id", "user_id"])
    assert chosen.tolist() == table["request_id"].to_numpy()[is_heldout(table, ws.params())].tolist() and 0 < len(chosen) < REQUESTS / 2
    assert served._drawn(ws, ws.params(), held, 2)[WINDOW[-1]].tolist() != chosen.tolist()  # another training held out others
    shutil.rmtree(ws.samples / f"day={WINDOW[-1]}")
    assert served.reference_of(subject(ws), bundle, None) is None


def test_counts_are_those_of_the_rows(ws: Workspace) -> None:
    (path,) = (ws.samples / f"day={DAY}").glob("*.parquet")
    found = funnel.counted(subject(ws), [DAY])
    for place, row in enumerate(pq.read_table(path).to_pylist()):
        assert found.kinds[place].tolist() == [row["cand_kind"].count(code) for code in range(len(KINDS))]
        assert {name: int(rows[place]) for name, rows in found.buckets.items()} == {
            name: row["cand_bucket"].count(name) for name in ("Prerank-200", "Rank-50")
        }
        assert found.user[place] == row["user_id"]


def test_a_column_that_the_champion_needs_and_the_day_lacks_is_a_page(ws: Workspace) -> None:
    rewritten(ws, lambda table: table.drop_columns(["cand_price"]))
    found = funnel.look(subject(ws))
    (finding,) = found.findings
    assert (finding.cause, finding.severity) == ("funnel:scores", "page")
    assert finding.said == f"v1, which serves, cannot score {DAY}: its schema needs 'cand_price', which the samples of {DAY} lack"
    assert values(found)["funnel.share_RN"] is not None and "funnel:agreement" in found.unjudged
    quality = estimate.look(subject(ws))
    assert quality.findings == () and quality.unjudged == {"quality:estimate", "quality:realized"} and not quality.missing


def test_scores_that_are_no_numbers_are_a_page_with_their_share(ws: Workspace) -> None:
    def spoiled(price: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(price)) % 50 == 0, np.inf, price)

    rewritten(ws, lambda table: with_flat(table, "cand_price", spoiled))
    found = funnel.look(subject(ws))
    broken = next(finding for finding in found.findings if finding.cause == "funnel:scores")
    assert broken.severity == "page" and broken.value == pytest.approx(0.02, abs=0.001) and "2.0" in broken.said
    assert estimate.look(subject(ws)) is not None


@pytest.mark.parametrize("column", ["user_id", "activity", "cand_price", "hour", "hist_item_id"])
def test_a_column_of_nulls_is_looked_at_like_any_other(ws: Workspace, column: str) -> None:
    def emptied(table: pa.Table) -> pa.Table:
        if not column.startswith("cand_"):
            return table.set_column(table.schema.get_field_index(column), column, pa.nulls(table.num_rows, table[column].type))
        return with_flat(table, column, lambda flat: [None] * len(flat))

    rewritten(ws, emptied)
    found = funnel.look(subject(ws))
    assert "funnel:scores" not in causes(found) and values(found)["funnel.agreement"] is not None
    if column == "user_id":  # a request of nobody known stands for itself
        assert len(np.unique(funnel.counted(subject(ws), [DAY]).user)) == REQUESTS and not found.unjudged & {
            "cascade:candidates",
            "funnel:edge",
        }


def test_a_day_without_a_click_and_one_of_a_single_request_are_looked_at(ws: Workspace) -> None:
    rewritten(ws, lambda table: with_flat(table, "cand_kind", lambda kind: np.where(kind == 0, 1, kind)))
    found, quality = funnel.look(subject(ws)), estimate.look(subject(ws))
    assert {"funnel:gauc_light", "funnel:unrouted_clicks"} <= found.unjudged
    assert quality.unjudged == {"quality:realized"} and values(quality)["realized.click_rate"] == 0
    shutil.rmtree(scored_folder(ws, 1))
    rewritten(ws, lambda table: table.slice(0, 1))
    found, quality = funnel.look(subject(ws)), estimate.look(subject(ws))
    assert found.missing and found.findings == () and quality.findings == () and quality.unjudged
    shutil.rmtree(scored_folder(ws, 1))
    rewritten(ws, lambda table: table.slice(0, 0))  # all came too late
    found, quality = funnel.look(subject(ws)), estimate.look(subject(ws))
    assert found.missing and found.findings == () and quality.findings == () and quality.unjudged


@pytest.mark.parametrize(
    "changed, words",
    [({"as_of": f"{DAY}T20:00:00+00:00"}, "closed as of"), ({"labels": {str(DAYS[3]): {"state": "absent"}}}, "there was no feedback of")],
)
def test_labels_that_are_not_complete_are_told_and_nothing_rests_on_them(ws: Workspace, changed: dict[str, Any], words: str) -> None:
    closed_as(ws, **changed)
    found, quality = funnel.look(subject(ws)), estimate.look(subject(ws))
    told = next(finding for finding in found.findings if finding.cause == "funnel:labels")
    assert told.severity == "info" and words in told.said
    assert {"funnel:gauc_light", "funnel:calibration_light", "funnel:unrouted_clicks"} <= found.unjudged | causes(found)
    assert values(found)["funnel.gauc_light_EN"] is None and values(found)["funnel.agreement"] is not None
    assert "quality:realized" in quality.unjudged and values(quality)["realized.auc"] is None
    assert values(quality)["estimate.auc"] is not None


def test_an_early_look_rests_on_no_labels_though_every_feedback_partition_is_there(ws: Workspace) -> None:
    found, quality = funnel.look(subject(ws, labels="open")), estimate.look(subject(ws, labels="open"))
    waiting = {"funnel:gauc_light", "funnel:calibration_light", "funnel:unrouted_clicks", "funnel:labels"}
    assert waiting <= found.unjudged and not waiting & causes(found), "nobody has to do anything: the schedule looks again"
    assert found.notes == ("what needs the day's labels waits for them, until 2026-01-05 02:00 UTC",)
    assert values(found)["funnel.rate_light"] is None and values(found)["funnel.share_EN"] is None
    assert "quality:realized" in quality.unjudged and values(quality)["estimate.auc"] is not None


def test_a_longer_label_delay_makes_a_closed_day_incomplete(ws: Workspace, default_params: Params) -> None:
    longer = default_params.model_copy(update={"collect": default_params.collect.model_copy(update={"label_delay_hours": 48.0})})
    assert served.labels_missing(subject(ws)) is None
    told = served.labels_missing(replace(subject(ws), params=longer))
    assert told is not None and "its clicks come until 2026-01-07T00:00:00+00:00" in told.why
    assert told.do == f"hapctl collect --day {DAY} --as-of 2026-01-07T00:00:00+00:00 --reopen"


@pytest.mark.parametrize("day", [WINDOW[0], DAY + dt.timedelta(days=1)])
def test_a_day_of_the_training_window_and_one_that_was_not_collected_say_nothing(ws: Workspace, day: dt.date) -> None:
    for watcher in (funnel, estimate):
        found = watcher.look(subject(ws, day=day))
        assert found.missing and found.findings == () and found.watcher == watcher.__name__.rpartition(".")[2]


def test_drawn_requests_are_a_fixed_part_of_more(ws: Workspace) -> None:
    few, more = (set(served._drawn(ws, subject(ws, requests=most).params, Days((DAY, JUDGED)), 1)[DAY].tolist()) for most in (90, 180))
    assert few < more
    both = served._drawn(ws, subject(ws, requests=90).params, Days((DAY, JUDGED)), 1)
    assert sum(map(len, both.values())) == 90 and all(len(ids) > 20 for ids in both.values())
