"""A sample of a diagonal Gaussian and its KL divergence from a prior, in one pass; the noise is replayed, not stored.

    z = mu + exp(logvar / 2) * noise(seed, row, column)
    kl = mean over rows and dimensions of
         1/2 (exp(l) - l - 1 + (mu - prior_mu)^2 exp(-prior_logvar)),  l = logvar - prior_logvar

The reparameterised sample: Kingma & Welling, ICLR 2014. The mean, where the sum over dimensions is usual, is the
convention of DMIL (Yang et al., CVPR 2026, arXiv 2606.11614).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends
from ..backends.native import NATIVE_DTYPES
from ..backends.triton import contiguous_rows, register_triton
from .checks import check_features, check_tensor
from .dtypes import accumulation_dtype
from .philox import draw_seed, normal
from .registration import define, define_autograd, define_backward

__all__ = ["gaussian_sample_kl"]


def gaussian_sample_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    generator: torch.Generator | None = None,
    sample: bool = True,
    *,
    seed: Tensor | None = None,
    row_weight: Tensor | None = None,
    layers: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws from N(mu, exp(logvar)) and measures KL(N(mu, exp(logvar)) || prior).

    Args:
        mu, logvar: ``[..., d]``, floating point, of one dtype.
        prior_mu, prior_logvar: ``[..., d]``, both or neither; None for the standard normal prior. They receive
            gradients.
        generator: where the seed of the noise is drawn from; None for torch's own generator of the device, so that
            ``torch.manual_seed`` and saved generator states hold for the noise too.
        sample: False for z = mu and no noise.
        seed: int64 ``[1]`` on the device of ``mu``, in place of one drawn from the generator.
        row_weight: ``[...]``, weight of each row in kl, not normalised here and not differentiated; None means 1 /
            rows, the mean.
        layers: a count L that divides d, for L distributions side by side: kl is then not summed over rows but
            ``[..., L]``, the mean over each one's d / L dimensions. Not together with ``row_weight``.

    Returns:
        ``(z[..., d], kl)``: z in the dtype of ``mu``; kl in fp32 (fp64 for fp64), a scalar, 0 for an empty batch, or
        ``[..., L]``. The same seed gives the same noise in every row and column whatever the other rows are, bitwise
        on one machine and backend, and up to a few roundings across machines, backends and dtypes (16-bit results
        round the fp32 one).

    Under autocast the op runs in the dtypes it is given. In ``torch.compile(fullgraph=True)`` leave ``generator`` None
    or hand in a ``seed``.

    Raises:
        TypeError: an argument that is not a floating-point tensor, dtypes that differ, a seed that is not int64.
        ValueError: shapes that do not fit, tensors on different devices, one prior argument without the other, a count
            of layers that does not divide d.
    """
    check_features("mu", mu)
    check_tensor("logvar", logvar, shape=tuple(mu.shape), like=mu)
    if (prior_mu is None) != (prior_logvar is None):
        given, missing = ("prior_logvar", "prior_mu") if prior_mu is None else ("prior_mu", "prior_logvar")
        raise ValueError(f"{missing} must be given with {given}, got None")
    named = {"logvar": logvar}
    if prior_mu is not None and prior_logvar is not None:
        named |= {"prior_mu": prior_mu, "prior_logvar": prior_logvar}
    for name, x in named.items():
        check_tensor(name, x, shape=tuple(mu.shape), like=mu)
        if x.dtype != mu.dtype:
            raise TypeError(f"{name} must have the dtype of mu ({mu.dtype}), got {x.dtype}")
    if row_weight is not None:
        check_tensor("row_weight", row_weight, shape=tuple(mu.shape[:-1]), like=mu)
        if layers is not None:
            raise ValueError("row_weight must be None where layers is given: kl is then not summed over rows")
    d = mu.shape[-1]
    if layers is not None and (not isinstance(layers, int) or layers < 1 or d % layers):
        raise ValueError(f"layers must be a whole number that divides the last dimension ({d}), got {layers}")
    if not sample:
        seed = None
    elif seed is None:
        seed = draw_seed(mu.device, generator)
    else:
        _check_seed(seed, mu)
    mu_rows, logvar_rows = mu.reshape(-1, d), logvar.reshape(-1, d)
    prior_rows = (None if x is None else x.reshape(-1, d) for x in (prior_mu, prior_logvar))
    z, kl = _gaussian_sample_kl(mu_rows, logvar_rows, *prior_rows, seed, layers or 1)
    z = z.reshape(mu.shape) if sample else mu
    if layers is not None:
        return z, kl.reshape(*mu.shape[:-1], layers)
    if row_weight is not None:
        return z, (kl.squeeze(1) * row_weight.detach().reshape(-1).to(kl.dtype)).sum()
    return z, kl.sum() / max(kl.shape[0], 1)


def _check_seed(seed: object, mu: Tensor) -> None:
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64:
        raise TypeError(f"seed must be an int64 tensor, got {getattr(seed, 'dtype', type(seed).__name__)}")
    if seed.shape != (1,) or seed.device != mu.device:
        raise ValueError(
            f"seed must have shape [1] on {mu.device}, the device of mu; got {list(seed.shape)} on {seed.device}"
        )


def _reference(mu, logvar, prior_mu, prior_logvar, seed, layers):
    dtype = accumulation_dtype(mu.dtype)
    wide_mu, wide_logvar = mu.to(dtype), logvar.to(dtype)
    shift, ratio = (wide_mu, wide_logvar) if prior_mu is None else (wide_mu - prior_mu, wide_logvar - prior_logvar)
    distance = shift.square() if prior_mu is None else shift.square() * torch.exp(-prior_logvar.to(dtype))
    kl = 0.5 * (torch.expm1(ratio) - ratio + distance)
    kl = kl.unflatten(1, (layers, -1)).mean(-1)
    if seed is None:
        return mu.new_empty(0), kl
    z = wide_mu + torch.exp(0.5 * wide_logvar) * normal(seed, mu.shape[0], mu.shape[1], dtype)
    return z.to(mu.dtype), kl


def _reference_backward(grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, seed):
    dtype = accumulation_dtype(mu.dtype)
    wide_mu, wide_logvar = mu.to(dtype), logvar.to(dtype)
    shift, ratio = (wide_mu, wide_logvar) if prior_mu is None else (wide_mu - prior_mu, wide_logvar - prior_logvar)
    precision = 1.0 if prior_mu is None else torch.exp(-prior_logvar.to(dtype))
    each = mu.shape[1] // grad_kl.shape[1]
    scale = (grad_kl.to(dtype) / each).repeat_interleave(each, dim=1)
    by_mu = scale * shift * precision
    by_logvar = 0.5 * scale * torch.expm1(ratio)
    grad_mu, grad_logvar = by_mu, by_logvar
    if seed is not None:
        grad_z = grad_z.to(dtype)
        grad_mu = by_mu + grad_z
        noise = normal(seed, mu.shape[0], mu.shape[1], dtype)
        grad_logvar = by_logvar + grad_z * (0.5 * torch.exp(0.5 * wide_logvar)) * noise
    grads = [grad_mu.to(mu.dtype), grad_logvar.to(mu.dtype)]
    if prior_mu is None:
        return *grads, mu.new_empty(0), mu.new_empty(0)
    by_prior = -by_logvar - 0.5 * by_mu * shift
    return *grads, (-by_mu).to(mu.dtype), by_prior.to(mu.dtype)


def _fake(mu, logvar, prior_mu, prior_logvar, seed, layers):
    z = mu.new_empty(0) if seed is None else mu.new_empty(mu.shape)
    return z, mu.new_empty((mu.shape[0], layers), dtype=accumulation_dtype(mu.dtype))


def _fake_backward(grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, seed):
    absent = 0 if prior_mu is None else mu.shape
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape), mu.new_empty(absent), mu.new_empty(absent)


_gaussian_sample_kl = define(
    "gaussian_sample_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor? seed, int layers) -> "
    "(Tensor, Tensor)",
    _reference,
    _fake,
)
_gaussian_sample_kl_backward = define_backward(
    "gaussian_sample_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor? prior_mu, "
    "Tensor? prior_logvar, Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor)",
    _reference_backward,
    _fake_backward,
)


def _matrix(x: Tensor | None) -> tuple[int, int, int]:
    """(address, dtype, distance between rows); a null address for what is not there."""
    if x is None:
        return 0, 0, 0
    # the stride of a dimension of size 1 means nothing
    return x.data_ptr(), NATIVE_DTYPES[x.dtype], x.stride(0) if x.shape[0] > 1 else x.shape[1]


def _rows(x: Tensor | None) -> Tensor | None:
    """``x`` as the kernel reads it: whole rows, which may lie apart (halves of a wider matrix) but where they are
    converted."""
    if x is None or (x.stride(-1) == 1 and x.stride(0) >= x.shape[1] and x.dtype.itemsize >= 4):
        return x
    return x.contiguous()


def _load_native():
    import pgm_fast._native as native

    kernel, threads = native.gaussian_sample_kl, torch.get_num_threads

    def run(mu, logvar, prior_mu, prior_logvar, seed, layers):
        tensors = [_rows(x) for x in (mu, logvar, prior_mu, prior_logvar)]
        z = mu.new_empty(0 if seed is None else mu.shape)
        kl = mu.new_empty((mu.shape[0], layers), dtype=accumulation_dtype(mu.dtype))
        made = _matrix(None if seed is None else z), kl.data_ptr()
        kernel(*mu.shape, layers, *map(_matrix, tensors), 0 if seed is None else seed.data_ptr(), *made, threads())
        return z, kl

    return run


def _load_native_backward():
    import pgm_fast._native as native

    kernel, threads = native.gaussian_sample_kl_backward, torch.get_num_threads

    def run(grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, seed):
        tensors = [_rows(x) for x in (None if seed is None else grad_z, mu, logvar, prior_mu, prior_logvar)]
        layers = grad_kl.shape[1]
        if layers > 1 and grad_kl.stride(1) != 1:
            grad_kl = grad_kl.contiguous()
        absent = 0 if prior_mu is None else mu.shape
        made = [mu.new_empty(shape) for shape in (mu.shape, mu.shape, absent, absent)]
        outputs = [_matrix(x if x.numel() or prior_mu is not None else None) for x in made[2:]]
        address = 0 if seed is None else seed.data_ptr()
        kernel(
            *mu.shape, layers, _matrix(grad_kl), *map(_matrix, tensors), address, *map(_matrix, made[:2]), *outputs,
            threads(),
        )  # fmt: skip
        return tuple(made)

    return run


_NATIVE = {"devices": ("cpu",), "dtypes": tuple(NATIVE_DTYPES)}
backends.register("gaussian_sample_kl", "native", _load_native, **_NATIVE)
backends.register("gaussian_sample_kl_backward", "native", _load_native_backward, **_NATIVE)
register_triton("gaussian_sample_kl", prepare=contiguous_rows)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, seed, _ = inputs
    ctx.save_for_backward(*tensors, seed)


def _backward(ctx, grad_z: Tensor, grad_kl: Tensor):
    grads = _gaussian_sample_kl_backward(grad_z, grad_kl, *ctx.saved_tensors)
    given = ctx.saved_tensors[2] is not None
    return *grads[:2], *(grads[2:] if given else (None, None)), None, None


define_autograd(_gaussian_sample_kl, _setup_context, _backward)
