"""uni_paired_block: one modality's gate, learners and decoder as one op, beside the ops and layers that it is made of.

    python benchmarks/bench_uni_paired_block.py [--threads 2] [--quick]

Eager is plain PyTorch; apart is what modules call past the rows up to which they take the op (pgm_fast/nn/fused.py):
partitioned_linear, linear layers, layer norms and reconstruction. Bare is the seven products alone.
"""

from __future__ import annotations

import products
import torch
import torch.nn.functional as F

from pgm_fast import ops

SHAPES = {"cpu": ((64, 128), (64, 512), (256, 256), (1024, 256))}  # rows, d


def eager(h, gate_weight, gate_bias, *rest):
    *learners, decoder_bias = rest
    paired = torch.softmax(F.linear(h, gate_weight, gate_bias), -1).cumsum(-1) * h
    features = [_learner(part, *p[:6]) for part, p in ((h - paired, learners[:7]), (paired, learners[7:]))]
    return _decoded(features, learners, decoder_bias, h)


def apart(h, gate_weight, gate_bias, *rest):
    *learners, decoder_bias = rest
    z = F.linear(h, gate_weight, gate_bias)
    hidden = ops.partitioned_linear(h, z, *learners[:2], *learners[7:9], activation="gelu")
    features = [_out(x, *p) for x, p in zip(hidden, (learners[2:6], learners[9:13]), strict=True)]
    decoded, loss = ops.reconstruction(*features, learners[6], learners[13], decoder_bias, h)
    return *features, decoded, loss


def ours(h, gate_weight, gate_bias, *rest):
    *learners, decoder_bias = rest
    uni, paired = ops.LearnerParameters(*learners[:7]), ops.LearnerParameters(*learners[7:])
    return ops.uni_paired_block(h, gate_weight, gate_bias, uni, paired, decoder_bias, through=True)


def bare(h, gate_weight, gate_bias, *rest):
    *learners, _ = rest
    z = F.linear(h, gate_weight)
    features = [F.linear(F.linear(x, p[0]), p[2]) for x, p in ((h, learners[:7]), (z, learners[7:]))]
    return *features, F.linear(features[0], learners[6]) + F.linear(features[1], learners[13])


def _learner(part, in_weight, in_bias, *out):
    return _out(F.gelu(F.linear(part, in_weight, in_bias)), *out)


def _out(hidden, weight, bias, norm_weight, norm_bias):
    return F.layer_norm(F.linear(hidden, weight, bias), weight.shape[:1], norm_weight, norm_bias)


def _decoded(features, learners, bias, h):
    decoded = F.linear(features[0], learners[6], bias) + F.linear(features[1], learners[13])
    return *features, decoded, F.mse_loss(decoded, h)


def case(draw: products.Draw, rows: int, d: int) -> products.Case:
    def learner():
        layers = [draw(d, d) / d**0.5, draw(d), draw(d, d) / d**0.5, draw(d)]
        return [*layers, 1 + draw(d) / 10, draw(d), draw(d, d) / d**0.5]

    return products.Case(
        op="uni_paired_block",
        shape={"rows": rows, "d": d},
        arguments=[draw(rows, d), draw(d, d) / d**0.5, draw(d), *learner(), *learner(), draw(d)],
        eager=eager,
        bare=bare,
        ours=ours,
        further={"apart": apart},
    )


if __name__ == "__main__":
    products.main("uni_paired_block", SHAPES, case, __doc__)
