"""``simulate``: the effort benchmark on a folder of pairs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from napari_unet.cli.output import say, say_unmatched
from napari_unet.domain.compute import ResolvedCompute
from napari_unet.evaluation.simulated_annotator import BrushAnnotator, OracleAnnotator
from napari_unet.io.masks import TruthRule, distinct_values, infer_classes, read_mask
from napari_unet.io.pairs import find_pairs, load_pair
from napari_unet.session.batch import schema_for
from napari_unet.session.models import find_model
from napari_unet.session.simulate import Simulator, group_pairs, refuse_seen, split_groups


def run_simulate(
    images: Path,
    masks: Path,
    rule: TruthRule,
    *,
    scans: int,
    budget_seconds: float,
    test: int | None,
    test_regex: str | None,
    max_side: int | None,
    seed: int,
    group_by: str | None,
    annotator: str,
    model: str,
    allow_seen: bool,
    compute: ResolvedCompute,
) -> dict[str, Any]:
    """Run the benchmark; return the contract's JSON."""
    base = find_model(model)
    pairs = find_pairs(images, masks)
    say_unmatched(pairs)
    groups = group_pairs(list(pairs), group_by)
    split = split_groups(list(groups), scans, test, test_regex, seed)
    mapping = infer_classes((distinct_values(read_mask(pair.mask).data) for pair in pairs), rule)
    seen = False
    if base is not None:
        used = [pair for name in (*split.stream, *split.test) for pair in groups[name]]
        # A model may have learnt from them at their own size.
        sides = dict.fromkeys((max_side, None))
        seen = refuse_seen(base, [load_pair(pair, mapping, side) for side in sides for pair in used], allow_seen)
    simulator = Simulator(
        lambda name: [load_pair(pair, mapping, max_side) for pair in groups[name]],
        schema_for(mapping),
        compute,
        budget_seconds,
        seed,
        base,
        annotator=BrushAnnotator() if annotator == "brush" else OracleAnnotator(),
    )
    result = simulator.run(split, say)
    settings = simulator.settings.model_dump(mode="json") if simulator.settings else {}
    summary = asdict(result)
    say(f"cumulative effort {_figure(result.cumulative_effort)}, test Dice {_figure(result.test_dice)}")
    return {
        **summary,
        "stream": list(split.stream),
        "test": list(split.test),
        "seen": seen,
        "settings": {
            **settings,
            "budget_seconds": budget_seconds,
            "seed": seed,
            "annotator": annotator,
            "model": model,
            "compute": asdict(compute),
        },
    }


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
