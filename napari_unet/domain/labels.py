"""The classes of a segmentation: ids, names, colours."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Okabe and Ito's colours, told apart by people of every colour vision (Color Universal Design, 2008), in the
#: order in which they differ most on grey images; black is left out.
PALETTE: tuple[tuple[float, float, float], ...] = (
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.80, 0.47, 0.65),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.84, 0.37, 0.00),
    (0.00, 0.45, 0.70),
)


#: Network classes travel as uint8, and 0 is background.
MOST_CLASSES = 255


class LabelClass(BaseModel):
    """One class: the value it has in label arrays, what it is called, how it is shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(ge=1, le=65535)
    name: str = Field(min_length=1)
    colour: tuple[float, float, float]


class LabelSchema(BaseModel):
    """All classes of a task. Value 0 is background and is not listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[LabelClass, ...] = Field(min_length=1, max_length=MOST_CLASSES)

    @model_validator(mode="after")
    def _unique(self) -> LabelSchema:
        ids = [c.id for c in self.classes]
        if len(set(ids)) != len(ids):
            raise ValueError("two classes have one id")
        return self

    @classmethod
    def of(cls, *names: str) -> LabelSchema:
        """Return a schema with these names, ids 1, 2, ... and the palette's colours."""
        return cls(
            classes=tuple(
                LabelClass(id=i + 1, name=name, colour=PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)
            )
        )

    @classmethod
    def numbered(cls, n: int) -> LabelSchema:
        """Return a schema of ``n`` nameless classes."""
        return cls.of(*(f"label {i + 1}" for i in range(n)))

    @property
    def ids(self) -> tuple[int, ...]:
        """Values in label arrays, in order."""
        return tuple(c.id for c in self.classes)

    @property
    def n_outputs(self) -> int:
        """Channels of a softmax head: the classes and the background."""
        return len(self.classes) + 1
