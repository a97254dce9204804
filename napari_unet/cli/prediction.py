"""What ``predict`` says of each scan, and puts into the table of a folder."""

from __future__ import annotations

from napari_unet.cli.output import say
from napari_unet.session.batch import Outcome
from napari_unet.session.cohort import CohortTable


def say_outcome(outcome: Outcome, number: int, total: int, table: CohortTable | None) -> None:
    """Say that a mask was written, or was there already, with its notes; errors are the caller's to say."""
    count = f" ({number} of {total})" if total > 1 else ""
    source = (outcome.target.folder / outcome.target.source.name).as_posix()
    if outcome.error is None:
        say(f"{'left, done before:' if outcome.done_before else 'wrote'} {outcome.written}{count}")
        for note in outcome.notes:
            say(f"note: {outcome.target.source.name}: {note}")
    if table is None:
        return
    if outcome.error is not None:
        table.add(source, "", "failed", seconds=outcome.seconds, notes=(str(outcome.error),))
    else:
        table.add(
            source,
            (outcome.target.folder / outcome.written.name).as_posix() if outcome.written else "",
            "done before" if outcome.done_before else "done",
            seconds=outcome.seconds,
            notes=outcome.notes,
            volumes=outcome.volumes,
        )
