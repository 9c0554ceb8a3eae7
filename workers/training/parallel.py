"""Several processes, one run: data-parallel training under `accelerate launch` (or torchrun).

Every process reads all the data, so each knows the whole optimiser step and what its loss is divided by. Of the step's
items it computes every n-th; gradients are *summed* over the processes, so that the step is the one that a single
process would make. The first process alone reports and saves.

    replicated (DDP)   each process holds all weights; gradients are summed once, after a step's last backward pass
    sharded (FSDP2)    `accelerate launch --use_fsdp --fsdp_version 2`: each transformer block's weights, gradients and
                       AdamW state are spread over the processes and gathered while the block computes. Embeddings and
                       heads stay whole everywhere, because the losses read them outside of the model's forward.

Deliberately left out: overlap of the replicated sum with the backward pass, tensor and pipeline parallelism, CPU
offloading, several processes for the stages that generate.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from workers.training.report import Reporter

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
STAGES = ("sft", "reward", "dpo", "kto")  # the trainers that use this module


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, and whether weights are sharded."""

    rank: int = 0
    size: int = 1
    sharded: bool = False


_world = World()


def start() -> World:
    """Join the processes that the launcher's environment names, if it names any."""
    global _world
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        import torch
        import torch.distributed as dist

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        _world = World(dist.get_rank(), size, sharded)
    return _world


def finish() -> None:
    """Leave the group, when all have come to their end."""
    global _world
    if _world.size > 1:
        import torch.distributed as dist

        dist.destroy_process_group()
        _world = World()


def first() -> bool:
    """Whether this is the process that reports and saves."""
    return _world.rank == 0


def alone() -> bool:
    """Whether the run has one process only."""
    return _world.size == 1


def sharded() -> bool:
    """Whether blocks are spread over the processes."""
    return _world.sharded


def share(items: Sequence[T]) -> list[T]:
    """What this process computes of a step's items; together the processes have each item once."""
    return list(items[_world.rank :: _world.size])


def total(value: "Tensor") -> "Tensor":
    """Sum over the processes of a tensor that has the same shape in each."""
    if _world.size > 1:
        import torch.distributed as dist

        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def most(value: int) -> int:
    """The greatest of the processes' numbers."""
    if _world.size > 1:
        import torch
        import torch.distributed as dist

        number = torch.tensor(value, device=_communicator())
        dist.all_reduce(number, dist.ReduceOp.MAX)
        value = int(number)
    return value


def joined(value: "Tensor") -> "Tensor":
    """The processes' tensors one after another along the last dimension, whose size may differ between them."""
    if _world.size > 1:
        import torch
        import torch.distributed as dist

        widths = [torch.zeros((), dtype=torch.long, device=value.device) for _ in range(_world.size)]
        dist.all_gather(widths, torch.tensor(value.shape[-1], device=value.device))
        width = max(int(w) for w in widths)
        padded = value.new_zeros(*value.shape[:-1], width)
        padded[..., : value.shape[-1]] = value.detach()
        parts = [torch.empty_like(padded) for _ in widths]
        dist.all_gather(parts, padded)
        value = torch.cat([part[..., : int(w)] for part, w in zip(parts, widths, strict=True)], dim=-1)
    return value


def level(groups: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Micro-batches, with empty ones added where weights are sharded: each process must gather them equally often."""
    missing = most(len(groups)) - len(groups) if _world.sharded else 0
    return [*groups, *([] for _ in range(missing))]


def shard(model: "nn.Module", blocks: Iterable["nn.Module"], whole: Iterable["nn.Parameter"]) -> None:
    """Spread `blocks`, and the rest of their backbone `model` but for `whole`, over the processes (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(_communicator(), (_world.size,))
    kept = set(whole)
    for module in (*blocks, model):
        # Resharded at once, the backbone too: what an optimiser is given after a forward pass must be the shards.
        fully_shard(module, mesh=mesh, ignored_params=kept, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)  # the loss is divided by the whole step's weight already:
        module.set_force_sum_reduction_for_comms(True)  # gradients are summed


def full(tensor: "Tensor") -> "Tensor":
    """A tensor as every process would hold it without sharding; all processes must ask for it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(target: "Tensor", value: "Tensor") -> None:
    """Copy a whole tensor into one that may be sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def sum_gradients(parameters: Iterable["nn.Parameter"]) -> None:
    """Gradients of replicated parameters summed over the processes (those of sharded ones are already), in buckets."""
    if _world.size == 1:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    bucket: list[Tensor] = []

    def flush() -> None:
        if bucket:
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))
            bucket.clear()

    for parameter in parameters:
        if parameter.grad is None:  # a process without items in this step
            parameter.grad = torch.zeros_like(parameter)
        if not isinstance(parameter.grad, DTensor):
            bucket.append(parameter.grad)
            if sum(g.numel() for g in bucket) >= 1 << 24:
                flush()
    flush()


def clip(parameters: Sequence["nn.Parameter"], most: float) -> "Tensor":
    """Scale gradients down to norm `most`; returns the norm over all processes' shares before that."""
    import torch
    from torch.distributed.tensor import DTensor

    if not _world.sharded:
        return torch.nn.utils.clip_grad_norm_(parameters, most)
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    wholes = [g for g in gradients if not isinstance(g, DTensor)]
    squares = [
        sum((g.square().sum() for g in group), torch.zeros((), device=_communicator())) for group in (parts, wholes)
    ]
    norm = (total(squares[0]) + squares[1]).sqrt()
    for gradient in (*parts, *wholes):
        gradient.mul_((most / (norm + 1e-6)).clamp(max=1.0))
    return norm


class SharedReporter(Reporter):
    """A reporter of one of several processes: the first one speaks, and all stop after the same step."""

    def __init__(self, stage: str, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        super().__init__(stage, stdout, stderr)
        self._asked = False
        if not first():
            self.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  open to the end

    def keep(self, out: Any, *, resume: bool) -> None:
        if first():
            super().keep(out, resume=resume)

    def ask_to_stop(self) -> None:
        self._asked = True

    def log(self, message: str) -> None:
        if first():
            super().log(message)

    def error(self, kind: str, message: str, trace: str = "") -> None:
        super().error(kind, message, trace)
        if not first():
            self.stderr.write(f"{trace}\n{message} (process {_world.rank})\n")

    def step(self, step: int, total_steps: int, metrics: Any) -> None:
        super().step(step, total_steps, metrics)
        self.stopping = bool(most(int(self._asked)))


def _communicator() -> str:
    """The kind of device on which the processes exchange tensors."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
