"""RecFlow's folders become the log contract; hostile and broken files are refused by name."""

import datetime as dt
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import yaml

from hap.errors import ConfigError, DataError, NotFound
from hap.logs import contract
from hap.logs.recflow import RECFLOW_PARAMS, import_recflow, read_pickle, source_files
from hap.params import Params, resolve
from hap.workspace import Workspace

real_data = pytest.mark.skipif(not os.environ.get("HAP_RECFLOW_DIR"), reason="HAP_RECFLOW_DIR names no RecFlow folder")


def workspace(root: Path) -> Workspace:
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(RECFLOW_PARAMS)
    return Workspace(root)


FLAGS = ("realshow", "rerank_pos", "rerank_neg", "rank_pos", "rank_neg", "coarse_neg", "prerank_neg")
REST = ("rank_index", "rerank_index", "playing_time", "effective_view", "long_view", "like", "follow", "forward", "comment")


def row(request: int, at: dt.datetime, video: int, stages: tuple[str, ...], **values: int) -> dict[str, int]:
    """One line of all_stage, 0-based as RecFlow writes it."""
    line = {"request_id": request, "request_timestamp": int(at.timestamp() * 1000), "user_id": 0, "device_id": 0, "age": 0, "gender": 0,
            "province": 0, "video_id": video, "author_id": video % 3, "category_level_one": 0, "category_level_two": 0, "upload_type": 0,
            "upload_timestamp": 1_700_000_000 + video, "duration": 60_000}  # fmt: skip
    return {**line, **{flag: int(flag in stages) for flag in FLAGS}, **dict.fromkeys(REST, 0), **values}


def write_source(src: Path, files: dict[str, list[dict[str, int]]], event_ms: int = 1_704_000_000_000) -> Path:
    """A RecFlow folder with one past click per request."""
    for folder in ("all_stage", "realshow", "seq_effective_50_dict", "others/realshow_video_info_daily"):
        (src / folder).mkdir(parents=True)
    for day, lines in files.items():
        frame = pd.DataFrame(lines)
        shown = frame[frame.realshow == 1]
        feather.write_feather(pa.Table.from_pandas(frame, preserve_index=False), src / "all_stage" / f"{day}.feather")
        feather.write_feather(pa.Table.from_pandas(shown, preserve_index=False), src / "realshow" / f"{day}.feather")
        videos = shown[["video_id", "author_id", "category_level_one", "category_level_two", "upload_type", "upload_timestamp", "duration"]]
        feather.write_feather(
            pa.Table.from_pandas(videos, preserve_index=False), src / "others/realshow_video_info_daily" / f"{day}.feather"
        )
        sequence = np.zeros((50, 10), np.int64)
        sequence[-1] = [7, 1, 2, 0, 3, 1_700_000_000, 60_000, event_ms, 50_000, 0]
        with open(src / "seq_effective_50_dict" / f"{day}.pkl", "wb") as handle:
            pickle.dump({line["request_id"]: sequence for line in lines}, handle)
    return src


NOON = dt.datetime(2024, 1, 13, 12, tzinfo=dt.UTC)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    day = [
        row(
            0,
            NOON,
            0,
            ("realshow", "rerank_pos", "rank_pos"),
            rank_index=3,
            rerank_index=1,
            effective_view=1,
            playing_time=30_000,
            forward=1,
        ),
        row(0, NOON, 1, ("rerank_neg", "rank_neg"), rank_index=12, rerank_index=15),
        row(0, NOON, 2, ("rank_neg",), rank_index=40),
        row(0, NOON, 2, ("coarse_neg",)),  # the same video again, at an earlier stage
        row(0, NOON, 3, ("coarse_neg",)),
        row(0, NOON, 4, ("prerank_neg",)),
    ]
    later = NOON + dt.timedelta(days=1)
    return write_source(tmp_path / "src", {"2024-01-13": day, "2024-01-14": [row(1, later, 9, ("realshow",), rank_index=60)]})


def test_stages_ids_positions_and_labels_are_mapped(source: Path, tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws")
    seen: list[tuple[int, int]] = []
    days = import_recflow(source, ws, lambda done, total: seen.append((done, total)))
    assert days == [dt.date(2024, 1, 13), dt.date(2024, 1, 14)] and seen == [(1, 2), (2, 2)]
    logs = ws.root / "logs"
    for day in days:
        for table in contract.TABLES:
            assert contract.check_day(logs, table, day, ws.params())
    candidates = pq.read_table(contract.read_paths(logs, "candidates", days[0])[0], partitioning=None).to_pylist()
    assert [(c["item_id"], c["stage"], c["rank_position"], c["rerank_position"]) for c in candidates] == [
        (1, "exposure", 3, 1), (2, "rerank", 12, 15), (3, "rank", 40, None), (4, "prerank", None, None), (5, "prerank", None, None),
    ]  # fmt: skip
    assert {c["event_time"] for c in candidates} == {NOON}
    (feedback,) = pq.read_table(contract.read_paths(logs, "feedback", days[0])[0], partitioning=None).to_pylist()
    assert (feedback["item_id"], feedback["click"], feedback["dwell_ms"], feedback["like"], feedback["share"]) == (
        1,
        True,
        30_000,
        False,
        True,
    )
    (request,) = pq.read_table(contract.read_paths(logs, "requests", days[0])[0], partitioning=None).to_pylist()
    assert (request["request_id"], request["user_id"], request["age"], request["hour"], request["weekday"]) == (1, 1, 1, 13, 6)
    assert (request["hist_item_id"], request["hist_category_level_two"], request["hist_category_level_one"]) == ([8], [3], [1])


def test_items_are_those_seen_so_far_and_never_the_future(source: Path, tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws")
    first, second = import_recflow(source, ws)
    items = [pq.read_table(contract.read_paths(ws.root / "logs", "items", day)[0], partitioning=None) for day in (first, second)]
    assert items[0]["item_id"].to_pylist() == [1, 2, 3, 4, 5] and items[1]["item_id"].to_pylist() == [1, 2, 3, 4, 5, 10]
    assert items[0]["published"][0].as_py() == dt.datetime.fromtimestamp(1_700_000_000, dt.UTC)


def test_rows_go_to_their_own_utc_day_whatever_the_file_is_called(tmp_path: Path) -> None:
    """Files of local days (UTC+8) each hold the ends of two UTC days."""
    evening, morning = dt.datetime(2024, 1, 13, 18, tzinfo=dt.UTC), dt.datetime(2024, 1, 14, 3, tzinfo=dt.UTC)
    source = write_source(
        tmp_path / "src",
        {
            "2024-01-13": [row(0, NOON, 0, ("realshow",))],
            "2024-01-14": [row(1, evening, 1, ("realshow",)), row(2, morning, 2, ("realshow",))],
            "2024-01-15": [row(3, morning + dt.timedelta(hours=15), 3, ("realshow",))],
        },
    )
    ws = workspace(tmp_path / "ws")
    days = import_recflow(source, ws)
    held = {
        day: pq.read_table(contract.read_paths(ws.root / "logs", "requests", day)[0], partitioning=None)["request_id"].to_pylist()
        for day in days
    }
    assert held == {dt.date(2024, 1, 13): [1, 2], dt.date(2024, 1, 14): [3, 4]}
    items = pq.read_table(contract.read_paths(ws.root / "logs", "items", days[0])[0], partitioning=None)
    assert items["item_id"].to_pylist() == [1, 2]  # item 3 was first seen on the 14th


def test_history_at_or_after_the_request_is_left_out(tmp_path: Path) -> None:
    source = write_source(tmp_path / "src", {"2024-01-13": [row(0, NOON, 0, ("realshow",))]}, event_ms=int(NOON.timestamp() * 1000))
    ws = workspace(tmp_path / "ws")
    (day,) = import_recflow(source, ws)
    request = pq.read_table(contract.read_paths(ws.root / "logs", "requests", day)[0], partitioning=None).to_pylist()[0]
    assert request["hist_item_id"] == []


def test_import_again_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        import_recflow(source, workspace(root))
    import_recflow(source, workspace(roots[0]))
    one, two = ({str(p.relative_to(r)): p.read_bytes() for p in (r / "logs").rglob("*.parquet")} for r in roots)
    assert one == two and len(one) == 8


@pytest.mark.parametrize("missing", ["all_stage", "realshow", "seq_effective_50_dict", "others/realshow_video_info_daily"])
def test_wrong_folder_is_one_clear_line(source: Path, missing: str, tmp_path: Path) -> None:
    shutil.rmtree(source / missing)
    with pytest.raises(NotFound, match=f"is not a RecFlow folder: {missing}/ is missing") as caught:
        import_recflow(source, workspace(tmp_path / "ws"))
    assert "\n" not in str(caught.value)


def test_folder_without_days_is_refused(source: Path) -> None:
    for path in (source / "all_stage").iterdir():
        path.unlink()
    with pytest.raises(NotFound, match=r"has no DAY\.feather"):
        source_files(source)


def test_broken_sources_are_named(source: Path, tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws")
    path = source / "all_stage" / "2024-01-14.feather"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"2024-01-14\.feather: unreadable or truncated"):
        import_recflow(source, ws)
    feather.write_feather(feather.read_table(io.BytesIO(good)).drop_columns(["realshow"]), path)
    with pytest.raises(DataError, match=r"2024-01-14\.feather: missing column: realshow"):
        import_recflow(source, ws)
    feather.write_feather(pa.Table.from_pylist([row(5, NOON, 1, ())]), path)
    with pytest.raises(DataError, match=r"1 rows belong to no stage.*request_id 5, video_id 1"):
        import_recflow(source, ws)
    path.write_bytes(good)
    (source / "seq_effective_50_dict" / "2024-01-14.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="seq_effective_50_dict lacks request_id 1"):
        import_recflow(source, ws)
    (source / "realshow" / "2024-01-14.feather").unlink()
    with pytest.raises(DataError, match=r"realshow.2024-01-14\.feather is missing"):
        import_recflow(source, ws)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_hostile_pickle_is_refused_by_name_and_runs_nothing(source: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    path = source / "seq_effective_50_dict" / "2024-01-13.pkl"
    path.write_bytes(pickle.dumps({0: Hostile(mark)}))
    with pytest.raises(DataError, match=r"2024-01-13\.pkl: unreadable pickle: (posix|nt)\.system is refused"):
        import_recflow(source, workspace(tmp_path / "ws"))
    assert not mark.exists()


@pytest.mark.parametrize("name", [b"builtins\neval", b"builtins\ngetattr", b"numpy\nload", b"collections\nOrderedDict"])
def test_unlisted_names_are_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"c" + name + b"\n.")
    with pytest.raises(DataError, match="is refused"):
        read_pickle(path)


def test_truncated_pickle_is_refused_and_default_dicts_are_read(tmp_path: Path) -> None:
    import collections

    path = tmp_path / "x.pkl"
    nested: dict[int, dict[str, np.ndarray]] = collections.defaultdict(dict)
    nested[4]["realshow"] = np.arange(6).reshape(2, 3)
    for protocol in (3, 4, 5):
        data = pickle.dumps(nested, protocol)
        path.write_bytes(data)
        assert read_pickle(path)[4]["realshow"].tolist() == [[0, 1, 2], [3, 4, 5]]
        path.write_bytes(data[:-20])
        with pytest.raises(DataError, match="unreadable pickle"):
            read_pickle(path)


def test_pickles_of_older_numpy_and_of_recflows_own_default_dicts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    data = pickle.dumps({3: np.arange(4)}, 3)
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_pickle(path)[3].tolist() == [0, 1, 2, 3]
    for module in (b"utils", b"__main__"):
        path.write_bytes(b"ccollections\ndefaultdict\n(c" + module + b"\ndefaultdict_tuple\ntR.")
        assert read_pickle(path)["request"]["stage"] == ()


def test_recflow_params_are_valid_and_leave_the_gate_alone() -> None:
    raw = yaml.safe_load(RECFLOW_PARAMS)
    params = resolve(raw, "RECFLOW_PARAMS")
    assert "gate" not in raw and params.gate == Params(features=params.features).gate
    assert not params.logs.complete and params.collect.rank.below == 0 and params.collect.rank.count is None


def test_features_of_another_source_are_refused(source: Path, tmp_path: Path) -> None:
    ws = workspace(tmp_path / "ws")
    ws.params_file.write_text(RECFLOW_PARAMS.replace("province", "postcode"))
    with pytest.raises(ConfigError, match="'postcode', which RecFlow does not have"):
        import_recflow(source, ws)


@real_data
def test_real_folder_is_imported_whole(tmp_path: Path) -> None:
    source = Path(os.environ["HAP_RECFLOW_DIR"])
    ws = workspace(tmp_path / "ws")
    days = import_recflow(source, ws)
    assert [str(day) for day in days] == [path.stem for path in source_files(source)]  # its files are UTC days
    for day in (days[0], days[-1]):
        for table in contract.TABLES:
            assert contract.check_day(ws.root / "logs", table, day, ws.params())
    rows = ds.dataset(ws.root / "logs" / "candidates", format="parquet").to_table()
    lines = pa.concat_tables(feather.read_table(path) for path in source_files(source))
    pairs = len(lines.group_by(["request_id", "video_id"]).aggregate([]))
    assert rows.num_rows == pairs
    feedback = ds.dataset(ws.root / "logs" / "feedback", format="parquet").to_table()
    assert feedback.num_rows == pc.sum(lines["realshow"]).as_py()
    assert pc.sum(feedback["click"]).as_py() == pc.sum(lines["effective_view"]).as_py()


@real_data
def test_request_id_dict_repeats_the_imported_stages() -> None:
    """The importer leaves this folder unread because of this."""
    source = Path(os.environ["HAP_RECFLOW_DIR"])
    for path in source_files(source)[-3:]:
        lines = feather.read_table(path).to_pandas()
        by_request = read_pickle(source / "request_id_dict" / f"{path.stem}.pkl")
        assert set(by_request) == set(lines.request_id)
        for request, stages in by_request.items():
            for flag, videos in stages.items():
                expected = lines[(lines.request_id == request) & (lines[flag] == 1)].video_id
                assert sorted(videos[:, 0].tolist() if len(videos) else []) == sorted(expected.tolist())
