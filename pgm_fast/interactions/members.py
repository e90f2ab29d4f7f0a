"""Training several models of one shape at once, each on rows of its own, with early stopping for each.

The models (*members*) live in one module whose parameters have a leading member axis ``[G, ...]``, so that a step of
all of them is one batched matrix product per layer. Nothing is shared between them: the loss is a sum over members and
the optimizer works element by element, so that a member ends as it would alone with the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Member", "Schedule", "evaluate", "train"]

GAIN = 1e-3  # nats: what a member's loss must fall by within its patience, an error that no mean here is sensitive to
EVAL_ROWS = 1024  # rows per member in one pass of evaluation: bounds memory, fills the cores


@dataclass(frozen=True)
class Member:
    """Rows (int64 numbers) that one model is fitted on, is stopped by, and answers for. They have no row in common."""

    fit: np.ndarray
    stop: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Schedule:
    """How members are trained.

    Attributes:
        epochs: at most. The longest member's fitting rows are passed once per epoch, shorter ones begin anew.
        patience: epochs in which the loss on the stopping rows fell by less than :data:`GAIN` after which a member is
            done; None for a member that takes all epochs and keeps the weights of the last one.
        batch: rows per member and step.
        lr: learning rate of AdamW.
        weight_decay: of AdamW.
        step: epochs after which ``lr`` is divided by 10, again and again; 0 for never.
    """

    epochs: int
    patience: int | None
    batch: int
    lr: float
    weight_decay: float
    step: int = 0


def train(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    members: Sequence[Member],
    schedule: Schedule,
    generator: torch.Generator,
    tick: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """Train all members and leave each with the weights of its best epoch, the untrained ones included; without
    patience with those of the last.

    Args:
        module: parameters ``[G, ...]`` only.
        loss: row numbers int64 ``[G, B]`` -> loss of each member on each of its rows ``[G, B]``.
        members: G of them.
        schedule: epochs, batches, rates.
        generator: of the order of the rows; on the CPU.
        tick: receives the finished share of the epochs, in [0, 1], after each.

    Returns:
        float32 ``[G]``, the mean loss on the stopping rows, of the epoch that is kept.
    """
    device = next(module.parameters()).device
    steps = -(-max(len(member.fit) for member in members) // schedule.batch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    stop = [member.stop for member in members]
    best = _mean_loss(module, loss, stop, device)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    mark = best.clone()
    stale = torch.zeros(len(members), dtype=torch.int64, device=device)
    for epoch in range(schedule.epochs):
        module.train()
        order = torch.stack([_order(member.fit, steps * schedule.batch, generator) for member in members]).to(device)
        for rows in order.split(schedule.batch, dim=1):
            optimizer.zero_grad(set_to_none=True)
            loss(rows).mean(dim=1).sum().backward()
            optimizer.step()
        if schedule.step and (epoch + 1) % schedule.step == 0:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        now = _mean_loss(module, loss, stop, device)
        better = (now < best) | (schedule.patience is None)
        best = torch.where(better, now, best)
        for name, value in module.state_dict().items():
            torch.where(better.view(-1, *[1] * (value.ndim - 1)), value, kept[name], out=kept[name])
        gained = best < mark - GAIN
        mark = torch.where(gained, best, mark)
        stale = torch.where(gained, 0, stale + 1)
        tick((epoch + 1) / schedule.epochs)
        if schedule.patience is not None and int(stale.min()) >= schedule.patience:
            break
    module.load_state_dict(kept)
    module.eval()
    tick(1.0)
    return best


def evaluate(
    module: nn.Module, function: Callable[[Tensor], Tensor], rows: Sequence[np.ndarray], device: torch.device
) -> list[Tensor]:
    """What each member says about its rows, without gradients and in evaluation mode.

    Args:
        function: row numbers int64 ``[G, B]`` -> values ``[G, B, ...]``.
        rows: int64 ``[n_g]`` per member; lengths may differ.

    Returns:
        Per member the values ``[n_g, ...]``, on ``device``.
    """
    module.eval()
    with torch.no_grad():
        values = torch.cat([function(block) for block in _blocks(rows, device)], dim=1)
    return [values[number, : len(own)] for number, own in enumerate(rows)]


def _mean_loss(module: nn.Module, loss: Callable[[Tensor], Tensor], rows: Sequence[np.ndarray], device) -> Tensor:
    return torch.stack([values.mean() for values in evaluate(module, loss, rows, device)])


def _blocks(rows: Sequence[np.ndarray], device: torch.device) -> Iterator[Tensor]:
    """Row numbers ``[G, B]`` block by block; shorter members repeat their first row, which nobody reads."""
    longest = max(len(own) for own in rows)
    padded = np.zeros((len(rows), max(longest, 1)), np.int64)
    for number, own in enumerate(rows):
        padded[number] = own[0] if len(own) else 0
        padded[number, : len(own)] = own
    yield from torch.from_numpy(padded).to(device).split(EVAL_ROWS, dim=1)


def _order(rows: np.ndarray, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the rows: whole permutations of them one after another, the last one cut."""
    passes = [torch.randperm(len(rows), generator=generator) for _ in range(-(-count // len(rows)))]
    return torch.from_numpy(rows)[torch.cat(passes)[:count]]
