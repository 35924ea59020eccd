"""The job of `hapctl collect` twice more, for benchmarks/collect.py: in DuckDB SQL and in pandas, written by hand.

Both read the same Parquet files, choose the same rows, and hand two sorted streams to the grouping and the writer of hap,
so that equal bytes prove an equal job. They know the default parameters alone: windows in positions, every kind limited.
"""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from hap.logs import contract
from hap.params import Params
from hap.samples.grouping import group_batches
from hap.samples.order_key import P, constants

Rival = Callable[[Path, dt.date, dt.datetime, Params], pa.RecordBatchReader]
SPARE_DRAWS = 16


def _paths(root: Path, table: str, day: dt.date) -> list[str]:
    return contract.read_paths(root, table, day)


def _plain(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The same rows in nullable columns whose lists name their elements as hap's do."""
    schema = pa.schema([(f.name, pa.list_(f.type.value_type) if pa.types.is_list(f.type) else f.type) for f in reader.schema])
    return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in reader))


def sql(root: Path, day: dt.date, as_of: dt.datetime, params: Params) -> pa.RecordBatchReader:
    """Two queries with window functions and QUALIFY, limits and settings as hap's."""
    import duckdb

    collect = params.collect
    limits = {"memory_limit": collect.memory_limit, "threads": collect.threads, "preserve_insertion_order": False}
    con = duckdb.connect(config=limits | {"temp_directory": str(root / "spill")})
    con.execute("SET GLOBAL TimeZone = 'UTC'; SET enable_progress_bar = false")
    for table in contract.TABLES:
        con.read_parquet(_paths(root, table, day)).create_view(table)
    con.execute(f"CREATE MACRO fifth(x) AS ((x * x % {P}) * (x * x % {P}) % {P}) * x % {P}")
    con.execute(f"CREATE MACRO order_key(id, a, b, mix) AS fifth((fifth(((id & {P}) * a + b + mix) % {P}) + (id >> 31)) % {P})")
    con.execute("CREATE MACRO hours(later, earlier) AS ((epoch_us(later) // 1000000 - epoch_us(earlier) // 1000000) / 3600)::FLOAT")
    item_count = con.sql("SELECT count(*) FROM items").fetchall()[0][0]
    features = params.features
    negatives, pool = ("{}, {}".format(*constants(f"{params.seed}|{purpose}")) for purpose in ("negatives", "global"))
    by_draw = f"PARTITION BY request_id ORDER BY order_key(item_id, {negatives}, mix), item_id"
    moment = f"TIMESTAMPTZ '{as_of.isoformat()}'"
    logged = [feature for feature in contract.logged(features.item) if feature.name != "item_id"]
    item_columns = ", ".join(f"{f.name}{'::FLOAT' if f.type == 'dense' else ''} AS cand_{f.name}" for f in logged)
    histories = ", ".join(f"hist_{f.name}" for f in contract.logged(features.history))
    plain = ", ".join(f.name for f in features.user + features.context)
    requests = f"""
        SELECT request_id, event_time, {plain}, {histories},
               list_transform(hist_event_time, lambda t: hours(event_time, t)) AS hist_age_hours
        FROM requests WHERE ingest_time <= {moment} ORDER BY request_id"""
    candidates = f"""
        WITH asked AS MATERIALIZED (
            SELECT request_id, event_time, order_key(request_id, {negatives}, 0) AS mix, order_key(request_id, {pool}, 0) AS pool_mix
            FROM requests WHERE ingest_time <= {moment}),
        clicks AS (SELECT DISTINCT request_id, item_id FROM feedback WHERE click AND ingest_time <= {moment}),
        shown AS MATERIALIZED (
            SELECT c.request_id, c.item_id, c.exposure_position AS position, mix, k.item_id IS NOT NULL AS clicked
            FROM candidates c JOIN asked USING (request_id) LEFT JOIN clicks k ON k.request_id = c.request_id AND k.item_id = c.item_id
            WHERE stage = 'exposure'),
        positives AS MATERIALIZED (
            SELECT request_id, item_id, 0 AS kind, 'EP' AS bucket, position FROM shown WHERE clicked
            QUALIFY row_number() OVER ({by_draw}) <= {collect.max_positives}),
        ranked AS (
            SELECT request_id, item_id, 2 AS kind, 'Rank-{collect.rank.below:g}' AS bucket, rank_position AS position
            FROM candidates JOIN asked USING (request_id) WHERE stage IN ('rank', 'rerank') AND rank_position > {collect.rank.below:g}
            QUALIFY row_number() OVER ({by_draw}) <= {collect.rank.count}),
        preranked AS (
            SELECT request_id, item_id, 3 AS kind, 'Prerank-{collect.prerank.below:g}' AS bucket, prerank_position AS position
            FROM candidates JOIN asked USING (request_id) WHERE stage = 'prerank' AND prerank_position > {collect.prerank.below:g}
            QUALIFY row_number() OVER ({by_draw}) <= {collect.prerank.count}),
        wanted AS (SELECT request_id, count(*) * {collect.global_per_positive} AS wanted FROM positives GROUP BY ALL),
        draws AS (
            SELECT request_id, event_time, wanted, pool_mix, unnest(range(1, wanted + {SPARE_DRAWS} + 1)) AS draw
            FROM wanted JOIN asked USING (request_id)),
        placed AS MATERIALIZED (SELECT *, order_key(draw, {pool}, pool_mix) % {item_count} AS place FROM draws),
        numbered AS (SELECT item_id, published, row_number() OVER (ORDER BY item_id) - 1 AS place FROM items),
        hits AS (
            SELECT request_id, item_id, wanted, min(draw) AS draw
            FROM placed JOIN numbered USING (place)
            ANTI JOIN candidates USING (request_id, item_id) WHERE published < event_time GROUP BY ALL),
        drawn AS (
            SELECT request_id, item_id, 4 AS kind, 'GN' AS bucket, NULL::INTEGER AS position FROM hits
            QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY draw) <= wanted),
        chosen AS (
            FROM positives UNION ALL SELECT request_id, item_id, 1, 'EN', position FROM shown WHERE NOT clicked
            UNION ALL FROM ranked UNION ALL FROM preranked UNION ALL FROM drawn)
        SELECT request_id, kind::TINYINT AS cand_kind, position AS cand_position, item_id AS cand_item_id, bucket AS cand_bucket,
               hours(asked.event_time, published) AS cand_age_hours, {item_columns}
        FROM chosen JOIN asked USING (request_id) LEFT JOIN items USING (item_id)
        ORDER BY request_id, cand_kind, coalesce(position, 0), item_id"""
    second = con.cursor()
    second.execute("SET enable_progress_bar = false")
    return group_batches(_plain(con.sql(requests).to_arrow_reader(2048)), second.sql(candidates).to_arrow_reader(65_536))


def pandas(root: Path, day: dt.date, as_of: dt.datetime, params: Params) -> pa.RecordBatchReader:
    """Merges, sorts and groupby; lists of the history stay in Arrow, where pandas would hold an object per request."""
    import numpy as np
    import pandas as pd
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from hap.samples.order_key import order_key

    collect, features = params.collect, params.features

    def read(table: str, columns: list[str]) -> pd.DataFrame:
        return pd.concat([pd.read_parquet(path, columns=columns) for path in _paths(root, table, day)], ignore_index=True)

    def seconds(times: pd.Series) -> pd.Series:
        return times.astype("int64") // 1_000_000

    def first(rows: pd.DataFrame, count: int) -> pd.DataFrame:
        mix = order_key(rows["request_id"].to_numpy(), f"{params.seed}|negatives")
        rows = rows.assign(draw=order_key(rows["item_id"].to_numpy(), f"{params.seed}|negatives", mix=mix))
        rows = rows.sort_values(["request_id", "draw", "item_id"])
        return rows[rows.groupby("request_id").cumcount() < count]

    asked = read("requests", ["request_id", "event_time", "ingest_time"])
    asked = asked.loc[asked["ingest_time"] <= as_of, ["request_id", "event_time"]]
    feedback = read("feedback", ["request_id", "item_id", "ingest_time", "click"])
    clicks = feedback.loc[feedback["click"] & (feedback["ingest_time"] <= as_of), ["request_id", "item_id"]].drop_duplicates()
    names = ["request_id", "item_id", "stage", "prerank_position", "rank_position", "exposure_position"]
    candidates = read("candidates", names)
    if len(asked) < candidates["request_id"].nunique():
        candidates = candidates[candidates["request_id"].isin(asked["request_id"])]

    stage = candidates["stage"]
    shown = candidates.loc[stage == "exposure", ["request_id", "item_id", "exposure_position"]]
    shown = shown.rename(columns={"exposure_position": "position"}).merge(clicks.assign(click=True), "left", ["request_id", "item_id"])
    clicked = shown["click"].notna()
    positives = first(shown[clicked], collect.max_positives)
    parts = [positives.assign(kind=0, bucket="EP"), shown[~clicked].assign(kind=1, bucket="EN")]
    for kind, reached, column, window, name in (
        (2, stage.isin(["rank", "rerank"]), "rank_position", collect.rank, "Rank"),
        (3, stage == "prerank", "prerank_position", collect.prerank, "Prerank"),
    ):
        pool = candidates.loc[reached & (candidates[column] > window.below), ["request_id", "item_id", column]]
        drawn = first(pool.rename(columns={column: "position"}), window.count or 0)
        parts.append(drawn.assign(kind=kind, bucket=f"{name}-{window.below:g}"))

    logged = [feature for feature in contract.logged(features.item) if feature.name != "item_id"]
    items = read("items", ["item_id", "published", *(feature.name for feature in logged)]).sort_values("item_id", ignore_index=True)
    counts = positives.groupby("request_id").size().mul(collect.global_per_positive).rename("wanted").reset_index()
    counts = counts.merge(asked, on="request_id")
    draws = counts.loc[counts.index.repeat(counts["wanted"] + SPARE_DRAWS)].reset_index(drop=True)
    draws["draw"] = draws.groupby("request_id").cumcount() + 1
    salt = f"{params.seed}|global"
    key = order_key(draws["draw"].to_numpy(), salt, mix=order_key(draws["request_id"].to_numpy(), salt))
    hit = items.iloc[key % len(items)]
    draws["item_id"], draws["published"] = hit["item_id"].to_numpy(), hit["published"].array
    draws = draws[draws["published"] < draws["event_time"]]
    asking = candidates.loc[candidates["request_id"].isin(counts["request_id"]), ["request_id", "item_id"]]
    draws = draws.merge(asking, "left", ["request_id", "item_id"], indicator="own")
    draws = draws[draws["own"] == "left_only"].drop_duplicates(["request_id", "item_id"])
    draws = draws[draws.groupby("request_id").cumcount() < draws["wanted"]]
    parts.append(draws[["request_id", "item_id"]].assign(position=np.nan, kind=4, bucket="GN"))

    rows = pd.concat([part[["request_id", "item_id", "kind", "bucket", "position"]] for part in parts])
    rows = rows.merge(asked, on="request_id").merge(items, "left", on="item_id")
    rows = rows.assign(order=rows["position"].fillna(0)).sort_values(["request_id", "kind", "order", "item_id"])
    types: dict[str, pa.DataType] = {"request_id": pa.int64(), "cand_kind": pa.int8(), "cand_position": pa.int32()}
    types |= {"cand_item_id": pa.int64(), "cand_bucket": pa.string(), "cand_age_hours": pa.float32()}
    made = {"request_id": rows["request_id"], "cand_kind": rows["kind"], "cand_position": rows["position"], "cand_item_id": rows["item_id"]}
    made |= {"cand_bucket": rows["bucket"], "cand_age_hours": (seconds(rows["event_time"]) - seconds(rows["published"])) / 3600}
    for feature in logged:
        made[f"cand_{feature.name}"] = rows[feature.name]
        types[f"cand_{feature.name}"] = pa.float32() if feature.type == "dense" else pa.int64()
    chosen = pa.table({name: pa.array(made[name], dtype, from_pandas=True, safe=False) for name, dtype in types.items()})

    whole = pa.concat_tables([pq.read_table(path) for path in _paths(root, "requests", day)])
    whole = whole.filter(pc.less_equal(whole["ingest_time"], pa.scalar(as_of, contract.TIME))).sort_by("request_id").combine_chunks()
    events = whole["hist_event_time"].chunk(0)
    now_s = np.repeat(whole["event_time"].cast(pa.int64()).to_numpy() // 1_000_000, events.value_lengths().to_numpy())
    ages = (now_s - events.flatten().cast(pa.int64()).to_numpy() // 1_000_000) / 3600
    wanted = ["request_id", "event_time", *(f.name for f in features.user + features.context)]
    wanted += [f"hist_{f.name}" for f in contract.logged(features.history)]
    requests = whole.select(wanted).append_column(
        "hist_age_hours", pa.ListArray.from_arrays(events.offsets, pa.array(ages.astype("float32")))
    )
    return group_batches(_plain(requests.to_reader(2048)), chosen.to_reader(65_536))


RIVALS: dict[str, Rival] = {"sql": sql, "pandas": pandas}
