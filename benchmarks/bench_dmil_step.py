"""A step of DMIL's third stage: this project's ops against the model written module by module in plain PyTorch.

    python benchmarks/bench_dmil_step.py [--device cpu] [--threads 2]

Two modalities, batch 64, ten classes; forward, all losses, backward, and torch's fused SGD. Both hold the
same parameters. The module-by-module form is what one writes with ``torch.nn``: a linear layer for every mean and every
log-variance, a function for the divergence, ``F.cross_entropy`` for every head. Correctness comes first: in evaluation,
where nothing is drawn, the losses of both must agree.

On a CUDA device each form is also measured as a graph, optimizer included: captured once, replayed for every step.
Nothing in the step reads a value on the host. The noise is made in the kernels from seeds in device memory, which the
graph itself draws from torch's generator of the device; torch moves that generator on with every replay, so that no two
replays have the same noise, and backward makes anew that of its own forward. The rate, a Python number here, is frozen
in the graph.
"""

from __future__ import annotations

import argparse

import harness
import torch
import torch.nn.functional as F
from plain_pgm import plain
from torch import nn

from pgm_fast import backends
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import DMILConfig, ModelConfig, build
from pgm_fast.methods.dmil_config import JOINT

NAMES = ("audio", "vision")
BATCH, CLASSES = 64, 10
WIDTHS = (32, 128, 512)  # 32 is that of the published CREMA-D runs


class Gaussian(nn.Module):
    """Mean and log-variance by a layer each."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.mu, self.logvar = nn.Linear(width_in, width), nn.Linear(width_in, width)

    def forward(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) if self.training else mu
        return z, mu, logvar


def divergence(mu, logvar, prior_mu=None, prior_logvar=None):
    """Mean over batch and dimensions."""
    if prior_mu is None:
        prior_mu, prior_logvar = torch.zeros_like(mu), torch.zeros_like(logvar)
    ratio = logvar - prior_logvar
    return 0.5 * torch.mean(-ratio + ratio.exp() + (mu - prior_mu).pow(2) / prior_logvar.exp() - 1)


class ByModules(nn.Module):
    """DMIL's third stage with the encoders, widths and weights of ``model``."""

    def __init__(self, model):
        super().__init__()
        self.config, d = model.config, model.model_config.dim
        self.encoders = plain(model.encoders)
        self.m = nn.ModuleDict({n: Gaussian(d, d) for n in NAMES})
        self.n = nn.ModuleDict({n: Gaussian(d, d) for n in NAMES})
        self.v = nn.ModuleDict({n: Gaussian(d, d) for n in NAMES})
        self.u = nn.ModuleDict({n: Gaussian(d, d) for n in NAMES})
        self.r = Gaussian(2 * d, d)
        self.rebuild_h, self.rebuild_m = model.intra["rebuild"], model.consistency["rebuild"]
        self.m_heads, self.u_heads = model.intra["heads"], model.consistency["unique_heads"]
        self.synergy = model.consistency["synergistic"]
        self.r_head, self.s_head = model.consistency["redundant_head"], model.consistency["synergistic_head"]
        gate = model.consistency["gate"]
        self.gate = nn.Sequential(gate.hidden, nn.ReLU(), gate.out, nn.Softmax(dim=1))
        for name in NAMES:
            _copy(model.intra["layers"][name], self.m[name], self.n[name])
            _copy(model.consistency["unique"][name], self.v[name], self.u[name])
        _copy(model.consistency["redundant"], self.r)

    def forward(self, batch: Batch):
        w, y, cfg = {}, batch.labels, self.config
        uni, kl, rec = cfg.uni_weight[JOINT], cfg.kl_weight[JOINT], cfg.reconstruction_weight[JOINT]
        kl_c, rebuild, part = (
            cfg.consistency_kl_weight[JOINT],
            cfg.rebuild_weight[JOINT],
            cfg.component_weight[JOINT],
        )
        losses, means, rests = {}, {}, {}
        for name in NAMES:
            h = self.encoders[name](batch.inputs[name])
            m, means[name], m_logvar = self.m[name](h)
            rests[name], n_mu, n_logvar = self.n[name](h)
            losses[f"uni/{name}"], w[f"uni/{name}"] = F.cross_entropy(self.m_heads[name](m), y), uni
            losses[f"kl_predictive/{name}"] = divergence(means[name], m_logvar)
            losses[f"kl_rest/{name}"] = divergence(n_mu, n_logvar)
            w[f"kl_predictive/{name}"] = w[f"kl_rest/{name}"] = kl
            rebuilt = self.rebuild_h[name](torch.cat([m, rests[name]], dim=1))
            losses[f"reconstruction/{name}"], w[f"reconstruction/{name}"] = F.mse_loss(rebuilt, h), rec
        r, r_mu, r_logvar = self.r(torch.cat(list(means.values()), dim=1))
        losses["kl_redundant"], w["kl_redundant"] = divergence(r_mu, r_logvar), kl_c
        components, logits = [], []
        for name in NAMES:
            _, v_mu, v_logvar = self.v[name](means[name])
            u, u_mu, u_logvar = self.u[name](means[name])
            losses[f"align/{name}"] = divergence(r_mu, r_logvar, v_mu, v_logvar)
            losses[f"kl_unique/{name}"] = divergence(u_mu, u_logvar)
            w[f"align/{name}"] = w[f"kl_unique/{name}"] = kl_c
            rebuilt = self.rebuild_m[name](torch.cat([r, u], dim=1))
            losses[f"rebuild/{name}"], w[f"rebuild/{name}"] = F.mse_loss(rebuilt, means[name]), rebuild
            components.append(u)
            logits.append(self.u_heads[name](u))
        a, b = rests.values()
        s = self.synergy(torch.cat([a, b, a * b], dim=1))
        components += [r, s]
        logits += [self.r_head(r), self.s_head(s)]
        gate = self.gate(torch.cat(components, dim=1))
        fused = sum(gate[:, k : k + 1] * x for k, x in enumerate(logits))
        losses["task"], w["task"] = F.cross_entropy(fused, y), cfg.task_weight[JOINT]
        for name, x in zip(("unique/audio", "unique/vision", "redundant", "synergistic"), logits, strict=True):
            losses[name], w[name] = F.cross_entropy(x, y), part
        losses["total"] = sum(w[name] * loss for name, loss in losses.items())
        return losses


def _copy(source, *layers: Gaussian) -> None:
    """The rows of all means, then of all log-variances, to a layer each."""
    goals = [layer.mu for layer in layers] + [layer.logvar for layer in layers]
    with torch.no_grad():
        rows = (x.chunk(len(goals)) for x in (source.linear.weight, source.linear.bias))
        for goal, weight, bias in zip(goals, *rows, strict=True):
            goal.weight.copy_(weight)
            goal.bias.copy_(bias)


def step_of(model: nn.Module, losses, batch: Batch):
    """``(step, clear)`` of a whole step, and of its forward and backward alone."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4, fused=True)

    def backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(model(batch))["total"].backward()

    def step() -> None:
        backward()
        optimizer.step()

    return step, backward, optimizer.zero_grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rows = torch.device(arguments.device), []
    for d in WIDTHS:
        rows += measure(d, device)
    print(harness.write("dmil_step", device, rows))


def measure(d: int, device: torch.device) -> list[dict]:
    """Rows of one width."""
    spec, rows = DataSpec({m: ModalitySpec(d) for m in NAMES}, "classification", CLASSES), []
    torch.manual_seed(0)
    ours = build("dmil", spec, ModelConfig(dim=d, hidden=d, dropout=0.0, normalize=False), DMILConfig()).to(device)
    batch = Batch(
        inputs={m: torch.randn(BATCH, d) for m in NAMES},
        weight=torch.full((BATCH,), 1.0 / BATCH),
        index=torch.arange(BATCH),
        labels=torch.randint(CLASSES, (BATCH,)),
    ).to(device)
    plain = ByModules(ours).to(device)
    with torch.no_grad():  # what autograd keeps of these would belong to another stream than a capture's
        want, got = plain.eval()(batch), ours.eval()(batch).losses
    assert set(want) == set(got)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)
    models = {
        "module by module": step_of(plain.train(), lambda losses: losses, batch),
        "pgm_fast": step_of(ours.train(), lambda output: output.losses, batch),
    }
    if device.type == "cuda":
        for name, (step, backward, _) in list(models.items()):
            graphs = harness.captured(step, device), harness.captured(backward, device)
            # gradients are the graph's own memory: there are none to drop
            models[f"{name}, captured"] = *graphs, lambda: None
    for kind, position in (("step", 0), ("forward+backward", 1)):
        timings = harness.interleaved({name: calls[position] for name, calls in models.items()}, device)
        for name, timing in timings.items():
            counts = harness.count(models[name][position], device, clear=models[name][2])
            speedup = timings["module by module"].median / timing.median
            rows.append(
                harness.as_row(
                    timing,
                    counts,
                    step="dmil stage 3",
                    variant=name,
                    kind=kind,
                    optimizer="torch SGD, fused",
                    backend=backends.chosen("gaussian_sample_kl", device.type) if "pgm_fast" in name else "torch",
                    dtype="float32",
                    shape={"batch": BATCH, "modalities": len(NAMES), "d": d},
                    times_module_by_module=round(speedup, 2),
                )
            )
            print(
                f"d={d:<4} {kind:17} {name:26} {timing.median:8.2f} ms ({timing.p20:.2f} to {timing.p80:.2f})  "
                f"{counts.ops} ops  {counts.host_reads} host reads  {counts.peak_bytes / 2**20:.1f} MiB  {speedup:.2f}x"
            )
    return rows


if __name__ == "__main__":
    main()
