"""Figures: what is drawn is the data, each is a readable PNG, mistakes are refused."""

import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from experiments.common import figures
from experiments.common.figures.bars import _short
from experiments.common.figures.images import spread


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.images / 16.0, data.target


def pixels(path):
    image = Image.open(path)
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def coloured(image, colour):
    """How many pixels have a colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image.astype(int) - rgb).max(-1) < 12).sum())


@pytest.mark.slow
def test_importing_costs_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    code = (
        "import sys; from experiments.common import figures;"
        "assert 'matplotlib' not in sys.modules;"
        "import matplotlib; matplotlib.rcParams['font.size'] = 21;"
        f"figures.curves({str(tmp_path / 'a.png')!r}, {{'a': ([0, 1], [0, 1])}}, 'x', 'y');"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert matplotlib.rcParams['font.size'] == 21"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curves_draws_every_series_and_its_band(tmp_path):
    steps = np.arange(50)
    wave = np.sin(steps / 8)
    series = {"a": (steps, wave), "b": (steps, wave + 3, wave + 2.5, wave + 3.5)}
    figures.curves(tmp_path / "deep" / "c.png", series, "step", "loss (nats)", "Title")
    image = pixels(tmp_path / "deep" / "c.png")
    assert image.shape[1] == round(figures.COLUMN * figures.DPI)
    for colour in figures.PALETTE[:2]:
        assert coloured(image, colour) > 300
    band = image[..., 0].astype(int) - image[..., 2]  # a light orange area: red without blue
    assert ((band > 20) & (band < 90)).sum() > 5000


def test_curves_survives_gaps_and_one_point(tmp_path):
    series = {"gap": ([0, 1, 2, 3], [1.0, np.nan, np.inf, 2.0]), "one": ([2], [1.5])}
    figures.curves(tmp_path / "c.png", series, "step", "loss", logy=True)
    assert coloured(pixels(tmp_path / "c.png"), figures.PALETTE[1]) > 20


def test_curves_are_reproducible(tmp_path):
    for name in ("a.png", "b.png"):
        figures.curves(tmp_path / name, {"x": ([0, 1], [0, 1])}, "x", "y")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "series",
    [{}, {"a": ([1, 2], [1])}, {"a": ([1, 2], [1, 2], [0, 1])}, {"a": ([[1]], [[1]])}],
)
def test_curves_refuses(tmp_path, series):
    with pytest.raises(ValueError, match="series"):
        figures.curves(tmp_path / "c.png", series, "x", "y")
    assert not (tmp_path / "c.png").exists()


def test_curves_differ_in_grey():
    """Every pair among the first eight series differs in line style or marker."""
    looks = [
        (str(figures.LINES[i % len(figures.LINES)]), figures.MARKERS[i % len(figures.MARKERS)])
        for i in range(12)
    ]
    assert len(set(looks)) == 12


def test_image_grid_shows_the_pixels(tmp_path, digits):
    images, _ = digits
    first = np.zeros((8, 8))
    first[:4] = 1.0
    rows = [[first, *images[:3]], [*images[3:6]]]  # rows of unequal length
    figures.image_grid(tmp_path / "v.png", rows, ["a", "b"], ["image", "1", "2", "3"], "Views")
    image = pixels(tmp_path / "v.png")
    assert (image == 0).all(-1).mean() > 0.1
    assert (image == 255).all(-1).mean() > 0.1


def test_long_labels_of_rows_are_not_cut_off(tmp_path):
    rows = [[np.ones((14, 14))] * 2] * 6
    figures.image_grid(tmp_path / "v.png", rows, ["mountain ranges of 6 rows"] * 6, None, "Grid")
    ink = (pixels(tmp_path / "v.png") < 200).any(-1)
    assert not ink[:, :3].any()
    assert ink[:, : ink.shape[1] // 2].any()


def test_image_grid_of_colour_and_bytes(tmp_path):
    red = np.zeros((6, 5, 3), np.uint8)
    red[..., 0] = 255
    grey = np.full((6, 5, 1), 128, np.uint8)
    figures.image_grid(tmp_path / "v.png", [[red, grey]])
    image = pixels(tmp_path / "v.png")
    assert coloured(image, "#ff0000") > 5000
    assert coloured(image, "#808080") > 5000


def test_image_grid_takes_one_array(tmp_path):
    figures.image_grid(tmp_path / "v.png", np.random.default_rng(0).random((2, 3, 4, 4, 1)))
    assert pixels(tmp_path / "v.png").std() > 10


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([], None, "at least one"),
        ([[]], None, "at least one"),
        ([[np.zeros((4, 4, 2))]], None, r"\(4, 4, 2\)"),
        ([[np.random.default_rng(0).normal(size=(8, 8))]], None, "normalisation"),
        ([[np.zeros((4, 4))]], ["a", "b"], "1 labels, got 2"),
    ],
)
def test_image_grid_refuses(tmp_path, rows, labels, message):
    with pytest.raises(ValueError, match=message):
        figures.image_grid(tmp_path / "v.png", rows, row_labels=labels)


def test_embedding_of_digits(tmp_path, digits):
    images, labels = digits
    xy = PCA(2).fit_transform(images.reshape(len(images), -1))
    names = [str(c) for c in range(10)]
    figures.embedding(tmp_path / "e.png", xy, labels, names, "PCA of digits")
    image = pixels(tmp_path / "e.png").astype(int)
    saturated = (image.max(-1) - image.min(-1)) > 60
    assert 0.01 < saturated.mean() < 0.5


def test_embedding_labels_do_not_collide():
    same = np.zeros((4, 2))
    moved = spread(same, np.array([0.1, 0.05]))
    gaps = np.abs(moved[:, None, 1] - moved[None, :, 1])[np.triu_indices(4, 1)]
    assert gaps.min() > 0.04
    apart = np.array([[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(spread(apart, np.array([0.1, 0.05])), apart)


@pytest.mark.parametrize(
    ("xy", "labels", "message"),
    [
        (np.zeros((3, 3)), np.zeros(3, int), r"\[n, 2\]"),
        (np.zeros((3, 2)), np.zeros(4, int), r"\[n, 2\]"),
        (np.zeros((3, 2)), np.array([0, 1, 5]), "labels in"),
        (np.zeros((0, 2)), np.zeros(0, int), "at least one"),
    ],
)
def test_embedding_refuses(tmp_path, xy, labels, message):
    with pytest.raises(ValueError, match=message):
        figures.embedding(tmp_path / "e.png", xy, labels, ["a", "b"])


def test_spectrum_is_normalised_and_sorted(tmp_path, monkeypatch):
    seen = {}
    module = importlib.import_module("experiments.common.figures.curves")
    monkeypatch.setattr(module, "curves", lambda path, series, *a, **k: seen.update(series))
    figures.spectrum(tmp_path / "s.png", {"trained": [2.0, 8.0, 0.0]}, {"trained": 1.5})
    (name, (index, values)), *_ = seen.items()
    assert name == "trained (effective rank 1.5 of 3)"
    np.testing.assert_array_equal(index, [1, 2, 3])
    np.testing.assert_allclose(values, [1.0, 0.25, 1e-8])


def test_a_spectrum_of_zeros_says_collapsed(tmp_path, monkeypatch):
    seen = {}
    module = importlib.import_module("experiments.common.figures.curves")
    monkeypatch.setattr(module, "curves", lambda path, series, *a, **k: seen.update(series))
    figures.spectrum(tmp_path / "s.png", {"a": [0.0, 0.0]})
    np.testing.assert_array_equal(seen["a (collapsed: all are zero)"][1], [1e-8, 1e-8])


@pytest.mark.parametrize("values", [[], [1.0, -1.0], [1.0, np.nan]])
def test_spectrum_refuses(tmp_path, values):
    with pytest.raises(ValueError, match="singular values"):
        figures.spectrum(tmp_path / "s.png", {"a": values})


@pytest.mark.slow
def test_heatmap_small_large_and_diverging(tmp_path, digits):
    images, _ = digits
    flat = images[:60].reshape(60, -1)
    figures.heatmap(tmp_path / "big.png", flat @ flat.T, value_label="inner product")
    figures.heatmap(tmp_path / "small.png", np.eye(3), ["a", "b", "c"], diverging=True)
    figures.heatmap(tmp_path / "nan.png", np.array([[np.nan, 1.0]]), ["r"], ["a", "b"])
    figures.heatmap(tmp_path / "zero.png", np.zeros((2, 2)), diverging=True)
    for name in ("big", "small", "nan", "zero"):
        assert pixels(tmp_path / f"{name}.png").std() > 5


def test_heatmap_refuses(tmp_path):
    with pytest.raises(ValueError, match="matrix"):
        figures.heatmap(tmp_path / "h.png", np.zeros(3))
    with pytest.raises(ValueError, match="3 labels, got 2"):
        figures.heatmap(tmp_path / "h.png", np.zeros((3, 3)), ["a", "b"])


def test_bars_with_errors_and_reference(tmp_path):
    values = {"pixels": [0.9, 0.8], "trained": [0.95, np.nan]}
    errors = {"trained": [0.02, 0.0]}
    path = tmp_path / "b.png"
    figures.bars(path, ["knn", "probe"], values, errors, "accuracy", reference=("chance", 0.1))
    image = pixels(path)
    assert coloured(image, figures.PALETTE[0]) > 3000
    assert coloured(image, figures.PALETTE[1]) > 1000


@pytest.mark.parametrize(
    ("groups", "values", "errors"),
    [([], {"a": []}, None), (["g"], {}, None), (["g"], {"a": [1, 2]}, None),
     (["g"], {"a": [1]}, {"b": [1]})],
)  # fmt: skip
def test_bars_refuses(tmp_path, groups, values, errors):
    with pytest.raises(ValueError, match="bars"):
        figures.bars(tmp_path / "b.png", groups, values, errors)


@pytest.mark.slow
def test_dots_of_several_panels(tmp_path):
    """The highest dot of a panel alone is filled, and five panels take two lines."""
    rows = ["first", "second", "third"]
    one = ([0.5, np.nan, 0.7], [0.1, 0.1, np.nan])
    figures.dots(tmp_path / "one.png", rows, {"a": one}, "accuracy")
    figures.dots(tmp_path / "filled.png", rows, {"a": ([0.7, np.nan, 0.7], one[1])}, "accuracy")
    drawn = [
        coloured(pixels(tmp_path / name), figures.PALETTE[0]) for name in ("one.png", "filled.png")
    ]
    assert 60 < drawn[0] < drawn[1]
    for name, values in (("one_high", [0.7, 0.5, 0.5]), ("two_high", [0.7, 0.7, 0.5])):
        figures.dots(tmp_path / f"{name}.png", rows, {"a": (values, [0.1] * 3)})
    drawn = [
        coloured(pixels(tmp_path / f"{n}.png"), figures.PALETTE[0])
        for n in ("one_high", "two_high")
    ]
    assert drawn[0] < drawn[1]
    figures.dots(tmp_path / "line.png", rows, {"a": (values, [0.1] * 3)}, reference=0.55)
    drawn = [coloured(pixels(tmp_path / f"{n}.png"), "#333333") for n in ("two_high", "line")]
    assert drawn[1] > drawn[0] + 50
    figures.dots(tmp_path / "five.png", rows, dict.fromkeys("abcde", one))
    figures.dots(tmp_path / "three.png", rows, dict.fromkeys("abc", one))
    (tall, wide), (low, same) = (pixels(tmp_path / f"{n}.png").shape[:2] for n in ("five", "three"))
    assert wide == same
    assert tall > 1.7 * low


@pytest.mark.parametrize(
    ("rows", "panels"),
    [
        ([], {"a": ([], [])}),
        (["r"], {}),
        (["r"], {"a": ([1.0, 2.0], [0.1, 0.1])}),
        (["r"], {"a": [1]}),
    ],
)
def test_dots_refuses(tmp_path, rows, panels):
    with pytest.raises(ValueError, match="dots"):
        figures.dots(tmp_path / "d.png", rows, panels)
    assert not (tmp_path / "d.png").exists()


def test_histogram_leaves_out_what_is_not_finite(tmp_path):
    rng = np.random.default_rng(0)
    series = {"one": np.append(rng.normal(size=200), [np.nan, np.inf]), "other": np.full(50, 2.0)}
    figures.histogram(tmp_path / "h.png", series, xlabel="cosine", ylabel="documents")
    image = pixels(tmp_path / "h.png")
    assert coloured(image, figures.PALETTE[0]) > 300
    assert coloured(image, figures.PALETTE[1]) > 100


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [np.nan]}])
def test_histogram_refuses(tmp_path, series):
    with pytest.raises(ValueError, match="finite values"):
        figures.histogram(tmp_path / "h.png", series, xlabel="x", ylabel="y")


def test_canvas_saves_what_is_drawn_and_nothing_on_an_error(tmp_path):
    with figures.canvas(tmp_path / "deep" / "c.png", (2.0, 1.0), "Title") as figure:
        figure.add_subplot().bar([0, 1], [1, 2], **figures.look(9, "color"))
    image = pixels(tmp_path / "deep" / "c.png")
    assert image.shape[:2] == (figures.DPI, 2 * figures.DPI)
    assert coloured(image, figures.PALETTE[9 % len(figures.PALETTE)]) > 3000
    with pytest.raises(RuntimeError), figures.canvas(tmp_path / "no.png", (1.0, 1.0)):
        raise RuntimeError
    assert not (tmp_path / "no.png").exists()


def test_loglog_finds_the_exponent(tmp_path):
    n = np.array([1e3, 3e3, 1e4])
    series = {"square": (n, 5e-9 * n**2), "linear": (n, 1e-6 * n)}
    slopes = figures.loglog(tmp_path / "l.png", series, "points", "time (s)")
    np.testing.assert_allclose([slopes["square"], slopes["linear"]], [2.0, 1.0])
    for colour in figures.PALETTE[:2]:
        assert coloured(pixels(tmp_path / "l.png"), colour) > 300


@pytest.mark.parametrize(
    "series",
    [{}, {"a": ([1, 2], [1, 0])}, {"a": ([3, 3], [1, 2])}, {"a": ([1, 2], [1, np.nan])},
     {"a": ([1, 2], [1, 2], [1, 2], [1, 2])}],
)  # fmt: skip
def test_loglog_refuses(tmp_path, series):
    with pytest.raises(ValueError, match="loglog"):
        figures.loglog(tmp_path / "l.png", series, "x", "y")
    assert not (tmp_path / "l.png").exists()


def test_heatmap_of_several_is_that_of_the_joined(tmp_path):
    several = np.random.default_rng(0).random((3, 13, 13))
    empty = np.full((13, 2), np.nan)
    joined = np.hstack([several[0], empty, several[1], empty, several[2]])
    figures.heatmap(tmp_path / "a.png", several, xlabel="x", gap=2)
    figures.heatmap(tmp_path / "b.png", joined, xlabel="x")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_dendrogram_puts_similar_names_side_by_side(tmp_path):
    group = np.array([0, 1, 0, 1, 2, 0])
    similarity = 0.2 + 0.6 * (group[:, None] == group) + 0.2 * np.eye(6)
    order = figures.dendrogram(tmp_path / "d.png", similarity, list("abcdef"), "distance")
    assert sorted(order) == list(range(6))
    assert np.count_nonzero(np.diff(group[order])) == 2
    assert coloured(pixels(tmp_path / "d.png"), figures.PALETTE[0]) > 1000


@pytest.mark.parametrize(
    "similarity",
    [np.eye(3), np.zeros((2, 2)), [[1, 0.5], [0.4, 1]], [[1, np.nan], [np.nan, 1]], np.ones(2)],
)
def test_dendrogram_refuses(tmp_path, similarity):
    with pytest.raises(ValueError, match="dendrogram"):
        figures.dendrogram(tmp_path / "d.png", similarity, ["a", "b"])


def test_bars_cut_shows_small_differences(tmp_path):
    values = {"a": [90.1, 90.4], "b": [90.2, 90.9]}
    drawn = {}
    for cut in (False, True):
        figures.bars(tmp_path / "b.png", ["g", "h"], values, cut=cut)
        drawn[cut] = coloured(pixels(tmp_path / "b.png"), figures.PALETTE[0])
    assert 0.2 < drawn[True] / drawn[False] < 0.8
    figures.bars(tmp_path / "a.png", ["g"], {"a": [-1.0], "b": [2.0]}, cut=True)
    figures.bars(tmp_path / "b.png", ["g"], {"a": [-1.0], "b": [2.0]})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_axes_of_accuracies_start_at_the_baseline(tmp_path, saved):
    chance = ("chance", 0.5)
    figures.bars(tmp_path / "b.png", ["g", "h"], {"a": [0.8, 0.9]}, reference=chance)
    figures.curves(
        tmp_path / "c.png", {"a": ([0, 1], [0.8, 0.9])}, "step", "y", reference=chance,
        upright=("end", 0.25),
    )  # fmt: skip
    figures.curves(tmp_path / "d.png", {"a": ([0, 1], [0.4, 0.9])}, "step", "y", reference=chance)
    bars, above, below = (figure.axes[0] for figure in saved)
    assert bars.get_ylim()[0] == above.get_ylim()[0] == 0.5
    assert [bar.get_height() + bar.get_y() for bar in bars.patches] == pytest.approx([0.8, 0.9])
    assert below.get_ylim()[0] < 0.4
    assert [line.get_label() for line in above.lines] == ["a", "chance", "end"]
    assert list(above.lines[2].get_xdata()) == [0.25, 0.25]


@pytest.fixture
def saved(monkeypatch):
    """Matplotlib's figures, as they were when they were saved."""
    from matplotlib.figure import Figure

    found, save = [], Figure.savefig

    def keep(self, *args, **kwargs):
        save(self, *args, **kwargs)
        self.set_dpi(figures.DPI)  # as the PNG is drawn
        found.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


def boxes(texts):
    """Left, bottom, right and top [n, 4] in pixels of the texts that are not empty."""
    return np.array([text.get_window_extent().extents for text in texts if text.get_text()])


def overlaps(found, share=0.15):
    """How many pairs of boxes cover one another by more than a share of their height."""
    inner = np.minimum(found[:, None, 2:], found[None, :, 2:]) - np.maximum(
        found[:, None, :2], found[None, :, :2]
    )
    height = (found[:, 3] - found[:, 1]).min()
    return int(np.triu((inner[..., 0] > 1) & (inner[..., 1] > share * height), 1).sum())


LONG = [f"{word} of a class with a long name {i}" for i, word in enumerate(["sort", "kind"] * 35)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heatmap", "bars", "dendrogram"])
def test_seventy_long_names_are_all_legible(tmp_path, saved, kind):
    rng = np.random.default_rng(0)
    if kind == "heatmap":
        figures.heatmap(tmp_path / "f.png", np.eye(70), LONG, value_label="%")
    elif kind == "bars":
        values = {"a": rng.random(70), "b": rng.random(70)}
        figures.bars(tmp_path / "f.png", LONG, values, reference=("chance", 1 / 70))
    else:
        figures.dendrogram(tmp_path / "f.png", 0.1 + 0.9 * np.eye(70), LONG)
    ax = saved[0].axes[0]
    texts = boxes(ax.get_yticklabels())
    assert len(texts) == 70
    assert overlaps(texts) == 0
    assert texts.min() >= 0
    assert (texts[:, 3] - texts[:, 1]).min() > 7
    assert ax.get_position().width > 0.25


@pytest.mark.slow
def test_seventy_classes_are_numbered_on_a_map(tmp_path, saved):
    labels = np.repeat(np.arange(70), 3)
    xy = np.random.default_rng(0).normal(size=(70, 2))[labels]
    figures.embedding(tmp_path / "e.png", xy, labels, LONG, "Title")
    ax, *keys = saved[0].axes
    assert sorted(int(text.get_text()) for text in ax.texts) == list(range(70))
    assert overlaps(boxes(ax.texts), share=0.5) < 4
    lines = [line for key in keys for text in key.texts for line in text.get_text().split("\n")]
    assert [line.split("  ")[0] for line in lines] == [str(c) for c in range(70)]
    assert all(line.endswith(LONG[c][-8:]) for c, line in enumerate(lines))
    for key in keys:
        assert boxes(key.texts).min() >= 0


@pytest.mark.parametrize(("x", "whole"), [([1, 2, 3, 4], True), ([1, 2.5, 3, 4], False)])
def test_curves_over_whole_numbers_have_whole_ticks(tmp_path, saved, x, whole):
    figures.curves(tmp_path / "c.png", {"a": (x, x), "b": ([1, 2], [1, 2])}, "layers", "y")
    ticks = saved[-1].axes[0].get_xticks()
    assert np.array_equal(ticks, np.rint(ticks)) is whole


def test_a_legend_of_many_leaves_room_for_the_curves(tmp_path, saved):
    series = {name: ([0, 1], [0, i]) for i, name in enumerate(LONG[:30])}
    figures.curves(tmp_path / "c.png", series, "step", "y")
    ax = saved[0].axes[0]
    assert ax.get_legend().texts[-1].get_text() == "… and 13 more"
    assert ax.get_window_extent().height > 0.25 * saved[0].dpi * figures.COLUMN
    assert ax.get_legend().get_window_extent().extents.min() >= 0


def test_collapsed_features_say_so(tmp_path, saved):
    figures.embedding(tmp_path / "e.png", np.ones((9, 2)), np.arange(9) % 3, ["a", "b", "c"])
    figures.embedding(tmp_path / "f.png", np.eye(2), np.zeros(2, int), [""])  # without labels
    collapsed, unlabelled = ([text.get_text() for text in figure.axes[0].texts] for figure in saved)
    assert collapsed == ["collapsed:\nall features are equal"]
    assert unlabelled == []


def test_bold_only_where_intervals_part():
    assert figures.parted([0.9, 0.8, 0.7], [0.04, 0.05, 0.0]) == 0
    assert figures.parted([0.9, 0.8, 0.7], [0.06, 0.05, 0.0]) is None
    assert figures.parted([0.5], [0.1]) == 0
    assert figures.parted([0.5, 0.9], [0.1, np.nan]) is None
    with pytest.raises(ValueError, match="halves"):
        figures.parted([0.5, 0.9], [0.1])


def test_bars_of_many_groups_carry_decimals_if_asked(tmp_path):
    groups, values = [str(i) for i in range(26)], {"a": np.arange(26.0)}
    figures.bars(tmp_path / "a.png", groups, values)
    figures.bars(tmp_path / "b.png", groups, values, decimals=1)
    plain, numbered = (pixels(tmp_path / name).max(-1) < 128 for name in ("a.png", "b.png"))
    assert numbered.sum() > plain.sum() + 26 * 40  # a number has more dark pixels than 40


def test_table_writes_the_best_in_bold(tmp_path):
    cells = [["51.2 ± 0.3", "60"], ["49.0 ± 0.2", "61"]]
    for name, best in (("a.png", None), ("b.png", [0, None])):
        figures.table(tmp_path / name, ["one", "two"], ["1-shot\nbalanced", "n"], cells, best)
    plain, bold = (255.0 - pixels(tmp_path / name).mean(-1) for name in ("a.png", "b.png"))
    assert plain.shape == bold.shape
    rows = np.abs(bold - plain).sum(1).nonzero()[0]
    assert bold.sum() > plain.sum()
    assert 0.4 * len(plain) < rows.min() < rows.max() < 0.8 * len(plain)  # the first row's only


@pytest.mark.parametrize(
    ("rows", "cells", "best"),
    [([], [], [0]), (["r"], [["a", "b"]], None), (["r", "s"], [["a"]], None),
     (["r"], [["a"]], [0, 0])],
)  # fmt: skip
def test_table_refuses(tmp_path, rows, cells, best):
    with pytest.raises(ValueError, match="table"):
        figures.table(tmp_path / "t.png", rows, ["c"], cells, best)


@pytest.mark.slow
def test_training_curves_are_the_logged_metrics(tmp_path):
    lines = [{"step": step, "time": 1.0, "train/loss": 1 / step} for step in (1, 2, 3)]
    lines.append({"step": 3, "time": 1.0, "eval/knn": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = figures.logged(tmp_path, {"loss": "train/loss", "kNN": "eval/knn", "no": "no"})
    assert list(found) == ["loss", "kNN"]
    np.testing.assert_allclose(found["loss"], [[1, 2, 3], [1, 1 / 2, 1 / 3]])
    panels = {"train/loss": "loss (nats)", "eval/knn": "accuracy", "no": "no"}
    figures.training_curves(tmp_path.joinpath, tmp_path, panels)
    assert [path.name for path in tmp_path.glob("*.png")] == ["loss.png"]
    figures.curves(tmp_path / "same.png", {"loss": found["loss"]}, "step", "loss (nats)")
    assert (tmp_path / "loss.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    chance = ("chance", 0.1)
    figures.training_curves(tmp_path.joinpath, tmp_path, panels, {"train/loss": chance})
    figures.curves(tmp_path / "same.png", found, "step", "loss (nats)", reference=chance)
    assert (tmp_path / "loss.png").read_bytes() != (tmp_path / "same.png").read_bytes()
    found.pop("kNN")
    figures.curves(tmp_path / "same.png", found, "step", "loss (nats)", reference=chance)
    assert (tmp_path / "loss.png").read_bytes() == (tmp_path / "same.png").read_bytes()


def test_views_stand_after_their_originals(tmp_path, digits):
    images = (255 * digits[0][:2, ..., None]).astype(np.uint8)
    figures.views(
        tmp_path / "v.png", images, lambda key, x, copies: 1 - x, jax.random.key(0), count=2
    )
    rows = [[image, 1 - image, 1 - image] for image in images[..., 0].astype(np.float32) / 255]
    names, title = ["image", "view 1", "view 2"], "Views of the augmentation"
    figures.image_grid(tmp_path / "same.png", rows, column_labels=names, title=title)
    difference = pixels(tmp_path / "v.png").astype(int) - pixels(tmp_path / "same.png")
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (120.34, None, "120"), (99.994, None, "99.99"), (-1234.6, None, "-1235"), (7.0, None, "7"),
        (0.00123, None, "0.0012"), (2.5e7 + 0.5, None, "2.5e+07"), (120.34, 1, "120.3"),
        (np.nan, None, ""),
    ],
)  # fmt: skip
def test_values_on_bars_are_short(value, decimals, text):
    assert _short(value, decimals) == text
