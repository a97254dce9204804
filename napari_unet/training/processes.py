"""One training by several processes, each with a GPU of its own: what they share out, and where they agree.

Each draws and computes its part of every batch. The loss is that of the whole batch, as with one process: its Dice is
pooled over the batch, which the mean of the parts' losses, torch's usual way, is not. So the logits are gathered, every
process computes the same loss, and goes back through its own part; DistributedDataParallel then unites the gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_unet.domain.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """The processes of one training, seen from one of them.

    Parameters
    ----------
    rank : int
        This one's number, from 0.
    world : int
        How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    def seats(self, n: int) -> range:
        """Return which patches of a batch are this process's.

        Raises
        ------
        TrainingError
            The patches cannot be shared out evenly.
        """
        if n % self.world:
            raise TrainingError(
                f"{n} patches cannot be shared out evenly among {self.world} processes: set training.batch_size to a "
                f"multiple of {self.world}."
            )
        each = n // self.world
        return range(self.rank * each, (self.rank + 1) * each)

    def gather(self, part: Tensor) -> Tensor:
        """Return every process's part in one, along the first axis; gradients flow to one's own only."""
        if self.world == 1:
            return part
        import torch
        from torch import distributed

        sent = part.detach().contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.world)]
        distributed.all_gather(parts, sent)
        parts[self.rank] = part
        return torch.cat(parts)

    def agree(self, values: Sequence[float], device: str) -> list[float]:
        """Return the first process's values: clocks differ, and those who act on them must not."""
        if self.world == 1:
            return list(values)
        import torch
        from torch import distributed

        told = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.broadcast(told, src=0)
        return [float(value) for value in told.tolist()]

    def first_says(self, value: Any) -> Any:
        """Return the first process's value: what each finds for itself, such as memory, may differ."""
        if self.world == 1:
            return value
        from torch import distributed

        told = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def least(self, value: int) -> int:
        """Return the least of all processes' values."""
        if self.world == 1:
            return value
        from torch import distributed

        told: list[Any] = [None] * self.world
        distributed.all_gather_object(told, value)
        return min(told)

    def unite(self, network: nn.Module, device: str) -> nn.Module:
        """Return a network whose gradients are those of all processes' parts, averaged."""
        if self.world == 1:
            return network
        import torch
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(network, device_ids=[torch.cuda.current_device()] if device == "cuda" else None)


ALONE = Processes()


@contextmanager
def of_torchrun() -> Iterator[Processes]:
    """Join the processes that torchrun started, each on its own GPU; alone where it started none.

    Raises
    ------
    TrainingError
        They cannot reach one another.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    import torch
    from torch import distributed

    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        raise TrainingError("The processes that torchrun started cannot reach one another: see its output.") from error
    try:
        yield Processes(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
