"""Pictures show what they claim, and a report is one page that needs nothing else."""

import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from napari_unet.domain.checkpoint import ModelCard
from napari_unet.domain.errors import ExportError
from napari_unet.domain.geometry import AxisMap, Geometry
from napari_unet.domain.labels import LabelSchema
from napari_unet.domain.scan import Scan
from napari_unet.domain.settings import ModelSettings
from napari_unet.evaluation.charts import (
    bland_altman_figure,
    box_figure,
    curve_figure,
    learning_figure,
    trust_figure,
)
from napari_unet.evaluation.metrics import score_case, summarise
from napari_unet.evaluation.plots import ReportPicture, comparison_figure, overlay_figure, picture_of_scan
from napari_unet.evaluation.quality import Flag
from napari_unet.evaluation.report import (
    DemoResult,
    DemoScan,
    notable_cases,
    write_demo_report,
    write_evaluation_report,
)
from napari_unet.evaluation.session_report import (
    AuditCard,
    EffortSaved,
    Evaluated,
    History,
    PredictedScan,
    SessionResult,
    Update,
    write_session_report,
)
from napari_unet.evaluation.trust import CorrectedScan

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
    one = comparison_figure(replace(picture, predictions=picture.predictions[:1]))
    assert [axes.get_title(loc="left") for axes in one.axes] == ["Scan", "Before", "Truth", "Before: errors"]
    assert len({round(axes.get_position().y0, 6) for axes in one.axes}) == 1
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


def scored(picture, n=5):
    """Cases that get better: of the truth less and less is missing."""
    cases = []
    for i in range(n):
        prediction = picture.truth.copy()
        prediction[: 28 - 4 * i, :20] = 0
        cases.append(score_case(prediction, picture.truth, SCHEMA.ids, (2.0, 1.0), case=f"case {i}"))
    return cases


def test_boxes_show_a_dot_per_case(picture):
    cases = scored(picture)
    figure = box_figure(cases, {1: "liver"})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Dice", "HD95 (mm)", "NSD", "Volume error"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [case.dice[1] for case in cases])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["liver", "label 2"]
    median = figure.axes[0].lines[2].get_xdata()
    assert median == pytest.approx([np.median([case.dice[1] for case in cases])] * 2)
    pixels(box_figure([replace(cases[0], volume_error_relative={1: float("nan")})], {}))


def test_volumes_are_compared_as_bland_and_altman_do(picture):
    cases = scored(picture)
    figure = bland_altman_figure(cases, {1: "liver"})
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == ["liver", "label 2"]
    dots, mean, low, high = figure.axes[0].lines
    pairs = np.array([(case.predicted_ml[1], case.truth_ml[1]) for case in cases])
    np.testing.assert_allclose(dots.get_xdata(), pairs.mean(1))
    np.testing.assert_allclose(dots.get_ydata(), pairs[:, 0] - pairs[:, 1])
    differences = pairs[:, 0] - pairs[:, 1]
    assert mean.get_ydata()[0] == pytest.approx(differences.mean())
    assert (high.get_ydata()[0] - low.get_ydata()[0]) / 2 == pytest.approx(1.96 * differences.std(ddof=1))
    nothing = np.zeros_like(picture.truth)
    empty = [score_case(nothing, nothing, SCHEMA.ids, (2.0, 1.0))] * 9
    again = bland_altman_figure([*cases, *empty], {1: "liver"}).axes[0].lines[2]
    assert again.get_ydata()[0] == pytest.approx(low.get_ydata()[0])
    pixels(bland_altman_figure(empty, {}))
    assert bland_altman_figure(cases[:1], {}) is None
    assert bland_altman_figure([*cases, score_case(picture.truth, picture.truth, [1])], {}) is None


def test_trust_and_learning_can_be_drawn_with_gaps():
    figure = trust_figure([0.5, None, 0.8], [0.5, 0.5, 0.65], ["v1", "v1", "v2"], [(0.7, 0.6, 0.8), (0.6, None, None)])
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 3]
    assert {t.get_text() for t in figure.axes[0].get_legend().get_texts()} >= {"a corrected scan", "predicted"}
    pixels(figure)
    pixels(trust_figure([], []))
    pixels(learning_figure(["v1", "v2", "v3"], [[0.5, None], [None, None], [0.7, 0.9]]))


def test_worst_median_and_best_are_chosen_once(picture):
    cases = scored(picture)
    assert {what: case.case for what, case in notable_cases(cases[::-1]).items()} == {
        "Worst case": "case 0",
        "Median case": "case 2",
        "Best case": "case 4",
    }
    assert list(notable_cases(cases[:1])) == ["Worst case"]
    assert notable_cases([]) == {}


VOID = {"meta", "img", "br"}


def page_of(path):
    """Return the text of a page and the pictures in it; it must be well formed and need nothing else."""
    html = path.read_text(encoding="utf-8")
    found, open_tags = [], []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag not in ("script", "link", "iframe", "object", "base")
            assert not any(name.startswith("on") for name, _ in attributes)
            if tag not in VOID:
                open_tags.append(tag)
            if tag == "img":
                assert dict(attributes)["alt"]
                found.append(dict(attributes)["src"])

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    checker = Checker()
    checker.feed(html)
    checker.close()
    assert open_tags == []
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in found)
    images = [base64.b64decode(source.removeprefix(prefix)) for source in found]
    # The same pictures lie beside it, for slides.
    assert sorted(p.read_bytes() for p in (path.parent / "pictures").glob("*.png")) == sorted(images)
    assert (path.parent / "report.pdf").read_bytes().startswith(b"%PDF")
    words = re.sub(re.escape(prefix) + "[A-Za-z0-9+/=]*", "", html)
    assert "http" not in words
    assert "url(" not in words
    assert "@import" not in words
    assert str(path.parent) not in words
    return words, [io.BytesIO(image) for image in images]


def assert_real_pictures(files):
    from PIL import Image

    for file in files:
        with Image.open(file) as image:
            data = np.asarray(image.convert("RGB"))
        assert min(data.shape[:2]) > 150
        assert len(np.unique(data @ np.array([65536, 256, 1]))) > 50


def test_evaluation_report(tmp_path, picture):
    cases = scored(picture)
    page = write_evaluation_report(tmp_path / "new" / "folder", cases, summarise(cases), [picture, picture])
    html, images = page_of(page)
    assert page.name == "report.html"
    assert len(images) == 4
    assert_real_pictures(images)
    assert "For research use only" in html
    assert "liver" in html
    for case in cases:
        assert f"{case.dice[1]:.3f}" in html
        assert f"{case.hd95_mm[1]:.1f} mm" in html
        assert f"{case.nsd[2]:.3f}" in html
        assert f"{100 * case.volume_error_relative[1]:.1f} %" in html
    assert f"{np.median([case.dice[1] for case in cases]):.3f}" in html


def test_hostile_names_are_text(tmp_path, picture):
    name = "<script>alert(1)</script> & \"'$x_1^2$ ../../etc"
    cases = [replace(case, case=name) for case in scored(picture)]
    hostile = replace(picture, name=name, title=name)
    schema = LabelSchema.of("<b>liver</b> $\\frac$", "spleen")
    html, _ = page_of(write_evaluation_report(tmp_path / "r", cases, summarise(cases), [hostile], schema))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;&#x27;$x_1^2$" in html
    assert "<b>liver" not in html
    assert {p.name for p in tmp_path.iterdir()} == {"r"}


def test_a_second_report_replaces_the_first(tmp_path, picture):
    write_evaluation_report(tmp_path, [], summarise([]), [picture])
    own = tmp_path / "pictures" / "01 mine.png"
    own.write_bytes(b"")
    write_evaluation_report(tmp_path, [], summarise([]), [])
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [own.name]


def test_evaluation_report_of_nothing(tmp_path):
    html, images = page_of(write_evaluation_report(tmp_path, [], summarise([]), []))
    assert not images
    assert not re.search(r"\bnan\b|None", html)


SESSION = SessionResult(
    "Ten scans of livers",
    ("Two readers.",),
    effort=EffortSaved(10, 31.5, 420, 900, 10_000, minutes_by_hand=80.0),
    corrected=(
        *(CorrectedScan(f"scan {i}", "v1", 0.5 + 0.05 * i, 0.5) for i in range(3)),
        *(CorrectedScan(f"scan {i}", "v2", 0.99, 0.01) for i in range(3, 11)),
    ),
    predicted=(PredictedScan("scan 11", 0.87, 0.71, 0.93), PredictedScan("scan 12", 0.6)),
    history=History(("v1", "v2", "v3"), {"judge <a>": (0.80, 0.91, 0.85), "judge b": (None, 0.7, 0.72)}),
    losses=((1, 1.0), (2, 0.5)),
    flags=(Flag("scan 4", "volume", 5.0, "liver in scan 4 is unusually small: 3 mL, median 9 mL."),),
    updates=(
        Update(
            "v2", "v3", ("Trained 60 s.",), "On 11 scans.", "On 2 held-out scans.", {"judge b": (0.7, 0.72)}, "Good."
        ),
    ),
    model=ModelCard(
        name="v3", settings=ModelSettings(), label_schema=SCHEMA, seen=("abc123", "def456"), scores={"ff": 0.8}
    ),
    audits=(
        AuditCard("scan 0", "v1", 0.123, 4.25, "AB", "31 of 31 slices"),
        AuditCard("scan 1", None, None, None, ""),
    ),
)


def test_session_report_has_all_sections(tmp_path, picture):
    cases = tuple(scored(picture))
    result = replace(
        SESSION,
        pictures=(picture,),
        evaluated=Evaluated(cases, summarise(cases), (picture,), {1: "liver", 2: "spleen"}),
    )
    html, images = page_of(write_session_report(tmp_path, result))
    assert_real_pictures(images)
    assert len(images) == 7
    for text in (
        "31.5", "48.5 min", "saved against 80.0 min by hand", "9 %", "The last 8 scans needed under 2 % correction",
        "0.71 to 0.93", "too few corrections", "judge &lt;a&gt;", "0.85 ▾", "unusually small", "From v2 to v3",
        "On 2 held-out scans.", "+0.020", "12.3 %", "4.2", "31 of 31 slices", "painted by hand", "liver, spleen",
        "2 scans", "mean Dice 0.800",
    ):  # fmt: skip
        assert text in html, text
    # Scans are known to the model by hashes of their voxels, which are nobody else's business.
    assert "abc123" not in html
    assert not re.search(r"\bnan\b|None", html)


def test_session_report_of_nothing(tmp_path):
    html, images = page_of(write_session_report(tmp_path, SessionResult("Nothing yet")))
    assert not images
    assert html.count("<h2>") == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no browser here: chromium")
def test_a_browser_shows_the_whole_report(tmp_path, picture):
    from PIL import Image

    cases = scored(picture)
    page = write_evaluation_report(tmp_path, cases, summarise(cases), [picture])
    shot = tmp_path / "shot.png"
    how = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1250,2600", f"--screenshot={shot}"]
    subprocess.run(["chromium", *how, page.as_uri()], check=True, timeout=120, capture_output=True)
    with Image.open(shot) as image:
        shown = np.asarray(image.convert("RGB"))
    # Class colours of the overlays, and text down to the lower half.
    assert has_colour(shown, SCHEMA.classes[0].colour, 40)
    assert (shown[1800:] < 80).any()


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
        "import napari_unet.evaluation.report as r, napari_unet.evaluation.session_report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from napari_unet.domain.labels import LabelSchema\n"
        "r.comparison_figure(r.ReportPicture('a', 'a', np.eye(9), (('P', np.eye(9, dtype=np.uint8)),), None,"
        " LabelSchema.numbered(1)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
