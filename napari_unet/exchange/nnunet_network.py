"""nnU-Net's two networks, so that its weights can be read without it (dynamic_network_architectures, Apache 2.0).

The names of all parts are those of its state dicts. Built once to be written as a graph; they never train here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from napari_unet.domain.errors import ModelError

_PARTS: dict[str, type[nn.Module]] = {
    each.__name__: each
    for each in (
        *(nn.Conv2d, nn.Conv3d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d),
        *(nn.LeakyReLU, nn.ReLU),
    )
}
NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")

_Sizes = Sequence[int]


def _part(name: str) -> type[nn.Module]:
    """Return one of the few classes that plans may name; nothing is imported by a name from a file."""
    found = _PARTS.get(str(name).rpartition(".")[2])
    if found is None:
        raise ModelError(f"The plans ask for a part that is not known here ({str(name)[:60]!r}).")
    return found


class _Block(nn.Module):
    """Convolution, norm and, unless it is the end of a branch, the bend."""

    def __init__(
        self,
        plan: _Plan,
        given: int,
        made: int,
        kernel: _Sizes,
        stride: _Sizes,
        *,
        bends: bool = True,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        kernel = tuple(kernel)
        self.conv = plan.convolution(
            given,
            made,
            kernel,
            tuple(stride),
            padding=tuple((size - 1) // 2 for size in kernel),
            bias=plan.bias if bias is None else bias,
        )
        self.norm = plan.norm(made, **plan.norm_options)
        self.bend = plan.bend() if bends else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.bend(self.norm(self.conv(x)))


class _Stack(nn.Module):
    def __init__(self, plan: _Plan, count: int, given: int, made: int, kernel: _Sizes, stride: _Sizes) -> None:
        super().__init__()
        one = (1,) * plan.dimensions
        self.convs = nn.Sequential(
            *(_Block(plan, given if i == 0 else made, made, kernel, stride if i == 0 else one) for i in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class _Residual(nn.Module):
    """Two convolutions beside a shortcut, which is pooled before it is widened (He et al. 2019, ResNet-D)."""

    def __init__(self, plan: _Plan, given: int, made: int, kernel: _Sizes, stride: _Sizes) -> None:
        super().__init__()
        one = (1,) * plan.dimensions
        self.conv1 = _Block(plan, given, made, kernel, stride)
        self.conv2 = _Block(plan, made, made, kernel, one, bends=False)
        self.nonlin2 = plan.bend()
        pooling: Any = nn.AvgPool2d if plan.dimensions == 2 else nn.AvgPool3d
        parts: list[nn.Module] = [pooling(tuple(stride), tuple(stride))] if set(stride) != {1} else []
        parts += [_Block(plan, given, made, one, one, bends=False, bias=False)] if given != made else []
        self.skip = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))


class _ResidualStack(nn.Module):
    def __init__(self, plan: _Plan, count: int, given: int, made: int, kernel: _Sizes, stride: _Sizes) -> None:
        super().__init__()
        one = (1,) * plan.dimensions
        self.blocks = nn.Sequential(
            *(_Residual(plan, given if i == 0 else made, made, kernel, stride if i == 0 else one) for i in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _Plan:
    """The options of a network, read from plans: plain values, and classes from a short list."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.convolution: Any = _part(options["conv_op"])
        self.dimensions = 2 if self.convolution is nn.Conv2d else 3
        self.norm: Any = _part(options["norm_op"])
        self.norm_options = {
            key: options["norm_op_kwargs"][key] for key in ("eps", "affine") if key in options["norm_op_kwargs"]
        }
        self.bias = bool(options["conv_bias"])
        self._bend: Any = _part(options["nonlin"])
        self._slope = (options.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)
        stages = int(options["n_stages"])
        self.widths = [int(n) for n in options["features_per_stage"]][:stages]
        self.kernels = [self._sizes(each) for each in options["kernel_sizes"]]
        self.strides = [self._sizes(each) for each in options["strides"]]
        self.counts = [int(n) for n in options.get("n_conv_per_stage") or options.get("n_blocks_per_stage") or ()]
        self.decoder_counts = [int(n) for n in options["n_conv_per_stage_decoder"]]
        lengths = {
            len(self.widths),
            len(self.kernels),
            len(self.strides),
            len(self.counts),
            len(self.decoder_counts) + 1,
        }
        if lengths != {stages}:
            raise ModelError("The plans do not agree about the number of stages: the folder is damaged.")

    def _sizes(self, each: int | Sequence[int]) -> tuple[int, ...]:
        return (each,) * self.dimensions if isinstance(each, int) else tuple(int(size) for size in each)

    def bend(self) -> nn.Module:
        return nn.LeakyReLU(self._slope, inplace=True) if self._bend is nn.LeakyReLU else nn.ReLU(inplace=True)


class _Encoder(nn.Module):
    def __init__(self, plan: _Plan, in_channels: int, residual: bool) -> None:
        super().__init__()
        self.stem = (
            _Stack(plan, 1, in_channels, plan.widths[0], plan.kernels[0], (1,) * plan.dimensions)
            if residual
            else nn.Identity()
        )
        stages: list[nn.Module] = []
        given = plan.widths[0] if residual else in_channels
        for count, made, kernel, stride in zip(plan.counts, plan.widths, plan.kernels, plan.strides, strict=True):
            stack = (_ResidualStack if residual else _Stack)(plan, count, given, made, kernel, stride)
            # Plain stages lie in a sequence of their own there.
            stages.append(stack if residual else nn.Sequential(stack))
            given = made
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class _Decoder(nn.Module):
    def __init__(self, plan: _Plan, n_logits: int) -> None:
        super().__init__()
        up: Any = nn.ConvTranspose2d if plan.dimensions == 2 else nn.ConvTranspose3d
        one = (1,) * plan.dimensions
        levels = list(reversed(range(len(plan.widths) - 1)))
        self.stages = nn.ModuleList(
            _Stack(plan, count, 2 * plan.widths[level], plan.widths[level], plan.kernels[level], one)
            for count, level in zip(plan.decoder_counts, levels, strict=True)
        )
        self.transpconvs = nn.ModuleList(
            up(
                plan.widths[level + 1],
                plan.widths[level],
                plan.strides[level + 1],
                plan.strides[level + 1],
                bias=plan.bias,
            )
            for level in levels
        )
        self.seg_layers = nn.ModuleList(plan.convolution(plan.widths[level], n_logits, 1) for level in levels)

    def forward(self, skips: list[Tensor]) -> Tensor:
        x = skips[-1]
        for stage, up, skip in zip(self.stages, self.transpconvs, reversed(skips[:-1]), strict=True):
            x = stage(torch.cat((up(x), skip), 1))
        return self.seg_layers[-1](x)


class NnunetNetwork(nn.Module):
    """PlainConvUNet or ResidualEncoderUNet as plans describe it.

    Parameters
    ----------
    name : str
        Class, with or without its module.
    options : mapping
        ``arch_kwargs`` of the plans.
    in_channels, n_logits : int

    Raises
    ------
    ModelError
        Another network, or options that are not understood.
    """

    def __init__(self, name: str, options: Mapping[str, Any], in_channels: int, n_logits: int) -> None:
        super().__init__()
        kind = str(name).rpartition(".")[2]
        if kind not in NETWORKS:
            raise ModelError(f"The network {kind[:60]!r} is not known here: {' and '.join(NETWORKS)} are.")
        if options.get("dropout_op") is not None:
            raise ModelError("Networks with dropout are not known here.")
        try:
            plan = _Plan(options)
            self.encoder = _Encoder(plan, in_channels, kind == NETWORKS[1])
            self.decoder = _Decoder(plan, n_logits)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError("The plans' description of the network cannot be understood.") from error
        self.strides = plan.strides
        self.dimensions = plan.dimensions

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of the image's size."""
        return self.decoder(self.encoder(image))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights of nnU-Net's in; it names some of them twice.

        Raises
        ------
        ModelError
            They are those of another network.
        """
        twice = ("all_modules.", "decoder.encoder.")
        given = {
            name.removeprefix("module."): value for name, value in weights.items() if not any(t in name for t in twice)
        }
        try:
            self.load_state_dict(given)
        except RuntimeError as error:
            raise ModelError("The weights do not fit the network in the plans: it was changed by a trainer.") from error


class Ensemble(nn.Module):
    """The logits of several networks, one after the other: nnU-Net's folds."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of all, as channels."""
        return torch.cat([member(image) for member in self.members], dim=1)
