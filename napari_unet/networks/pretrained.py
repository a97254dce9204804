"""Weights that were trained elsewhere: from a file or a hub into the ResNet of a network.

Only plain tensors are read, never anything that could run code.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from napari_unet.domain.errors import ModelError
from napari_unet.domain.settings import NetworkSettings

_HUB = "hub:"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_log = logging.getLogger(__name__)


def load_backbone(network: nn.Module, source: str, settings: NetworkSettings) -> None:
    """Put pretrained weights into the encoder of a network.

    Parameters
    ----------
    network : Module
        Its ``encoder`` has a ResNet from the second entry on.
    source : str
        A ``.safetensors`` file, a ``.pt`` or ``.pth`` file that holds a state dict, or ``hub:OWNER/NAME``. The names
        of torchvision, timm and MedicalNet; a head and other stages may be in it and are left out.
    settings : NetworkSettings
        What the network is.

    Raises
    ------
    ModelError
        The weights are not there, cannot be read, or are those of another network. The network is as it was.
    """
    path = _from_hub(source.removeprefix(_HUB), settings.backbone) if source.startswith(_HUB) else Path(source)
    given = {name.removeprefix("module."): value for name, value in _read(path).items()}
    own = {
        name.split(".", 1)[1]: tensor
        for name, tensor in network.encoder.state_dict().items()  # type: ignore[union-attr]
        if not name.startswith("0.")
    }
    first = given.get("conv1.weight")
    if first is not None and first.ndim == own["conv1.weight"].ndim:
        given["conv1.weight"] = adapt_channels(first, settings.in_channels)
    odd = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
    if odd:
        raise ModelError(
            f"The weights in {source} are not those of a {settings.backbone} in {settings.dimensions}D: only "
            f"{len(own) - len(odd)} of {len(own)} tensors fit ({odd[0]!r} does not). Choose a file of torchvision's, "
            "timm's or MedicalNet's, or another network.backbone."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
    _log.info("%d tensors of a pretrained %s fitted, %d not needed", len(own), settings.backbone, len(given) - len(own))


def adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Return the weights of a first convolution for another number of image channels, as timm does.

    One channel sees the sum over the old ones; more see them repeated in turn, scaled so that the same picture in
    every channel gives what it gave before (exactly, if the number is a multiple).

    Parameters
    ----------
    weight : (out, old, *kernel) Tensor
    in_channels : int

    Returns
    -------
    (out, in_channels, *kernel) Tensor
    """
    old = weight.shape[1]
    if in_channels == old:
        return weight
    if in_channels == 1:
        return weight.float().sum(1, keepdim=True)
    turns = torch.arange(in_channels, device=weight.device) % old
    return weight.float()[:, turns] * (old / in_channels)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"There is no file {path} with pretrained weights: check network.backbone_weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A foreign pickle raises whatever its first wrong byte leads to; none of its code has run.
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as plain tensors: it is damaged, or a pickle that could run any code and so is "
            "not opened. Save the weights' state dict as .safetensors."
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ModelError(f"{path} holds no state dict (names and their tensors): save model.state_dict() in it.")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _from_hub(name: str, backbone: str) -> Path:
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise ModelError(
            "Weights from a hub need huggingface_hub, which is not installed: pip install napari-unet[encoders]."
        ) from error
    # The product promises that nothing is reported home; the library's requests otherwise tell what is installed here.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    depth = backbone.removeprefix("resnet")
    # Those of timm, and of MedicalNet, where those from the larger set of scans come first.
    files = ("model.safetensors", f"resnet_{depth}_23dataset.pth", f"resnet_{depth}.pth")
    # What was fetched before is taken without asking the hub, so that a project stays with the weights it began with.
    for here, file in [(True, file) for file in files] + [(False, file) for file in files]:
        try:
            return Path(hf_hub_download(name, file, local_files_only=here))
        except LocalEntryNotFoundError as error:
            if not here:
                raise ModelError(
                    f"The hub cannot be reached, and {name} was not fetched before: connect to the network once, or "
                    "give network.backbone_weights a file."
                ) from error
        except EntryNotFoundError:
            continue
        # Whatever stops a download, in any of the several libraries below.
        except Exception as error:
            raise ModelError(
                f"The hub does not give {name} (no such OWNER/NAME, or it wants a login): check "
                "network.backbone_weights, or fetch the file by hand and give its path."
            ) from error
    raise ModelError(f"{name} on the hub has no weights of a {backbone}: check network.backbone_weights.")
