"""A network where it runs: how much of it at once, in which poses, and what is done when memory or device fail."""

from __future__ import annotations

import copy
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import EngineError, ModelError
from napari_unet.domain.settings import ModelSettings
from napari_unet.inference.runtimes import GraphNetwork, converted
from napari_unet.networks.heads import class_logits
from napari_unet.networks.pixel_head import PixelHead
from napari_unet.networks.unet import UNet

logger = logging.getLogger(__name__)

#: Voxels of one tile, by the network's dimensions: beyond this CPU caches and small GPUs suffer.
_TILE_VOXELS = {2: 512 * 512, 3: 96 * 128 * 128}
#: Voxels in one forward pass. Small planes share one; on CPUs large batches leave the caches (one plane of 512 x 512
#: at a time was faster than four), GPUs want to be filled.
_PASS_VOXELS = {"cpu": 2**16, "cuda": 2**22, "mps": 2**20}
#: Below so many voxels of a tile memory is not what is missing.
_FEWEST_TILE_VOXELS = 32 * 32
_ALIKE_TILES = 4

_FULL = "The computer's memory is too full to propose: close other programs or scans and try again."
_SMALLER = "The memory was full: proposing goes on in smaller pieces, which is slower."
_ON_CPU_FOR_MEMORY = "The GPU's memory is too small for this model: proposing goes on on the CPU."
_ON_CPU = "The GPU stopped answering: proposing goes on on the CPU. Restart the program to use the GPU again."


_T = TypeVar("_T")


class _BeginAnew(Exception):  # no error: the runner has helped itself
    """The tiles have been made smaller, or the device changed: what was computed so far does not fit any more."""


class Runner:
    """A network on its device and in its runtime.

    Parameters
    ----------
    network : UNet or GraphNetwork
        In any mode; it is set to evaluation and moved to the device. A graph runs in a runtime, whichever is asked for.
    settings : ModelSettings
        Poses to average over, tiles.
    compute : ResolvedCompute
        Device, precision, runtime.

    Attributes
    ----------
    note : str
        What the person should know of the last slab: memory was short, the GPU was lost. Empty otherwise.
    """

    def __init__(self, network: UNet | GraphNetwork, settings: ModelSettings, compute: ResolvedCompute) -> None:
        self.settings = settings
        self.device = compute.device
        self.divisor = network.divisor
        self.note = ""
        self._compute = network.place(compute) if isinstance(network, GraphNetwork) else compute
        network.eval()
        weight = next(network.parameters(), None)
        # A GPU that is lost takes its copy of the weights along.
        self._spare = (
            network if compute.device != "cpu" and weight is not None and weight.device.type == "cpu" else None
        )
        self._heads: dict[int, PixelHead] = {}
        self._tile_voxels = _TILE_VOXELS[settings.network.dimensions]
        self._pass_voxels = _PASS_VOXELS.get(compute.device, _PASS_VOXELS["cpu"])
        self._poses = _poses(settings)
        self._alike: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
        self._run: Callable[[Tensor], Tensor] = self._with_torch
        self._is_short = False
        self._in_use = threading.RLock()
        try:
            self._network = network if self._spare is None else copy.deepcopy(network)
            self._network.to(compute.device)
        except RuntimeError as error:
            if self._spare is None or not _is_lost(error):
                raise
            self._leave_device(_ON_CPU)
        if self._runtime != "torch":
            self._convert()

    def attempt(self, work: Callable[[], _T]) -> _T:
        """Return what some work with this runner gives, begun anew where memory or device fail.

        Passes are halved where the memory is too small, then tiles, then the CPU takes over; so it does where the GPU
        stops answering. :attr:`note` says so.

        Raises
        ------
        EngineError
            The computer's memory is too small, too.
        """
        # A cluster's worker may run several jobs, and what is learnt of memory and device changes the network.
        with self._in_use:
            while True:
                try:
                    return work()
                except _BeginAnew:
                    continue
                except (RuntimeError, MemoryError) as error:
                    # Outside of a pass: the sums of a slab, or what a GPU answers late.
                    try:
                        self._recover(error, 1, 0)
                    except _BeginAnew:
                        continue

    def beside(self, head: PixelHead) -> PixelHead:
        """Return a classifier of pixels on the device; the one given stays where it is."""
        if self.device == "cpu":
            return head
        if id(head) not in self._heads:
            self._heads[id(head)] = copy.deepcopy(head).to(self.device)
        return self._heads[id(head)]

    def put(self, array: NDArray[np.float32]) -> Tensor:
        """Return an array on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def tile_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tiles that an input is cut into; sizes are multiples of :attr:`divisor`."""
        wished = self.settings.inference.tile or _largest_tile(spatial)
        # Where the memory was too small, halve the longest side until a tile fits.
        while self._is_short and max(wished) > 1 and np.prod(self._rounded(wished, spatial)) > self._tile_voxels:
            longest = int(np.argmax(wished))
            wished = tuple(-(-w // 2) if i == longest else w for i, w in enumerate(wished))
        return self._rounded(wished, spatial)

    def _rounded(self, wished: tuple[int, ...], spatial: tuple[int, ...]) -> tuple[int, ...]:
        tile = tuple(-(-min(w, s) // d) * d for w, s, d in zip(wished, spatial, self.divisor, strict=True))
        # A single deepest feature has no deviation to normalise by.
        return tuple(2 * d for d in self.divisor) if tile == self.divisor else tile

    def probability(self, x: Tensor) -> Tensor:
        """Return softmax probabilities ``(B, K, *spatial)``, float32, averaged over the poses that are asked for.

        Call it inside :meth:`attempt`, and ask for :meth:`tile_shape` there.

        Parameters
        ----------
        x : (B, C, *spatial) float Tensor
            Tiles. One of a single value per channel (air, padding) is computed once and remembered.
        """
        if not self.settings.inference.skip_constant:
            return self._in_passes(x)
        low, high = x.flatten(2).aminmax(dim=2)
        constant = (low == high).all(1).tolist()
        if not any(constant):
            return self._in_passes(x)
        varied = [i for i, same in enumerate(constant) if not same]
        found = x.new_empty((len(x), self.settings.network.out_channels, *x.shape[2:]))
        if varied:
            found[varied] = self._in_passes(x[varied])
        for i in (i for i, same in enumerate(constant) if same):
            found[i] = self._of_constant(x[i : i + 1], tuple(low[i].tolist()))
        return found

    def _of_constant(self, x: Tensor, values: tuple[float, ...]) -> Tensor:
        # The same input, so the same output: border effects of the padding included.
        key = (tuple(x.shape), values)
        if key not in self._alike:
            self._alike[key] = self._in_passes(x)[0]
            while len(self._alike) > _ALIKE_TILES:
                self._alike.popitem(last=False)
        return self._alike[key]

    def _in_passes(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        size, start = int(np.prod(x.shape[2:])), 0
        while start < len(x):
            most = max(1, self._pass_voxels // size)
            batch = x[start : start + most]
            try:
                parts.append(self._averaged(batch))
            except (RuntimeError, MemoryError) as error:
                self._recover(error, len(batch), size)
                continue
            start += len(batch)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _averaged(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for flip, turned in self._poses:
            seen = x.transpose(-2, -1) if turned else x
            seen = seen.flip(flip) if flip else seen
            out = class_logits(self._run(seen).float(), self.settings.network).softmax(1)
            out = out.flip(flip) if flip else out
            out = out.transpose(-2, -1) if turned else out
            total = out if total is None else total.add_(out)
        assert total is not None
        return total.div_(len(self._poses))

    def _with_torch(self, x: Tensor) -> Tensor:
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self._compute.precision)
        with torch.autocast(torch.device(self.device).type, dtype or torch.bfloat16, enabled=dtype is not None):
            return self._network(x)

    @property
    def compute(self) -> ResolvedCompute:
        """Where it computes now."""
        return self._compute

    @property
    def _runtime(self) -> str:
        return self._compute.runtime_for(self.settings.network.dimensions)

    def _convert(self) -> None:
        try:
            self._run = converted(self._network, self.settings.network, self._compute)
        except ModelError as error:
            if self._compute.runtime_wanted:
                raise
            logger.info("torch runs this network: %s", error)

    # -- when something fails -----------------------------------------------------------------------------------

    def _recover(self, error: Exception, n: int, size: int) -> None:
        """Make the passes smaller, then the tiles, then go to the CPU; raise where the slab must begin anew."""
        if _is_lost(error) and self._spare is not None:
            self._leave_device(_ON_CPU)
            raise _BeginAnew from error
        if not _is_out_of_memory(error):
            if self._is_converted and not self._compute.runtime_wanted:
                # It read the network, and cannot run it.
                logger.info("torch runs this network: %s", type(error).__name__)
                self._run = self._with_torch
                return
            raise error
        logger.info("Out of memory with %d tiles of %d voxels on %s", n, size, self.device)
        if isinstance(error, MemoryError) and self.device != "cpu":
            # What is full is the computer's memory, and the CPU would need more of it.
            self.note = ""
            raise EngineError(_FULL) from error
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.note = _SMALLER
        if n > 1:
            self._pass_voxels = n // 2 * size
            return
        if size // 2 >= max(_FEWEST_TILE_VOXELS, int(np.prod([2 * d for d in self.divisor]))):
            self._tile_voxels, self._is_short = size // 2, True
        elif self._spare is not None:
            self._leave_device(_ON_CPU_FOR_MEMORY)
        else:
            self.note = ""
            raise EngineError(_FULL) from error
        raise _BeginAnew from error

    @property
    def _is_converted(self) -> bool:
        return self._runtime != "torch" and self._run != self._with_torch

    def _leave_device(self, note: str) -> None:
        assert self._spare is not None
        logger.warning("%s", note)
        self.note = note
        self._network, self._spare, self.device = self._spare, None, "cpu"
        self._heads.clear()
        self._compute = ResolvedCompute("cpu", "float32", self._compute.threads)
        self._run = self._with_torch
        self._is_short = False
        self._pass_voxels = _PASS_VOXELS["cpu"]
        self._alike.clear()


def _largest_tile(spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Return the whole of an input, or a tile of it with sides as long and as equal as they may be.

    Normalisation evens features out over a tile: the more tiles resemble one another and what was learnt from, the
    better.
    """
    low, high = 1, max(spatial)
    while low < high:
        side = (low + high + 1) // 2
        if np.prod([min(n, side) for n in spatial], dtype=np.int64) <= _TILE_VOXELS[len(spatial)]:
            low = side
        else:
            high = side - 1
    return tuple(min(n, low) for n in spatial)


def _is_out_of_memory(error: Exception) -> bool:
    words = ("out of memory", "can't allocate", "not enough memory", "bad_alloc", "failed to allocate", "alloc_failed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error).lower() for w in words)


def _is_lost(error: Exception) -> bool:
    if _is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or any(
        words in str(error) for words in ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "NVIDIA driver", "MPS backend")
    )


def _poses(settings: ModelSettings) -> Sequence[tuple[tuple[int, ...], bool]]:
    """Return the axes flipped, and whether rows and columns change places first, of each pose to average over.

    A transposition and the two flips make the eight poses of a square, the quarter turns among them.
    """
    augmentation, inference = settings.augmentation, settings.inference
    axes = [axis + 2 for axis in augmentation.mirror] if inference.mirror else []
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    network = settings.network
    # What treats rows and columns unlike cannot be shown one for the other.
    alike = all(size[0] == size[-1] for size in (*network.strides, *(network.kernels or ())))
    turns = inference.turns and network.dimensions == 2 and augmentation.rotation_degrees == 180 and len(axes) == 2
    return [(flip, turned) for turned in ((False, True) if turns and alike else (False,)) for flip in flips]
