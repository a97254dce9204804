"""Networks from settings, and weights between torch and plain arrays."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_unet.domain.checkpoint import GRAPH, GRAPH_ONLY
from napari_unet.domain.errors import ModelError
from napari_unet.domain.settings import NetworkSettings
from napari_unet.networks.pretrained import load_backbone
from napari_unet.networks.unet import UNet

#: Of the weights of linear layers, as Vision Transformers start (Dosovitskiy et al. 2021).
_LINEAR_DEVIATION = 0.02


def build(settings: NetworkSettings, seed: int | None = None, *, pretrained: bool = False) -> UNet:
    """Return a network with random weights (He initialisation), drawn from ``seed`` without touching torch's own.

    Parameters
    ----------
    settings : NetworkSettings
        What to build.
    seed : int, optional
        Seed of the weights; None draws from torch's global generator.
    pretrained : bool
        Read the encoder's ``backbone_weights``, if any are named. Not for a network whose weights are loaded next.

    Raises
    ------
    SettingsError
        A pretrained encoder cannot have these strides.
    ModelError
        The encoder's weights are missing or do not fit, or what reads them is not installed.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = UNet(settings)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_LINEAR_DEVIATION)
                nn.init.zeros_(module.bias)
    if pretrained and settings.encoder == "pretrained" and settings.backbone_weights is not None:
        load_backbone(network, settings.backbone_weights, settings)
    return network


def weights_of(network: nn.Module) -> dict[str, NDArray]:
    """Return a copy of the weights as numpy arrays by name."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def load_weights(network: nn.Module, weights: dict[str, NDArray]) -> None:
    """Put weights into a network of the same settings.

    Raises
    ------
    ModelError
        Names or shapes do not fit, or the model is a graph, which has no weights that could be trained.
    """
    if GRAPH in weights:
        raise ModelError(GRAPH_ONLY)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(array.shape) for name, array in weights.items()}
    if own != given:
        odd = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        raise ModelError(
            f"The weights do not fit the network described in the model's card ({len(odd)} tensors differ, first "
            f"{odd[0]!r}): the file is damaged or was made by another program."
        )
    network.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()})
