# mypy: ignore-errors
# ruff: noqa: N803 - compile-time constants of a kernel are written in capitals
"""Kernels of `TritonBackend`: each fuses operations that would each read and write the GPU's memory."""

import triton
import triton.language as tl


@triton.jit
def _scores(
    q,
    k,
    scale,
    head,
    rows,
    columns,
    n,
    m,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """q·k of a tile for one head, scaled."""
    depth = tl.arange(0, PADDED)
    deep = depth < DEPTH
    queries = tl.load(
        q + (head * n + rows[:, None]).to(tl.int64) * DEPTH + depth[None, :],
        mask=(rows[:, None] < n) & deep[None, :],
        other=0.0,
    )
    keys = tl.load(
        k + (head * DEPTH + depth[:, None]).to(tl.int64) * m + columns[None, :],
        mask=deep[:, None] & (columns[None, :] < m),
        other=0.0,
    )
    if WIDEN:
        queries, keys = queries.to(tl.float32), keys.to(tl.float32)
    return tl.dot(queries, keys, input_precision=PRECISION) * scale


@triton.jit
def softmax_denominators(
    q,  # (heads, n, d)
    k,  # (heads, d, m)
    scale,  # log2(e) / sqrt(d): exponentials are powers of 2
    out,  # (heads, n): log2 of heads * sum of exponentials, so that the sum over heads of 2^(score - out) is the mean
    n,
    m,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    highest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, m, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        scores = _scores(q, k, scale, head, rows, columns, n, m, DEPTH, PADDED, PRECISION, WIDEN)
        scores = tl.where(columns[None, :] < m, scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        total = total * tl.exp2(highest - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)
        highest = higher
    tl.store(out + head * n + rows, highest + tl.log2(total * HEADS), mask=rows < n)


@triton.jit
def mean_softmax(
    q,
    k,
    scale,
    denominators,
    out,  # (n, m) float32
    n,
    m,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROUND: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    for head in range(HEADS):
        scores = _scores(q, k, scale, head, rows, columns, n, m, DEPTH, PADDED, PRECISION, WIDEN)
        denominator = tl.load(denominators + head * n + rows, mask=rows < n, other=0.0)
        mean += tl.exp2(scores - denominator[:, None])
    if ROUND:
        mean = mean.to(tl.bfloat16).to(tl.float32)
    inside = (rows[:, None] < n) & (columns[None, :] < m)
    tl.store(out + rows[:, None].to(tl.int64) * m + columns[None, :], mean, mask=inside)


@triton.jit
def fill_factors(
    p,  # (n, m) float32
    rounded,  # (n, m) bfloat16: p
    remainder,  # (n, m) bfloat16: p less that
    logs,  # (n, m) bfloat16: log(p * m)
    negentropy,  # (n,)
    log_norm,  # (n,)
    m,
    EPSILON: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * m
    products = tl.zeros((COLUMNS,), tl.float32)
    squares = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, m, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < m
        values = tl.load(p + row + columns, mask=inside, other=0.0)
        log = tl.log(tl.maximum(values, EPSILON) * m).to(tl.bfloat16)
        rounded_p = values.to(tl.bfloat16)
        tl.store(rounded + row + columns, rounded_p, mask=inside)
        tl.store(remainder + row + columns, (values - rounded_p.to(tl.float32)).to(tl.bfloat16), mask=inside)
        tl.store(logs + row + columns, log, mask=inside)
        product = rounded_p.to(tl.float32) * log.to(tl.float32)
        products += product
        squares += product * log.to(tl.float32)
    tl.store(negentropy + tl.program_id(0), tl.sum(products, 0))
    tl.store(log_norm + tl.program_id(0), tl.sqrt(tl.sum(squares, 0)))


@triton.jit
def pair_kl(p, row, q, other, out, m, EPSILON: tl.constexpr, COLUMNS: tl.constexpr):  # of the pairs (p[row], q[other])
    pair = tl.program_id(0)
    first, second = tl.load(row + pair) * m, tl.load(other + pair) * m
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, m, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        a = tl.load(p + first + columns, mask=columns < m, other=1.0)
        b = tl.load(q + second + columns, mask=columns < m, other=1.0)
        total += (a - b) * (tl.log(tl.maximum(a, EPSILON)) - tl.log(tl.maximum(b, EPSILON)))
    tl.store(out + pair, tl.sum(total, 0))
