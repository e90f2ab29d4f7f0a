"""The arithmetic of a multi-rate optimizer step, of one tensor's scalars and of blocks of its elements.

Formulas: ``csrc/common/multi_rate.h``, whose order of operations is kept here. Everything is computed in the dtype of
the groups' table: fp64 for fp64 parameters, else fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import multi_rate_tables as table

__all__ = [
    "adamw_scalars",
    "adamw_update",
    "bias_correction",
    "gradient_factor",
    "join_remainder",
    "sgd_scalars",
    "sgd_update",
    "split_remainder",
]


@triton.jit
def gradient_factor(p_group, p_sums, p_grad_scale, group, num_groups, CLIP: tl.constexpr):
    """What a gradient is multiplied by as it is loaded: sign, clipping and the scale of mixed precision in one.

    Clipping follows ``torch.nn.utils.clip_grad_norm_``. It alone computes in fp64 here, as its sums are.
    """
    factor = tl.load(p_group + table.SIGN)
    T: tl.constexpr = factor.dtype
    if CLIP == "none":
        if p_grad_scale is not None:
            factor *= divide(tl.full([], 1.0, T), tl.load(p_grad_scale).to(T))
    else:
        scale = tl.full([], 1.0, tl.float64)
        if p_grad_scale is not None:
            scale = tl.load(p_grad_scale).to(tl.float64)
        norm = tl.sqrt(tl.load(p_sums + (num_groups if CLIP == "global" else group))) / scale
        coefficient = tl.load(p_group + table.MAX_NORM).to(tl.float64) / (norm + 1e-6)
        factor *= (tl.where(coefficient < 1.0, coefficient, 1.0) / scale).to(T)
    return factor


@triton.jit
def learning_rate(p_row, p_group):
    """The group's, or where that is a tensor what it holds."""
    rate = tl.load(p_group + table.RATE)
    a_rate = tl.load(p_row + table.RATE_ADDRESS)
    if a_rate != 0:
        if (tl.load(p_row + table.FLAGS) & table.RATE_IS_DOUBLE) != 0:
            rate = tl.load(a_rate.to(tl.pointer_type(tl.float64), bitcast=True)).to(rate.dtype)
        else:
            rate = tl.load(a_rate.to(tl.pointer_type(tl.float32), bitcast=True)).to(rate.dtype)
    return rate


@triton.jit
def adamw_scalars(p_row, p_group, factor):
    """Numbers that all elements of a tensor share."""
    T: tl.constexpr = factor.dtype
    rate = learning_rate(p_row, p_group)
    t = (tl.load(tl.load(p_row + table.STEP).to(tl.pointer_type(tl.float32), bitcast=True)) + 1.0).to(T)
    decay = 1.0 - rate * tl.load(p_group + table.WEIGHT_DECAY)
    step_size = divide(rate, bias_correction(tl.load(p_group + table.LOG_BETA1), t))
    unbias = divide(tl.full([], 1.0, T), square_root(bias_correction(tl.load(p_group + table.LOG_BETA2), t)))
    one_minus_beta1 = tl.load(p_group + table.ONE_MINUS_BETA1)
    beta2, one_minus_beta2 = tl.load(p_group + table.BETA2), tl.load(p_group + table.ONE_MINUS_BETA2)
    return factor, decay, step_size, one_minus_beta1, beta2, one_minus_beta2, unbias, tl.load(p_group + table.EPS)


@triton.jit
def adamw_update(param, grad, exp_avg, exp_avg_sq, largest, amsgrad, scalars):
    factor, decay, step_size, one_minus_beta1, beta2, one_minus_beta2, unbias, eps = scalars
    grad = factor * grad
    exp_avg = tl.fma(one_minus_beta1, grad - exp_avg, exp_avg)
    exp_avg_sq = tl.fma(one_minus_beta2 * grad, grad, beta2 * exp_avg_sq)
    # NaN in either stays, as torch.maximum has it
    largest = tl.where((largest > exp_avg_sq) | (largest != largest), largest, exp_avg_sq)
    root = square_root(tl.where(amsgrad, largest, exp_avg_sq))
    param = decay * param - divide(step_size * exp_avg, tl.fma(root, unbias, eps))
    return param, exp_avg, exp_avg_sq, largest


@triton.jit
def sgd_scalars(p_row, p_group, factor):
    """Numbers that all elements of a tensor share."""
    T: tl.constexpr = factor.dtype
    one_minus_dampening = tl.load(p_group + table.ONE_MINUS_DAMPENING)
    a_step = tl.load(p_row + table.STEP)
    # the buffer is 0 before the first update, which takes the gradient whole
    first = tl.load(a_step.to(tl.pointer_type(tl.float32), bitcast=True), a_step != 0, 1.0) == 0.0
    one_minus_dampening = tl.where(first, tl.full([], 1.0, T), one_minus_dampening)
    momentum, weight_decay = tl.load(p_group + table.MOMENTUM), tl.load(p_group + table.WEIGHT_DECAY)
    return factor, weight_decay, momentum, one_minus_dampening, learning_rate(p_row, p_group)


@triton.jit
def sgd_update(param, grad, buffer, has_momentum, nesterov, scalars):
    factor, weight_decay, momentum, one_minus_dampening, rate = scalars
    grad = tl.fma(weight_decay, param, factor * grad)
    buffer = tl.fma(momentum, buffer, one_minus_dampening * grad)
    direction = tl.where(nesterov, tl.fma(momentum, buffer, grad), buffer)
    param = param - rate * tl.where(has_momentum, direction, grad)
    return param, buffer


@triton.jit
def bias_correction(log_beta, t):
    """1 - beta^t; exp(t ln beta) subtracted from 1 in its place would lose what is asked for."""
    # e^x - 1 = 2^k (e^r - 1) + (2^k - 1) with |r| <= ln(2) / 2; below -40, -1 to the last bit
    x = tl.maximum(t * log_beta, -40.0)
    k = tl.floor(x * 1.4426950408889634 + 0.5)
    # ln(2) in two parts, the first of so few bits that k times it is exact
    r = x - k * 0.693145751953125 - k * 1.42860682030941723212e-6
    # of the series of e^r - 1, after which the next adds nothing
    terms: tl.constexpr = 8 if x.dtype == tl.float32 else 15
    series = tl.full([], 1.0, x.dtype)
    for i in tl.static_range(terms - 1):
        series = series * r * (1.0 / (terms - i)) + 1.0
    # 2^k by its bits
    if x.dtype == tl.float32:
        power = ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    else:
        power = ((k.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    return -tl.fma(power, r * series, power - 1.0)


@triton.jit
def divide(x, y):
    """Rounded to nearest; plain division in fp32 is not."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def square_root(x):
    """Rounded to nearest; the plain root in fp32 is not."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def join_remainder(high, low):
    """bfloat16 bits and the 16 bits that they lack, as a float."""
    return ((high.to(tl.int32) << 16) + low.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def split_remainder(x):
    """A float as bfloat16 bits, to the nearest with ties away from zero, and the distance of the bit patterns."""
    # a carry out of NaN's mantissa would make it -0
    bits = tl.where(x == x, x.to(tl.int32, bitcast=True), 0x7FC00000)
    return ((bits + 0x8000) >> 16).to(tl.int16), bits.to(tl.int16)
