"""DMIL against its formulas, written a second time: all three stages with the released weights, twenty steps of the
published optimizer each. Only the noise is taken from the package."""

from __future__ import annotations

import numpy as np
import torch
from plain_model import Momentum, copies, cross_entropy, draw, gradients, linear, make, mlp, steps_with_momentum
from tolerances import FP64

from pgm_fast import ops
from pgm_fast.methods import ModelConfig
from pgm_fast.ops.philox import draw_seed

D = 6
PLAIN = ModelConfig(dim=D, hidden=7, heads=1, dropout=0.0, normalize=False)
RATE, DECAY = 0.05, 1e-4
INTRA, CONSISTENCY, JOINT = range(3)
TRAINED = {INTRA: ("encoders", "intra"), CONSISTENCY: ("consistency",), JOINT: ("encoders", "intra", "consistency")}


def noise_of(step, rows):
    """Standard normal: of M and N of each modality, of R, of each U."""
    torch.manual_seed(step)
    zeros = {layers: torch.zeros(rows, D * layers, dtype=torch.float64) for layers in (1, 2)}
    layers = (2, 2, 1, 1, 1)
    seeds = draw_seed(torch.device("cpu"), count=5).split(1)
    return [
        ops.gaussian_sample_kl(zeros[k], zeros[k], sample=True, seed=seed, layers=k)[0]
        for k, seed in zip(layers, seeds, strict=True)
    ]


def gaussians(p, prefix, x):
    return linear(p, f"{prefix}.linear", x).chunk(2, -1)


def divergence(mu, logvar, prior_mu=0.0, prior_logvar=0.0):
    """Mean over rows and dimensions."""
    apart = logvar - prior_logvar
    return 0.5 * (-apart + apart.exp() + (mu - prior_mu) ** 2 * torch.exp(-torch.as_tensor(prior_logvar)) - 1).mean()


def error(wanted, rebuilt):
    return (wanted - rebuilt).square().sum() / wanted.numel()


def rebuilt(p, prefix, x):
    return linear(p, f"{prefix}.2", linear(p, f"{prefix}.0", x).clamp(min=0))


def weight(value):
    """Of a loss, as the package keeps it: in float32."""
    return float(np.float32(value))


def loss_of(p, batch, stage, noise):
    h = {m: mlp(p, f"encoders.{m}.net", x) for m, x in batch.inputs.items()}
    means, rests, uni, kl, reconstruction = {}, {}, {}, {}, {}
    for k, m in enumerate(h):
        mu, logvar = gaussians(p, f"intra.layers.{m}", h[m])
        z = mu + (logvar / 2).exp() * noise[k]
        means[m], rests[m] = mu[:, :D], z[:, D:]
        uni[m] = cross_entropy(linear(p, f"intra.heads.{m}", z[:, :D]), batch.labels)
        kl[m] = divergence(mu[:, :D], logvar[:, :D]) + divergence(mu[:, D:], logvar[:, D:])
        reconstruction[m] = error(h[m], rebuilt(p, f"intra.rebuild.{m}", z))
    if stage == INTRA:
        # a is the pictures, the first modality
        loss = uni["a"] + uni["b"] + weight(0.008) * kl["a"] + weight(0.04) * kl["b"]
        return loss + weight(0.002) * reconstruction["a"] + weight(0.01) * reconstruction["b"]

    r_mu, r_logvar = gaussians(p, "consistency.redundant", torch.cat([means["a"], means["b"]], -1))
    redundant = r_mu + (r_logvar / 2).exp() * noise[2]
    kls, rebuilds, unique = divergence(r_mu, r_logvar), 0.0, {}
    for k, m in enumerate(h):
        mu, logvar = gaussians(p, f"consistency.unique.{m}", means[m])
        kls = kls + divergence(r_mu, r_logvar, mu[:, :D], logvar[:, :D]) + divergence(mu[:, D:], logvar[:, D:])
        unique[m] = mu[:, D:] + (logvar[:, D:] / 2).exp() * noise[3 + k]
        again = rebuilt(p, f"consistency.rebuild.{m}", torch.cat([redundant, unique[m]], -1))
        rebuilds = rebuilds + error(means[m], again)
    both = torch.cat([rests["a"], rests["b"], rests["a"] * rests["b"]], -1)
    synergistic = linear(p, "consistency.synergistic", both)
    heads = {f"unique_heads.{m}": x for m, x in unique.items()}
    heads |= {"redundant_head": redundant, "synergistic_head": synergistic}
    logits = [linear(p, f"consistency.{name}", x) for name, x in heads.items()]
    hidden = linear(p, "consistency.gate.hidden", torch.cat(list(heads.values()), -1)).clamp(min=0)
    gate = linear(p, "consistency.gate.out", hidden).softmax(-1)
    task = cross_entropy(sum(gate[:, k, None] * z for k, z in enumerate(logits)), batch.labels)
    components = sum(cross_entropy(z, batch.labels) for z in logits)
    if stage == CONSISTENCY:
        return task + weight(0.02) * kls + weight(0.005) * rebuilds + weight(0.5) * components
    loss = (
        task
        + weight(0.5) * sum(uni.values())
        + weight(0.02) * sum(kl.values())
        + weight(0.003) * sum(reconstruction.values())
    )
    return loss + weight(0.008) * kls + weight(0.001) * rebuilds + weight(0.8) * components


def test_twenty_steps_of_each_stage():
    method = make("dmil", model=PLAIN, modality_weight={"a": 0.4, "b": 2.0}, stage_rates=[1.0, 1.0, 1.0])
    p = copies(method)
    batches = [draw(rows=10, seed=step) for step in range(20)]
    for stage in (INTRA, CONSISTENCY, JOINT):
        train, own = steps_with_momentum(method, stage, RATE, DECAY), Momentum(RATE, DECAY)
        train(0, batches)
        for step, batch in enumerate(batches):
            loss = loss_of(p, batch, stage, noise_of(step, len(batch.labels)))
            p = own.step(p, gradients(p, loss), TRAINED[stage])
        torch.testing.assert_close(dict(method.named_parameters()), p, rtol=FP64, atol=FP64)
