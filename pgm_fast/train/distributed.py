"""One process or several, behind one small interface.

``torchrun --nproc-per-node 2 -m pgm_fast train ...`` starts the processes and says so in the environment;
:func:`connect` reads it. Batch weights already hold the number of ranks (see :class:`~pgm_fast.data.batch.Batch`), so
that the average over ranks which ``DistributedDataParallel`` takes of the gradients is the gradient of the mean over
the joined batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, PgmFastError, TrainingStopped

__all__ = ["LOST_PEER", "Ranks", "connect", "current_ranks", "is_lost_peer", "restarted"]

LOST_PEER = "another process of this run ended; its own message says why"

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many. Every method is called by all of them, in the same order.

    Attributes:
        rank: of this process, from 0.
        world: number of processes.
        device: of this process.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def wrap(self, module: nn.Module, unused: bool = False) -> nn.Module:
        """The module with gradients averaged over the ranks; itself where there is one rank.

        Buffers are taken from rank 0 before every training step, so that the checkpoint, which holds those of rank 0,
        is the state of all.

        Args:
            module: on the device of this rank.
            unused: whether it may hold trained parameters that reach no loss.
        """
        if self.world == 1:
            return module
        # A parameter that gets no gradient at all would stop the run here: the methods keep every trained parameter
        # of their own in the graph, with weight 0 where the modality is missing, which spares a walk over the graph in
        # every step. An encoder that the user brings may have more than it uses, such as a spare head.
        return DistributedDataParallel(module, find_unused_parameters=unused, gradient_as_bucket_view=True)

    def postponed(self, wrapped: nn.Module, postpone: bool) -> AbstractContextManager[None]:
        """Inside, if ``postpone``, gradients add up on each rank, to be averaged by the next backward pass outside.

        Not where parameters may get no gradient in a pass, of which the others do not learn: there every pass averages,
        which comes to the same.
        """
        if postpone and isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters:
            return wrapped.no_sync()
        return nullcontext()

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0 (running statistics of normalisation)."""
        if self.world == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for buffer in module.buffers():
            kinds.setdefault(buffer.dtype, []).append(buffer.detach())
        for buffers in kinds.values():
            together = torch.cat([buffer.reshape(-1) for buffer in buffers])
            dist.broadcast(together, src=0)
            parts = together.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [x.view_as(buffer) for x, buffer in zip(parts, buffers, strict=True)])

    def maximum_(self, tensor: Tensor) -> Tensor:
        """In place, the largest value over ranks."""
        if self.world > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def sum_(self, tensor: Tensor) -> Tensor:
        """In place, the sum over ranks."""
        if self.world > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank. Any picklable value."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def collect(self, value: T) -> list[T]:
        """As :meth:`gather`, on rank 0 only; empty elsewhere."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def on_main(self, action: Callable[[], T]) -> T:
        """Run ``action`` on rank 0; its (picklable) result is returned, or its failure raised, on every rank."""
        if self.world == 1:
            return action()
        result: list[Any] = [None, None]
        if self.is_main:
            try:
                result[0] = action()
            except Exception as error:
                result[1] = (
                    error if isinstance(error, PgmFastError) else RuntimeError(f"{type(error).__name__}: {error}")
                )
                dist.broadcast_object_list(result, src=0)
                raise
        dist.broadcast_object_list(result, src=0)
        if result[1] is not None:
            raise result[1]
        return result[0]

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Where one rank fails inside the block, all raise at its end: nobody waits for a rank that is gone."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if self.world > 1:
            messages = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
            others = [f"rank {rank}: {message}" for rank, message in enumerate(messages) if message is not None]
            if failure is None and others:
                raise TrainingStopped(f"another process of this run failed, {others[0]}")
        if failure is not None:
            raise failure


def current_ranks(device: str = "auto") -> Ranks:
    """This process alone, or its place in the process group that already exists.

    Args:
        device: ``auto`` (CUDA where there is a device), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: CUDA was asked for and there is no such device, or one numbered device for several processes.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    return Ranks(rank, world, _device(device, world))


def restarted() -> bool:
    """Whether torchrun started this process in place of one that ended badly (``--max-restarts``)."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def connect(device: str = "auto") -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, for the length of the block; alone where there are none.

    A process group that the caller made is used and left as it is. Otherwise gloo serves the CPU and nccl CUDA
    devices. When the block fails on one rank, the end of that process closes its connections, and the others raise
    TrainingStopped.

    Raises:
        ConfigError: see :func:`current_ranks`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield current_ranks(device)
        return
    place = _device(device, world)
    if place.type == "cuda":
        torch.cuda.set_device(place)
        dist.init_process_group("nccl", device_id=place, **_meeting())
    else:
        dist.init_process_group("gloo", **_meeting())
    group = dist.group.WORLD
    try:
        yield Ranks(dist.get_rank(), world, place)
    except Exception as error:
        # The traceback may hold the DistributedDataParallel module. Were that the last to hold the group, it would
        # join the group's threads with Python's lock taken, while they wait for the lock to drop their tensors:
        # nobody would ever go on.
        _failed_groups.append(group)
        group.abort()
        if isinstance(error, RuntimeError) and is_lost_peer(str(error)):
            raise TrainingStopped(LOST_PEER) from error
        raise
    finally:
        dist.destroy_process_group()


def _meeting() -> dict[str, Any]:
    """Where the processes of a restart meet: torchrun's store still holds the addresses of those that died, under the
    names at which the new ones would look for each other."""
    if not restarted():
        return {}
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    return {"store": store, "rank": rank, "world_size": world}


_failed_groups: list[dist.ProcessGroup] = []


def is_lost_peer(message: str) -> bool:
    """Whether a collective failed with this because the other side went away."""
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "Socket closed",
        "remote process exited",
    )
    return any(sign in message for sign in signs)


def _device(name: str, world: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(
            f"train.device is {name}, but torch sees no CUDA device here; use train.device=cpu, or run pgm-fast doctor"
        )
    if world > 1:
        if device.index is not None:
            raise ConfigError(
                f"train.device is {name} for {world} processes; use train.device=cuda, each "
                "takes the device of its rank"
            )
        index = int(os.environ.get("LOCAL_RANK", dist.get_rank() if dist.is_initialized() else 0))
    else:
        index = device.index if device.index is not None else torch.cuda.current_device()
    if index >= count:
        raise ConfigError(
            f"device cuda:{index} is wanted, but there are {count} (cuda:0 to cuda:{count - 1}); "
            "use fewer processes or train.device=cpu"
        )
    return torch.device("cuda", index)
