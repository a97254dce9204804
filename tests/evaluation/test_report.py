"""Pictures show what they claim, and a report is one page whose pictures lie beside it."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from napari_unet.domain.errors import ExportError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.evaluation.metrics import score_case, summarise
from napari_unet.evaluation.plots import (
    ReportPicture,
    comparison_figure,
    curve_figure,
    overlay_figure,
    picture_of_scan,
    scores_figure,
)
from napari_unet.evaluation.report import DemoResult, DemoScan, write_demo_report, write_evaluation_report

SCHEMA = LabelSchema.of("liver", "spleen")


def pixels(figure):
    """Return what a figure shows as (h, w, 3) in 0..255."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def has_colour(image, colour, tolerance=12):
    return bool((np.abs(image.astype(int) - np.round(np.multiply(colour, 255))).max(-1) <= tolerance).any())


@pytest.fixture
def picture():
    image = np.random.default_rng(0).integers(0, 200, (48, 64)).astype(np.int16)
    truth = np.zeros((48, 64), np.uint8)
    truth[8:28, 8:28] = 1
    truth[30:44, 40:60] = 2
    before, after = np.zeros_like(truth), truth.copy()
    before[10:40, 30:50] = 1
    after[8:12, 8:28] = 0
    return ReportPicture(
        "slice 7", "Case <7>", image, (("Before", before), ("After", after)), truth, SCHEMA, (2.0, 1.0)
    )


def volume(axis, shape=(6, 7, 8), spacing=(3.0, 2.0, 1.0), **changes):
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return Scan(data, "zyx", Geometry(spacing, np.eye(4), AxisMap.identity(3)), slice_axis=axis, **changes)


def test_overlay_shows_each_class_in_its_colour(picture):
    shown = pixels(overlay_figure(picture.image, picture.truth, SCHEMA, "Overlay"))
    assert all(has_colour(shown, c.colour) for c in SCHEMA.classes)
    bare = pixels(overlay_figure(picture.image, np.zeros_like(picture.truth), SCHEMA, "Overlay"))
    assert not any(has_colour(bare, c.colour) for c in SCHEMA.classes)


def test_comparison_has_the_panels_it_needs(picture):
    titles = {axes.get_title(loc="left") for axes in comparison_figure(picture).axes}
    assert titles == {"Scan", "Before", "After", "Truth", "Before: errors", "After: errors"}
    alone = replace(picture, truth=None)
    assert [axes.get_title(loc="left") for axes in comparison_figure(alone).axes] == ["Scan", "Before", "After"]


def test_legend_names_the_kinds_of_error_there_are(picture):
    def legend(p):
        return {text.get_text() for text in comparison_figure(p).legends[0].get_texts()}

    assert legend(picture) == {"liver", "spleen", "missed", "surplus", "wrong class"}
    perfect = replace(picture, predictions=(("Prediction", picture.truth),))
    assert legend(perfect) == {"liver", "spleen"}


def test_pictures_keep_the_proportions_of_the_patient(picture):
    axes = comparison_figure(picture).axes[0]
    assert axes.get_aspect() == 2.0


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.full((9, 9), 7.5), np.zeros((9, 9, 3), np.uint8)])
def test_constant_and_coloured_pictures_can_be_drawn(image):
    assert pixels(overlay_figure(image, np.ones((9, 9), np.uint8), SCHEMA, "Constant")).any()


def test_many_classes_fit_the_legend():
    schema = LabelSchema.numbered(40)
    labels = np.arange(1, 41, dtype=np.uint8).reshape(5, 8).repeat(4, 0).repeat(4, 1)
    figure = overlay_figure(labels, labels, schema, "Many")
    pixels(figure)
    legend, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.y1 <= panel.y0
    assert legend.y0 >= 0


def test_the_default_plane_is_the_one_with_most_classes():
    scan = volume(0)
    truth = np.zeros(scan.data.shape, np.uint8)
    truth[1] = 1
    truth[4, :2], truth[4, 3] = 1, 2
    picture = picture_of_scan(scan, {"Prediction": np.zeros_like(truth)}, truth, SCHEMA, name="a", title="a")
    np.testing.assert_array_equal(picture.truth, truth[4])
    np.testing.assert_array_equal(picture.image, scan.data[4])
    assert picture.pixel_size == (2.0, 1.0)
    assert picture.sides == ("R", "L")


@pytest.mark.parametrize(("axis", "size", "sides"), [(1, (3.0, 1.0), ("R", "L")), (2, (3.0, 2.0), ("A", "P"))])
def test_coronal_and_sagittal_planes_have_the_head_on_top(axis, size, sides):
    scan = volume(axis, modality="CT")
    truth = np.zeros(scan.data.shape, np.uint8)
    picture = picture_of_scan(scan, {"P": truth}, None, SCHEMA, name="a", title="a", index=3)
    np.testing.assert_array_equal(picture.image, scan.data.take(3, axis)[::-1])
    assert (picture.pixel_size, picture.sides, picture.window) == (size, sides, (-160.0, 240.0))


def test_pictures_without_position_stay_as_they_are():
    data = np.random.default_rng(0).integers(0, 255, (5, 6, 4)).astype(np.uint8)
    labels = np.ones((5, 6), np.uint8)
    picture = picture_of_scan(Scan(data, "yxc", Geometry(None)), {"P": labels}, None, SCHEMA, name="a", title="a")
    np.testing.assert_array_equal(picture.image, data[..., :3])
    assert (picture.pixel_size, picture.sides) == ((1.0, 1.0), ("", ""))


def test_curves_skip_what_is_undefined():
    figure = curve_figure([(1, 2.0), (2, 1.0)], [(1, None), (2, 0.5)])
    assert [len(axes.lines[0].get_xdata()) for axes in figure.axes] == [2, 1]
    assert len(curve_figure([(1, 2.0)], []).axes) == 1


def test_scores_show_a_dot_per_case(picture):
    cases = [score_case(labels, picture.truth, SCHEMA.ids) for _, labels in picture.predictions]
    figure = scores_figure(cases, {1: "liver"})
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 2, 2, 2]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["liver", "label 2"]


def page_of(path):
    """Return the text of a page and the pictures it shows; it must need nothing else."""
    html = path.read_text(encoding="utf-8")
    found = []

    class Images(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag not in ("script", "link", "iframe")
            if tag == "img":
                found.append(dict(attributes)["src"])

    Images().feed(html)
    assert "http" not in html
    assert "url(" not in html
    return html, [path.parent / unquote(source) for source in found]


def assert_real_pictures(paths):
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            data = np.asarray(image.convert("RGB"))
        assert min(data.shape[:2]) > 150
        assert len(np.unique(data @ np.array([65536, 256, 1]))) > 50


def test_evaluation_report(tmp_path, picture):
    cases = [
        score_case(labels, picture.truth, SCHEMA.ids, (2.0, 1.0), case=f"case & {name}")
        for name, labels in picture.predictions
    ]
    page = write_evaluation_report(tmp_path / "new" / "folder", cases, summarise(cases), [picture, picture])
    html, images = page_of(page)
    assert page.name == "report.html"
    assert len(images) == len(set(images)) == 3
    assert_real_pictures(images)
    assert "For research use only" in html
    assert "case &amp; Before" in html
    assert "Case &lt;7&gt;" in html
    assert "liver" in html
    assert f"{cases[1].dice[1]:.3f}" in html
    assert f"{cases[1].hd95_mm[1]:.1f} mm" in html


def test_evaluation_report_of_nothing(tmp_path):
    html, images = page_of(write_evaluation_report(tmp_path, [], summarise([]), []))
    assert not images
    assert not re.search(r"\bnan\b|None", html)


def test_demo_report(tmp_path, picture):
    result = DemoResult(
        "Demo",
        ("Learnt from three scans.",),
        (DemoScan("phantom 4", 1000, 0.1, 0.9, 1000, 200), DemoScan("phantom 5", 1000, None, 0.8, 800, 100)),
        ((1, 2.0), (2, 1.0)),
        ((2, 0.8),),
        (picture,),
    )
    html, images = page_of(write_demo_report(tmp_path / "übung 1", result))
    assert len(images) == 2
    assert_real_pictures(images)
    assert "For research use only" in html
    assert "0.100 → 0.850" in html
    assert "90 % → 15 %" in html


def test_a_report_that_cannot_be_written_says_so(tmp_path, picture):
    (tmp_path / "file").write_text("")
    cases = [score_case(picture.truth, picture.truth, SCHEMA.ids)]
    with pytest.raises(ExportError, match="choose another folder"):
        write_evaluation_report(tmp_path / "file", cases, summarise(cases), [])


def test_drawing_touches_no_global_state():
    code = (
        "import sys, numpy as np\n"
        "import napari_unet.evaluation.report as r\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from napari_unet.domain.labels import LabelSchema\n"
        "r.comparison_figure(r.ReportPicture('a', 'a', np.eye(9), (('P', np.eye(9, dtype=np.uint8)),), None,"
        " LabelSchema.numbered(1)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
