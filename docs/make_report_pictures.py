"""Makes the pictures of a session's report in ``docs/images``: ten real scans, corrected by their truth.

python docs/make_report_pictures.py DATA   (a folder that holds ``hippocampus_mr``; some minutes)

Only the charts are taken: no picture of a scan comes into the documentation.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
_N_SCANS, _N_UNSEEN, _SECONDS, _SEED = 10, 3, 10.0, 0


def main(data: Path) -> None:
    """Correct ten scans one after the other, learn after each, propose for three more, and report."""
    from napari_unet.compute.engine import Engine
    from napari_unet.io.masks import TruthRule
    from napari_unet.io.pairs import find_pairs, load_pairs
    from napari_unet.session.batch import schema_for
    from napari_unet.session.session import Session
    from napari_unet.session.simulate import group_pairs, split_groups

    pairs = find_pairs(data / "hippocampus_mr" / "images", data / "hippocampus_mr" / "masks")
    groups = group_pairs(pairs, None)
    split = split_groups(sorted(groups), _N_SCANS + _N_UNSEEN, 40, None, _SEED)
    chosen = [groups[name][0] for name in split.stream]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans, mapping = load_pairs(chosen, TruthRule())
        session = Session(Engine(), folder / "hippocampi", schema_for(mapping))
        session.start()
        for number, item in enumerate(scans):
            state = session.add_scan(item.scan)
            if session.models.in_use is not None:
                session.proposals.begin()
                session.wait()
            if number >= _N_SCANS:
                continue
            session.record_edit(state, item.labels.astype(state.annotation.labels.dtype), slice(None))
            session.accept_slices(state)
            session.learning.begin(_SECONDS)
            session.wait()
            session.learning.use_new()
        session.reporting.write(folder / "report")
        while session.reporting.is_writing:
            session.poll()
        for path in sorted((folder / "report" / "pictures").glob("*.png")):
            chart = path.stem.partition("-")[2]
            if chart in ("trust", "learning"):
                shutil.copyfile(path, IMAGES / f"report-{chart}.png")
        shutil.copytree(folder / "report", Path.cwd() / "build" / "session-report", dirs_exist_ok=True)
        session.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
