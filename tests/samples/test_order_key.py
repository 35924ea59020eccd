"""The portable hash gives the same keys everywhere, spreads wide ids, and orders pairs."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hap.params import Params
from hap.samples.engines import batches, connect, disconnect, read_parquet
from hap.samples.order_key import P, constants, in_share, key_and_id, order_key, order_key_sql, with_order_key

EDGES = [
    1,
    2,
    2**31 - 2,
    2**31 - 1,
    2**31,
    2**31 + 1,
    2**32 - 1,
    2**32,
    2**62 - 1,
    2**62,
    2**62 + 1,
    2**63 - 1,
    (17 << 32) | 5,
    (18 << 32) | 5,
]


def by_hand(value: int, salt: str, mix: int = 0) -> int:
    """The formula in Python's unbounded integers."""
    a, b = constants(salt)
    hi, lo = divmod(value, 2**31)
    return pow((pow((lo * a + b + mix) % P, 5, P) + hi) % P, 5, P)


@given(st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=20), st.sampled_from(["item_id", "1|negatives", "ä"]))
def test_numpy_and_torch_agree_with_the_formula_in_unbounded_integers(ids: list[int], salt: str) -> None:
    expected = [by_hand(value, salt) for value in ids]
    assert order_key(np.array(ids), salt).tolist() == expected
    assert order_key(torch.tensor(ids), salt).tolist() == expected


def test_sql_and_ibis_agree_on_the_edges_of_the_id_range(default_params: Params, tmp_path: Path) -> None:
    expected = [by_hand(value, "s") for value in EDGES]
    con = duckdb.connect()
    values = ", ".join(f"({value}::BIGINT)" for value in EDGES)
    found = con.sql(f"SELECT id, {order_key_sql('id', 's')} FROM (VALUES {values}) t(id)").fetchall()
    assert dict(found) == dict(zip(EDGES, expected, strict=True))

    pq.write_table(pa.table({"id": EDGES}), tmp_path / "ids.parquet")
    engine = connect(default_params)
    table = with_order_key(read_parquet(engine, [str(tmp_path / "ids.parquet")], "ids"), "key", "id", "s")
    rows = batches(engine, table, 100).read_all().to_pydict()
    disconnect(engine)
    assert dict(zip(rows["id"], rows["key"], strict=True)) == dict(zip(EDGES, expected, strict=True))


def test_a_mix_orders_the_same_items_differently_in_different_requests() -> None:
    items = np.arange(1, 200)
    orders = {tuple(np.argsort(order_key(items, "s", mix=order_key(request, "s")))) for request in range(1, 20)}
    assert len(orders) == 19


def test_ids_below_p_never_collide_and_composed_ids_rarely_do() -> None:
    small = order_key(np.arange(1, 200_000), "s")
    assert len(np.unique(small)) == len(small)
    composed = np.array([(shard << 32) | seq for shard in range(100) for seq in range(1000)])
    assert len(np.unique(order_key(composed, "s"))) > 99_990


@pytest.mark.parametrize("share", [0.05, 0.1, 0.4])
def test_in_share_takes_that_share_of_ids(share: float) -> None:
    taken = in_share(np.arange(1, 100_000), "1|heldout", share).mean()
    assert abs(taken - share) < 0.01


@given(
    st.lists(
        st.one_of(st.integers(0, 2**63 - 1), st.sampled_from(EDGES), st.integers(0, 2**32).map(lambda hi: hi * 2**31 - 1)), min_size=2
    ),
    st.integers(0, P - 1),
)
def test_key_and_id_is_one_int64_that_sorts_as_the_pair_does(ids: list[int], mix: int) -> None:
    ids = [value for value in ids if 0 <= value < 2**63]
    values = np.array(ids, dtype=np.int64)
    key = order_key(values, "s", mix=mix)
    together = key_and_id(key, values >> 31, values & P)
    pairs = list(zip(key.tolist(), ids, strict=True))
    assert together.tolist() == [int(key_and_id(k, i >> 31, i & P)) for k, i in pairs], "no product leaves 64 bits"
    assert [pairs[place] for place in np.argsort(together, kind="stable")] == sorted(pairs)


def test_ids_with_one_key_are_ordered_by_the_id() -> None:
    folds = [hi * 2**31 + lo for lo in (5, 0, P) for hi in (3, 3 + P)]  # hi counts mod P, and lo = P as lo = 0
    keys = {order_key(value, "s") for value in folds[2:]}
    assert len(keys) == 1, "these collide"
    together = [key_and_id(order_key(value, "s"), value >> 31, value & P) for value in folds[2:]]
    assert [folds[2:][place] for place in np.argsort(together)] == sorted(folds[2:])
