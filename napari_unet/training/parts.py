"""One optimiser step's forward and backward, on a CPU in parts that run side by side.

OpenMP splits every single operation among the cores and waits for all of them after each; with small patches and
another program on the machine the waiting costs more than the work. Here each core takes some patches of the batch
through the whole network instead, and they meet twice per step. The loss is still that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from napari_unet.domain.compute import ResolvedCompute


class Gradients(Protocol):
    """Computes a batch's loss and leaves its gradients in the parameters."""

    def __call__(self, image: Tensor, loss: Callable[[Tensor], Tensor], scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the loss of ``network(image)``, detached; ``scale`` is applied before going backward."""


@contextmanager
def gradients(network: nn.Module, compute: ResolvedCompute, batch_size: int) -> Iterator[Gradients]:
    """Give the quickest way to a network's gradients on this device.

    Parameters
    ----------
    network : Module
        Its parameters' ``grad`` are set at each call.
    compute : ResolvedCompute
        Device, precision and threads.
    batch_size : int
        Patches per step: no more parts than these.
    """
    parts = min(compute.threads, batch_size) if compute.device == "cpu" else 1
    # Batch normalisation looks at the whole batch at once.
    if parts == 1 or any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        yield _Whole(network, compute)
        return
    threads = max(1, compute.threads // parts)
    with (
        ThreadPoolExecutor(parts, "napari-unet-part", initializer=torch.set_num_threads, initargs=(threads,)) as pool,
        _contiguous(network),
    ):
        yield _Parts(network, compute, pool, parts)


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


class _Whole:
    """The batch at once: accelerators share out the work themselves."""

    def __init__(self, network: nn.Module, compute: ResolvedCompute) -> None:
        self._network, self._compute = network, compute

    def __call__(self, image: Tensor, loss: Callable[[Tensor], Tensor], scale: Callable[[Tensor], Tensor]) -> Tensor:
        with autocast(self._compute):
            logits = self._network(image)
        value = loss(logits)
        self._network.zero_grad(set_to_none=True)
        scale(value).backward()
        return value.detach()


class _Parts:
    """The batch in parts, each on a thread of its own."""

    def __init__(self, network: nn.Module, compute: ResolvedCompute, pool: ThreadPoolExecutor, parts: int) -> None:
        self._network, self._compute, self._pool, self._n = network, compute, pool, parts
        self._parameters = list(network.parameters())

    def __call__(self, image: Tensor, loss: Callable[[Tensor], Tensor], scale: Callable[[Tensor], Tensor]) -> Tensor:
        outputs = list(self._pool.map(self._forward, image.chunk(self._n)))
        logits = torch.cat([output.detach() for output in outputs]).requires_grad_()
        value = loss(logits)
        scale(value).backward()
        assert logits.grad is not None
        pieces = logits.grad.split([len(output) for output in outputs])
        # Added in one order, whichever part is ready first: a seed means the same weights.
        first, *others = self._pool.map(self._backward, outputs, pieces)
        for other in others:
            torch._foreach_add_(first, other)
        for parameter, gradient in zip(self._parameters, first, strict=True):
            parameter.grad = gradient
        return value.detach()

    def _forward(self, image: Tensor) -> Tensor:
        with autocast(self._compute):
            return self._network(image)

    def _backward(self, output: Tensor, gradient: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(output, self._parameters, gradient))
