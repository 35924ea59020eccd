"""The feed gives every request once, unchanged, in an order that depends on (seed, epoch) alone."""

import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hap.params import KINDS, Params
from hap.training import feed as feeding
from hap.training.feed import Feed, Pool, read_pool


def rows(files: list[Path]) -> dict[int, dict]:
    return {row["request_id"]: row for path in files for row in pq.read_table(path).to_pylist()}


def test_a_pool_holds_what_the_file_says(sample_files: list[Path], default_params: Params) -> None:
    features, pool = default_params.features, read_pool(pq.read_table(sample_files[0]), default_params.features)
    logged = rows(sample_files)
    length = features.history_length
    for place, request in enumerate(pool.request_id.tolist()):
        row = logged[request]
        assert pool.user_ids[place].tolist() == [row[feature.name] for feature in features.ids("user")]
        assert pool.user_dense[place].tolist() == np.float32([row[feature.name] for feature in features.dense("user")]).tolist()
        items = row["hist_item_id"][-length:]
        assert pool.hist_ids[place, :, 0].tolist() == [0] * (length - len(items)) + items
        ages = row["hist_age_hours"][-length:]
        assert pool.hist_dense[place, length - len(ages) :, 0].tolist() == np.float32(ages).tolist()
        start, end = pool.offsets[place], pool.offsets[place + 1]
        assert pool.kind[start:end].tolist() == row["cand_kind"]
        for column, feature in enumerate(features.dense("item")):
            assert pool.cand_dense[start:end, column].tolist() == np.float32(row[f"cand_{feature.name}"]).tolist()


def test_training_and_heldout_parts_are_disjoint_and_complete(sample_files: list[Path], default_params: Params) -> None:
    parts = [
        {int(r) for pool in Feed(sample_files, default_params, heldout=side).pools() for r in pool.request_id} for side in (True, False)
    ]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(rows(sample_files))
    assert 0 < len(parts[0]) < len(parts[1])
    assert [Feed(sample_files, default_params, heldout=side).requests() for side in (True, False)] == [len(part) for part in parts]


@pytest.fixture(scope="session")
def two_days(sample_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The samples as those of two days."""
    table, root = pq.read_table(sample_files[0]), tmp_path_factory.mktemp("days")
    paths = [root / f"day=2026-01-0{day}" / "part-0.parquet" for day in (1, 2)]
    for path, part in zip(paths, (table.slice(0, len(table) // 2), table.slice(len(table) // 2)), strict=True):
        path.parent.mkdir()
        pq.write_table(part, path, row_group_size=20)
    return paths


def test_held_out_is_the_last_day_of_some_users_and_nothing_else(two_days: list[Path], default_params: Params) -> None:
    by_request, last = rows(two_days), set(rows(two_days[1:]))
    out = {int(r) for pool in Feed(two_days, default_params, heldout=True).pools() for r in pool.request_id}
    users = {by_request[request]["user_id"] for request in out}
    assert out == {request for request in last if by_request[request]["user_id"] in users}
    assert 0.05 < len(users) / len({by_request[request]["user_id"] for request in last}) < 0.4


def test_without_a_user_id_single_requests_of_the_last_day_are_held_out(two_days: list[Path], default_params: Params) -> None:
    known = tuple(feature for feature in default_params.features.user if feature.name != "user_id")
    anonymous = default_params.features.model_copy(update={"user": known})
    params = default_params.model_copy(update={"features": anonymous})
    out = {int(r) for pool in Feed(two_days, params, heldout=True).pools() for r in pool.request_id}
    assert out and out < set(rows(two_days[1:])) and len(out) == Feed(two_days, params, heldout=True).requests()


def test_steps_follow_what_is_left_to_train_on(two_days: list[Path], default_params: Params) -> None:
    feed = Feed(two_days, small_batches(default_params), heldout=False)
    given = sum(batch.requests for batch in feed.batches(1, 1))
    assert given == feed.requests() and abs(feed.steps(1, 1) - given / 8) < 2


def test_an_epoch_gives_every_request_once_and_its_order_repeats(sample_files: list[Path], default_params: Params) -> None:
    params = default_params.model_copy(update={"train": default_params.train.model_copy(update={"batch_requests": 16})})
    feed = Feed(sample_files, params, heldout=False)

    def users(epoch: int) -> list[int]:
        return [user for batch in feed.batches(7, epoch) for user in batch.user_ids[:, 0].tolist()]

    assert users(1) == users(1)
    assert users(1) != users(2)
    assert sorted(users(1)) == sorted(users(2))
    assert len(users(1)) == feed.requests()


def test_a_batch_keeps_each_candidate_with_its_request(sample_files: list[Path], default_params: Params) -> None:
    pool = read_pool(pq.read_table(sample_files[0]), default_params.features)
    chosen = np.array([5, 2, 9])
    batch = pool.batch(chosen)
    for place, request in enumerate(chosen):
        expected = pool.cand_ids[pool.offsets[request] : pool.offsets[request + 1]]
        assert torch.equal(batch.cand_ids[batch.request == place], torch.from_numpy(expected))
    assert torch.equal(batch.user_ids, torch.from_numpy(pool.user_ids[chosen]))


def test_only_the_asked_kinds_come_and_nothing_else_moves(sample_files: list[Path], default_params: Params) -> None:
    full = next(Feed(sample_files, default_params, heldout=False).pools())
    hard = next(Feed(sample_files, default_params, heldout=False, kinds=("EP", "EN", "RN")).pools())
    wanted = np.isin(full.kind, [KINDS.index(kind) for kind in ("EP", "EN", "RN")])
    assert np.array_equal(hard.cand_ids, full.cand_ids[wanted])
    assert np.array_equal(hard.kind, full.kind[wanted])
    assert hard.offsets[-1] == wanted.sum()


def small_batches(params: Params) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update={"batch_requests": 8})})


def step_sets(feed: Feed, **more: int) -> list[list[tuple[int, ...]]]:
    """The requests of each step, told by user and first candidates."""
    found = []
    for batch in feed.batches(7, 1, **more):
        owners = [batch.cand_ids[batch.request == place, 0].tolist() for place in range(batch.requests)]
        found.append(sorted((int(user), *items) for user, items in zip(batch.user_ids[:, 0].tolist(), owners, strict=True)))
    return found


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_each_batch_whatever_their_number(many_groups: list[Path], default_params: Params, world: int) -> None:
    feed = Feed(many_groups, small_batches(default_params), heldout=False)
    alone = step_sets(feed)
    shares = [step_sets(feed, rank=rank, world=world) for rank in range(world)]
    assert {len(share) for share in shares} == {len(alone)} == {feed.steps(7, 1)}
    for step, whole in enumerate(alone):
        assert sorted(entry for share in shares for entry in share[step]) == whole


def test_a_step_is_found_again_without_those_before_it(many_groups: list[Path], default_params: Params) -> None:
    feed = Feed(many_groups, small_batches(default_params), heldout=False)
    alone = step_sets(feed)
    assert len(alone) > 4
    for start in (1, 3, len(alone) - 1, len(alone)):
        assert step_sets(feed, start=start) == alone[start:]


def test_order_belongs_to_seed_and_epoch_among_row_groups_and_within_them(many_groups: list[Path], default_params: Params) -> None:
    feed = Feed(many_groups, small_batches(default_params), heldout=False)

    def orders(seed: int, epoch: int) -> tuple[list[int], list[list[int]]]:
        """The row groups of an epoch, and the places of the first ones' requests."""
        units = [unit for pool, _ in feed.plan(seed, epoch) for unit in pool]
        return units, [part.tolist() for part in feed._shuffled(range(4), seed, epoch)[1]]

    (groups, within), again = orders(7, 1), orders(7, 1)
    assert (groups, within) == again
    for other_groups, other_within in (orders(8, 1), orders(7, 2)):
        assert sorted(other_groups) == sorted(groups) and other_groups != groups
        assert [sorted(part) for part in other_within] == [sorted(part) for part in within] and other_within != within


def test_a_process_without_row_groups_gets_empty_batches(sample_files: list[Path], default_params: Params) -> None:
    feed = Feed(sample_files, small_batches(default_params), heldout=False)
    assert len(feed.units) == 1
    batches = list(feed.batches(7, 1, rank=1, world=2))
    assert len(batches) == feed.steps(7, 1)
    assert all(batch.requests == 0 and len(batch.kind) == 0 for batch in batches)


@pytest.mark.parametrize("kinds", [KINDS, ("EP", "EN", "RN")])
def test_a_pool_is_let_go_before_the_next_one_is_read(
    kinds: tuple[str, ...], many_groups: list[Path], default_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pools are what grows with the requests of a row group: two at a time would be twice the memory."""
    read: list[weakref.ref[Pool]] = []

    def watched(*words: object) -> Pool:
        assert not [one for one in read if one() is not None]
        read.append(weakref.ref(pool := read_pool(*words)))  # type: ignore[arg-type]
        return pool

    monkeypatch.setattr(feeding, "read_pool", watched)
    feed = Feed(many_groups, small_batches(default_params), heldout=False, kinds=kinds)
    for walk in (feed.batches(7, 1), feed.pools()):
        read.clear()
        for _ in walk:
            pass
        assert len(read) == 2
