"""DMIL: redundant, unique and synergistic information as components, weighed by a gate for every sample.

Yang et al., "Information-Theoretic Decomposition for Multimodal Interaction Learning", CVPR 2026, arXiv 2606.11614.
With h_m = encoder_m(x_m), every arrow to a Gaussian a variational layer:

    intra-modality   h_m -> M_m (predicts alone), N_m (the rest);  h_m rebuilt from [M_m; N_m]
    consistency      means of all M -> R (redundant);  mean of M_m -> v_m (R from M_m alone), U_m (unique);
                     mean of M_m rebuilt from [R; U_m];  align_m = KL(q(R | all M) || v_m(R | M_m))
    synergy          S = W [N_1; ...; N_M; N_i * N_j for i < j] + b
    gate             logits = sum_k softmax(MLP [U_1; ...; U_M; R; S])_k head_k(component_k)

For two modalities this is the published system. More are our extension: R over all of them, U per modality, S over all
N with the products of all pairs; the paper's own rows for three modalities use the intra-modality level alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..nn.gate import InteractionGate
from ..nn.parts import SHARED, mark_part, modality_dict
from ..nn.variational import Variational, VariationalLayer
from ..nn.weights import among
from ..ops.dtypes import accumulation_dtype
from ..ops.philox import draw_seed
from ..optim.groups import multi_rate_groups
from ..settings import check_settings
from .answers import make_answer, usable_alone
from .base import HeldOut, Method, ModelConfig, Output, Stage
from .components import build_encoders, encode
from .dmil_config import CONSISTENCY, INTRA, JOINT, STAGES, DMILConfig, check_config, loss_terms
from .tasks import task_rows

__all__ = ["DMIL", "DMILConfig"]


class Levels(NamedTuple):
    """What a pass has formed.

    Attributes:
        intra: modality -> [M; N].
        alone: modality -> what its M predicts.
        logits: component -> what it predicts; empty in the first stage.
        gate: gate logits ``[n, components]``.
        rows: the losses that need no labels, per row, in the order of the terms.
    """

    intra: dict[str, Variational]
    alone: dict[str, Tensor]
    logits: dict[str, Tensor]
    gate: Tensor | None
    rows: list[Tensor]


class DMIL(Method):
    """DMIL for classification, multilabel and regression, for two modalities or more.

    - Three stages, each with a new optimizer, from the best epoch of the one before: encoders and intra-modality level;
      the rest, with those frozen (in evaluation mode, so that batch statistics are too; N is still sampled); all.
      In the first stage the fused output is the mean of what the present modalities' M predict.
    - ``Output.unimodal[m]`` is the head on M_m. From the second stage on ``Output.further`` holds what each component
      predicts, ``unique/<m>``, ``redundant`` and ``synergistic``, and ``Output.gates`` what each weighs.
    - Samples are drawn in training only; in evaluation every Gaussian is its mean. Noise comes from torch's generator
      (one draw per pass), whose state is in every checkpoint.
    - Absent modalities: M and N are zeros, U has gate weight 0, and their losses weigh nothing. S is used and scored in
      rows with two modalities or more; R is always used.
    - The gated output is the answer; ``model.answer`` may ask for it and the M's own heads together, which is ours and
      not trained.
    - Both sides of a reconstruction move: the representation towards what is rebuilt, too.
    - ``gate_weight`` is no part of the published losses, which ask every component for the label and leave open which
      one the gate takes. It draws the gate, in classification, to the component that a row's information is in by the
      pointwise estimate of LSMI (Yang et al., ICML 2025, arXiv 2506.17248): with i_m = max(0, log C + log p(y|M_m)),
      redundant min_m i_m, unique i_m minus that, synergistic log C - max_m i_m, divided by their sum. The term is the
      cross-entropy against that target, which is not differentiated.
    - Parts for ``rates``: the intra-modality layers are ``partitioner``, those of U and v ``uni``, of R and S
      ``paired``, what rebuilds ``decoder``, the rest ``head``.

    Losses: ``task``, ``uni/<m>``, ``kl_predictive/<m>`` (M), ``kl_rest/<m>`` (N), ``reconstruction/<m>``,
    ``kl_redundant``, ``align/<m>``, ``kl_unique/<m>``, ``rebuild/<m>``, ``unique/<m>``, ``redundant``,
    ``synergistic``, ``gate``, ``total``; in each stage those that it weighs.
    """

    name = "dmil"
    config_class = DMILConfig
    written_in_steps = ()
    least_modalities = 2

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: DMILConfig, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        check_settings(model, "model")
        check_config(config, spec)
        names, d, outputs = list(spec.modalities), model.dim, spec.num_outputs
        self.encoders = build_encoders(spec, model, encoders)
        self.intra = nn.ModuleDict(
            {
                "layers": _each(names, "partitioner", lambda: VariationalLayer(d, d, layers=2)),
                "rebuild": _each(names, "decoder", lambda: _rebuilder(d)),
                "heads": _each(names, "head", lambda: nn.Linear(d, outputs)),
            }
        )
        pairs = len(names) * (len(names) - 1) // 2
        shared = {
            "redundant": mark_part(VariationalLayer(len(names) * d, d), SHARED, "paired"),
            "synergistic": mark_part(nn.Linear((len(names) + pairs) * d, d), SHARED, "paired"),
            "redundant_head": mark_part(nn.Linear(d, outputs), SHARED, "head"),
            "synergistic_head": mark_part(nn.Linear(d, outputs), SHARED, "head"),
            "gate": mark_part(InteractionGate(d, len(names) + 2), SHARED, "head"),
        }
        # v_m and U_m read the same input: one layer
        self.consistency = nn.ModuleDict(
            {
                "unique": _each(names, "uni", lambda: VariationalLayer(d, d, layers=2)),
                "rebuild": _each(names, "decoder", lambda: _rebuilder(d)),
                "unique_heads": _each(names, "head", lambda: nn.Linear(d, outputs)),
                **shared,
            }
        )
        heads = ["gated", *(f"uni/{m}" for m in names)]
        self.answer = make_answer(self.name, model.answer, "task", heads, spec.task)
        self._stage = JOINT
        self._terms = [loss_terms(config, names, stage) for stage in range(len(STAGES))]
        weights = torch.zeros(len(STAGES), max(map(len, self._terms)))
        for row, terms in zip(weights, self._terms, strict=True):
            row[: len(terms)] = row.new_tensor([term.weight for term in terms])
        self.register_buffer("loss_weights", weights, persistent=False)

    def forward(self, batch: Batch, report: bool = False) -> Output:
        levels = self._levels(batch)
        names = list(self.spec.modalities)
        out = Output(unimodal=levels.alone)
        ordered, scored = list(levels.logits.values()), []
        labels, task = batch.labels, self.spec.task
        if self._stage == INTRA:
            out.logits = self._mean_of_present(levels.alone, batch)
            if labels is not None:
                scored = [task_rows(task, levels.alone[m], labels) for m in names]
        else:
            # in the second stage the heads of M are frozen: nothing of theirs is trained
            others = [levels.alone[m] for m in names] if self._stage == JOINT else []
            if labels is not None and task == "classification":
                out.logits, weights, losses = ops.gated_mixture_loss(ordered, levels.gate, labels, others)
                scored = [losses]
            else:
                out.logits, weights = ops.gated_mixture(ordered, levels.gate)
                if labels is not None:
                    scored = [task_rows(task, x, labels) for x in (out.logits, *ordered, *others)]
            out.further = levels.logits
            out.gates = dict(zip(levels.logits, weights.unbind(1), strict=True))
            if labels is not None and self.config.gate_weight[self._stage] > 0:
                levels.rows.append(_gate_error(weights, [levels.alone[m] for m in names], labels))
            if self.answer is not None and not self.training:
                out.further = {**levels.logits, "gated": out.logits}
                out.logits = self.answer(
                    {"gated": out.logits, **{f"uni/{m}": levels.alone[m] for m in names}}, usable_alone(batch.presence)
                )
        if labels is not None:
            out.losses = self._losses(batch, [*scored, *levels.rows])
        if report:
            d = self.model_config.dim
            for m in names:
                out.features[f"{m}/uni"], out.features[f"{m}/paired"] = levels.intra[m].mu.split(d, dim=-1)
        return out

    def after_validation(self, scores: Mapping[str, float], held_out: HeldOut) -> bool:
        if self.answer is None or held_out.labels is None or self._stage == INTRA:
            return False
        return self.answer.fit(held_out.logits, held_out.labels, usable_alone(held_out.presence))

    def _levels(self, batch: Batch) -> Levels:
        names, sample = list(self.spec.modalities), self.training
        seeds = self._seeds(batch.weight.device)
        h = encode(self.encoders, batch, self.spec, self.model_config)
        intra, alone, rows = {}, {}, []
        means, rests, rebuilt = {}, {}, []
        for m in names:
            q = self.intra["layers"][m](h[m], sample, next(seeds))
            intra[m] = q
            predictive, rests[m] = (_hide(x, batch.presence.get(m)) for x in q.z.chunk(2, dim=-1))
            means[m] = _hide(q.mu.chunk(2, dim=-1)[0], batch.presence.get(m))
            alone[m] = self.intra["heads"][m](predictive)
            if self._stage != CONSISTENCY:
                rows.append(q.kl)
                rebuilt.append((self.intra["rebuild"][m](q.z), h[m]))
        logits, gate = {}, None
        if self._stage != INTRA:
            components = self._components(means, rests, seeds, rows, rebuilt)
            heads = self.consistency
            logits = {f"unique/{m}": heads["unique_heads"][m](components[f"unique/{m}"]) for m in names}
            logits["redundant"] = heads["redundant_head"](components["redundant"])
            logits["synergistic"] = heads["synergistic_head"](components["synergistic"])
            usable = None
            if batch.presence:
                usable = [*(batch.presence.get(m) for m in names), None, self._several(batch)]
            gate = heads["gate"](list(components.values()), usable)
        return Levels(intra, alone, logits, gate, [*rows, _squared_errors(rebuilt)])

    def _components(
        self,
        means: dict[str, Tensor],
        rests: dict[str, Tensor],
        seeds: Iterator[Tensor | None],
        rows: list[Tensor],
        rebuilt: list[tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        """``unique/<m>``, ``redundant`` and ``synergistic``; what their losses are made of is added to the lists."""
        level, sample = self.consistency, self.training
        redundant = level["redundant"](torch.cat(list(means.values()), dim=-1), sample, next(seeds))
        rows.append(redundant.kl)
        components = {}
        for m, mean in means.items():
            (v_mu, u_mu), (v_logvar, u_logvar) = level["unique"][m].moments(mean)
            _, align = ops.gaussian_sample_kl(redundant.mu, redundant.logvar, v_mu, v_logvar, sample=False, layers=1)
            unique, kl = ops.gaussian_sample_kl(u_mu, u_logvar, sample=sample, seed=next(seeds), layers=1)
            rows += [align, kl]
            rebuilt.append((level["rebuild"][m](torch.cat([redundant.z, unique], dim=-1)), mean))
            components[f"unique/{m}"] = unique
        components["redundant"] = redundant.z
        products = [a * b for a, b in combinations(rests.values(), 2)]
        components["synergistic"] = level["synergistic"](torch.cat([*rests.values(), *products], dim=-1))
        return components

    def _seeds(self, device: torch.device) -> Iterator[Tensor | None]:
        """A seed for every Gaussian that is sampled, all from one draw; None in evaluation."""
        count = 2 * len(self.spec.modalities) + 1
        if not self.training:
            return iter([None] * count)
        return iter(draw_seed(device, count=count).split(1))

    def _losses(self, batch: Batch, rows: list[Tensor]) -> dict[str, Tensor]:
        """Every term as a weighted sum over rows, in the order of the stage's terms, and their weighted total."""
        terms = self._terms[self._stage]
        table = torch.cat([x.unsqueeze(1) if x.dim() == 1 else x for x in rows], dim=1)
        if batch.presence or batch.modality_weight:
            several = among(batch.weight, self._several(batch)) if batch.presence else batch.weight
            own = {term: batch.weight_of(term.modality) for term in terms if term.modality is not None}
            weight = torch.stack(
                [own.get(term, several if term.name == "synergistic" else batch.weight) for term in terms], dim=1
            )
        else:
            weight = batch.weight.unsqueeze(1)
        values = (table * weight).sum(0)
        total = torch.dot(values, self.loss_weights[self._stage, : len(terms)].to(values.dtype))
        names = [term.name for term in terms]
        return dict(zip([*names, "total"], [*values.unbind(0), total], strict=True))

    def _several(self, batch: Batch) -> Tensor:
        """bool ``[n]``: rows with two modalities or more."""
        return self._present(batch).sum(0) > 1

    def _present(self, batch: Batch) -> Tensor:
        """bool ``[M, n]``."""
        return torch.stack([batch.presence_of(m) for m in self.spec.modalities])

    def _mean_of_present(self, logits: dict[str, Tensor], batch: Batch) -> Tensor:
        stacked = torch.stack(list(logits.values()))
        if not batch.presence:
            return stacked.mean(0)
        present = self._present(batch).unsqueeze(-1)
        return (stacked * present).sum(0) / present.sum(0).clamp(min=1)

    def stages(self, lr: float) -> list[Stage]:
        config = self.config
        groups = multi_rate_groups(self, lr, config.rates, default=1.0)
        first = {id(p) for module in (self.encoders, self.intra) for p in module.parameters()}
        trained = (first, {id(p) for p in self.consistency.parameters()}, {id(p) for p in self.parameters()})
        stages = []
        for number, name in enumerate(STAGES):
            kept = [
                {**group, "lr": group["lr"] * config.stage_rates[number], "params": params}
                for group in groups
                if (params := [p for p in group["params"] if id(p) in trained[number]])
            ]
            plateau = {}
            if config.schedule == "plateau":
                options = {
                    "factor": config.plateau_factor[number],
                    "patience": config.plateau_patience[number],
                    "monitor": config.plateau_monitor,
                }
                plateau = {"schedule": "plateau", "schedule_options": options}
            stages.append(Stage(name, kept, config.stage_epochs[number] or None, **plateau))
        return stages

    def begin_stage(self, index: int) -> None:
        self._stage = index

    def train(self, mode: bool = True) -> DMIL:
        super().train(mode)
        if self._stage == CONSISTENCY:
            self.encoders.eval()
            self.intra.eval()
        return self

    def get_extra_state(self) -> Tensor:
        """The stage that the weights are of: it says which output is the fused one."""
        return torch.tensor(self._stage, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self._stage = int(state)


def _each(names: list[str], part: str, make) -> nn.ModuleDict:
    """A module per modality, marked as its ``part``."""
    return modality_dict({m: mark_part(make(), m, part) for m in names})


def _rebuilder(dim: int) -> nn.Sequential:
    """A representation from two of its width, by way of half of it."""
    half = max(dim // 2, 1)
    return nn.Sequential(nn.Linear(2 * dim, half), nn.ReLU(), nn.Linear(half, dim))


def _squared_errors(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean over dimensions for every pair, ``[n, pairs]``, in float32 or wider; all pairs in one go."""
    dtype = accumulation_dtype(pairs[0][0].dtype)
    rebuilt, targets = (torch.stack([x.to(dtype) for x in side], dim=1) for side in zip(*pairs, strict=True))
    return F.mse_loss(rebuilt, targets, reduction="none").mean(-1)


def _gate_error(weights: Tensor, alone: list[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy ``[n]`` of gate ``weights`` ``[n, M + 2]`` against what each row's information is, see DMIL.

    Components of weight 0, those of absent modalities, take no part.
    """
    everything = math.log(alone[0].shape[1])
    scores = torch.stack([F.cross_entropy(x.detach().to(weights.dtype), labels, reduction="none") for x in alone])
    known = (everything - scores).clamp(min=0)
    redundant, most = known.aminmax(dim=0)
    parts = torch.stack([*(known - redundant), redundant, everything - most], dim=1) * (weights > 0)
    target = parts / parts.sum(1, keepdim=True).clamp(min=1e-12)
    return -(target * weights.clamp(min=1e-12).log()).sum(1)


def _hide(x: Tensor, present: Tensor | None) -> Tensor:
    return x if present is None else x.masked_fill(~present.unsqueeze(-1), 0.0)
