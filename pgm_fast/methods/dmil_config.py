"""Settings of DMIL, and the losses that they weigh in each stage."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional

from ..data.feature_set import DataSpec
from ..errors import ConfigError
from ..settings import check_settings, choice
from .base import MONITORS

__all__ = ["CONSISTENCY", "INTRA", "JOINT", "STAGES", "DMILConfig", "Term", "check_config", "loss_terms"]

INTRA, CONSISTENCY, JOINT = range(3)
STAGES = ("intra", "consistency", "joint")
_PER_STAGE = (
    "stage_epochs",
    "stage_rates",
    "plateau_factor",
    "plateau_patience",
    "task_weight",
    "uni_weight",
    "kl_weight",
    "reconstruction_weight",
    "consistency_kl_weight",
    "rebuild_weight",
    "component_weight",
    "gate_weight",
)
_SCALED = ("kl_weight", "reconstruction_weight")  # by modality_weight, in the first stage


def _three(*values: float):
    return field(default_factory=lambda: list(values))


@dataclass
class DMILConfig:
    """Settings of DMIL. Lists of three hold a value per stage: intra-modality level, consistency level, all together.

    The loss weights are those of the released code, which multiply means over rows and dimensions.
    """

    stage_epochs: List[int] = _three(10, 5, 0)  # of each stage; 0 for train.epochs
    stage_rates: List[float] = _three(3.0, 3.0, 3.0)  # factors on train.lr; 3 did best in validation on digits
    schedule: str = choice("train", ("train", "plateau"))  # plateau: by the two lists below
    plateau_factor: List[float] = _three(0.2, 0.1, 0.1)  # plateau: times this
    plateau_patience: List[int] = _three(2, 1, 10)  # plateau: after this many epochs without a better monitor
    # of the fused output on validation: loss (as released), score (train.monitor)
    plateau_monitor: str = choice("loss", MONITORS)
    task_weight: List[float] = _three(0.0, 1.0, 1.0)  # loss of the gated output
    uni_weight: List[float] = _three(1.0, 0.0, 0.5)  # loss of each M
    kl_weight: List[float] = _three(0.02, 0.0, 0.02)  # divergence of each M and each N
    reconstruction_weight: List[float] = _three(0.005, 0.0, 0.003)  # each representation rebuilt from its M and N
    consistency_kl_weight: List[float] = _three(0.0, 0.02, 0.008)  # divergence of R, of each U, each alignment
    rebuild_weight: List[float] = _three(0.0, 0.005, 0.001)  # mean of each M rebuilt from R and its U
    component_weight: List[float] = _three(0.0, 0.5, 0.8)  # loss of each component: every U, R and S
    gate_weight: List[float] = _three(0.0, 0.0, 0.0)  # our extension, not published: see DMIL
    # modality -> factor on kl_weight and reconstruction_weight in the first stage; 1 where not named.
    # As released: 0.4 for the pictures, which are its first modality, and 2 for the sound.
    modality_weight: Dict[str, float] = field(default_factory=dict)
    # {modality, shared or "*": {encoder, partitioner, uni, paired, decoder or head: factor on the stage's rate}}
    rates: Dict[str, Dict[str, float]] = field(default_factory=dict)


def check_config(config: DMILConfig, spec: DataSpec) -> None:
    check_settings(config, "dmil")
    for m in config.modality_weight:
        if m not in spec.modalities:
            raise ConfigError(f"dmil.modality_weight names {m!r}; the data has {', '.join(spec.modalities)}")
    for name in _PER_STAGE:
        values = getattr(config, name)
        if len(values) != len(STAGES) or not all(0 <= x < float("inf") for x in values):
            raise ConfigError(f"dmil.{name} is {list(values)}, must be three finite numbers >= 0, one per stage")
    if any(config.gate_weight) and (spec.task != "classification" or spec.num_outputs < 2):
        raise ConfigError(
            f"dmil.gate_weight is {list(config.gate_weight)}, but the task is {spec.task}: it needs classes"
        )
    for name, value in config.modality_weight.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"dmil.modality_weight of {name!r} is {value}, must be a finite number >= 0")


class Term(NamedTuple):
    """A loss: its name, the modality that it concerns (None: all), and what it weighs."""

    name: str
    modality: Optional[str]
    weight: float


def loss_terms(config: DMILConfig, names: Sequence[str], stage: int) -> list[Term]:
    """The losses of a stage, in the order in which a pass forms them.

    Args:
        names: the modalities.
        stage: 0, 1 or 2.
    """

    def each(kinds: Sequence[str], setting: str) -> list[Term]:
        weight, scaled = getattr(config, setting)[stage], setting in _SCALED and stage == INTRA
        factor = {m: config.modality_weight.get(m, 1.0) if scaled else 1.0 for m in names}
        return [Term(f"{kind}/{m}", m, weight * factor[m]) for m in names for kind in kinds]

    def together(name: str, setting: str) -> Term:
        return Term(name, None, getattr(config, setting)[stage])

    uni = each(["uni"], "uni_weight")
    intra = each(["kl_predictive", "kl_rest"], "kl_weight")
    reconstruction = each(["reconstruction"], "reconstruction_weight")
    if stage == INTRA:
        return uni + intra + reconstruction
    task = [together("task", "task_weight"), *each(["unique"], "component_weight")]
    task += [together(name, "component_weight") for name in ("redundant", "synergistic")]
    consistency = [together("kl_redundant", "consistency_kl_weight")]
    consistency += each(["align", "kl_unique"], "consistency_kl_weight")
    rebuild = each(["rebuild"], "rebuild_weight")
    gate = [together("gate", "gate_weight")] if config.gate_weight[stage] > 0 else []
    if stage == CONSISTENCY:
        return task + consistency + rebuild + gate
    return task + uni + intra + consistency + reconstruction + rebuild + gate
