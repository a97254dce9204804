"""Public tools' recipes for the effort benchmark: each learns from corrected scans and proposes labels for the next.

Networks, losses, transforms, tiling and forests are the tools' own, from their packages; here stands only what joins
them to a stream of scans. The stream itself, and this product, are effort.py's. All draw their patches on a thread of
their own beside the step, from slices that were prepared once.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch._dynamo  # optimisers import it at their first step: seconds, out of the budget
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import PreparationSettings
from napari_unet.io.pairs import LabelledScan
from napari_unet.patches.prepare import prepare

# Slices that are proposed at once.
_AT_ONCE = 8


@dataclass(frozen=True)
class Task:
    """What a tool is told before the first scan: foreground classes, seed of weights and patches, device, threads."""

    n_classes: int
    seed: int
    device: str
    threads: int


class Tool(Protocol):
    """What stands in the stream."""

    def learn(self, new: Sequence[LabelledScan], seconds: float) -> int:
        """Learn from these scans and all before them for so many seconds of wall time; return the steps taken."""

    def propose(self, scan: Scan) -> NDArray[np.uint8]:
        """Return labels over a scan's spatial axes; all background before anything was learnt."""


@dataclass(frozen=True, eq=False)
class _Slices:
    """A scan as ``(S, C, H, W)`` float32 slices with ``(S, H, W)`` uint8 labels; where the foreground is."""

    images: NDArray[np.float32]
    labels: NDArray[np.uint8]
    foreground: NDArray[np.int64]


class _Slicer:
    """Turns scans into slices of mean 0 and deviation 1: three channels if the first scan is in colour, else one."""

    def __init__(self) -> None:
        self._settings: PreparationSettings | None = None

    def images(self, scan: Scan) -> NDArray[np.float32]:
        if self._settings is None:
            channels = scan.channels_first()
            coloured = scan.is_rgb and any((channels[0] != channel).any() for channel in channels[1:3])
            self._settings = PreparationSettings(colour="rgb" if coloured else "grey")
        return np.ascontiguousarray(np.moveaxis(prepare(scan, self._settings), 0, 1))

    def __call__(self, item: LabelledScan) -> _Slices:
        labels = np.ascontiguousarray(item.scan.to_planes(item.labels), np.uint8)
        return _Slices(self.images(item.scan), labels, np.argwhere(labels > 0))


def _window(array: NDArray, corner: Sequence[int], size: Sequence[int]) -> NDArray:
    """Cut a window out of the last two axes; beyond the array it holds zeros."""
    found = np.zeros((*array.shape[:-2], *size), array.dtype)
    inside = [
        (max(0, -start), max(0, start), max(0, min(start + n, edge)))
        for start, n, edge in zip(corner, size, array.shape[-2:], strict=True)
    ]
    (row, top, bottom), (column, left, right) = inside
    found[..., row : row + bottom - top, column : column + right - left] = array[..., top:bottom, left:right]
    return found


def _edge(size: int, most: int, multiple: int) -> int:
    """Return a patch's edge: the slice's, at most ``most``, rounded up to a multiple."""
    return math.ceil(min(size, most) / multiple) * multiple


class _NetworkTool:
    """A network that learns from random windows of all slices corrected so far.

    Packages are imported before the first scan, so that no budget pays for it.
    """

    def __init__(self, task: Task) -> None:
        self._task, self._slicer = task, _Slicer()
        self._pool: list[_Slices] = []
        self._network: nn.Module | None = None
        self._rng = np.random.default_rng(task.seed)

    def learn(self, new: Sequence[LabelledScan], seconds: float) -> int:
        """See :class:`Tool`."""
        started = time.perf_counter()
        self._pool += [self._accept(self._slicer(item)) for item in new]
        if self._network is None:
            torch.manual_seed(self._task.seed)
            _, channels, *shape = self._pool[0].images.shape
            self._network = self._build(channels, shape).to(self._task.device)
        optimiser = self._optimiser(self._network.train())
        drawing = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        with drawing as drawer:
            upcoming = drawer.submit(self._batch)
            for step in itertools.count():
                fraction = (time.perf_counter() - started) / seconds
                if fraction >= 1:
                    return step
                images, labels = (part.to(self._task.device) for part in upcoming.result())
                upcoming = drawer.submit(self._batch)
                self._step(optimiser, fraction, images, labels)
        raise AssertionError("itertools.count ends never")

    def propose(self, scan: Scan) -> NDArray[np.uint8]:
        """See :class:`Tool`."""
        images = self._slicer.images(scan)
        classes = np.zeros((len(images), *images.shape[-2:]), np.uint8)
        if self._network is not None:
            self._network.eval()
            with torch.inference_mode():
                for first in range(0, len(images), _AT_ONCE):
                    part = torch.from_numpy(images[first : first + _AT_ONCE]).to(self._task.device)
                    classes[first : first + _AT_ONCE] = self._scores(part).argmax(1).cpu().numpy()
        return scan.from_planes(classes)

    def _step(self, optimiser: torch.optim.Optimizer, fraction: float, images: Tensor, labels: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        self._loss(self._network(images), labels).backward()
        optimiser.step()

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return images ``(B, C, H, W)`` and labels ``(B, 1, H, W)``, int64."""
        patches = list(self._patches())
        return torch.stack([image for image, _ in patches]), torch.stack([labels for _, labels in patches]).long()

    def _cut(self, size: Sequence[int], around_foreground: bool) -> tuple[Tensor, Tensor]:
        """Return a window of a random slice, image ``(C, H, W)`` and labels ``(1, H, W)``."""
        slices = self._pool[self._rng.integers(len(self._pool))]
        shape = slices.labels.shape[-2:]
        if around_foreground and len(slices.foreground):
            index, *centre = slices.foreground[self._rng.integers(len(slices.foreground))]
        else:
            index, *centre = (int(self._rng.integers(n)) for n in slices.labels.shape)
        # Inside the slice where it is large enough, else around it.
        corner = [
            int(np.clip(middle - n // 2, *sorted((0, edge - n))))
            for middle, n, edge in zip(centre, size, shape, strict=True)
        ]
        image, labels = _window(slices.images[index], corner, size), _window(slices.labels[index], corner, size)
        return torch.from_numpy(image), torch.from_numpy(labels[np.newaxis])

    def _accept(self, slices: _Slices) -> _Slices:
        return slices

    def _build(self, channels: int, shape: Sequence[int]) -> nn.Module:
        raise NotImplementedError

    def _optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        raise NotImplementedError

    def _patches(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def _scores(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class MonaiLabelStyle(_NetworkTool):
    """MONAI's BasicUNet, DiceCELoss and Adam at 1e-4 as MONAI Label's apps take them, on slices.

    Random changes and four crops per step, half of them around foreground, are those of its radiology app; crops of
    96 x 96 read by a sliding window those of MONAI's 2D segmentation tutorial.
    """

    _EDGE, _BATCH = 96, 4

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from monai.losses import DiceCELoss
        from monai.networks.nets import BasicUNet
        from monai.transforms import Compose, RandFlipd, RandRotate90d, RandShiftIntensityd

        both = ("image", "label")
        self._change = Compose(
            [
                RandFlipd(both, prob=0.1, spatial_axis=0),
                RandFlipd(both, prob=0.1, spatial_axis=1),
                RandRotate90d(both, prob=0.1, max_k=3),
                RandShiftIntensityd("image", offsets=0.1, prob=0.5),
            ]
        ).set_random_state(task.seed)
        self._criterion = DiceCELoss(to_onehot_y=True, softmax=True)
        self._network_of = partial(BasicUNet, spatial_dims=2, out_channels=task.n_classes + 1)

    def _build(self, channels: int, shape: Sequence[int]) -> nn.Module:
        self._roi = (_edge(max(shape), self._EDGE, 16),) * 2
        return self._network_of(in_channels=channels)

    def _optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), 1e-4)

    def _patches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self._BATCH):
            image, labels = self._cut(self._roi, around_foreground=number % 2 == 0)
            changed = self._change({"image": image, "label": labels})
            yield changed["image"].as_tensor(), changed["label"].as_tensor()

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self._criterion(outputs, labels)

    def _scores(self, images: Tensor) -> Tensor:
        return _slide(images, self._roi, self._network)


def _slide(images: Tensor, roi: Sequence[int], network: Callable[[Tensor], Tensor]) -> Tensor:
    from monai.inferers import sliding_window_inference

    return sliding_window_inference(images, roi, _AT_ONCE, network, overlap=0.5, mode="gaussian")


class NnunetStyle(_NetworkTool):
    """nnU-Net's PlainConvUNet, Dice + cross entropy, SGD with polynomial rate, random changes, mirrored averages.

    Float32, as it runs on a CPU. Its plans would take patches as large as the slices and batches that a CPU computes
    once or twice in the budget, so patches are at most 256 x 256, and batches 2 (its smallest) to 12 (as many pixels as
    this product's). The rate falls over each budget; without deep supervision.
    """

    _EDGE, _STEP_PIXELS, _MOST, _RATE = 256, 16 * 32**2, 12, 1e-2

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
        from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        self._network_of, self._larger_patch = PlainConvUNet, get_patch_size
        self._changes = nnUNetTrainer.get_training_transforms
        self._criterion = DC_and_CE_loss(
            {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            dice_class=MemoryEfficientSoftDiceLoss,
        )

    def _build(self, channels: int, shape: Sequence[int]) -> nn.Module:
        # Halved while half of it leaves an edge of 4 (get_pool_and_conv_props).
        halvings, edge = 0, min(*shape, self._EDGE)
        while edge >= 8:
            halvings, edge = halvings + 1, math.ceil(edge / 2)
        self._patch = tuple(_edge(n, self._EDGE, 2**halvings) for n in shape)
        self._size = max(2, min(self._MOST, self._STEP_PIXELS // math.prod(self._patch)))
        # nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size
        largest = math.radians(15 if max(self._patch) > 1.5 * min(self._patch) else 180)
        turn = (-largest, largest)
        self._larger = tuple(int(n) for n in self._larger_patch(self._patch, turn, turn, turn, (0.85, 1.25)))
        self._change = self._changes(self._patch, turn, None, (0, 1), False)
        network = self._network_of(
            channels,
            halvings + 1,
            [min(32 * 2**level, 512) for level in range(halvings + 1)],
            nn.Conv2d,
            3,
            [1] + [2] * halvings,
            2,
            self._task.n_classes + 1,
            2,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        network.apply(network.initialize)
        return network

    def _optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), self._RATE, momentum=0.99, weight_decay=3e-5, nesterov=True)

    def _patches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self._size):
            # The last third of each batch holds foreground for certain (nnUNetDataLoader).
            image, labels = self._cut(self._larger, number >= round(self._size * (1 - 0.33)))
            changed = self._change(image=image, segmentation=labels.to(torch.int16))
            yield changed["image"], changed["segmentation"]

    def _step(self, optimiser: torch.optim.Optimizer, fraction: float, images: Tensor, labels: Tensor) -> None:
        for group in optimiser.param_groups:
            group["lr"] = self._RATE * (1 - fraction) ** 0.9
        optimiser.zero_grad(set_to_none=True)
        self._loss(self._network(images), labels).backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), 12)
        optimiser.step()

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self._criterion(outputs, labels)

    def _scores(self, images: Tensor) -> Tensor:
        flips: list[tuple[int, ...]] = [(), (2,), (3,), (2, 3)]
        return sum(_slide(images.flip(axes), self._patch, self._network).softmax(1).flip(axes) for axes in flips)


class RootPainter(_NetworkTool):
    """RootPainter's network, loss, optimiser, tiling and flipped average; one tile per step, as it trains on a CPU.

    Tiles are smaller than its 572 x 572, of which a CPU learns five in 20 s: as wide as the slices, at most 220 x 220
    (148 x 148 come out). With several classes the network gets as many outputs more, and the loss is the mean of its
    loss for each class against the rest. Of its random changes the mirroring; its rule that keeps the better of two
    models, which needs annotations set apart, is left out.
    """

    _MARGIN, _SMALLEST, _LARGEST = 36, 92, 220

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        from root_painter_trainer import im_utils
        from root_painter_trainer.loss import combined_loss
        from root_painter_trainer.unet import UNetGNRes

        self._network_of, self._criterion, self._tiles = UNetGNRes, combined_loss, im_utils

    def _build(self, channels: int, shape: Sequence[int]) -> nn.Module:
        network = self._network_of()
        if self._task.n_classes > 1:
            n = self._task.n_classes + 1
            network.conv_out = nn.Sequential(nn.Conv2d(64, n, kernel_size=1), nn.ReLU(), nn.GroupNorm(n, n))
        # One optimiser for ever: its training does not begin anew with a scan.
        self._running = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
        return network

    def _accept(self, slices: _Slices) -> _Slices:
        if not self._pool:
            wanted = max(slices.labels.shape[-2:]) + 2 * self._MARGIN
            self._tile = min(self._LARGEST, self._SMALLEST + math.ceil((wanted - self._SMALLEST) / 16) * 16)
        around = [(0, 0)] * (slices.labels.ndim - 2)
        for n in slices.labels.shape[-2:]:
            short = max(0, self._tile - n - 2 * self._MARGIN)
            around.append((self._MARGIN + short // 2, self._MARGIN + short - short // 2))
        images = np.pad(_three(slices.images), [(0, 0), *around], "reflect")
        labels = np.pad(slices.labels, around, "reflect")
        return _Slices(images, labels, np.argwhere(labels > 0))

    def _optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        return self._running

    def _patches(self) -> Iterator[tuple[Tensor, Tensor]]:
        image, labels = self._cut((self._tile, self._tile), around_foreground=False)
        kept = slice(self._MARGIN, self._tile - self._MARGIN)
        labels = labels[:, kept, kept]
        flipped = self._rng.random() < 0.5
        image = _between_0_and_1(image)
        yield (image.flip(2), labels.flip(2)) if flipped else (image, labels)

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self._task.n_classes == 1:
            return self._criterion(outputs, labels[:, 0])
        losses = []
        for value in range(1, self._task.n_classes + 1):
            others = [index for index in range(self._task.n_classes + 1) if index != value]
            pair = torch.stack([outputs[:, others].logsumexp(1), outputs[:, value]], 1)
            losses.append(self._criterion(pair, (labels[:, 0] == value).long()))
        return torch.stack(losses).mean()

    def _scores(self, images: Tensor) -> Tensor:
        return torch.stack([self._tiled(image) + self._tiled(image.flip(2)).flip(2) for image in images])

    def _tiled(self, image: Tensor) -> Tensor:
        """Return probabilities ``(n_classes + 1, H, W)`` of an image ``(C, H, W)``."""
        size, inner = self._tile, self._tile - 2 * self._MARGIN
        picture = np.moveaxis(_three(image.cpu().numpy()[np.newaxis])[0], 0, -1)
        padded, settings = self._tiles.pad_to_min(picture, inner, inner)
        tiles, corners = self._tiles.get_tiles(padded, (size, size, 3), (inner, inner))
        found = []
        for tile in tiles:
            ready = _between_0_and_1(torch.from_numpy(np.moveaxis(tile, -1, 0).copy()))
            scores = self._network(ready[None].to(self._task.device)).softmax(1)[0]
            found.append(np.moveaxis(scores.cpu().numpy(), 0, -1))
        whole = self._tiles.reconstruct_from_tiles(found, corners, (*padded.shape[:2], self._task.n_classes + 1))
        return torch.from_numpy(np.moveaxis(self._tiles.crop_from_pad_settings(whole, settings), -1, 0).copy())


def _three(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``(S, C, H, W)`` images with three channels, which RootPainter's network takes."""
    return images if images.shape[1] == 3 else np.repeat(images[:, :1], 3, axis=1)


def _between_0_and_1(tile: Tensor) -> Tensor:
    low, high = tile.min(), tile.max()
    return (tile - low) / (high - low) if high > low else torch.zeros_like(tile)


class PixelForest:
    """scikit-image's multi-scale features and scikit-learn's random forest, as ilastik and convpaint classify pixels.

    Volumes are filtered in three dimensions. The forest is grown anew after each scan, a few trees at a time, from
    pixels drawn at random, up to a hundred trees or the end of the budget.
    """

    _PIXELS_OF_A_SCAN, _PIXELS_OF_A_TREE, _TREES = 20_000, 50_000, 100

    def __init__(self, task: Task) -> None:
        self._task, self._slicer = task, _Slicer()
        self._rng = np.random.default_rng(task.seed)
        self._features: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.uint8]] = []
        self._forest: Any = None
        from skimage.feature import multiscale_basic_features
        from sklearn.ensemble import RandomForestClassifier

        self._forest_of = partial(RandomForestClassifier, 0, warm_start=True, n_jobs=task.threads)
        self._features_of = partial(multiscale_basic_features, channel_axis=-1, workers=task.threads)

    def learn(self, new: Sequence[LabelledScan], seconds: float) -> int:
        """See :class:`Tool`; a step is a tree."""
        started = time.perf_counter()
        for item in new:
            labels = item.scan.to_planes(item.labels).ravel().astype(np.uint8)
            share = self._PIXELS_OF_A_SCAN // len(new)
            chosen = self._rng.choice(labels.size, min(share, labels.size), replace=False)
            self._features.append(self._measure(item.scan)[chosen])
            self._labels.append(labels[chosen])
        features, labels = np.concatenate(self._features), np.concatenate(self._labels)
        share_of_a_tree = min(1.0, self._PIXELS_OF_A_TREE / len(labels))
        forest = self._forest_of(max_samples=share_of_a_tree, random_state=self._task.seed)
        while forest.n_estimators < self._TREES and (
            forest.n_estimators == 0 or time.perf_counter() - started < seconds
        ):
            forest.n_estimators += self._task.threads
            forest.fit(features, labels)
        self._forest = forest
        return forest.n_estimators

    def propose(self, scan: Scan) -> NDArray[np.uint8]:
        """See :class:`Tool`."""
        shape = scan.to_planes(np.empty(scan.spatial_shape, np.uint8)).shape
        if self._forest is None:
            return scan.from_planes(np.zeros(shape, np.uint8))
        return scan.from_planes(self._forest.predict(self._measure(scan)).astype(np.uint8).reshape(shape))

    def _measure(self, scan: Scan) -> NDArray[np.float32]:
        """Return features ``(pixels, features)``, pixels in the order of the scan's planes."""
        images = np.moveaxis(self._slicer.images(scan), 1, -1)
        if scan.slice_axis is None:
            images = images[0]
        found = self._features_of(images)
        return found.reshape(-1, found.shape[-1])


TOOLS: dict[str, Callable[[Task], Tool]] = {
    "rootpainter": RootPainter,
    "monai": MonaiLabelStyle,
    "nnunet": NnunetStyle,
    "forest": PixelForest,
}
