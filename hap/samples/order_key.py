"""The portable hash: one integer formula, equal on NumPy, torch, ONNX, DuckDB and Spark.

f(x) = x^5 mod P with P = 2^31 - 1 is a permutation of 0..P-1 (5 does not divide P - 1). Wider
ids are folded: hi = id div 2^31, lo = id mod 2^31, key = f((f((lo*a + b) mod P) + hi) mod P).
a and b come from sha256 of a salt: a feature's name for embedding rows, "seed|purpose" for
sampling. Every product stays below 2^63, so no engine's overflow rule matters.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ibis.expr.types as ir

P = 2**31 - 1
_FOLD = 2**31


def constants(salt: str) -> tuple[int, int]:
    """a and b of the salt, both in [1, P)."""
    digest = hashlib.sha256(salt.encode()).digest()
    return (1 + int.from_bytes(digest[:8], "big") % (P - 1), 1 + int.from_bytes(digest[8:16], "big") % (P - 1))


def _as_it_is(value: Any) -> Any:
    return value


def order_key(ids: Any, salt: str, mix: Any = 0, keep: Callable[[Any], Any] = _as_it_is) -> Any:
    """Keys in [0, P) of non-negative 64-bit ids; ties are broken by the smaller id.

    Written with operators alone, so `ids` may be a NumPy array, a torch tensor, an Ibis column or an int.

    Args:
        mix: another key in [0, P) added before hashing; orders pairs, such as the items of a request.
        keep: called on each value that is used more than once; a query builder names it there.
    """

    a, b = constants(salt)
    return keyed(ids, a, b, mix, keep)


def keyed(ids: Any, a: Any, b: Any, mix: Any = 0, keep: Callable[[Any], Any] = _as_it_is) -> Any:
    """`order_key` with a and b given: ints, or arrays that hold those of each column of `ids`."""

    def fifth_power(x: Any) -> Any:
        x = keep(x)
        square = keep(x * x % P)
        return square * square % P * x % P

    lo = keep(ids % _FOLD)
    # ids - lo is a multiple of 2^31, so this division is exact even where an engine divides in float64.
    hi = keep((ids - lo) // _FOLD)
    return fifth_power((fifth_power((lo * a + b + mix) % P) + hi) % P)


def key_and_id(key: Any, hi: Any, lo: Any) -> Any:
    """One int64 that orders ids as (key, id) does, so that an engine sorts or keeps the least n by one column.

    Of ids with one key and one hi = id div 2^31, two at most are left, whose lo are 0 and P: all else would be
    told apart by the key. So 31 bits of key, 32 of hi and 1 of lo are enough, and they fill 64.
    """
    return (key - 2**30) * 2**33 + (hi * 2 + (lo + 1) // _FOLD)


def with_order_key(table: "ir.Table", name: str, column: str, salt: str, mix: str | None = None, *, ties: bool = False) -> "ir.Table":
    """The Ibis table with one more column, `name`: the key of `column`, or with `ties` its `key_and_id`.

    Each intermediate value is a column of its own step: as one expression the formula would be
    written out 25 times (compile with `ibis.options.sql.fuse_selects` off, or they are fused again).
    """
    import ibis

    steps: list[Any] = []

    def keep(value: Any) -> Any:
        steps.append(value)
        return ibis._[f"{name}_{len(steps)}"]

    key = order_key(ibis._[column], salt, mix=ibis._[mix] if mix else 0, keep=keep)
    for number, step in enumerate(steps, 1):
        table = table.mutate(**{f"{name}_{number}": step})
    table = table.mutate(**{name: key})
    if ties:
        lo, hi = f"{name}_1", f"{name}_2"  # the first two that `keyed` keeps
        table = table.mutate(**{name: key_and_id(table[name], table[hi], table[lo])})
    return table.drop(*[f"{name}_{number}" for number in range(1, len(steps) + 1)])


def order_key_sql(column: str, salt: str) -> str:
    """`order_key` of a BIGINT column as a DuckDB expression."""

    def power(x: str) -> str:
        square = f"({x} * {x} % {P})"
        return f"({square} * {square} % {P} * {x} % {P})"

    a, b = constants(salt)
    lo = f"({column} % {_FOLD})"
    inner = power(f"(({lo} * {a} + {b}) % {P})")
    return power(f"(({inner} + ({column} - {lo}) // {_FOLD}) % {P})")


def in_share(ids: Any, salt: str, share: float) -> Any:
    """Whether each id falls into a fixed share of all ids, chosen by its key."""
    return order_key(ids, salt) < int(share * P)


def embedding_rows(ids: Any, a: Any, b: Any, rows: Any) -> Any:
    """Rows 1..rows-1 of each column's table for ids > 0, with a and b from `constants` of the feature's name.

    The caller maps id 0 (missing, padding) to row 0.
    """
    return keyed(ids, a, b) % (rows - 1) + 1
