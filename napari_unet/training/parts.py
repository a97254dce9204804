"""One step's forward and backward: on a CPU in parts that run side by side, and piece by piece to save memory.

OpenMP splits every single operation among the cores and waits for all of them after each; with small patches and
another program on the machine the waiting costs more than the work. Here each core takes some patches of the batch
through the whole network instead, and they meet twice per step.

Accumulation goes through a batch in rounds that never are in memory together. In both ways the loss is that of the
whole batch, so a step is the same step however it is divided: the gradient with respect to the logits is found first,
then each piece goes back by itself (gradient caching, Gao et al. 2021). Only batch normalisation sees the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import TrainingError
from napari_unet.networks.blocks import frozen_statistics
from napari_unet.training.processes import ALONE, Processes

Logits = tuple[Tensor, ...]


class Gradients(Protocol):
    """Computes a batch's loss and leaves its gradients in the parameters."""

    def __call__(self, image: Tensor, loss: Callable[[Logits], Tensor], scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the loss of the network's outputs, detached; ``scale`` is applied before going backward."""


@contextmanager
def gradients(
    network: nn.Module,
    compute: ResolvedCompute,
    batch_size: int,
    accumulate: int = 1,
    processes: Processes = ALONE,
) -> Iterator[Gradients]:
    """Give the quickest way to a network's gradients on this device.

    Parameters
    ----------
    network : Module
        Its parameters' ``grad`` are set at each call. Returns logits, or a tuple of them.
    compute : ResolvedCompute
        Device, precision and threads.
    batch_size : int
        Patches per step: no more parts than these.
    accumulate : int
        Rounds in which a batch is computed, to save memory.
    processes : Processes
        Where there are several, the images are this process's, and the loss takes all processes' logits.

    Raises
    ------
    TrainingError
        Several processes cannot do it this way.
    """
    if processes.world > 1:
        if accumulate > 1:
            raise TrainingError(
                "Several processes share each batch already: set training.accumulate to 1, or use one process."
            )
        yield _Shared(_synchronised(network, compute), compute, processes)
        return
    rounds = min(accumulate, batch_size)
    parts = min(compute.threads, -(-batch_size // rounds)) if compute.device == "cpu" else 1
    # Batch normalisation looks at the whole batch at once.
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        parts = 1
    with _contiguous(network) if compute.device == "cpu" else nullcontext():
        if parts > 1:
            threads = max(1, compute.threads // parts)
            pool = ThreadPoolExecutor(parts, "napari-unet-part", torch.set_num_threads, (threads,))
            with pool:
                yield _Pieces(network, compute, pool.map, parts, rounds)
        elif rounds > 1:
            yield _Pieces(network, compute, map, 1, rounds)
        else:
            yield _Whole(network, compute)


@contextmanager
def _contiguous(network: nn.Module) -> Iterator[None]:
    """Keep the weights in torch's plain layout: steps on a CPU are faster in it, predictions in channels-last."""
    weights = {p: p.data for p in network.parameters() if p.ndim > 3}
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's annotations lack it
    try:
        yield
    finally:
        for parameter, before in weights.items():
            parameter.data = before.copy_(parameter.data)


def autocast(compute: ResolvedCompute) -> torch.autocast:
    """Return the context in which a network computes with the precision asked for."""
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(compute.precision)
    return torch.autocast(torch.device(compute.device).type, dtype or torch.bfloat16, enabled=dtype is not None)


def _run(network: nn.Module, compute: ResolvedCompute, image: Tensor) -> Logits:
    with autocast(compute):
        output = network(image)
    return output if isinstance(output, tuple) else (output,)


class _Whole:
    """The batch at once: accelerators share out the work themselves."""

    def __init__(self, network: nn.Module, compute: ResolvedCompute) -> None:
        self._network, self._compute = network, compute

    def __call__(self, image: Tensor, loss: Callable[[Logits], Tensor], scale: Callable[[Tensor], Tensor]) -> Tensor:
        value = loss(_run(self._network, self._compute, image))
        self._network.zero_grad(set_to_none=True)
        scale(value).backward()
        return value.detach()


class _Shared:
    """One process's part of a batch."""

    def __init__(self, network: nn.Module, compute: ResolvedCompute, processes: Processes) -> None:
        self._network, self._compute, self._processes = network, compute, processes
        self._united = processes.unite(network, compute.device)

    def __call__(self, image: Tensor, loss: Callable[[Logits], Tensor], scale: Callable[[Tensor], Tensor]) -> Tensor:
        own = _run(self._united, self._compute, image)
        value = loss(tuple(self._processes.gather(level) for level in own))
        self._network.zero_grad(set_to_none=True)
        # The mean over processes is taken of what is a sum: each has the gradient of its own patches.
        (scale(value) * self._processes.world).backward()
        return value.detach()


def _synchronised(network: nn.Module, compute: ResolvedCompute) -> nn.Module:
    """Let batch normalisation look at the patches of all processes."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return network
    if compute.device != "cuda":
        raise TrainingError(
            "Batch normalisation over several processes needs GPUs: use one process, or network.norm=instance."
        )
    # In place but for the root, which is none: weights keep their names.
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


class _Pieces:
    """The batch in rounds, one after the other, each in parts, side by side."""

    def __init__(
        self,
        network: nn.Module,
        compute: ResolvedCompute,
        apply: Callable[..., Iterable[Any]],
        parts: int,
        rounds: int,
    ) -> None:
        self._network, self._compute, self._apply = network, compute, apply
        self._parts, self._rounds = parts, rounds
        self._parameters = [p for p in network.parameters() if p.requires_grad]

    def __call__(self, image: Tensor, loss: Callable[[Logits], Tensor], scale: Callable[[Tensor], Tensor]) -> Tensor:
        rounds = [piece.chunk(self._parts) for piece in image.chunk(self._rounds)]
        # With one round the graph of this first pass serves the way back; with several it would not fit.
        keep = len(rounds) == 1
        with nullcontext() if keep else frozen_statistics(self._network):
            outputs = [output for pieces in rounds for output in self._apply(partial(self._forward, keep), pieces)]
        logits = tuple(torch.cat([o.detach() for o in level]).requires_grad_() for level in zip(*outputs, strict=True))
        value = loss(logits)
        scale(value).backward()
        wanted = self._split(logits, outputs)
        total: list[Tensor] | None = None
        for pieces in rounds:
            done = outputs if keep else list(self._apply(partial(self._forward, True), pieces))
            now, wanted = wanted[: len(done)], wanted[len(done) :]
            # Added in one order, whichever part is ready first: a seed means the same weights.
            for gradient in self._apply(self._backward, done, now):
                if total is None:
                    total = gradient
                else:
                    torch._foreach_add_(total, gradient)
        assert total is not None
        for parameter, found in zip(self._parameters, total, strict=True):
            parameter.grad = found
        return value.detach()

    @staticmethod
    def _split(logits: Logits, outputs: Sequence[Logits]) -> list[Logits]:
        """Return the gradients of the logits, divided as the outputs are."""
        sizes = [len(output[0]) for output in outputs]
        found = [torch.zeros_like(level) if level.grad is None else level.grad for level in logits]
        return list(zip(*(gradient.split(sizes) for gradient in found), strict=True))

    def _forward(self, record: bool, image: Tensor) -> Logits:
        # Here, since the threads of a pool do not inherit it.
        with torch.set_grad_enabled(record):
            return _run(self._network, self._compute, image)

    def _backward(self, output: Logits, gradient: Logits) -> list[Tensor]:
        return list(torch.autograd.grad(output, self._parameters, gradient))
