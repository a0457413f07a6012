"""Inner products of attention as vector IR: queries times keys, and weights times values.

Caches hold float16 or float32; everything is summed in float32. The order of a sum does not depend
on how many queries a tile has, so a query gives the same bits alone and in any batch. Each tile
also prefetches, a little with every step, what another will read: asking for much at once would
stall it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from apr_backend_cpu.constants import LANES, VECTOR
from apr_backend_cpu.kernels.linear.dense import LOADERS, Loader
from apr_backend_cpu.kernels.source import vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import F32, V16F, Value, const
from apr_backend_cpu.kernels.vector.rows import addresses, number

KEYS = 4  # keys in a tile
LARGEST_HALF = 65504.0
WeightOf = Callable[[Builder, Value, Value], Value]


def _sums(b: Builder, vectors: list[Value]) -> Value:
    """Return the sum of each vector, by halves as in `horizontal_sum`, as lanes of one vector."""
    width = LANES
    while width > 1:
        half, several = width // 2, LANES // width
        low = [v * width + lane for v in range(2 * several) for lane in range(half)]
        high = [lane + half for lane in low]
        vectors = [
            b.fadd(b.shuffle(x, low, y), b.shuffle(x, high, y))
            for x, y in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        width = half
    return vectors[0]


def tile_of(b: Builder, queries: int) -> tuple[int, int]:
    """Return the queries and keys in a tile: as many as there are registers for sums."""
    return (queries, KEYS) if b.lanes == LANES or queries == 1 else (2, 2)


def by_tiles(
    queries: int, wide: tuple[int, int], block: Callable[[int, int], list[Value]]
) -> list[Value]:
    """Return sums [queries][keys] from block(first query, first key), which gives one tile."""
    totals = {}
    for first in range(0, queries, wide[0]):
        for key in range(0, KEYS, wide[1]):
            for k, total in enumerate(block(first, key)):
                totals[first + k // wide[1], key + k % wide[1]] = total
    return [totals[place] for place in sorted(totals)]


def make_scores(name: str, loader: Loader, itemsize: int, queries: int) -> Any:
    """Declare a function: dot products of up to `queries` float32 queries with 4 keys.

    Arguments: addresses of the first query and key, bytes between two of each, address of the
    scores and bytes between the scores of two queries, queries, vectors of 16 per key; an address
    from which as many bytes as four keys have are prefetched.
    """
    size = KEYS * LANES * itemsize

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        qp, q_stride, kp, k_stride, op, o_stride, count, n, ahead = args
        qs = addresses(b, qp, q_stride, queries, count)
        ks = [b.advance(kp, number(j), k_stride) for j in range(KEYS)]
        wide = tile_of(b, queries)

        def block(first: int, key: int) -> list[Value]:
            def body(i: Value, sums: list[Value]) -> list[Value]:
                if not first and not key:
                    b.prefetch(b.advance(ahead, i, size), size)
                skip = b.advance(number(0), i, LANES * itemsize)
                keys = [loader(b, b.add(k, skip)) for k in ks[key : key + wide[1]]]
                results = []
                for i_q, q in enumerate(qs[first : first + wide[0]]):
                    query = b.read(b.advance(q, i, VECTOR), V16F)
                    for j, k in enumerate(keys):
                        results.append(b.fma(query, k, sums[wide[1] * i_q + j]))
                return results

            return b.count_loop(n, [const(V16F, 0.0)] * (wide[0] * wide[1]), body)

        dots = by_tiles(queries, wide, block)
        dots += [const(V16F, 0.0)] * (LANES - len(dots))
        sums = _sums(b, dots)
        for i, out in enumerate(addresses(b, op, o_stride, queries, count)):
            b.write(b.shuffle(sums, [KEYS * i + j for j in range(KEYS)]), out)

    return vector(name, "p" * 9, emit)


def splat_weight(b: Builder, weights: Value, k: Value) -> Value:
    """Return the k-th float32 weight, in all lanes."""
    return b.splat(b.read(b.advance(weights, k, 4), F32))


def make_mix(
    name: str,
    loader: Loader,
    itemsize: int,
    queries: int,
    vectors: int,
    weight_of: WeightOf = splat_weight,
    fetches: bool = True,
) -> Any:
    """Declare a function: add weights times values, up to `queries` rows of 16 * `vectors` dims.

    Arguments: address of the weights and bytes between two queries; address of the values and bytes
    between two positions; address of the results and bytes between two queries; queries; positions;
    if it `fetches`, an address from which as many bytes in as many rows are prefetched.
    `weight_of(b, p, k)` reads the weights of position k, one lane per dim, from a query's weights
    at p.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        pp, p_stride, vp, v_stride, op, o_stride, count, n, *ahead = args
        weights = addresses(b, pp, p_stride, queries, count)
        results_at = addresses(b, op, o_stride, queries, count)
        wide = vectors if b.lanes == LANES else 1  # as many sums as fit the registers

        def some(first: int) -> None:
            outs = [b.at(p, VECTOR * (first + c)) for p in results_at for c in range(wide)]

            def body(k: Value, sums: list[Value]) -> list[Value]:
                if fetches and not first:
                    b.prefetch(b.advance(ahead[0], k, v_stride), LANES * itemsize * vectors)
                here = b.at(b.advance(vp, k, v_stride), LANES * itemsize * first)
                values = [loader(b, b.at(here, LANES * itemsize * c)) for c in range(wide)]
                results = []
                for i, p in enumerate(weights):
                    weight = weight_of(b, p, k)
                    for c, value in enumerate(values):
                        results.append(b.fma(weight, value, sums[wide * i + c]))
                return results

            sums = b.count_loop(n, [b.read(p, V16F) for p in outs], body)
            for p, total in zip(outs, sums, strict=True):
                b.write(total, p)

        for first in range(0, vectors, wide):
            some(first)

    return vector(name, "p" * (9 if fetches else 8), emit)


def make_widen(name: str, loader: Loader, itemsize: int) -> Any:
    """Declare a function: convert rows of a cache to float32.

    Arguments: address and bytes per row; address of the result; vectors of 16 per row; rows.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        source, stride, target, n, rows = args
        size = b.mul(n, number(VECTOR))

        def row(r: Value, values: list[Value]) -> list[Value]:
            here, out = b.advance(source, r, stride), b.advance(target, r, size)

            def body(i: Value, values: list[Value]) -> list[Value]:
                value = loader(b, b.advance(here, i, LANES * itemsize))
                b.write(value, b.advance(out, i, VECTOR))
                return values

            return b.count_loop(n, values, body)

        b.count_loop(rows, [], row)

    return vector(name, "ppppp", emit)


def make_append(name: str, half: bool) -> Any:
    """Declare a function: copy n times 16 float32 from an address into a cache at another.

    float16 holds nothing beyond 65504: larger values become that; NaN stays NaN.
    """

    def emit(b: Builder, args: tuple[Value, ...]) -> None:
        source, target, n = args

        def body(i: Value, values: list[Value]) -> list[Value]:
            x = b.read(b.advance(source, i, VECTOR), V16F)
            if half:
                for limit, beyond in ((LARGEST_HALF, ">"), (-LARGEST_HALF, "<")):
                    bound = const(V16F, limit)
                    x = b.select(b.fcmp_ordered(beyond, x, bound), bound, x)
                x = b.to_half(x)
            b.write(x, b.advance(target, i, (2 if half else 4) * LANES))
            return values

        b.count_loop(n, [], body)

    return vector(name, "ppp", emit)


def _largest(b: Builder, args: tuple[Value, ...]) -> Value:
    """Return the largest of n times 16 float32 at an address, ignoring NaN."""
    p, n = args

    def body(i: Value, values: list[Value]) -> list[Value]:
        x = b.read(b.advance(p, i, VECTOR), V16F)
        return [b.select(b.fcmp_ordered(">", x, values[0]), x, values[0])]

    v = b.count_loop(n, [const(V16F, float("-inf"))], body)[0]
    width = LANES
    while width > 1:
        width //= 2
        low = b.shuffle(v, list(range(width)))
        high = b.shuffle(v, list(range(width, 2 * width)))
        v = b.select(b.fcmp_ordered(">", low, high), low, high)
    return b.extract_element(v, ir.Constant(ir.IntType(32), 0))


largest = vector("largest", "pp", _largest, "f")


append_f16 = make_append("append_f16", True)
append_f32 = make_append("append_f32", False)
for _name in ("f16", "f32"):
    _loader, _size = LOADERS[_name]
    for _queries in (1, 4):
        make_scores(f"scores_{_name}_{_queries}", _loader, _size, _queries)
        for _vectors in (1, 4):
            make_mix(f"mix_{_name}_{_queries}{_vectors}", _loader, _size, _queries, _vectors)
    make_widen(f"widen_{_name}", _loader, _size)
mix_f32_61, mix_f32_64 = (
    make_mix(f"mix_f32_6{n}", *LOADERS["f32"], 6, n, fetches=False) for n in (1, 4)
)
