"""Row operations of `NumbaBackend`, compiled when this module is imported (seconds, once per machine).

Each processes a row while it lies in a core's cache, and releases Python's global lock. exp and log are polynomials,
accurate to float32's last bits: a call of a library function would prevent vectorization.

Source of the polynomials' coefficients: Moshier's Cephes, expf and logf.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy import float32 as f32
from numpy import int8 as i8
from numpy import int32 as i32
from numpy.typing import NDArray

Rows = NDArray[Any]

ANY_ORDER = {"contract", "reassoc", "nsz", "nnan", "ninf"}  # of additions, so that sums are vectorized
AS_WRITTEN = ANY_ORDER - {"reassoc"}
LOG2_E = f32(1.44269504)
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
ROUNDING = f32(1.5 * 2**23)  # adding it rounds a small number to an integer, held in the last bits
ROUNDING_BITS = i32(0x4B400000 - 127)
LEAST = f32(-87.0)  # exp of it is still above zero
ROOT_HALF_BITS = i32(0x3F3504F3)
MAGNITUDE = i32(0x7FFFFFFF)
LARGEST_INT8, LEAST_SCALE = f32(127), f32(1e-30)
MANTISSA = i32(0x007FFFFF)
HALF_BITS = i32(0x7FFF)
HIGH_BITS = i32(-65536)


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile at once, and cache the machine code where a folder is writable."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return _njit(signature, cache=True)(function)
        except (RuntimeError, OSError):  # neither this file's folder nor the user's is writable
            return _njit(signature, cache=False)(function)

    return decorate


def _njit(signature: str, *, cache: bool) -> Any:
    return njit(signature, cache=cache, nogil=True, fastmath=ANY_ORDER, error_model="numpy")


@njit
def _bits(x: f32) -> i32:
    return f32(x).view(i32)


@njit
def _float(bits: i32) -> f32:
    return i32(bits).view(f32)


@njit(fastmath=AS_WRITTEN)
def _exp(x: f32) -> f32:
    shifted = max(x, LEAST) * LOG2_E + ROUNDING
    whole = shifted - ROUNDING
    rest = max(x, LEAST) - whole * LN2_HIGH - whole * LN2_LOW
    value = f32(1.9875691500e-4)
    value = value * rest + f32(1.3981999507e-3)
    value = value * rest + f32(8.3334519073e-3)
    value = value * rest + f32(4.1665795894e-2)
    value = value * rest + f32(1.6666665459e-1)
    value = value * rest + f32(5.0000001201e-1)
    value = value * rest * rest + rest + f32(1)
    return value * _float((_bits(shifted) - ROUNDING_BITS) << i32(23))


@njit(fastmath=AS_WRITTEN)
def _log(x: f32) -> f32:
    bits = i32(_bits(x) - ROOT_HALF_BITS)
    exponent = f32(bits >> i32(23))
    m = _float((bits & MANTISSA) + ROOT_HALF_BITS) - f32(1)  # x = (1 + m) 2**exponent
    value = f32(7.0376836292e-2)
    value = value * m + f32(-1.1514610310e-1)
    value = value * m + f32(1.1676998740e-1)
    value = value * m + f32(-1.2420140846e-1)
    value = value * m + f32(1.4249322787e-1)
    value = value * m + f32(-1.6668057665e-1)
    value = value * m + f32(2.0000714765e-1)
    value = value * m + f32(-2.4999993993e-1)
    value = value * m + f32(3.3333331174e-1)
    square = m * m
    value = value * m * square + exponent * LN2_LOW - f32(0.5) * square
    return value + m + exponent * LN2_HIGH


@njit(fastmath=AS_WRITTEN)
def _to_bfloat16(x: f32) -> i32:
    """The nearest bfloat16, as float32's bits of which the lower half is 0."""
    bits = _bits(x)
    return i32((bits + ((bits >> i32(16)) & i32(1)) + HALF_BITS) & HIGH_BITS)


@njit(fastmath=AS_WRITTEN)
def _ordered(bits: i32) -> i32:
    """Float32's bits as a whole number that is ordered as the floats are; its own inverse."""
    return i32(bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF)))


@compiled("void(float32[:, ::1], float32[:, ::1], float32, boolean, boolean)")
def add_softmax(scores: Rows, mean: Rows, weight: f32, shift: bool, first: bool) -> None:
    bits = scores.view(i32)
    for i in range(scores.shape[0]):
        top = f32(0)
        if shift:
            highest = i32(-(2**31))
            for j in range(scores.shape[1]):  # integers, as a maximum of floats is not vectorized
                highest = max(highest, _ordered(bits[i, j]))
            top = _float(_ordered(highest))
        total = f32(0)
        for j in range(scores.shape[1]):
            value = _exp(scores[i, j] - top)
            scores[i, j] = value
            total += value
        scale = weight / total
        if first:
            for j in range(scores.shape[1]):
                mean[i, j] = scores[i, j] * scale
        else:
            for j in range(scores.shape[1]):
                mean[i, j] += scores[i, j] * scale


@compiled("void(float32[:, ::1], int8[:, ::1], float32[::1])")
def quantize_rows(rows: Rows, rounded: Rows, scale: Rows) -> None:
    """Round each row to integers of -127 to 127 times a scale of its own, which is written to `scale`."""
    bits = rows.view(i32)
    for i in range(rows.shape[0]):
        highest = i32(0)
        for j in range(rows.shape[1]):  # integers, as a maximum of floats is not vectorized
            highest = max(highest, bits[i, j] & MAGNITUDE)
        scale[i] = max(_float(highest), LEAST_SCALE) / LARGEST_INT8
        inverse = f32(1) / scale[i]
        for j in range(rows.shape[1]):
            rounded[i, j] = i8(_bits(rows[i, j] * inverse + ROUNDING))  # the low byte is the integer


@compiled("void(int32[:, ::1], float32[::1], float32[::1], float32[::1])")
def scale_products(products: Rows, row_scale: Rows, column_scale: Rows, bias: Rows) -> None:
    """Products of quantized rows in their own units, plus a bias: float32 in place of the integers."""
    for i in range(products.shape[0]):
        for j in range(products.shape[1]):
            products[i, j] = _bits(f32(products[i, j]) * (row_scale[i] * column_scale[j]) + bias[j])


@compiled("void(float32[:, ::1], float32[:, ::1], float32[::1], float32)")
def log_rows(p: Rows, log: Rows, negentropy: Rows, epsilon: f32) -> None:
    keys = f32(p.shape[1])
    for i in range(p.shape[0]):
        total = f32(0)
        for j in range(p.shape[1]):
            value = _log(max(p[i, j], epsilon) * keys)
            log[i, j] = value
            total += p[i, j] * value
        negentropy[i] = total


@compiled("void(float32[:, ::1], int16[:, ::1], int16[:, ::1], float32[::1], float32[::1], float32)")
def fill_factors(p: Rows, rounded: Rows, log: Rows, negentropy: Rows, log_norm: Rows, epsilon: f32) -> None:
    keys = f32(p.shape[1])
    for i in range(p.shape[0]):
        total, squares = f32(0), f32(0)
        for j in range(p.shape[1]):
            p_bits, log_bits = _to_bfloat16(p[i, j]), _to_bfloat16(_log(max(p[i, j], epsilon) * keys))
            rounded[i, j], log[i, j] = p_bits >> i32(16), log_bits >> i32(16)
            term = _float(p_bits) * _float(log_bits)
            total += term
            squares += term * _float(log_bits)
        negentropy[i], log_norm[i] = total, np.sqrt(squares)


@compiled("void(float32[:, ::1], int64[:], float32[:, ::1], int64[:], float32[::1], float32)")
def pair_kl(p: Rows, row: Rows, q: Rows, other: Rows, out: Rows, epsilon: f32) -> None:
    for n in range(len(row)):
        a, b, total = row[n], other[n], f32(0)
        for j in range(p.shape[1]):
            first, second = max(p[a, j], epsilon), max(q[b, j], epsilon)
            total += (first - second) * _log(first / second)
        out[n] = total
