"""``models``: which there are, what is known of one, packages out and in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from napari_unet.cli import options as o
from napari_unet.cli.output import print_result, say, to_json, write_json

models_app = typer.Typer(no_args_is_help=True, help="List models; pass them on to other programs, and take theirs.")


@models_app.command("list")
def list_models(json: o.Json = None) -> None:
    """List the shipped models and the project's checkpoints."""
    from napari_unet.session.model_store import model_rows

    rows = model_rows()
    write_json({"models": rows}, json)
    if json is not None:
        return
    for row in rows:
        print_result(_line(row))


def _line(row: dict[str, Any]) -> str:
    if "problem" in row:
        return f"{row['name']}  {row['where']}  {row['problem']}"
    dice = "-" if row["dice"] is None else f"Dice {row['dice']:.3f} ({row['judges']})"
    classes = ", ".join(row["classes"]) or "no task yet"
    return (
        f"{row['name']:<22} {row['where']:<8} {row['dimensions']}D  {dice:<17} {row['bytes'] / 1e6:5.1f} MB  {classes}"
    )


@models_app.command()
def info(
    model: Annotated[str, typer.Argument(help="A model's name or file.", metavar="NAME|FILE")], json: o.Json = None
) -> None:
    """Say what is known of a model: classes, Dice, what it learnt from, every setting."""
    from napari_unet.session.model_store import model_info

    result = model_info(model)
    write_json(result, json)
    if json is None:
        print_result(to_json(result))


@models_app.command("export")
def export_package(
    model: Annotated[str, typer.Argument(help="A model's name or file.", metavar="NAME|FILE")],
    to: Annotated[Path, typer.Option("--to", help="The package (.zip).")],
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="SPDX", help="Under which the weights are passed on.")
    ] = None,
    author: Annotated[str, typer.Option("--author", help="Who made the model.")] = "The napari-unet developers",
    format: Annotated[str, typer.Option("--format", help="bioimageio, or monai (a bundle with TorchScript).")] = (
        "bioimageio"
    ),
) -> None:
    """Write a package: bioimage.io's (ONNX, test tensors of noise, picture, documentation), or a MONAI bundle."""
    from napari_unet.compute.device import resolve
    from napari_unet.domain.errors import ExportError
    from napari_unet.domain.settings import ComputeSettings
    from napari_unet.exchange.bioimageio import write_package
    from napari_unet.exchange.monai_bundle import write_bundle
    from napari_unet.session.model_store import require_model
    from napari_unet.session.models import SHIPPED

    if format not in ("bioimageio", "monai"):
        raise typer.BadParameter("--format is bioimageio or monai.")
    if to.suffix.lower() != ".zip":
        raise ExportError(f"{to.name} is no name for a package: give it the suffix .zip.")
    if licence is None:
        if model not in SHIPPED:
            raise ExportError(
                "Under which licence are the weights passed on? Say so with --licence, such as CC-BY-4.0."
            )
        licence = "CC-BY-SA-4.0"
    found = require_model(model)
    if format == "monai":
        write_bundle(found, to, licence=licence, author=author)
    else:
        compute = resolve(ComputeSettings(device="cpu", precision="float32"))
        write_package(found, to, compute, licence=licence, author=author)
    say(f"wrote {to}")


@models_app.command("import")
def import_package(
    source: Annotated[Path, typer.Argument(help="A bioimage.io package or an nnU-Net folder, packed (.zip) or not.")],
    out: Annotated[Path | None, typer.Option("--out", help="The model (.safetensors); NAME.safetensors here.")] = None,
    fold: Annotated[
        list[str] | None, typer.Option("--fold", help="nnU-Net: this fold only (0, 1, ..., all); repeatable.")
    ] = None,
) -> None:
    """Make a model of another program's: a bioimage.io package with ONNX, or nnU-Net's trained folder."""
    from napari_unet.compute.device import resolve
    from napari_unet.domain.settings import ComputeSettings
    from napari_unet.exchange.importing import read_foreign
    from napari_unet.storage.checkpoint_file import write_checkpoint

    target = out or Path(f"{source.stem}.safetensors")
    compute = resolve(ComputeSettings(device="cpu", precision="float32"))
    model = read_foreign(source, target.stem, compute, fold)
    write_checkpoint(model, target)
    classes = ", ".join(f"{each.id} {each.name}" for each in model.card.label_schema.classes)
    say(f"wrote {target}: predicts {classes}; nothing can be learnt on top of it")
