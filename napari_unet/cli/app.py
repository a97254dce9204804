"""The command line: words in, one call to the session, results out. No logic of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_unet.cli import options as o
from napari_unet.cli.models import models_app
from napari_unet.cli.output import print_result, say, to_json, write_json

if TYPE_CHECKING:
    from napari_unet.domain.settings import ComputeSettings

app = typer.Typer(
    name="napari-unet",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Interactive segmentation: a U-Net proposes, you correct, it learns. For research use only.",
)


def _wanted(device: str, runtime: str = "torch") -> ComputeSettings:
    from napari_unet.domain.settings import ComputeSettings

    return ComputeSettings.model_validate({"device": device, "runtime": runtime})


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A file or a folder with one scan, or a model (.safetensors, .onnx).")],
    series: o.Series = None,
    volume: o.Volume = None,
    untrusted: o.Untrusted = False,
    resample: o.Resample = False,
    json: o.Json = None,
) -> None:
    """Say how a scan is read: axes, spacing, orientation, what is odd about it; or what a model's card says."""
    from napari_unet.domain.errors import SeriesChoiceError
    from napari_unet.io.info import describe, describe_choice
    from napari_unet.io.registry import read_scan
    from napari_unet.storage.checkpoint_file import read_checkpoint
    from napari_unet.storage.onnx_file import ONNX_SUFFIX, read_onnx_model

    try:
        if path.suffix in (".safetensors", ONNX_SUFFIX):
            model = read_checkpoint(path) if path.suffix != ONNX_SUFFIX else read_onnx_model(path)
            result = {"id": model.id, **model.card.model_dump(mode="json")}
        else:
            result = describe(read_scan(path, series=series, volume=volume, untrusted=untrusted, resample=resample))
    except SeriesChoiceError as several:
        if series is not None:
            raise
        result = describe_choice(several.series)
    write_json(result, json)
    if json is None:
        print_result(to_json(result))


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(help="Scans and folders.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the masks.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME|FILE")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format", help="nifti, dicom-seg, seg-nrrd, tiff, ome-zarr or png; like the source's by default."
        ),
    ] = None,
    labelmap: Annotated[
        bool, typer.Option("--labelmap", help="With dicom-seg: one label map instead of a segment per class.")
    ] = False,
    device: o.Device = "auto",
    runtime: o.Runtime = "auto",
    compute: o.ComputeAddress = None,
    insecure: o.Insecure = False,
    tta: Annotated[bool, typer.Option("--tta", help="Average over flips: slower, steadier.")] = False,
    uncertainty: Annotated[
        bool,
        typer.Option("--uncertainty", help="Write beside each mask how unsure the model is; averages as --tta does."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="inference or after_care settings (docs/settings.md)."),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on after a scan that fails; exit 1 at the end.")
    ] = False,
    series: o.Series = None,
    volume: o.Volume = None,
    untrusted: o.Untrusted = False,
    resample: o.Resample = False,
) -> None:
    """Write masks for scans and folders."""
    from napari_unet.cli.prediction import run_predict
    from napari_unet.io.registry import read_scan

    if labelmap and format != "dicom-seg":
        raise typer.BadParameter("--labelmap goes with --format dicom-seg only.")
    values = {"inference.mirror": tta or uncertainty, **o.parse_proposal_settings(set_)}
    engine = o.engine_at(compute, insecure)
    n_failed, n_targets = run_predict(
        paths,
        out,
        model,
        compute=_wanted(device, runtime),
        engine=engine,
        values=values,
        format_name=format,
        labelmap=labelmap,
        uncertainty=uncertainty,
        keep_going=keep_going,
        read=lambda path: read_scan(path, series=series, volume=volume, untrusted=untrusted, resample=resample),
    )
    if n_failed:
        say(f"error: {n_failed} of {n_targets} scans failed; the others were written.")
        raise typer.Exit(1)


@app.command("fine-tune")
def fine_tune(
    images: o.Images,
    masks: o.Masks,
    out: Annotated[Path, typer.Option("--out", help="Where the model is written (.safetensors).")],
    model: Annotated[str | None, typer.Option("--model", metavar="NAME|FILE", help="Where to start.")] = None,
    preset: o.Preset = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting (docs/settings.md).")
    ] = None,
    budget_seconds: Annotated[float | None, typer.Option("--budget-seconds", min=0.1, help="Wall time.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")] = None,
    group_by: o.GroupBy = None,
    exclude_regex: Annotated[str | None, typer.Option("--exclude-regex", help="Stems to leave out.")] = None,
    foreground: o.Foreground = None,
    binary: o.Binary = False,
    max_side: o.MaxSide = None,
    unlabelled: Annotated[
        Path | None, typer.Option("--unlabelled", help="Scans without masks, for a Mean Teacher.")
    ] = None,
    device: o.Device = "auto",
    compute: o.ComputeAddress = None,
    insecure: o.Insecure = False,
    seed: o.Seed = 0,
    json: o.Json = None,
) -> None:
    """Train on pairs of images and masks."""
    from napari_unet.cli.training import run_fine_tune
    from napari_unet.training.processes import of_torchrun

    engine = o.engine_at(compute, insecure)
    values: dict[str, Any] = {"training.seed": seed}
    if budget_seconds is not None or steps is not None:
        values |= {"training.budget_seconds": budget_seconds, "training.steps": steps}
    values |= o.parse_settings(set_)
    rule, exclude = o.truth_rule(foreground, binary), o.matcher(exclude_regex, "--exclude-regex")
    with of_torchrun() as processes:
        result = run_fine_tune(
            images,
            masks,
            out,
            model=model,
            preset=preset,
            values=values,
            rule=rule,
            group_by=group_by,
            exclude=exclude,
            max_side=max_side,
            unlabelled=unlabelled,
            seed=seed,
            compute=_wanted(device),
            engine=engine,
            processes=processes,
        )
        if processes.leads:
            write_json(result, json)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Option("--predictions", help="Folder of predicted masks.")],
    truth: Annotated[Path, typer.Option("--truth", help="Folder of true masks.")],
    foreground: o.Foreground = None,
    binary: o.Binary = False,
    nsd_tolerance: Annotated[float, typer.Option("--nsd-tolerance", min=0, metavar="MM")] = 1.0,
    json: o.Json = None,
    report: Annotated[Path | None, typer.Option("--report", help="Folder for pictures and tables.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the scans, shown under the masks in the report.")
    ] = None,
) -> None:
    """Score predicted masks: overlap, distances, volumes, parts found; per case, then in summary."""
    from napari_unet.cli.evaluation import run_evaluate

    result = run_evaluate(predictions, truth, o.truth_rule(foreground, binary), nsd_tolerance, report, images)
    write_json(result, json)
    if json is None:
        print_result(to_json(result["summary"]))


@app.command()
def simulate(
    images: o.Images,
    masks: o.Masks,
    scans: Annotated[int, typer.Option("--scans", min=1, help="Scans in the stream.")] = 10,
    budget_seconds: Annotated[float, typer.Option("--budget-seconds", min=0.1, help="Per scan.")] = 20.0,
    test: Annotated[int | None, typer.Option("--test", min=0, help="Scans that test, the last of the order.")] = None,
    test_regex: Annotated[str | None, typer.Option("--test-regex", help="Scans that test, by name.")] = None,
    foreground: o.Foreground = None,
    binary: o.Binary = False,
    max_side: o.MaxSide = None,
    seed: o.Seed = 0,
    group_by: o.GroupBy = None,
    annotator: Annotated[str, typer.Option("--annotator", help="oracle or brush.")] = "oracle",
    model: Annotated[str, typer.Option("--model", metavar="NAME|FILE")] = "scratch",
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Even if the model learnt from these scans.")
    ] = False,
    json: o.Json = None,
) -> None:
    """Measure how much painting the tool still asks for, on any folder of pairs (docs/benchmarks.md)."""
    from napari_unet.cli.simulation import run_simulate
    from napari_unet.compute.device import resolve

    if test is not None and test_regex is not None:
        raise typer.BadParameter("--test and --test-regex exclude each other.")
    if annotator not in ("oracle", "brush"):
        raise typer.BadParameter("--annotator is oracle or brush.")
    resolved = resolve(_wanted("cpu"))
    result = run_simulate(
        images,
        masks,
        o.truth_rule(foreground, binary),
        scans=scans,
        budget_seconds=budget_seconds,
        test=test,
        test_regex=test_regex,
        max_side=max_side,
        seed=seed,
        group_by=group_by,
        annotator=annotator,
        model=model,
        allow_seen=allow_seen,
        # The benchmark is defined on two threads (docs/benchmarks.md).
        compute=replace(resolved, threads=min(2, resolved.threads)),
    )
    write_json(result, json)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model's name or file.", metavar="MODEL")],
    onnx: Annotated[Path, typer.Option("--onnx", help="Where it is written: .onnx, or .xml for OpenVINO.")],
    quantise: Annotated[
        str | None, typer.Option("--quantise", help="fp16 (weights) or int8 (convolutions; needs --images).")
    ] = None,
    prune: Annotated[
        float | None, typer.Option("--prune", metavar="FRACTION", help="Leave out this share of the channels.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write it whatever Dice it lost.")] = False,
    max_dice_lost: Annotated[float, typer.Option("--max-dice-lost", min=0, max=1, help="The gate.")] = 0.01,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of scans to check, calibrate and measure with.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Their masks: the truth, and what a pruned network recovers from.")
    ] = None,
    foreground: o.Foreground = None,
    binary: o.Binary = False,
    max_side: o.MaxSide = None,
    group_by: o.GroupBy = None,
    budget_seconds: Annotated[
        float, typer.Option("--budget-seconds", min=0.1, help="Of training after pruning.")
    ] = 60.0,
    seed: o.Seed = 0,
    json: o.Json = None,
) -> None:
    """Write a model for deployment (ONNX), with the Dice it lost where it is compressed."""
    from napari_unet.cli.exporting import Measured, run_export
    from napari_unet.exchange.exporting import Wishes

    if quantise not in (None, "fp16", "int8"):
        raise typer.BadParameter("--quantise is fp16 or int8.")
    if prune is not None and not 0 < prune < 1:
        raise typer.BadParameter("--prune is a share between 0 and 1.")
    result = run_export(
        model,
        onnx,
        Wishes(quantise or "", prune, max_dice_lost, force, budget_seconds),
        Measured(images, masks, o.truth_rule(foreground, binary), max_side, group_by, seed),
    )
    write_json(result, json)


app.add_typer(models_app, name="models")
project_app = typer.Typer(no_args_is_help=True, help="Look after a project.")
app.add_typer(project_app, name="project")


@project_app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The project's folder.", metavar="DIR")],
    json: o.Json = None,
) -> None:
    """Check every stored label, checkpoint and the chain of the journal; exit 1 if anything is not sound."""
    from dataclasses import asdict

    from napari_unet.storage.verify import verify as problems_of

    problems = list(problems_of(folder))
    for problem in problems:
        say(f"{problem.kind}: {problem.path}: {problem.message}")
    write_json({"ok": not problems, "problems": [asdict(problem) for problem in problems]}, json)
    if json is None:
        print_result("sound" if not problems else f"{len(problems)} problems")
    if problems:
        raise typer.Exit(1)
