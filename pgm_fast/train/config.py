"""Every value of a run, with its default and its meaning. ``pgm-fast train --help`` and config.yaml are made from these
classes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, Optional

import torch

from ..backends import BACKENDS
from ..data.feature_set import TASKS
from ..data.labels import LABELS
from ..data.media_settings import MediaConfig
from ..data.readers import FORMATS
from ..data.splitting import RESPLITS
from ..methods import METHODS
from ..methods.base import KEPT, OPTIMIZERS, SCHEDULES, ModelConfig
from ..methods.baselines import BaselineConfig
from ..methods.dimml import DIMMLConfig
from ..methods.dmil_config import DMILConfig
from ..methods.mcr import MCRConfig
from ..methods.mla import MLAConfig
from ..methods.mmpareto import MMParetoConfig
from ..methods.ogm import OGMConfig
from ..methods.pgm import PgMConfig
from ..methods.pretrained import PretrainedConfig
from ..methods.umt import UMTConfig
from ..settings import choice, number

__all__ = ["CAPTURE", "PRECISIONS", "SECTION_OF", "STRATEGIES", "Config", "DataConfig", "TrainConfig"]

STRATEGIES = ("auto", "ddp", "fsdp")
"""How several processes train together; ``auto`` is ``ddp``."""

CAPTURE = ("auto", "never")

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes in; None for no autocast."""


@dataclass
class DataConfig:
    """Where features come from and how they are prepared."""

    source: str = "digits"  # digits, synthetic, or the path of a feature file or folder
    # auto goes by the name, then by the content
    format: str = choice("auto", ("auto", *FORMATS))
    task: str = choice("auto", ("auto", *TASKS))
    modalities: Optional[List[str]] = None  # a subset, in this order; None for all
    ignore: List[str] = field(default_factory=list)  # keys, or folders and files of a folder, that are left out
    label: str = "label"  # key of the labels
    # auto; classes: every value is one; onehot: the place of the 1; sign: above zero or not
    labels: str = choice("auto", LABELS)
    group_by: Optional[str] = None  # per-row key: rows with one value form a sequence, with a label per step
    order_by: Optional[str] = None  # per-row key that orders the steps of a sequence
    # none; all or validation: rows, or those of train and valid, are dealt to the splits anew
    resplit: str = choice("none", RESPLITS)
    resplit_seed: int = number(0, at_least=0)  # of that
    resplit_by: Optional[str] = None  # per-row key: rows with one value come into one split when they are dealt anew
    standardize: bool = True  # zero mean and unit variance per dimension, statistics from the training split only
    nonfinite: str = choice("error", ("error", "zero"))  # error, or zero: NaN and infinities become 0
    # training: probability of hiding a modality of a sample, never all of them
    modality_dropout: float = number(0.0, at_least=0, below=1)
    # auto: a split that fits half of the free memory is kept on the device; always; never
    resident: str = choice("auto", ("auto", "always", "never"))
    # synthetic: kind, n, noise, ...
    options: Dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainConfig:
    """The loop."""

    epochs: int = number(50, at_least=1)  # at most, per stage; see patience
    max_steps: int = number(0, at_least=0)  # updates at most, per stage, besides epochs; 0 for no such bound
    batch_size: int = number(64, at_least=1)  # over all ranks together
    accumulate: int = number(1, at_least=1)  # batches whose gradients make one update
    eval_batch_size: int = number(512, at_least=1)  # in validation, test and prediction
    optimizer: str = choice("adamw", OPTIMIZERS)  # sgd has momentum 0.9
    lr: float = number(1e-3, above=0)  # base learning rate, which the rates of a method multiply
    weight_decay: float = number(1e-2, at_least=0)  # decoupled from the gradient in adamw
    no_decay: bool = True  # biases, norms and single numbers go without weight decay
    # cosine has a warm-up, step is times 0.1 every 30 epochs
    schedule: str = choice("cosine", SCHEDULES)
    # cosine: the learning rate rises from 0 over this many
    warmup_epochs: float = number(1.0, at_least=0)
    clip_norm: float = number(1.0, at_least=0)  # global gradient norm; 0 for none
    monitor: str = "auto"  # a validation metric of the fused output; auto: the task's primary one
    # validations without a better score before stopping, one an epoch at least; 0 for never
    patience: int = number(15, at_least=0)
    validate_every: int = number(0, at_least=0)  # updates between validations besides each epoch's end; 0 for none
    # decay of a moving average of the weights, which is validated and kept in place of them (0.999, say); 0 for none
    ema: float = number(0.0, at_least=0, below=1)
    # the epoch whose weights a stage hands on and the run is judged by: best by validation score, or last (no patience)
    keep: str = choice("best", KEPT)
    seed: int = number(0, at_least=0)  # of weights, dropout and the order of samples
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    backend: str = choice("auto", ("auto", *BACKENDS))
    precision: str = choice("fp32", PRECISIONS)  # fp32, bf16 (autocast), fp16 (autocast and a scaled loss)
    # losses and gradients of a step by one program of torch.compile: minutes at the start, then shorter steps; CPU, one
    # process, no sequences
    compile: bool = False
    # auto: batches, rates and counts stay in the same memory, and on a CUDA device a whole update is one graph; never
    capture: str = choice("never", CAPTURE)
    # several processes: each holds the model (ddp, which auto is), or its share of weights and optimizer state (fsdp)
    strategy: str = choice("auto", STRATEGIES)
    threads: int = number(0, at_least=0, at_most=1024)  # CPU threads of torch; 0 leaves torch's choice
    workers: int = number(0, at_least=0, at_most=1024)  # processes that decode sounds and pictures; 0 for a thread
    checkpoint_every_steps: int = number(0, at_least=0)  # besides each epoch's end; 0 for none
    nonfinite_limit: int = number(20, at_least=1)  # skipped updates in a row before training stops
    plots: bool = True  # draw plots/ at the end
    # any of tensorboard, wandb, mlflow (the last two come with pgm-fast[trackers]); [] for none
    logger: List[str] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class Config:
    """A whole run."""

    method: str = choice("pgm", METHODS)  # which system is trained
    preset: Optional[str] = None  # a published recipe, whose values come before all others: see pgm-fast presets
    out: str = "runs/run"  # the run folder to write
    data: DataConfig = field(default_factory=DataConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pgm: PgMConfig = field(default_factory=PgMConfig)
    dimml: DIMMLConfig = field(default_factory=DIMMLConfig)
    dmil: DMILConfig = field(default_factory=DMILConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    umt: UMTConfig = field(default_factory=UMTConfig)
    ogm: OGMConfig = field(default_factory=OGMConfig)
    mla: MLAConfig = field(default_factory=MLAConfig)
    mmpareto: MMParetoConfig = field(default_factory=MMParetoConfig)
    mcr: MCRConfig = field(default_factory=MCRConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


_OWNERS = {field.default_factory: field.name for field in fields(Config)}

SECTION_OF = {name: _OWNERS[method.config_class] for name, method in METHODS.items()}
"""Which section of a configuration a method's own settings are in: the others' do nothing to it."""
