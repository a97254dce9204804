"""The rows of the ablation table: what each changes in the planned recipe, and which scans it is taught.

Values only; how a row is trained and scored is in ablations.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """One row.

    Parameters
    ----------
    title : str
        What differs from the row it is compared with.
    values : mapping
        Settings by dotted key, wished otherwise than planned.
    preset : str
        What the plan starts from.
    against : str
        The row it is compared with.
    equal_cost : bool
        As many steps as the CPU seconds of the default's steps allow, instead of as many steps.
    labelled : int or None
        Scans that teach; None: all the set's.
    unlabelled : int
        Scans for the Mean Teacher.
    judging : int
        Scans that neither teach nor score, for the validation loss.
    pretrained : bool
        Starts from weights that learnt on other sets.
    sets : tuple of str
        Where it is run.
    """

    title: str
    values: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "default"
    against: str = "default"
    equal_cost: bool = False
    labelled: int | None = None
    unlabelled: int = 0
    judging: int = 0
    pretrained: bool = False
    sets: tuple[str, ...] = ("hippocampus_mr",)

    @property
    def only_settings(self) -> bool:
        """Whether nothing but settings tells it from the default."""
        return self.labelled is None and not (self.unlabelled or self.judging or self.pretrained)


_BOTH = ("hippocampus_mr", "em_membrane")
_3D = {"network.dimensions": 3, "training.patch_size": (32, 32, 32), "training.batch_size": 2}
_NO_INTENSITY = {f"augmentation.{name}": 0 for name in ("brightness", "contrast", "gamma", "noise")}
_TEACHER = {"training.consistency_weight": 1.0}
_STRONG_TEACHER = {"training.consistency_weight": 10.0}

RECIPES: dict[str, Recipe] = {
    "default": Recipe("the default plan", sets=_BOTH),
    # Whole recipes.
    "classic": Recipe("classic preset, equal steps", preset="classic"),
    "classic-equal-cpu": Recipe("classic preset, equal CPU seconds", preset="classic", equal_cost=True, sets=_BOTH),
    # Network.
    "residual": Recipe("residual encoder", {"network.encoder": "residual"}, sets=_BOTH),
    "residual-equal-cpu": Recipe(
        "residual encoder, equal CPU seconds", {"network.encoder": "residual"}, equal_cost=True
    ),
    "attention": Recipe("attention gates", {"network.attention_gates": True}, sets=_BOTH),
    "deep-supervision": Recipe("deep supervision", {"network.deep_supervision": True}, sets=_BOTH),
    "transunet": Recipe("transformer bottleneck (TransUNet)", {"network.bottleneck": "transformer"}, sets=_BOTH),
    "transposed": Recipe("transposed convolutions", {"network.upsampling": "transposed"}),
    "sigmoid": Recipe("sigmoid head", {"network.head": "sigmoid"}),
    "single-slices": Recipe("no neighbouring slices", {"preparation.context_slices": 0}),
    "3d": Recipe("3D, two patches of 32 x 32 x 32", _3D),
    "3d-equal-cpu": Recipe("the same, equal CPU seconds", _3D, equal_cost=True),
    # Random changes, one group off or on.
    "no-rotation": Recipe("no rotation", {"augmentation.rotation_degrees": 0}, sets=_BOTH),
    "full-circle": Recipe("rotation by any angle", {"augmentation.rotation_degrees": 180}),
    "no-scale": Recipe("no scaling", {"augmentation.scale": 0}),
    "no-mirror": Recipe("no mirroring", {"augmentation.mirror": ()}, sets=_BOTH),
    "no-intensity": Recipe("no change of intensities", _NO_INTENSITY, sets=_BOTH),
    "elastic": Recipe("elastic 0.5", {"augmentation.elastic": 0.5}, sets=_BOTH),
    "shift": Recipe("shift 0.1", {"augmentation.shift": 0.1}),
    "blur": Recipe("blur 1", {"augmentation.blur": 1}),
    "low-resolution": Recipe("low resolution 0.5", {"augmentation.low_resolution": 0.5}),
    # Preparation.
    "histogram": Recipe("histogram equalised", {"preparation.equalise": "histogram"}, sets=_BOTH),
    "clahe": Recipe("CLAHE", {"preparation.equalise": "clahe"}, sets=_BOTH),
    # Loss and sampling.
    "cross-entropy": Recipe("cross entropy only", {"training.dice_weight": 0}, sets=_BOTH),
    "dice": Recipe("Dice only", {"training.cross_entropy_weight": 0}, sets=_BOTH),
    "rare-classes": Recipe("half of the patches by class", {"training.rare_class_fraction": 0.5}),
    # Optimiser.
    "no-ema": Recipe("no averaged weights", {"training.ema_decay": 0}, sets=_BOTH),
    "cosine": Recipe("cosine schedule", {"training.schedule": "cosine"}),
    "constant": Recipe("constant rate", {"training.schedule": "constant"}),
    "sgd": Recipe(
        "SGD 1e-2, momentum 0.99",
        {"training.optimiser": "sgd", "training.learning_rate": 1e-2, "training.weight_decay": 3e-5},
    ),
    "adam-plateau": Recipe(
        "Adam 1e-4, to a tenth on a plateau",
        {
            "training.optimiser": "adam",
            "training.learning_rate": 1e-4,
            "training.weight_decay": 0,
            "training.schedule": "plateau",
            "training.validation_interval": 20,
        },
        judging=2,
    ),
    # Few labels.
    "two-scans": Recipe("two labelled scans", labelled=2),
    "mean-teacher": Recipe(
        "two labelled scans and 20 unlabelled, Mean Teacher 1",
        _TEACHER,
        against="two-scans",
        labelled=2,
        unlabelled=20,
    ),
    "mean-teacher-10": Recipe(
        "the same, Mean Teacher 10", _STRONG_TEACHER, against="two-scans", labelled=2, unlabelled=20
    ),
    "transfer": Recipe("from weights of other sets", pretrained=True),
    "transfer-two-scans": Recipe(
        "two labelled scans, from weights of other sets", against="two-scans", labelled=2, pretrained=True
    ),
}
