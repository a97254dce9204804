"""A checkpoint's network as an ONNX graph, checked against torch; what the network is shown by real scans."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_unet.domain.checkpoint import Checkpoint, ModelCard
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.domain.errors import ModelError
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import NetworkSettings

if TYPE_CHECKING:
    from torch import nn

    from napari_unet.inference.runtimes import Forward

#: Most that a probability may differ from torch's.
TOLERANCE = 1e-4
#: Inputs of one scan, and of all.
_PER_SCAN, _MOST_INPUTS = 4, 48

#: ``(batch, channels, *spatial)``, float32.
Input = NDArray[np.float32]


def seen_inputs(checkpoint: Checkpoint, scans: Sequence[Scan], compute: ResolvedCompute) -> list[Input]:
    """Return what the network of a checkpoint is shown of some scans, tile by tile as when it predicts.

    Parameters
    ----------
    checkpoint : Checkpoint
        With a network that torch runs.
    scans : sequence of Scan
        None: noise of mean 0 and deviation 1, as prepared scans are.
    compute : ResolvedCompute

    Returns
    -------
    list of arrays
        A few of each scan, evenly spread.
    """
    from napari_unet.inference.predict import predict
    from napari_unet.inference.runtimes import network_of
    from napari_unet.inference.slabs import plan_slabs
    from napari_unet.patches.prepare import PreparedScan
    from napari_unet.patches.spacing import zoom_of

    if not scans:
        return noise(checkpoint.card.settings.network)
    settings = checkpoint.card.settings.with_values({"inference.mirror": False, "inference.turns": False})
    network, found = network_of(checkpoint), []
    for scan in scans[:_MOST_INPUTS]:
        own: list[Input] = []
        hook = network.register_forward_pre_hook(lambda _, given, own=own: own.append(given[0].numpy().copy()))
        try:
            image = PreparedScan(scan, settings.preparation)
            slabs, zoom = plan_slabs(image.shape[1:], settings), zoom_of(scan, settings)
            chosen = [slabs[i] for i in np.unique(np.linspace(0, len(slabs) - 1, _PER_SCAN + 2).astype(int)[1:-1])]
            for _ in predict(network, image, settings, compute.in_torch(), chosen, zoom):
                pass
        finally:
            hook.remove()
        found += [own[i] for i in np.unique(np.linspace(0, len(own) - 1, _PER_SCAN).astype(int))]
    step = -(-len(found) // _MOST_INPUTS)
    return found[::step]


def noise(network: NetworkSettings) -> list[Input]:
    """Return inputs of two sizes and batches, as if of prepared scans."""
    chance = np.random.default_rng(0)
    sizes = [tuple(factor * times for factor in network.divisor) for times in (4, 2)]
    return [
        chance.standard_normal((batch, network.in_channels, *size), np.float32)
        for batch, size in zip((1, 2), sizes, strict=True)
    ]


def require_no_graph(checkpoint: Checkpoint) -> None:
    """Raise a ModelError where a model is a graph already."""
    if checkpoint.graph is not None:
        raise ModelError("This model is an ONNX graph already: export the checkpoint that it was made of.")


def as_graph(checkpoint: Checkpoint, inputs: Sequence[Input], compute: ResolvedCompute) -> Checkpoint:
    """Return a model whose network is the ONNX graph of a checkpoint's, checked by :func:`graph_of`.

    Parameters
    ----------
    checkpoint : Checkpoint
    inputs : sequence of arrays
        Of :func:`seen_inputs`.
    compute : ResolvedCompute
        Threads.

    Raises
    ------
    ModelError
        It is a graph already; or see :func:`graph_of`.
    """
    from napari_unet.inference.runtimes import network_of

    require_no_graph(checkpoint)
    card = checkpoint.card.model_copy(update={"parent": checkpoint.id})
    return graph_of(network_of(checkpoint), card, inputs, compute, checkpoint.pixels)


def graph_of(
    network: nn.Module,
    card: ModelCard,
    inputs: Sequence[Input],
    compute: ResolvedCompute,
    pixels: dict[str, NDArray] | None = None,
) -> Checkpoint:
    """Return a model whose network is the ONNX graph of a torch network.

    It is checked: on all inputs the probabilities must be torch's within 1e-4. Torch is asked in double precision;
    in single precision it may be further from the truth than the runtime is, by the order in which it adds up.

    Parameters
    ----------
    network : Module
        From images to logits.
    card : ModelCard
        ``settings.network`` says what it takes and gives.
    inputs : sequence of arrays
        What it is asked; none: noise.
    compute : ResolvedCompute
        Threads.
    pixels : dict of array, optional
        Of a classifier of pixels that goes along.

    Raises
    ------
    ModelError
        The network cannot be written as ONNX, or the check failed.
    """
    from napari_unet.inference.runtimes import onnx_bytes

    settings = card.settings.network
    try:
        # Torch calls a missing package by another name.
        import onnx  # noqa: F401

        graph = onnx_bytes(network.eval(), settings)
    except ModuleNotFoundError as error:
        raise ModelError("Export needs the package onnx: run pip install 'napari-unet[onnx]'.") from error
    except Exception as error:  # torch's exporter has several of its own
        raise ModelError(f"The network cannot be written as ONNX ({type(error).__name__}).") from error
    model = Checkpoint.of_graph(graph, card, pixels)
    worst = largest_difference(network, model, inputs or noise(settings), compute)
    if not worst <= TOLERANCE:
        raise ModelError(
            f"The ONNX graph differs from the network by {worst:.1e} in a probability, more than {TOLERANCE:g}: "
            "nothing was written."
        )
    return model


def largest_difference(
    network: nn.Module, model: Checkpoint, inputs: Sequence[Input], compute: ResolvedCompute
) -> float:
    """Return by how much a probability of a graph differs from that of torch in double precision, at most."""
    import torch

    from napari_unet.networks.heads import class_logits

    settings = model.card.settings.network
    exact = copy.deepcopy(network).double().eval()
    run = runner_of(model, compute)
    worst = 0.0
    with torch.inference_mode():
        for given in inputs:
            x = torch.from_numpy(given)
            one, other = (class_logits(logits.double(), settings).softmax(1) for logits in (exact(x.double()), run(x)))
            worst = max(worst, float((one - other).abs().max()))
    return worst


def runner_of(model: Checkpoint, compute: ResolvedCompute) -> Forward:
    """Return a function from tiles to logits that runs a graph on the CPU, in float32.

    Raises
    ------
    ModelError
        No runtime is installed, or it cannot run the graph.
    """
    from napari_unet.inference.runtimes import GraphNetwork, converted

    assert model.graph is not None
    network = GraphNetwork(model.graph, model.card.settings.network)
    where = network.place(ResolvedCompute("cpu", "float32", compute.threads, runtime=compute.runtime))
    return converted(network, network.settings, where)
