"""Everything that stays the same from one step to the next: the launches, their tables, and the watch that says when it
does not."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .device_tables import is_capturing, is_on_host
from .launch import GROUP_COLUMNS, Entry, Launch, Shards, chunk_size, group_row
from .watch import GRADIENTS, RATES, REBUILD, Watched, local_tensor, make_watch, placements_of

__all__ = ["Plan", "Settings"]


class Settings:
    """What an optimizer asks of all its launches.

    Attributes:
        clip: ``none``, ``global`` or ``group``.
        check_finite: whether a gradient that is not finite skips the step.
    """

    def __init__(self, algorithm: str, clip: str, check_finite: bool, max_norm: float | None):
        self.algorithm, self.clip, self.check_finite, self._max_norm = algorithm, clip, check_finite, max_norm

    @property
    def measures(self) -> bool:
        """Whether a step needs the norm of the gradients."""
        return self.clip != "none" or self.check_finite

    def max_norm(self, group: Mapping[str, Any]) -> float:
        """Largest norm of a group's gradients, or of all; infinity for any."""
        largest = group.get("max_norm") if self.clip == "group" else self._max_norm
        return float("inf") if largest is None else float(largest)


class Plan:
    """Launches for the parameters that have a gradient, or had one before.

    Args:
        entries: those parameters.
        absent: those that never had a gradient.
        skipped: counts skipped steps, per device of a launch; the first launch's does.
        graphs_hold: takes this plan up when it is part of a CUDA graph, whose replays use all that is in it.
    """

    def __init__(
        self,
        settings: Settings,
        entries: Sequence[Entry],
        absent: Sequence[Tensor],
        state: Mapping[Tensor, dict],
        groups: list[dict],
        skipped: dict[torch.device, Tensor],
        graphs_hold: list[Plan],
    ):
        self.settings = settings
        self._made_of = state, groups
        self._graphs_hold, self._captured = graphs_hold, False
        self.measured = False
        keyed: dict[tuple, list[Entry]] = {}
        for entry in entries:
            keyed.setdefault(_combination(entry), []).append(entry)
        ordered = [entry for members in keyed.values() for entry in members]
        self.copied = [entry for entry in ordered if entry.work is not None or entry.gradient_copy is not None]
        # one slot at least: empty memory has no address
        self._addresses = array("q", [entry.gradient_address() for entry in ordered] or [0])
        self._gradients = torch.frombuffer(self._addresses, dtype=torch.int64)
        rows = [group_row(group, settings.max_norm(group)) for group in groups]
        self._rows_double = torch.tensor(rows, dtype=torch.float64, device="cpu")
        self._rows = self._rows_double.float()
        self._host_rates = [
            (index, group["lr"])
            for index, group in enumerate(groups)
            if isinstance(group["lr"], Tensor) and group["lr"].device.type == "cpu"
        ]
        self.launches: list[Launch] = []
        first = 0
        for key, members in keyed.items():
            self.launches.append(self._launch(key, members, first, len(groups), skipped))
            first += len(members)
        self._on_device = not all(is_on_host(launch.device) for launch in self.launches)
        self._host_rates = self._host_rates if self._on_device else []
        watched = [
            Watched(
                param=e.param,
                local=local_tensor(e.param),
                slot=slot,
                copied=e.gradient_copy is not None,
                versioned=e.master == "float32",
                gradient=_gradient_of(e),
            )
            for slot, e in enumerate(ordered)
        ]
        watched += [Watched(p, local_tensor(p), -1, False, False, None) for p in absent]
        self.watch = make_watch(watched, state, groups, GROUP_COLUMNS, self._addresses, self._rows, self._rows_double)

    def _launch(self, key: tuple, members: list[Entry], first: int, num_groups: int, skipped: dict) -> Launch:
        device, param_dtype, gradient_dtype, master, shards = key
        rows = self._rows_double if param_dtype == torch.float64 else self._rows
        gradients = self._gradients[first : first + len(members)]
        sizes = [entry.local().numel() for entry in members]
        counts = skipped.setdefault(device, torch.zeros((), dtype=torch.float32, device=device))
        return Launch(
            algorithm=self.settings.algorithm,
            device=device,
            param_dtype=param_dtype,
            gradient_dtype=gradient_dtype,
            master=master,
            shards=shards,
            clip=self.settings.clip,
            check_finite=self.settings.check_finite,
            entries=members,
            num_groups=num_groups,
            chunk_size=chunk_size(sizes, _processors(device)),
            max_norm=self.settings.max_norm,
            host_gradients=gradients,
            host_groups=rows,
            skipped=None if self.launches else counts,
        )

    def is_of(self, state: Mapping[Tensor, dict], groups: list[dict]) -> bool:
        """Whether these are the very objects that it was made of."""
        return self._made_of[0] is state and self._made_of[1] is groups

    def refresh(self) -> bool:
        """Brings the tables up to date; False where that takes a new plan."""
        changes = self.watch.refresh()
        if changes == REBUILD:
            return False
        for index, lr in self._host_rates:
            rate = float(lr)
            if rate != self._rows_double[index, GROUP_COLUMNS["lr"]]:
                self._rows[index, GROUP_COLUMNS["lr"]] = self._rows_double[index, GROUP_COLUMNS["lr"]] = rate
                changes |= RATES
        if self._on_device:
            self._update_tables(bool(changes & GRADIENTS), bool(changes & RATES), is_capturing())
        return True

    def _update_tables(self, gradients: bool, rates: bool, capturing: bool) -> None:
        if capturing and not self._captured:
            self._captured = True
            self._graphs_hold.append(self)
        if gradients or rates or self._captured:
            for launch in self.launches:
                launch.update_tables(gradients, rates, capturing)

    def measure(self) -> None:
        """Sums of squares of all gradients, into every launch: over all launches and all shards."""
        for launch in self.launches:
            kernels.run(kernels.SQUARES, launch)
            for process_group in launch.shards.groups:
                torch.distributed.all_reduce(launch.sums, group=process_group)
        if len(self.launches) > 1:
            total = torch.stack([launch.sums.to(self.launches[0].device) for launch in self.launches]).sum(0)
            for launch in self.launches:
                launch.sums.copy_(total)
        self.measured = True

    def run(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """One step."""
        for entry in self.copied:
            entry.copy_in()
        if self.settings.measures and not self.measured:
            self.measure()
        self.measured = False
        for launch in self.launches:
            launch.set_scalars(grad_scale, found_inf)
            kernels.run(kernels.STEP, launch)
        for entry in self.copied:
            entry.copy_out()
        self.watch.bump_versions()


def _gradient_of(entry: Entry) -> Tensor:
    """The local gradient, or an empty one of its dtype."""
    grad = entry.param.grad
    return torch.empty(0, dtype=entry.gradient_dtype, device="cpu") if grad is None else local_tensor(grad)


def _combination(entry: Entry) -> tuple:
    """What the parameters of one launch have in common."""
    local = entry.local()
    return local.device, local.dtype, entry.gradient_dtype, entry.master, _shards(entry.param)


def _shards(param: Tensor) -> Shards:
    """Process groups over which a DTensor is cut, in any way, so that the squares of its shards add up."""
    mesh = getattr(param, "device_mesh", None)
    if mesh is None:
        return Shards()
    cut = [dim for dim, placement in enumerate(placements_of(param)) if not placement.is_replicate()]
    return Shards(tuple(mesh.get_group(dim) for dim in cut))


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return torch.get_num_threads()
