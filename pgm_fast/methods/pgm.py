"""PgM: Partitioner Guided Modal Learning.

Hu et al., ACM MM 2025, arXiv 2507.11661. Public are the idea and its four parts: a modal partitioner, a uni-modal
learner, a paired-modal learner and a uni-paired decoder, with learning rates that differ across them. The formulas here
are our reconstruction:

    h_m = encoder_m(x_m),  (uni_m, paired_m) = the parts of h_m under a learned gate
    f^u_m = MLP(uni_m),  f^p_m = MLP(paired_m),  decoded_m = W_u f^u_m + W_p f^p_m + b
    loss = L_task(head([decoded_1 ... decoded_M]))
           + uni_weight * mean_m L_uni,m + paired_weight * L_paired + align_weight * L_align
           + reconstruction_weight * mean_m |decoded_m - stopgrad(h_m)|^2
           + information_weight * mean_m L_information,m + share_weight * mean_m (share_m - target_m)^2
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..errors import ConfigError
from ..nn.block import BlockOutput, PgMBlock
from ..nn.calibration import Calibration
from ..nn.contrastive import cross_modal_info_nce
from ..nn.information import information_targets, share_error
from ..nn.interaction import INTERACTIONS, PairedInteraction
from ..nn.partitioner import GATES
from ..nn.parts import SHARED, mark_part, modality_dict
from ..nn.weights import among
from ..optim.groups import multi_rate_groups
from ..settings import check_settings, choice, number
from .answers import make_answer, usable_alone
from .base import LABELLED, HeldOut, Method, ModelConfig, Output, Stage
from .components import Head, build_encoders, encode, fuse, fuse_only
from .tasks import repeated, task_rows

__all__ = ["PgM", "PgMConfig"]

PARTITIONER_RATE = 10.0  # of the boundary gate, relative to train.lr, where pgm.rates names none


@dataclass
class PgMConfig:
    """Switches and loss weights of PgM. Every weight multiplies a mean over rows and over modalities."""

    gate: str = choice("boundary", GATES)
    temperature: float = number(1.0, above=0)  # of the gate's softmax (sigmoid gate: of the sigmoid)
    chunk: int = number(1, at_least=1)  # this many neighbouring dimensions share one gate value; must divide model.dim
    condition_on_others: bool = False  # the gate also sees the mean of the other present modalities' representations
    uni_learner: bool = True  # False: no uni-modal features and no uni-modal loss
    paired_learner: bool = True  # False: no paired features, interaction, paired loss or alignment
    decoder: bool = True  # False: the task head reads the uni-modal and paired features themselves
    # across the modalities' paired features, for the paired loss
    interaction: str = choice("concat", INTERACTIONS)
    # width inside of the learners (identity_start=false: of their features); 0 for model.dim
    learner_dim: int = number(0, at_least=0)
    identity_start: bool = True  # at first the block returns the encoders' representations as they are
    uni_weight: float = number(10.0, at_least=0)  # each modality's own task loss on its uni-modal features
    paired_weight: float = number(1.0, at_least=0)  # task loss on the interacting paired features
    align_weight: float = number(0.1, at_least=0)  # contrastive alignment of the modalities' paired features
    align_temperature: float = number(0.1, above=0)  # of that alignment
    reconstruction_weight: float = number(0.1, at_least=0)  # decoder's output against the encoder's
    reconstruct_through: bool = False  # True: the reconstruction's gradient also moves its target, the encoder's output
    # boundary gate: pull of its shares to what is unique, redundant and synergistic
    information_weight: float = number(1.0, at_least=0)
    share_weight: float = number(0.0, at_least=0)  # pull of each row's paired share towards share_target
    share_target: dict[str, float] = field(default_factory=dict)  # modality or "*": wanted paired share in [0, 1]
    # {modality, shared or "*": {encoder, partitioner, uni, paired, decoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class PgM(Method):
    """PgM for classification, multilabel, regression and retrieval, for one modality or more.

    - Absent modalities are zeros to the task head and to attention, and weigh nothing in their own losses. The paired
      loss is taken over rows with two modalities or more.
    - ``Output.unimodal[m]`` is what the uni-modal head says. Without uni-modal learner (or with ``uni_weight`` 0) there
      is no such head: then, in evaluation, it is the task head with only m present.
    - ``condition_on_others`` changes the paired side and what is decoded; the uni-modal loss and prediction are
      computed with no context, so that nothing of another modality reaches them in value or gradient.
    - ``share_weight``: with the dual gate the paired share is paired-only plus shared. The penalty is taken per row, so
      that it is a weighted sum over rows like every other loss.
    - Retrieval embeds every modality by a head on its own decoded representation. The task loss is InfoNCE over all
      pairs of modalities; there are no labels, so neither uni-modal nor paired loss.
    - In classification all heads answer together, by a product whose weights are fitted to the validation split, where
      ``model.answer`` says nothing else; in the other tasks the task head does.
    - With one modality there is nothing to pair: no interaction, paired loss or alignment.

    Losses: ``task``, ``uni/<m>``, ``paired``, ``align``, ``reconstruction/<m>``, ``share/<m>``, ``total``.
    Reconstruction is reported at weight 0 too, the others are then not computed.
    """

    name = "pgm"
    config_class = PgMConfig
    tasks = (*LABELLED, "retrieval")

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: PgMConfig, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        check_settings(model, "model")
        _check_config(config, spec)
        modalities = list(spec.modalities)
        retrieval = spec.task == "retrieval"
        self.encoders = build_encoders(spec, model, encoders)
        self.block = PgMBlock(
            dict.fromkeys(modalities, model.dim),
            config.learner_dim,
            gate=config.gate,
            temperature=config.temperature,
            chunk=config.chunk,
            condition_on_others=config.condition_on_others,
            uni_learner=config.uni_learner,
            paired_learner=config.paired_learner,
            decoder=config.decoder,
            dropout=model.dropout,
            align_temperature=config.align_temperature if config.align_weight > 0 else None,
            reconstruct_through=config.reconstruct_through,
            identity_start=config.identity_start,
            by_shares=self._informed,
        )
        widths, features = self.block.out_dims, self.block.features[modalities[0]]
        self.branches = self.calibration = None
        self.head = self.embedding_heads = self.uni_heads = self.interaction = self.paired_head = self.answer = None
        if retrieval:
            make_answer(self.name, model.answer, "task", (), spec.task)
            if config.identity_start:
                self.branches = modality_dict({m: _silent(nn.Linear(widths[m], model.dim), m) for m in modalities})
                widths = dict.fromkeys(modalities, model.dim)
            self.embedding_heads = modality_dict({m: Head(widths[m], model.dim, model, m) for m in modalities})
            return
        self.head = Head(sum(widths.values()), spec.num_outputs, model, SHARED)
        if config.uni_learner and config.uni_weight > 0:
            self.uni_heads = modality_dict({m: Head(features, spec.num_outputs, model, m) for m in modalities})
        if config.paired_learner and config.paired_weight > 0 and len(modalities) > 1:
            self.interaction = PairedInteraction(len(modalities), features, config.interaction, model.heads)
            self.paired_head = Head(self.interaction.out_features, spec.num_outputs, model, SHARED)
            if config.identity_start:
                _silent(self.paired_head[3])
        heads = ["task", *(["paired"] if self.paired_head else []), *(f"uni/{m}" for m in self.uni_heads or ())]
        own = "pool" if spec.task == "classification" and len(heads) > 1 else "task"
        self.answer = make_answer(self.name, model.answer, own, heads, spec.task)
        if self._informed:
            self.calibration = Calibration(heads, spec.task, spec.num_outputs)

    @property
    def _informed(self) -> bool:
        """Whether the gates' shares follow what the heads know; by gradients of the losses otherwise."""
        config = self.config
        return (
            config.gate == "boundary"
            and config.information_weight > 0
            and config.uni_learner
            and config.uni_weight > 0
            and self.spec.task != "retrieval"
        )

    def forward(self, batch: Batch, report: bool = False) -> Output:
        h = encode(self.encoders, batch, self.spec, self.model_config)
        retrieval = self.embedding_heads is not None
        learning = retrieval or batch.labels is not None
        block = self.block.run(
            h,
            batch.presence,
            batch.weight,
            modality_weight=batch.modality_weight,
            shares=report or (learning and (self.config.share_weight > 0 or self._informed)),
            alone=not self.training and self.uni_heads is None and not retrieval,
        )
        out = Output()
        if retrieval:
            out.embeddings = {
                m: nn.functional.normalize(self._embed(m, h[m], block.representations[m]), dim=-1)
                for m in self.embedding_heads
            }
        else:
            self._predict(batch, block, out)
        if learning:
            out.losses = self._losses(batch, block, out)
        if report:
            out.shares = block.shares
            out.features = {f"{m}/uni": f for m, f in block.uni_alone.items()}
            out.features.update({f"{m}/paired": f for m, f in block.paired.items()})
        return out

    def _predict(self, batch: Batch, block: BlockOutput, out: Output) -> None:
        """Logits of every head and of their answer. In training the answer is formed only where it is trained."""
        heads = {"task": self.head(fuse(block.representations))}
        out.unimodal = self._unimodal(block)
        if self.paired_head is not None:
            presence = self._presence(batch) if batch.presence else None
            heads["paired"] = self.paired_head(self.interaction(list(block.paired.values()), presence))
            if self.config.identity_start and out.unimodal:
                heads["paired"] = heads["paired"] + 0.5 * self._sum_of_present(out.unimodal, batch).detach()
        out.further = heads
        out.logits = heads["task"]
        if self.answer is not None and (self.answer.trained or not self.training):
            every = {**heads, **{f"uni/{m}": logits for m, logits in out.unimodal.items()}}
            out.logits = self.answer(every, self._usable(batch.presence))

    def _embed(self, modality: str, h: Tensor, decoded: Tensor) -> Tensor:
        head = self.embedding_heads[modality]
        return head(decoded) if self.branches is None else head(h) + self.branches[modality](decoded)

    def _sum_of_present(self, logits: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return sum(z * batch.presence[m].unsqueeze(-1) if m in batch.presence else z for m, z in logits.items())

    def _usable(self, presence: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """head -> bool ``[n]``: rows in which it has something to go by."""
        if not presence:
            return {}
        usable = usable_alone(presence)
        everywhere = torch.ones_like(next(iter(presence.values())))
        present = torch.stack([presence.get(m, everywhere) for m in self.spec.modalities])
        return {**usable, "task": present.any(0), "paired": present.sum(0) > 1}

    def after_validation(self, scores: Mapping[str, float], held_out: HeldOut) -> bool:
        if held_out.labels is None:
            return False
        if self.calibration is not None:
            self.calibration.fit(held_out.logits, held_out.labels, self._usable(held_out.presence))
        if self.answer is None:
            return False
        return self.answer.fit(held_out.logits, held_out.labels, self._usable(held_out.presence))

    def _unimodal(self, block: BlockOutput) -> dict[str, Tensor]:
        if self.uni_heads is not None:
            return {m: head(block.uni_alone[m]) for m, head in self.uni_heads.items()}
        return {m: self.head(fuse_only(block.alone, m)) for m in block.alone}

    def _losses(self, batch: Batch, block: BlockOutput, out: Output) -> dict[str, Tensor]:
        config, task = self.config, self.spec.task
        losses: dict[str, Tensor] = {}
        if out.logits is None:
            losses["task"] = cross_modal_info_nce(
                out.embeddings, self.model_config.contrastive_temperature, batch.weight, batch.presence
            )
        else:
            names, logits = self._heads(out)
            trained = self.answer is not None and self.answer.trained
            scored = torch.cat((out.logits.unsqueeze(0), logits[1:])) if trained else logits
            # of all heads in one pass: at small batches a call costs more than its arithmetic
            rows = task_rows(task, scored.flatten(0, 1), repeated(batch.labels, len(names))).view(len(names), -1)
            losses.update(zip(names, (rows * self._head_weights(names, batch)).sum(-1).unbind(), strict=True))
        losses.update(block.losses)
        if config.share_weight > 0:
            for m, target in self._share_targets().items():
                # (uni, paired) or (uni-only, paired-only, shared, unused)
                paired = block.shares[m][..., 1:3].sum(-1)
                losses[f"share/{m}"] = ((paired - target).square() * batch.weight_of(m)).sum()
        if self._informed:
            losses.update(self._information_losses(batch, block, names, logits.detach()))
        weights = {
            "task": 1.0,
            "uni": config.uni_weight,
            "paired": config.paired_weight,
            "align": config.align_weight,
            "reconstruction": config.reconstruction_weight,
            "share": config.share_weight,
            "information": config.information_weight,
        }
        total = losses["task"]
        for kind, weight in weights.items():
            terms = [loss for name, loss in losses.items() if name.split("/")[0] == kind]
            if kind != "task" and terms and weight > 0:
                total = total + (weight / len(terms)) * torch.stack(terms).sum()
        losses["total"] = total
        return losses

    def _heads(self, out: Output) -> tuple[list[str], Tensor]:
        """Names, as in the losses and the task's first, and logits ``[heads, n, num_outputs]`` of every head."""
        heads = {"task": out.further["task"]}
        if self.uni_heads is not None:
            heads.update({f"uni/{m}": out.unimodal[m] for m in self.uni_heads})
        heads.update(out.further)
        return list(heads), torch.stack(list(heads.values()))

    def _head_weights(self, names: list[str], batch: Batch) -> Tensor:
        """Weights of rows in the heads' losses, ``[heads or 1, n]``."""
        if not batch.presence and not batch.modality_weight:
            return batch.weight.unsqueeze(0)
        own = {f"uni/{m}": batch.weight_of(m) for m in self.spec.modalities}
        if batch.presence and "paired" in names:
            own["paired"] = among(batch.weight, torch.stack(self._presence(batch)).sum(0) > 1)
        return torch.stack([own.get(name, batch.weight) for name in names])

    def _information_losses(
        self, batch: Batch, block: BlockOutput, names: list[str], logits: Tensor
    ) -> dict[str, Tensor]:
        known = self.calibration.information(dict(zip(names, logits.unbind(), strict=True)), batch.labels)
        together = torch.stack([known[name] for name in names if not name.startswith("uni/")]).amax(0)
        targets = information_targets({m: known[f"uni/{m}"] for m in self.uni_heads}, together, batch.presence)
        wanted = tuple(torch.stack(side) for side in zip(*targets.values(), strict=True))
        errors = share_error(torch.stack([block.shares[m] for m in targets]), wanted)
        weight = batch.weight
        if batch.modality_weight:
            weight = torch.stack([batch.weight_of(m) for m in targets])
        return dict(zip([f"information/{m}" for m in targets], (errors * weight).sum(-1).unbind(), strict=True))

    def _presence(self, batch: Batch) -> list[Tensor]:
        """bool ``[n]`` for every modality."""
        return [batch.presence_of(m) for m in self.spec.modalities]

    def _share_targets(self) -> dict[str, float]:
        targets = self.config.share_target
        found = {m: targets.get(m, targets.get("*")) for m in self.spec.modalities}
        return {m: target for m, target in found.items() if target is not None}

    def findings(self) -> dict[str, Any]:
        """What the shares rest on, where they follow measured information: each head's temperature on validation."""
        if self.calibration is None:
            return {}
        temperatures = dict(zip(self.calibration.heads, self.calibration.temperature.tolist(), strict=True))
        return {"calibration": {"temperature": temperatures}}

    def stages(self, lr: float) -> list[Stage]:
        rates = self.config.rates
        if self.config.gate == "boundary":
            rates = {**rates, "*": {"partitioner": PARTITIONER_RATE, **rates.get("*", {})}}
        return [Stage("main", multi_rate_groups(self, lr, rates, default=1.0))]


def _silent(linear: nn.Linear, modality: str | None = None) -> nn.Linear:
    """A layer that says nothing until it is trained."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear if modality is None else mark_part(linear, modality, "head")


def _check_config(config: PgMConfig, spec: DataSpec) -> None:
    """Raises ConfigError for what no single module can see."""
    check_settings(config, "pgm")
    for m, target in config.share_target.items():
        if m != "*" and m not in spec.modalities:
            raise ConfigError(f"pgm.share_target names {m!r}; the data has {', '.join(spec.modalities)}, or use '*'")
        if not 0.0 <= target <= 1.0:
            raise ConfigError(f"pgm.share_target of {m!r} is {target}, must be in [0, 1]")
    if config.share_weight > 0 and not config.share_target:
        raise ConfigError("pgm.share_weight is set and pgm.share_target is empty: add share_target={'*': 0.5}, say")
    if config.share_weight > 0 and config.gate in ("fixed", "none"):
        raise ConfigError(
            f"pgm.share_weight is set and the gate {config.gate} has no share to move: use 0, or another gate"
        )
    if spec.task == "retrieval":
        if len(spec.modalities) < 2:
            raise ConfigError(f"retrieval needs two modalities or more, the data has {', '.join(spec.modalities)}")
        if config.condition_on_others:
            raise ConfigError(
                "pgm.condition_on_others cannot be used for retrieval: an embedding would see what it is to find"
            )
