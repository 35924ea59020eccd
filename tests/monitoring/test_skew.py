"""What was served beside what was logged: an honest day is silent, and each defect is one cause with places to look at."""

import datetime as dt
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.looks import skew as flow
from flows.looks.subject import Subject
from hap.logs import contract
from hap.logs.simulator import simulate
from hap.monitoring.findings import Look
from hap.monitoring.report import Report, Seen, write_report
from hap.monitoring.served import Comparison
from hap.monitoring.skew import Served, look_at_served
from hap.params import Params, Skew
from hap.registry.local import bundle_folder
from hap.samples.lookup import write_logged
from hap.samples.replay import logged_requests
from hap.serving.bundle import Bundle
from hap.serving.request import RequestTensors
from hap.serving.served_log import Record, ServedLog, to_table
from hap.serving.session import BundleSession
from hap.serving.wire import Scored, ServedSchema
from hap.workspace import Workspace
from tests.conftest import FIRST_DAY
from tests.serving.handmade import FEATURES, ROUTE, make_bundle

DAY = FIRST_DAY
REQUESTS = 40
MINUTES = dt.timedelta(minutes=5)
Change = Callable[[Record], Record]


@pytest.fixture(scope="module")
def params(default_params: Params) -> Params:
    """The columns of the handmade bundle."""
    serving = default_params.serving.model_copy(update={"log_to": "served"})
    return default_params.model_copy(update={"features": FEATURES, "serving": serving})


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Workspace:
    """Two simulated days, with users of few events among the others; tests read them."""
    ws = Workspace(tmp_path_factory.mktemp("logs"))
    simulate(ws.logs(params), DAY, 2, REQUESTS, 3, params.features)
    rows = pq.ParquetFile(contract.read_paths(ws.logs(params), "requests", DAY)[0]).read()
    for name in ("hist_item_id", "hist_event_time"):
        kept = [events[: (0, 2, 99, 99)[place % 4]] for place, events in enumerate(rows[name].to_pylist())]
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), pa.array(kept, rows.schema.field(name).type))
    contract.write_day(ws.logs(params), "requests", DAY, rows)
    return ws


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "v1")


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> BundleSession:
    return BundleSession(bundle)


@pytest.fixture(scope="module")
def honest(logs: Workspace, params: Params, session: BundleSession) -> list[Record]:
    """Logged requests as a client was sent them, and as the version answered, with and without a k of their own."""
    records = []
    for place, request in enumerate(logged_requests(logs, params, DAY, REQUESTS)):
        tensors = RequestTensors.from_json(FEATURES, request)
        k = [None, 0, 7, 10_000][place % 4]
        at = dt.datetime.fromisoformat(request["event_time"]) + dt.timedelta(milliseconds=30)
        scored = Scored(*session.score(tensors, k), 1)
        records.append(Record(request["request_id"], at, ServedSchema(1, "d1", FEATURES, ROUTE), tensors, k, scored))
    return records


@pytest.fixture(scope="module")
def logged(logs: Workspace, params: Params, honest: list[Record], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    path = tmp_path_factory.mktemp("logged") / "logged.parquet"
    assert write_logged(logs, params, DAY, np.array([one.request_id for one in honest]), path) == {}
    return pq.read_table(path)


def looked(records: list[Record], logged: pa.Table, session: BundleSession, complete: bool = True, **settings: object) -> Look:
    """The look at served records, as the flow puts it together."""
    chosen = Skew(**settings)
    comparison = Comparison(chosen.dense_tolerance, 1e-4, complete)
    comparison.add(to_table(records), logged, FEATURES)
    comparison.add_scores(to_table(records), FEATURES, session)
    times = dict(zip(logged["request_id"].to_pylist(), logged["event_time"].to_pylist(), strict=True))
    apart = [(one.served_at - times[one.request_id]).total_seconds() for one in records]
    return look_at_served(str(DAY), Served(comparison, np.array(apart)), FEATURES, chosen)


def causes(look: Look) -> list[str]:
    return [finding.cause for finding in look.findings]


def other(column: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Record, BundleSession], Record]:
    """A change of one tensor before the request is scored, as a service with that defect would have sent it."""

    def altered(record: Record, session: BundleSession) -> Record:
        tensors = replace(record.tensors, **{column: change(getattr(record.tensors, column).copy())})
        return replace(record, tensors=tensors, scored=Scored(*session.score(tensors, record.k), 1))

    return altered


def at(place: object, value: Callable[[np.ndarray], object]) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value(array[place])
        return array

    return change


def lose_latest(record: Record, session: BundleSession) -> Record:
    """The latest event has not reached the profile yet: the one before the first takes a place, as far as there is one."""
    ids, ages = record.tensors.hist_ids, record.tensors.hist_dense
    tensors = replace(record.tensors, hist_ids=np.roll(ids, 1, axis=0), hist_dense=np.roll(ages, 1, axis=0))
    tensors.hist_ids[0] = 77 if (ids > 0).all() else 0
    return replace(record, tensors=tensors, scored=Scored(*session.score(tensors, record.k), 1))


def test_an_honest_day_differs_nowhere(honest: list[Record], logged: pa.Table, session: BundleSession) -> None:
    look = looked(honest, logged, session)
    assert look.findings == () and not look.unjudged - {"skew:unlogged"} and not look.missing and not look.notes
    shares = {figure.name: figure.value for figure in look.figures if figure.name not in ("skew.requests", "skew.clock", "skew.unlogged")}
    assert len(shares) == 3 + 2 + 3 + 3 and set(shares.values()) == {0.0}
    events = (np.stack([one.tensors.hist_ids[:, 0] for one in honest]) > 0).sum(axis=1)
    assert set(events.tolist()) == {0, 2, 3}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (other("user_ids", at(0, lambda x: x + 1)), "skew:user_id"),
        (other("user_ids", at(1, lambda x: x % 24 + 1)), "skew:hour"),
        (other("user_dense", at(0, lambda x: x * 1.001)), "skew:activity"),
        (other("user_dense", at(0, lambda x: np.nextafter(x, np.float32(9)))), None),  # rounding
        (other("cand_dense", at((slice(None), 0), lambda x: x * 100)), "skew:cand_price"),
        (other("cand_dense", at((slice(None), 1), lambda x: x / 24)), "skew:cand_age_hours"),
        (other("hist_dense", at((slice(None), 0), lambda x: x / 24)), "skew:hist_age_hours"),
    ],
)
def test_a_wrong_feature_is_one_cause_and_no_wrong_score(
    change: Callable[[Record, BundleSession], Record], cause: str | None, honest: list[Record], logged: pa.Table, session: BundleSession
) -> None:
    look = looked([change(one, session) for one in honest], logged, session)
    assert causes(look) == ([cause] if cause else [])
    if cause:
        assert look.findings[0].severity == "page" and look.findings[0].value > 0.5


def test_a_lost_event_is_told_by_length_where_it_shows_there_and_by_item_where_it_does_not(
    honest: list[Record], logged: pa.Table, session: BundleSession
) -> None:
    full = [one for one in honest if (one.tensors.hist_ids > 0).all()]
    some = [one for one in honest if 0 < (one.tensors.hist_ids > 0).sum() < 3]
    assert len(full) > 3 and some
    shifted = looked([lose_latest(one, session) for one in full], logged, session, min_requests=1)
    assert causes(shifted) == ["skew:hist_item_id"] and "event 1 from the latest" in shifted.findings[0].said
    shorter = looked([lose_latest(one, session) for one in some], logged, session, min_requests=1)
    assert causes(shorter) == ["skew:history_length"]


def test_candidates_on_one_side_only_are_counted_on_either_side(honest: list[Record], logged: pa.Table, session: BundleSession) -> None:
    def shorter(record: Record) -> Record:
        tensors = record.tensors.with_candidates(record.tensors.cand_ids[:-30], record.tensors.cand_dense[:-30])
        return replace(record, tensors=tensors, scored=Scored(*session.score(tensors, record.k), 1))

    def strange(array: np.ndarray) -> np.ndarray:
        array[:30, 0] = 10**9 + np.arange(30)
        return array

    look = looked([shorter(one) for one in honest], logged, session)
    assert causes(look) == ["skew:cand_item_id"] and look.findings[0].value == pytest.approx(30 / 300)
    assert "no candidate served, a candidate logged" in look.findings[0].said
    more = looked([other("cand_ids", strange)(one, session) for one in honest], logged, session)
    assert causes(more) == ["skew:cand_item_id"] and more.findings[0].value == pytest.approx(60 / 330)
    sampled = looked([other("cand_ids", strange)(one, session) for one in honest], logged, session, complete=False)
    assert sampled.findings[0].value == pytest.approx(30 / 300)  # what such logs lack says nothing


def test_scores_of_another_model_are_named_with_places(
    honest: list[Record], logged: pa.Table, session: BundleSession, tmp_path: Path
) -> None:
    another = BundleSession(make_bundle(tmp_path / "v2", shift=0.5))
    swapped = [replace(one, scored=Scored(*another.score(one.tensors, one.k), 1)) for one in honest]
    look = looked(swapped, logged, session)
    assert "skew:score" in causes(look) and "served," in look.findings[0].said
    nudged = [replace(one, scored=replace(one.scored, score=one.scored.score + np.float32(2e-3))) for one in honest]
    assert causes(looked(nudged, logged, session)) == ["skew:score"]
    rounded = [replace(one, scored=replace(one.scored, score=one.scored.score * np.float32(1 + 1e-6))) for one in honest]
    assert looked(rounded, logged, session).findings == ()


def test_a_wrong_route_is_a_wrong_route_and_no_wrong_score(honest: list[Record], logged: pa.Table, session: BundleSession) -> None:
    """A server that ignores k, and scores each candidate rightly by the route that it takes."""
    asked = [replace(one, k=7) for one in honest]
    answered = [replace(one, scored=Scored(*session.score(one.tensors, 90), 1)) for one in asked]
    look = looked(answered, logged, session)
    assert causes(look) == ["skew:routed"] and look.findings[0].value == pytest.approx(83 / 300)
    assert "routed served, light logged" in look.findings[0].said


def test_a_tie_at_the_last_place_may_go_either_way(honest: list[Record], session: BundleSession) -> None:
    record = honest[0]
    twins = replace(record.tensors, cand_ids=np.array([[7], [14], [21]]), cand_dense=np.ones((3, 2), np.float32))  # equal logits
    score, routed = session.score(twins, 1)
    assert routed.sum() == 1
    turned = Record(record.request_id, record.served_at, record.schema, twins, 1, Scored(score[::-1].copy(), routed[::-1].copy(), 1))
    comparison = Comparison(1e-5, 1e-4, True)
    comparison.add_scores(to_table([turned]), FEATURES, session)
    assert {name: tally.differing for name, tally in comparison.columns.items()} == {"routed": 0, "score": 0}


def test_clocks_that_differ_are_one_cause_though_ages_follow_them(honest: list[Record], logged: pa.Table, session: BundleSession) -> None:
    def ahead(record: Record) -> Record:
        hours = np.float32(MINUTES.total_seconds() / 3600)
        tensors = replace(record.tensors, hist_dense=record.tensors.hist_dense + hours * (record.tensors.hist_ids > 0))
        tensors.cand_dense[:, 1] += hours
        return replace(record, served_at=record.served_at + MINUTES, tensors=tensors, scored=Scored(*session.score(tensors, record.k), 1))

    copies = [replace(one, tensors=one.tensors.copy()) for one in honest]
    look = looked([ahead(one) for one in copies], logged, session)
    assert causes(look) == ["skew:clock"]
    assert look.findings[0].value == pytest.approx(300.03) and "+300.0 s" in look.findings[0].said


def test_a_small_share_is_no_finding_and_still_a_figure(honest: list[Record], logged: pa.Table, session: BundleSession) -> None:
    one = other("cand_dense", at((0, 0), lambda x: x + 1))(honest[0], session)
    look = looked([one, *honest[1:]], logged, session)
    assert look.findings == ()
    figure = next(figure for figure in look.figures if figure.name == "skew.cand_price")
    assert figure.value == pytest.approx(1 / (REQUESTS * 300)) and figure.most == 0.01


def test_a_request_that_is_logged_without_candidates_lacks_all_of_them(honest: list[Record], logged: pa.Table) -> None:
    comparison = Comparison(1e-5, 1e-4, complete=True)
    comparison.add(to_table(honest), logged.slice(1), FEATURES)
    tally = comparison.columns["cand_item_id"]
    assert (tally.differing, tally.compared, comparison.requests) == (300, REQUESTS * 300, REQUESTS)
    assert comparison.columns["user_id"].compared == REQUESTS - 1


def test_a_column_that_is_no_longer_declared_is_a_matter_of_the_next_version(
    honest: list[Record], logged: pa.Table, session: BundleSession
) -> None:
    given_up = FEATURES.model_copy(update={"context": ()})
    comparison = Comparison(1e-5, 1e-4, complete=True)
    comparison.add(to_table(honest), logged.drop_columns(["hour"]), FEATURES)
    for features, severity in ((given_up, "ticket"), (FEATURES, "page")):
        (finding,) = look_at_served(str(DAY), Served(comparison, np.zeros(REQUESTS)), features, Skew()).findings
        assert (finding.cause, finding.severity) == ("skew:hour", severity)
    assert comparison.columns["user_id"].differing == 0


# The flow: files, logs of the days around, bundles.


def serve(ws: Workspace, records: list[Record]) -> None:
    """Write records as a client does."""
    log = ServedLog(ws.root / "served", share=1.0)
    assert all(log.offer(record) for record in records)
    log.close()


@pytest.fixture
def subject(tmp_path: Path, logs: Workspace, params: Params, bundle: Bundle) -> Subject:
    """A workspace over the shared logs, with v1 on this host."""
    ws = Workspace(tmp_path / "ws")
    there = params.logs.model_copy(update={"path": logs.logs(params)})
    make_bundle(bundle_folder(ws, 1))
    return Subject(ws, params.model_copy(update={"logs": there}), DAY, 1, ())


def test_a_served_day_is_compared_from_its_files(subject: Subject, honest: list[Record], session: BundleSession) -> None:
    wrong = [other("cand_dense", at((slice(None), 0), lambda x: x * 2))(one, session) for one in honest[:30]]
    serve(subject.ws, [*wrong, *honest[30:], honest[39]])
    look = flow.look(subject)
    assert causes(look) == ["skew:cand_price"] and look.day == str(DAY) and look.watcher == "skew"
    assert next(figure.value for figure in look.figures if figure.name == "skew.requests") == REQUESTS + 1  # one was scored twice
    assert not list(subject.ws.state.glob("looks-*"))
    few = subject.params.model_copy(update={"skew": Skew(max_requests=25)})
    again = [flow.look(replace(subject, params=few)) for _ in range(2)]
    assert again[0] == again[1] and again[0].figures[0].value in (25, 26)


def test_two_looks_at_once_keep_out_of_each_others_way(subject: Subject, honest: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    serve(subject.ws, honest)
    alone = flow.look(subject)
    assert alone.figures[0].value == REQUESTS
    others: list[Look] = []

    def write_beside(*args: object) -> dict[str, str]:
        found = write_logged(*args)  # type: ignore[arg-type]
        if not others:  # the schedule's look begins while a person's is under way, and ends before it
            others.append(alone)
            others.append(flow.look(subject))
        return found

    monkeypatch.setattr(flow, "write_logged", write_beside)
    assert flow.look(subject) == alone and others == [alone, alone]


def test_a_served_request_that_no_log_knows_is_told_apart_from_one_of_the_day_before(subject: Subject, honest: list[Record]) -> None:
    serve(subject.ws, [replace(one, request_id=one.request_id + 10**15) for one in honest[:8]] + honest[8:])
    look = flow.look(subject)
    assert causes(look) == ["skew:unlogged"] and look.findings[0].value == 8 / REQUESTS
    assert f"request {honest[0].request_id + 10**15}" in look.findings[0].said
    tomorrow = replace(subject, day=DAY + dt.timedelta(days=1))
    serve(subject.ws, [replace(one, served_at=one.served_at + dt.timedelta(days=1)) for one in honest])
    assert causes(flow.look(tomorrow)) == ["skew:clock"]  # logged, but on the day before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda ws, params: params.model_copy(update={"serving": params.serving.model_copy(update={"log_to": None})}), "serving.log_to"),
        (lambda ws, params: None, "no served request"),
        (lambda ws, params: (ws.root / "served" / f"day={DAY}" / "served-0-v1.parquet").write_bytes(b"PAR1 no"), "does not read"),
    ],
)
def test_what_cannot_be_watched_is_said_in_one_line_and_changes_nothing(subject: Subject, spoil: Callable, words: str) -> None:
    (subject.ws.root / "served" / f"day={DAY}").mkdir(parents=True)
    changed = spoil(subject.ws, subject.params)
    look = flow.look(replace(subject, params=changed) if isinstance(changed, Params) else subject)
    assert look.missing and look.findings == () and words in look.notes[0] and "\n" not in look.notes[0]


def test_a_served_log_that_falls_silent_is_a_finding_until_rows_come_again(subject: Subject, honest: list[Record]) -> None:
    serve(subject.ws, [replace(one, served_at=one.served_at - dt.timedelta(days=2)) for one in honest])
    (subject.ws.root / "served" / f"day={DAY - dt.timedelta(days=1)}").mkdir()
    torn = subject.ws.root / "served" / f"day={DAY - dt.timedelta(days=1)}" / "served-0-v1.parquet"
    torn.write_bytes(b"PAR1 no")  # what cannot be read is no day with rows, and keeps nothing from being told
    look = flow.look(subject)
    (finding,) = look.findings
    assert (finding.cause, finding.severity, look.missing) == ("skew:unwritten", "ticket", False)
    folder = subject.ws.root / "served"
    before = DAY - dt.timedelta(days=2)
    assert finding.said.startswith(f"no served request of {DAY} lies below {folder}, where {REQUESTS} of {before} do: ")
    assert finding.figure in [figure.name for figure in look.figures]
    serve(subject.ws, honest)
    again = flow.look(subject)
    assert again.findings == () and "skew:unwritten" not in again.unjudged and not again.missing, "which closes the incident"


@pytest.mark.parametrize("compared", [REQUESTS, 5])
def test_a_served_folder_that_is_gone_with_its_days_is_missed_by_what_the_reports_say(
    subject: Subject, honest: list[Record], compared: int
) -> None:
    """A mount that was lost, or a folder that somebody emptied."""
    yesterday = DAY - dt.timedelta(days=1)
    serve(subject.ws, honest[:compared])
    seen = Seen.of(replace(flow.look(subject), day=str(yesterday)), "Skew")
    write_report(subject.ws.pages, Report(day=str(yesterday), labels="open", champion=1, reference=(), seen=(seen,)))
    shutil.rmtree(subject.ws.root / "served")
    look = flow.look(subject)
    assert causes(look) == (["skew:unwritten"] if compared == REQUESTS else [])
    if look.findings:
        assert f"and those of {yesterday}, of which {REQUESTS} were compared then, are gone" in look.findings[0].said


def test_a_silent_served_log_closes_nothing_else(subject: Subject, honest: list[Record]) -> None:
    serve(subject.ws, [replace(one, served_at=one.served_at - dt.timedelta(days=1)) for one in honest])
    given_up = subject.params.model_copy(update={"features": FEATURES.model_copy(update={"context": ()})})
    look = flow.look(replace(subject, params=given_up))
    others = flow.look(subject).unjudged
    assert look.unjudged == others and {"skew:hour", "skew:cand_price", "skew:score", "skew:unlogged", "skew:clock"} <= others


@pytest.mark.parametrize("before", ["nothing", "a month ago", "a few"])
def test_a_served_log_that_lately_held_next_to_nothing_is_no_finding(subject: Subject, honest: list[Record], before: str) -> None:
    if before != "nothing":
        days = 31 if before == "a month ago" else 1
        moved = [replace(one, served_at=one.served_at - dt.timedelta(days=days)) for one in honest]
        serve(subject.ws, moved[: Skew().min_requests - 1] if before == "a few" else moved)
    look = flow.look(subject)
    assert look.missing and look.findings == () and "no served request" in look.notes[0]


def test_of_a_day_without_logs_the_logs_alone_tell_that_nothing_was_served(subject: Subject, honest: list[Record]) -> None:
    serve(subject.ws, [replace(one, served_at=one.served_at + dt.timedelta(days=8)) for one in honest])
    assert flow.look(replace(subject, day=DAY + dt.timedelta(days=9))).missing


def test_a_day_without_logs_or_with_one_request_says_nothing_of_columns(subject: Subject, honest: list[Record]) -> None:
    serve(subject.ws, honest[:1])
    look = flow.look(subject)
    assert look.findings == () and not look.missing and {"skew:cand_price", "skew:score", "skew:clock"} <= look.unjudged
    assert "1 served requests" in look.notes[0]
    later = replace(subject, day=DAY + dt.timedelta(days=9))
    serve(subject.ws, [replace(honest[0], served_at=honest[0].served_at + dt.timedelta(days=9))])
    assert flow.look(later).missing and "lacks the day" in flow.look(later).notes[0]


def test_a_version_whose_bundle_is_gone_is_passed_over_by_name(subject: Subject, honest: list[Record]) -> None:
    lost = [replace(one, schema=replace(one.schema, version=9), scored=replace(one.scored, served_by=9)) for one in honest[:5]]
    serve(subject.ws, lost + honest[5:])
    look = flow.look(subject)
    assert look.findings == () and look.figures[0].value == REQUESTS - 5
    assert look.notes[0].startswith("what v9 served is not compared")


def test_a_column_gone_from_the_logs_or_of_another_type_is_one_finding(
    subject: Subject, honest: list[Record], logs: Workspace, tmp_path: Path
) -> None:
    serve(subject.ws, honest)
    root = tmp_path / "logs"
    for table in ("requests", "candidates", "items"):
        rows = pa.concat_tables([pq.ParquetFile(path).read() for path in contract.read_paths(subject.ws.logs(subject.params), table, DAY)])
        if table == "items":
            rows = rows.drop_columns(["price"])
        if table == "requests":
            rows = rows.set_column(rows.column_names.index("hour"), "hour", rows["hour"].cast(pa.float64()))
        contract.write_day(root, table, DAY, rows)
    params = subject.params.model_copy(update={"logs": subject.params.logs.model_copy(update={"path": str(root)})})
    look = flow.look(replace(subject, params=params))
    assert sorted(causes(look)) == ["skew:cand_price", "skew:hour"] and {finding.severity for finding in look.findings} == {"page"}
    said = {finding.cause: finding.said for finding in look.findings}
    assert "no such column" in said["skew:cand_price"] and "double" in said["skew:hour"]
