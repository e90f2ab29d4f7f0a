"""What MultiRateAdamW and MultiRateSGD have in common: any number of param groups, one kernel launch."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .clipping import ClippedBefore
from .device_tables import is_capturing
from .hooks import hooked, leave_uncompiled
from .launch import DTYPES, Entry, update_every
from .plan import Plan, Settings
from .watch import is_direct, local_gradient, local_tensor, placements_of, same_strides

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["MultiRateOptimizer"]

MASTER_WEIGHTS = (None, "float32", "remainder")
CLIP = ("global", "group")


class MultiRateOptimizer(Optimizer):
    """Steps every tensor of every param group in one kernel launch per combination of device and dtypes.

    Tables of addresses are made once and kept; a steady step looks for changes (compiled, where the host path is
    built), and launches. New tables are made when a parameter gets its first gradient, after ``add_param_group``,
    ``load_state_dict``, and when parameters or their state are replaced.

    State is kept in float32 (float64 for float64 parameters) whatever the dtype of the parameter, under the names that
    torch gives it; ``state_dict`` loads into torch's optimizer and torch's here.

    Distributed: works as it is under DistributedDataParallel and ``fully_shard``. Shards (DTensor) are updated where
    they are, also where a rank has none; norms are over all ranks, so that every rank clips alike and skips the same
    steps; state is cut as its parameter, for ``torch.distributed.checkpoint``. Gradients that are placed otherwise than
    their parameter are redistributed every step. FSDP's older form hides its shards: clip with its own
    ``clip_grad_norm_``.

    Under ``torch.compile`` a step is one graph break, at the cost of calling one compiled function more. It runs as it
    does without: a graph would check every parameter, gradient and state before each call.

    Master weights count as long as their parameter is what they round to: where it was written by anybody else (a
    ``load_state_dict`` of the model, say), its own value does from the next step on. Not noticed are writes through
    ``.data``, of which torch keeps no count. The form ``"remainder"`` keeps the 16 bits of the old value then, worth at
    most half a unit of a bfloat16.

    CUDA graphs: a step can be captured after one step outside with the same parameters, gradients and groups. Gradients
    may move in between, as they do with ``zero_grad(set_to_none=True)``: a graph replays with those, and with the plain
    numbers among hyper-parameters, that it was captured with, whatever steps outside do; what a schedule is to change
    between replays goes into a tensor on the device. The optimizer keeps what its graphs use, and has to outlive them.
    Between two steps outside of graphs at most 16 captures can follow gradients that moved; one more is an error.

    ``grad_scale`` and ``found_inf``, as :class:`torch.amp.GradScaler` sets them, are obeyed on the device: a
    ``found_inf`` other than 0 changes nothing, not even ``step``.
    """

    algorithm: str
    _step_supports_amp_scaling = True
    _loaded: dict[str, Any] | None = None  # what load_state_dict is about to take up

    def __init__(
        self,
        params: Iterable,
        defaults: dict[str, Any],
        update_every: int,
        max_norm: float | None,
        clip: str,
        skip_nonfinite: bool,
        master_weights: str | None,
    ):
        if isinstance(params, nn.Module):
            raise TypeError(
                f"params is a {type(params).__name__}, must be parameters or param groups: pass model.parameters()"
            )
        _check_choice("clip", clip, CLIP)
        _check_choice("master_weights", master_weights, MASTER_WEIGHTS)
        if defaults.get("differentiable"):
            raise ValueError(
                f"differentiable is True, must be False: a step of {type(self).__name__} is one kernel, which autograd "
                "does not see; use torch's optimizer to differentiate through steps"
            )
        # entries beyond torch's only where they say something: checkpoints then hold the same keys as torch's
        if update_every != 1:
            defaults["update_every"] = update_every
        if clip == "group":
            defaults["max_norm"] = max_norm
        else:
            _check_max_norm(max_norm)
        self.clip = clip
        self.skip_nonfinite = skip_nonfinite
        self.master_weights = master_weights
        self._max_norm = max_norm
        self._clipped_before = ClippedBefore()
        self._forget()
        leave_uncompiled(MultiRateOptimizer)
        super().__init__(params, defaults)

    @property
    def max_norm(self) -> float | None:
        """Largest norm of all gradients together (``clip="global"``); None for any. May be set between steps; code that
        does so looks after clipping itself, so gradients that come clipped are then no cause for a warning."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        if self.clip == "group":
            raise ValueError('max_norm is an entry of each param group with clip="group"; set it there')
        _check_max_norm(value)
        self._max_norm = value
        self._clipped_before = ClippedBefore(steps=0)
        self._plan = None

    @property
    def launches_per_step(self) -> int:
        """Kernel launches of a step like the last one: one per combination of device, dtypes and sharding. Where
        gradients are measured, to clip or to check them, another one for each, and on CUDA devices one more: chunks
        first, then their sums."""
        if self._plan is None:
            return 0
        measured = self._plan.settings.measures
        return sum(1 + measured * (1 + (launch.device.type == "cuda")) for launch in self._plan.launches)

    @property
    def skipped_steps(self) -> Tensor | None:
        """How many steps ``found_inf`` or a gradient that is not finite has skipped: a scalar on the device; None
        before the first step. Counted by this object, not part of ``state_dict``."""
        return next(iter(self._skipped.values()), None)

    @torch.no_grad()
    def total_norm(self) -> Tensor:
        """The norm of all gradients together as they are: a float64 scalar on the device.

        The next :meth:`step` takes it from here; gradients must not change in between.
        """
        plan = self._current_plan()
        for entry in plan.copied:
            entry.copy_in()
        plan.measure()
        if not plan.launches:
            return torch.zeros((), dtype=torch.float64, device="cpu")
        return plan.launches[0].sums[-1].sqrt()

    @hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient and is due.

        Args:
            closure: computes the loss anew, with gradients; its value is returned.

        Raises:
            TypeError: a sparse gradient, or one of a dtype that does not go with its parameter.
            RuntimeError: new tables are needed while a CUDA graph is captured, see above.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and not isinstance(found_inf, Tensor):
            # GradScaler's sum over no gradient at all is the number 0
            found_inf = torch.tensor(float(found_inf), dtype=torch.float32, device="cpu")
        plan = self._current_plan()
        plan.run(getattr(self, "grad_scale", None), found_inf)
        if self._max_norm is not None and self._clipped_before.watches and not is_capturing() and plan.launches:
            self._clipped_before.note(plan.launches[0].sums[-1].sqrt().item(), self._max_norm)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See :meth:`torch.optim.Optimizer.zero_grad`, whose look at every gradient takes longer than dropping it."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See :meth:`torch.optim.Optimizer.add_param_group`.

        Raises:
            TypeError: a parameter that is complex or of a dtype without a kernel.
            ValueError: a hyper-parameter out of its range.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._plan = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("clip", "skip_nonfinite", "master_weights", "_max_norm")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for index, group in enumerate(self.param_groups):
            known = {sys.intern(key): value for key, value in group.items()}
            for key, value in self.defaults.items():
                known.setdefault(key, value)
            if known.get("update_every") == 1 and "update_every" not in self.defaults:
                del known["update_every"]
            if "betas" in known:
                known["betas"] = tuple(known["betas"])
            self.param_groups[index] = known
        self._clipped_before = ClippedBefore()
        self._restore_loaded()
        self._forget(keep_counts=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an optimizer of this class or of torch's. Tensors are copied, in full precision: torch's
        own method would cast float32 moments of 16-bit parameters to 16 bits.

        Groups that have names on both sides, as those of :func:`pgm_fast.optim.multi_rate_groups`, are matched by name
        in whatever order they come; without names by position, as in torch.

        Raises:
            ValueError: other groups, or master weights of another form than this optimizer keeps.
        """
        # as the last hook, so that what others make of the dictionary is what is loaded
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: self._take_up(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loaded = None

    def _take_up(self, loaded: dict[str, Any]) -> dict[str, Any]:
        self._loaded = {**loaded, "param_groups": _by_name(loaded["param_groups"], self.param_groups)}
        return self._loaded

    def _restore_loaded(self) -> None:
        """State as it was saved in place of what torch has cast."""
        if self._loaded is None:
            return
        saved_ids = [i for group in self._loaded["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for saved_id, param in zip(saved_ids, params, strict=True):
            saved = self._loaded["state"].get(saved_id)
            if saved is not None:
                self.state[param] = {key: _copied(value, param) for key, value in saved.items()}

    def _forget(self, keep_counts: bool = False) -> None:
        self._plan: Plan | None = None
        if not keep_counts or not hasattr(self, "_skipped"):
            self._skipped: dict[torch.device, Tensor] = {}
            self._graphs_hold: list[Plan] = []

    def _current_plan(self) -> Plan:
        plan = self._plan
        if plan is None or not plan.is_of(self.state, self.param_groups) or not plan.refresh():
            self._plan = None
            self._plan = plan = self._new_plan()
        return plan

    @torch.no_grad()
    def _new_plan(self) -> Plan:
        if is_capturing():
            raise RuntimeError(
                f"{type(self).__name__} would need new tables while a CUDA graph is captured: since the step before, "
                "if there was one, a first gradient came, or a parameter, its state or a param group changed. Take "
                "one step with the same parameters, gradients and groups before the capture"
            )
        entries, absent = [], []
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                grad = param.grad
                if grad is not None:
                    entries.append(self._entry(param, grad, group, index))
                elif param in self.state and torch.ops.aten.is_non_overlapping_and_dense(local_tensor(param)):
                    entries.append(self._waiting_entry(param, group, index))
                else:
                    absent.append(param)
        self._make_counters(entries)
        clip = "none" if self.clip == "global" and self._max_norm is None else self.clip
        settings = Settings(self.algorithm, clip, self.skip_nonfinite, self._max_norm)
        return Plan(settings, entries, absent, self.state, self.param_groups, self._skipped, self._graphs_hold)

    def _entry(self, param: Tensor, grad: Tensor, group: dict[str, Any], index: int) -> Entry:
        local = local_tensor(param.detach())
        if grad.layout != torch.strided:
            raise TypeError(
                f"{type(self).__name__} takes dense gradients, got {grad.layout} for a parameter of shape "
                f"{tuple(param.shape)}; build the layer with sparse=False, or give it an optimizer of its own"
            )
        if _mesh_of(grad) != _mesh_of(param):
            raise ValueError(
                f"a parameter on {_mesh_of(param) or 'no mesh'} takes a gradient there, got one on "
                f"{_mesh_of(grad) or 'no mesh'}"
            )
        direct = is_direct(param, grad)
        grad = local_gradient(param, grad)
        if grad.dtype != local.dtype and torch.float64 in (grad.dtype, local.dtype):
            raise TypeError(f"a {local.dtype} parameter takes a gradient of its own dtype, got {grad.dtype}")
        if grad.device != local.device:
            raise ValueError(f"a parameter on {local.device} takes a gradient there, got one on {grad.device}")
        entry = self._new_entry(param, group, index, grad.dtype)
        if not torch.ops.aten.is_non_overlapping_and_dense(local):
            entry.work = torch.empty_like(local).copy_(local)
        if not direct:
            entry.gradient_copy = torch.empty_like(entry.local(), dtype=grad.dtype).copy_(grad)
        self._make_state(entry)
        return entry

    def _waiting_entry(self, param: Tensor, group: dict[str, Any], index: int) -> Entry:
        """Of a parameter that had a gradient before: it is there when the next one comes, as those mostly are that come
        and go, with memory that a kernel can walk."""
        entry = self._new_entry(param, group, index, param.dtype)
        self._make_state(entry)
        return entry

    def _new_entry(self, param: Tensor, group: dict[str, Any], index: int, gradient_dtype: torch.dtype) -> Entry:
        needed = self._needed_moments(group)
        moments = tuple(name if name in needed else None for name in self._moments())
        return Entry(param, group, index, {}, self._master_of(param.dtype), gradient_dtype, moments)

    def _make_state(self, entry: Entry) -> None:
        """What is missing of an entry's state, counters aside; what is there in the memory that kernels walk."""
        state, param = self.state[entry.param], entry.param.detach()
        dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        wanted: dict[str, tuple[torch.dtype, Tensor | None]] = {
            name: (dtype, None) for name in self._needed_moments(entry.group)
        }
        if entry.master == "float32":
            wanted["master_param"] = (torch.float32, param)
        if entry.master == "remainder":
            wanted["param_remainder"] = (torch.int16, None)
        other = {"master_param", "param_remainder"} & state.keys() - wanted.keys()
        if other:
            raise ValueError(
                f"the loaded state has {other.pop()}, which master_weights={self.master_weights!r} does not keep; "
                "build the optimizer with the master_weights that it was saved with"
            )
        for name, (kind, source) in wanted.items():
            present = state.get(name)
            if present is None:
                present = torch.zeros_like(param, dtype=kind) if source is None else source.to(kind, copy=True)
            _check_alike(name, present, param)
            target = entry.local()
            present = present.to(target.device, kind)
            if not same_strides(local_tensor(present), target):
                present = _in_strides_of(target, present)
            if present is not state.get(name):
                state[name] = present

    def _make_counters(self, entries: list[Entry]) -> None:
        """``step`` and ``waited`` of every entry: scalars that share one buffer per device."""
        lacking: dict[torch.device, list[tuple[dict, str, Any]]] = {}
        for entry in entries:
            state, device = self.state[entry.param], entry.local().device
            for name in self._counters(entry.group):
                counter = state.get(name, 0.0)
                if not isinstance(counter, Tensor):
                    lacking.setdefault(device, []).append((state, name, float(counter)))
                elif counter.device != device or counter.dtype != torch.float32 or counter.dim():
                    lacking.setdefault(device, []).append((state, name, counter))
        for device, counters in lacking.items():
            buffer = torch.zeros(len(counters), dtype=torch.float32, device=device)
            for view, (state, name, value) in zip(buffer.unbind(), counters, strict=True):
                view.copy_(value.reshape(())) if isinstance(value, Tensor) else view.fill_(value)
                state[name] = view
        for entry in entries:
            entry.state = {key: local_tensor(value) for key, value in self.state[entry.param].items()}
            if entry.master == "float32":
                entry.follow_param()

    def _counters(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Counters that parameters of the group have."""
        return ("waited",) if update_every(group) > 1 else ()

    def _moments(self) -> tuple[str, ...]:
        """Names of the state that a step rewrites, in the order of the kernels' tables."""
        raise NotImplementedError

    def _needed_moments(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Those that parameters of the group have."""
        raise NotImplementedError

    def _master_of(self, dtype: torch.dtype) -> str | None:
        return self.master_weights if dtype in (torch.bfloat16, torch.float16) else None

    def _check_group(self, group: dict[str, Any]) -> None:
        name = type(self).__name__
        for param in group["params"]:
            if param.dtype not in DTYPES:
                raise TypeError(f"{name} takes float32, float64, bfloat16 and float16 parameters, got {param.dtype}")
            if param.dtype == torch.float16 and self.master_weights == "remainder":
                raise TypeError(
                    'master_weights="remainder" takes bfloat16 parameters, got torch.float16; use "float32"'
                )
        lr = group["lr"]
        if isinstance(lr, Tensor) and (lr.numel() != 1 or lr.dtype not in (torch.float32, torch.float64)):
            raise ValueError(
                f"lr as a tensor is one float32 or float64 number, got {lr.dtype} of shape {tuple(lr.shape)}"
            )
        for key in ("lr", "eps", "weight_decay", "momentum"):
            value = group.get(key, 0.0)
            if not isinstance(value, Tensor) and not (isinstance(value, Real) and 0.0 <= float(value) < math.inf):
                raise ValueError(f"{key} is {value!r}, must be a finite number >= 0")
        every = update_every(group)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"update_every is {every!r}, must be a whole number >= 1")
        if self.clip == "group":
            _check_max_norm(group["max_norm"])
        elif group.get("max_norm") is not None:
            raise ValueError('max_norm in a param group takes clip="group"')


def _check_choice(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, must be one of {', '.join(map(repr, allowed))}")


def _check_max_norm(value: float | None) -> None:
    if value is not None and not (isinstance(value, (Real, Tensor)) and 0.0 < value):
        raise ValueError(f"max_norm is {value!r}, must be a number > 0, or None for no clipping")


def _by_name(saved: list[dict], own: list[dict]) -> list[dict]:
    """``saved`` in the order of ``own``, where all groups of both have names of their own; else as it is."""
    theirs, ours = ([group.get("name") for group in groups] for groups in (saved, own))
    for names in (theirs, ours):
        if None in names or len(set(names)) < len(names):
            return saved
    if set(theirs) != set(ours):
        raise ValueError(
            f"the saved state has the param groups {', '.join(map(str, theirs))}, this optimizer has "
            f"{', '.join(map(str, ours))}: build it with the same groups"
        )
    return [saved[theirs.index(name)] for name in ours]


def _mesh_of(x: Tensor) -> Any:
    return getattr(x, "device_mesh", None)


def _check_alike(name: str, value: Tensor, param: Tensor) -> None:
    """That state is of the shape of its parameter and cut as it is."""
    if value.shape != param.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} and its parameter {tuple(param.shape)}: the state that was loaded "
            "belongs to other parameters, or to the same in another order"
        )
    if _mesh_of(value) != _mesh_of(param) or placements_of(value) != placements_of(param):
        raise ValueError(
            f"{name} is placed {placements_of(value) or 'whole'} and its parameter {placements_of(param) or 'whole'}: "
            "load it with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, which cuts it alike"
        )


def _in_strides_of(target: Tensor, value: Tensor) -> Tensor:
    """``value`` in other memory, its local part with the strides of ``target``."""
    local = torch.empty_like(target, dtype=value.dtype).copy_(local_tensor(value))
    if not placements_of(value):
        return local
    cut = cast("DTensor", value)
    return type(cut).from_local(
        local, cut.device_mesh, cut.placements, run_check=False, shape=cut.shape, stride=cut.stride()
    )


def _copied(value: Any, param: Tensor) -> Any:
    return value.detach().to(param.device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
