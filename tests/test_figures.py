"""The figures and the animation: what is drawn, what is written, what is said."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import data_movement
import matplotlib
import numpy as np
import pytest
from PIL import Image

import ff_cifar_locally_connected as ff
import make_ff_cifar_locally_connected_gif as animation
import visualize_ff_cifar_locally_connected as viz

ROOT = Path(viz.__file__).parent
FIGURES = [
    "example_images.png",
    "example_label_encoded.png",
    "ff_vs_bp_curves.png",
    "per_class_accuracy.png",
    "receptive_fields_layer0.png",
]
RECURRENT = {"network": "recurrent", "train_subset": 64, "eval_subset": 20}
MIN = RECURRENT | {"objective": "min"}
SMALL = ["--dataset", "synthetic", "--train-subset", "200", "--eval-subset", "50"]


def arguments(n_layers=2, bp_baseline=True, n_epochs=2, **changes):
    small = {"dataset": "synthetic", "train_subset": 200, "eval_subset": 50}
    return ff.training_arguments(
        n_epochs=n_epochs,
        n_layers=n_layers,
        bp_baseline=bp_baseline,
        snapshot_every=1,
        **small | changes,
    )


@pytest.fixture(scope="module")
def data():
    return ff.make_synthetic()


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    """models(n_layers, bp_baseline, **changes): a small model's path, made once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def model(n_layers=2, bp_baseline=True, **changes):
        path = (
            folder / f"{n_layers}{bp_baseline}{''.join(map(str, changes.values()))}.npz"
        )
        if path not in made:
            args = arguments(n_layers, bp_baseline, **changes)
            ff.save_npz(path, ff.run(args, data, lambda *line: None)[1])
            made[path] = True
        return path

    return model


@pytest.fixture
def call(data, monkeypatch, capsys):
    """call(main, *flags): the lines that the script prints, with the data made once."""
    monkeypatch.setattr(ff, "make_synthetic", lambda: data)

    def call(main, *flags):
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, flags)])
        main()
        return capsys.readouterr().out.splitlines()

    return call


def script(module, *flags, **environment):
    """The script in a process of its own: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, module.__file__, *map(str, flags)],
        env=os.environ | environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------ figures


@pytest.mark.parametrize(
    "n_layers, bp, changes",
    [
        (1, True, {}),
        (2, False, {}),
        (2, True, {}),
        (3, True, {}),
        (2, True, RECURRENT),
        (3, False, MIN),
    ],
)
def test_every_model_gives_its_whole_figures_that_fit_a_page(
    call, models, tmp_path, n_layers, bp, changes
):
    outdir = tmp_path / "new" / "folder"
    model = models(n_layers, bp, **changes)
    lines = call(
        viz.main, "--model", model, "--outdir", outdir, "--per-class-test-subset", 40
    )
    assert not [line for line in lines if "was made with" in line]  # no flags, no loss
    figures = [*FIGURES, "recurrent.png"] if changes else FIGURES
    assert sorted(path.name for path in outdir.iterdir()) == sorted(figures)
    for name in figures:
        assert f"[synthetic] wrote {outdir / name}" in lines
        assert (outdir / name).stat().st_size < 400_000
        with Image.open(outdir / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert 1000 <= pixels.shape[1] <= 1600
        assert pixels.std() > 10
        # Nothing is cut off: the outermost pixels are white.
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all()


@pytest.mark.parametrize("changes", [{}, RECURRENT])
def test_every_figure_of_synthetic_data_says_so_and_no_other_does(
    models, data, changes
):
    learners, args, arrays = ff.load_model(models(**changes))
    accuracies = viz.measure_accuracies(learners, data[2][:40], data[3][:40])
    for figure in draw_all(learners, args, arrays, accuracies, data):
        assert "SYNTHETIC" in figure.get_suptitle()
    args.dataset = "cifar10"
    for figure in draw_all(learners, args, arrays, accuracies, data):
        assert "SYNTHETIC" not in figure.get_suptitle()


def draw_all(learners, args, arrays, accuracies, data):
    figures = [
        viz.example_images(args, data[2], data[3]),
        viz.example_label_encoded(args, data[2][0], data[3][0]),
        viz.receptive_fields(args, learners["FF"].layers[0]),
        viz.per_class_accuracy(args, accuracies, 40),
        viz.curves(args, arrays),
    ]
    if args.network == "recurrent":
        settling = viz.settle(learners["FF"], data[2][:20], data[3][:20])
        figures.append(viz.recurrent(args, settling, data[2][0], data[3][0]))
    return figures


def test_each_example_is_an_image_of_the_class_that_it_is_named_after(data):
    with matplotlib.rc_context(viz.STYLE):
        figure = viz.example_images(arguments(), data[2], data[3])
    names = [axes.get_title("left") for axes in figure.axes]
    assert [name.split()[1] for name in names] == list(ff.CLASSES)
    for k, axes in enumerate(figure.axes):
        shown = np.round(255 * axes.images[0].get_array()).astype(np.uint8)
        labels = data[3][(data[2] == shown).all(axis=(1, 2, 3))]
        assert list(labels) == [k]


def test_the_label_block_is_all_that_differs_between_what_ff_and_bp_see(data):
    for label in range(ff.N_CLASSES):
        shown = viz.encoded_image(data[2][0], label).clip(0, 1)
        assert np.all(shown[:3, label] == 1)
        assert np.all(np.delete(shown[:3, :10], label, axis=1) == 0)
        np.testing.assert_allclose(shown[3:], data[2][0][3:] / 255, atol=1e-6)
        np.testing.assert_allclose(shown[:, 10:], data[2][0][:, 10:] / 255, atol=1e-6)


def test_the_cyan_box_lies_around_the_label_block(data):
    figure = viz.example_label_encoded(arguments(), data[2][0], data[3][0])
    boxes = [axes.patches[0] for axes in figure.axes if axes.patches]
    assert len(boxes) == 4  # two images and their magnified blocks
    for box in boxes:
        assert box.get_bbox().bounds == (-0.5, -0.5, 10, 3)
        assert matplotlib.colors.to_hex(box.get_edgecolor()) == "#00ffff"


def test_receptive_fields_are_the_saved_weights_of_the_same_channels_everywhere(models):
    learners, args, arrays = ff.load_model(models())
    W = arrays["ff_layer0_W"]
    figure = viz.receptive_fields(args, learners["FF"].layers[0])
    grid = np.reshape(figure.axes, (4, 6))
    limit = 6 * np.sqrt(2 / 363)
    for (channel, column), axes in np.ndenumerate(grid):
        i, j = viz.POSITIONS[column]
        weights = (2 * axes.images[0].get_array() - 1) * limit
        expected = W[i, j, :, channel].reshape(11, 11, 3).clip(-limit, limit)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        sees_block = i < 3 and j < 10
        assert bool(axes.patches) == sees_block


def test_the_fields_of_another_model_are_drawn_under_its_name(models, tmp_path):
    path = models(whiten=True).rename(tmp_path / "white.npz")
    figure = tmp_path / "viz" / "receptive_fields_white.png"
    code, out, err = script(viz, "--receptive-fields", path, "--outdir", figure.parent)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"[synthetic] wrote {figure}"
    assert [*figure.parent.iterdir()] == [figure]
    learners, args, _ = ff.load_model(path)
    drawn = viz.receptive_fields(args, learners["FF"].layers[0])
    assert "whitened" in drawn.get_supxlabel()
    figure.unlink()
    path = tmp_path / "none.npz"
    code, out, err = script(viz, "--receptive-fields", path, "--outdir", figure.parent)
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_a_smaller_stack_than_the_paper_has_can_be_drawn():
    connection = ff.Connection(np.random.default_rng(0), 32, 3, 29, 2)
    layer = ff.Layer([connection])
    figure = viz.receptive_fields(arguments(), layer)
    assert len(figure.axes) == 2 * 6


def test_fields_that_the_edge_cuts_are_said_to_have_no_weights_beyond_it(models):
    for changes, cut in (({}, False), (RECURRENT, True)):
        learners, args, _ = ff.load_model(models(**changes))
        figure = viz.receptive_fields(args, learners["FF"].layers[0])
        assert ("beyond the image, no weights" in figure.get_supxlabel()) == cut
        assert ("Cyan" in figure.get_supxlabel()) != cut
        corner = figure.axes[0].images[0].get_array()[:5]
        assert (corner == 0.5).all() == cut


@pytest.mark.parametrize("changes", [{}, RECURRENT])
def test_accuracies_by_class_are_those_of_the_saved_weights(
    call, models, data, tmp_path, changes
):
    lines = call(
        viz.main,
        "--model",
        models(**changes),
        "--outdir",
        tmp_path,
        "--per-class-test-subset",
        90,
    )
    learners, _, _ = ff.load_model(models(**changes))
    images, labels = data[2][:90], data[3][:90]
    columns = [ff.predict(learners[name], images) for name in ("FF", "BP")]
    if changes:
        one_pass = ff.predict(learners["FF"], images, "predict_one_pass")
        columns.insert(1, one_pass)
    for k, name in enumerate(ff.CLASSES):
        (row,) = [line.split() for line in lines if f" {name} " in line]
        own = labels == k
        expected = [100 * np.mean(column[own] == k) for column in columns]
        assert int(row[2]) == own.sum()
        assert [float(value) for value in row[3:]] == pytest.approx(expected, abs=0.051)
    (row,) = [line.split() for line in lines if " all " in line]
    expected = [100 * np.mean(column == labels) for column in columns]
    assert [float(value) for value in row[3:]] == pytest.approx(expected, abs=0.051)


def test_bars_are_the_accuracies_and_a_class_without_images_has_none(models, data):
    learners, args, _ = ff.load_model(models())
    labels = data[3][:3]
    accuracies = viz.measure_accuracies(learners, data[2][:3], labels)
    figure = viz.per_class_accuracy(args, accuracies, 3)
    for bars, name in zip(figure.axes[0].containers, ("FF", "BP"), strict=True):
        assert bars.get_label().startswith(name)
        heights = np.array([bar.get_height() for bar in bars])
        seen = np.isin(np.arange(10), labels)
        assert np.isnan(heights[~seen]).all()
        by_class = ff.class_accuracies(ff.predict(learners[name], data[2][:3]), labels)
        np.testing.assert_allclose(heights[seen], 100 * by_class[seen])


def lines_of(axes):
    """{label: what is drawn at each x}"""
    return {line.get_label(): line.get_ydata() for line in axes.lines}


def test_the_one_pass_classifier_has_bars_and_curves_of_its_own(models, data):
    learners, args, arrays = ff.load_model(models(**RECURRENT))
    images, labels = data[2][:200], data[3][:200]
    accuracies = viz.measure_accuracies(learners, images, labels)
    axes = viz.per_class_accuracy(args, accuracies, 200).axes[0]
    names = [bars.get_label().split(",")[0] for bars in axes.containers]
    assert names == ["FF", "FF one pass", "BP"]
    predictions = ff.predict(learners["FF"], images, "predict_one_pass")
    expected = 100 * ff.class_accuracies(predictions, labels)
    heights = [bar.get_height() for bar in axes.containers[1]]
    np.testing.assert_allclose(heights, expected)
    lines = lines_of(viz.curves(args, arrays).axes[0])
    for name, images in ("train", "training"), ("test", "test"):
        expected = 100 * arrays[f"ff_one_pass_{name}_acc"]
        np.testing.assert_array_equal(lines[f"FF one pass, {images}"], expected)


@pytest.mark.parametrize(
    "n_layers, bp, changes", [(2, True, RECURRENT), (3, False, MIN)]
)
def test_the_figure_of_a_recurrent_network_is_how_its_goodness_settles(
    models, data, n_layers, bp, changes
):
    learners, args, _ = ff.load_model(models(n_layers, bp, **changes))
    learner, (images, labels) = learners["FF"], (data[2][:70], data[3][:70])
    settling = viz.settle(learner, images, labels)
    figure = viz.recurrent(args, settling, images[0], labels[0])
    *layers, accuracy, demo = figure.axes
    low = "objective" in changes
    best, word = (np.argmin, "lowest") if low else (np.argmax, "highest")

    true, wrong, average, right = [], [], [], []  # by image
    for image, label in zip(images, labels, strict=True):
        g = learner.goodness_by_iteration(image[None], 10)[..., 0].astype(float)
        others = np.delete(g, label, axis=2)
        true.append(g[:, :, label])
        wrong.append(others.min(axis=2) if low else others.max(axis=2))
        average.append(g.mean(axis=2))
        right.append([best(row.sum(axis=0)) == label for row in g])
        if not true[1:]:
            first = g.sum(axis=1)
            predicted = best(first[3:6].mean(axis=0))
    true, wrong, average = (np.mean(g, axis=0) for g in (true, wrong, average))
    for i, axes in enumerate(layers):
        lines = lines_of(axes)
        for name, g in ("true label", true), (f"{word} wrong label", wrong):
            np.testing.assert_allclose(lines[name], (g - average)[:, i], atol=1e-4)
        ends = f"{average[0, i]:.2f} → {average[-1, i]:.2f}"
        assert axes.title.get_text() == f"Layer {i}, average {ends}"
    assert f"the true label the {word} goodness" in figure.get_supxlabel()

    lines = lines_of(accuracy)
    alone = lines["one iteration alone"]
    np.testing.assert_allclose(alone, 100 * np.mean(right, axis=0))
    window = 100 * ff.accuracy(learner, images, labels)
    one_pass = 100 * np.mean(learner.predict_one_pass(images) == labels)
    for name, value in (
        (f"mean of iterations 4 to 6: {window:.1f} %", window),
        (f"one pass, the classifier: {one_pass:.1f} %", one_pass),
    ):
        np.testing.assert_allclose(lines[name], value)

    expected = first - first.mean(axis=1, keepdims=True)
    *ten, blue, dashed, _ = [line.get_ydata() for line in demo.lines]
    np.testing.assert_allclose(np.transpose(ten), expected, atol=1e-4)
    np.testing.assert_allclose(blue, expected[:, predicted], atol=1e-4)
    np.testing.assert_allclose(dashed, expected[:, labels[0]], atol=1e-4)
    (picture,) = demo.child_axes
    np.testing.assert_allclose(picture.images[0].get_array(), images[0] / 255)
    assert "70 test images" in figure.get_suptitle()
    for axes in figure.axes:
        (band,) = axes.patches
        assert (band.get_x(), band.get_width()) == (3.5, 3)


@pytest.mark.parametrize(
    "predicted, texts",
    [
        (3, {"cat ◀ predicted", "horse ◀ true label"}),
        (7, {"horse ◀ predicted, right"}),
    ],
)
@pytest.mark.parametrize("scale", [-1, 0, 1])
def test_no_text_of_the_recurrent_figure_covers_another_or_a_line(
    data, predicted, texts, scale
):
    rng = np.random.default_rng(0)
    demo, true, wrong = (12 + scale * rng.uniform(0, 1, (10, n)) for n in (10, 3, 3))
    demo[-1] = 12  # all ends in one point
    settling = viz.Settling(
        true=true,
        wrong=wrong,
        average=np.full((10, 3), 12.0),
        accuracy=abs(scale) * rng.uniform(0, 1, 10),
        window=0.5,
        one_pass=1.0,
        demo=demo,
        predicted=predicted,
        n_images=1000,
    )
    with matplotlib.style.context(["default", viz.STYLE]):
        figure = viz.recurrent(arguments(3, **RECURRENT), settling, data[2][0], 7)
        figure.draw_without_rendering()
        parts = [figure._suptitle, figure._supxlabel]
        for axes in figure.axes:
            names = [axes._left_title, axes.xaxis.label, axes.yaxis.label]
            parts += [text for text in names if text.get_text()]
            parts += [*axes.get_xticklabels(), *axes.child_axes]
            parts += filter(None, [axes.get_legend()])
        boxes = [part.get_window_extent() for part in parts]
        ends = figure.axes[-1].texts
        for text in ends:  # without its line to the curve
            boxes.append(matplotlib.text.Text.get_window_extent(text))
        x = np.linspace(1, 10, 91)
        points = [
            point
            for axes in figure.axes
            for y in (line.get_ydata() for line in axes.lines)
            if len(y) == 10
            for point in axes.transData.transform(
                np.transpose([x, np.interp(x, np.arange(1, 11), y)])
            )
        ]
    assert len(points) == 91 * (2 * 3 + 1 + 12)
    assert max(figure.axes[-2].get_yticks()) <= 100
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert not any(box.contains(*point) for point in points)
    marked = {text.get_text() for text in ends if "◀" in text.get_text()}
    assert marked == texts


def test_curves_show_the_history_that_the_model_holds(models):
    _, args, arrays = ff.load_model(models())
    accuracy, goodness, ff_loss, bp_loss = viz.curves(args, arrays).axes
    for axes, label, expected in (
        (accuracy, "FF, test", 100 * arrays["ff_test_acc"]),
        (accuracy, "BP, training", 100 * arrays["bp_train_acc"]),
        (goodness, "layer 0, true label", arrays["ff_g_pos"][0]),
        (goodness, "layer 1, wrong label", arrays["ff_g_neg"][1]),
        (goodness, "threshold θ = 2", [2, 2]),
        (ff_loss, "layer 1", arrays["ff_loss_per_layer"][1]),
        (bp_loss, "BP", arrays["bp_loss"]),
    ):
        (line,) = [line for line in axes.lines if line.get_label() == label]
        np.testing.assert_array_equal(line.get_ydata(), expected)


def test_a_threshold_halfway_is_no_line_among_the_curves_but_named_with_the_run(models):
    _, args, arrays = ff.load_model(models())
    args.threshold = "halfway"
    goodness = viz.curves(args, arrays).axes[1]
    labels = [line.get_label() for line in goodness.lines]
    assert labels == [
        f"layer {i}, {k} label" for k in ("true", "wrong") for i in (0, 1)
    ]
    assert "θ halfway, learning rate 0.01" in viz.describe(args)


def test_the_curves_say_how_many_images_the_accuracies_are_of(models):
    _, args, arrays = ff.load_model(models())
    for seen, title in (
        (50, "first 50 images of each set"),
        (200, "first 200 images of each set"),
        (1000, "first 1,000 test, 200 training images"),
    ):
        args.eval_subset = seen
        assert title in viz.curves(args, arrays).axes[0].title.get_text()


def test_one_epoch_is_drawn_without_half_epochs(models):
    _, args, arrays = ff.load_model(models())
    args.n_epochs = 1
    first = {name: array[..., :1] for name, array in arrays.items() if array.ndim}
    for axes in viz.curves(args, first).axes:
        ticks = [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5]
        assert ticks == [1]


def test_without_a_label_block_no_figure_says_that_the_model_sees_one(models, data):
    learners, args, _ = ff.load_model(models())
    args.label_input = "everywhere"
    figure = viz.example_label_encoded(args, data[2][0], data[3][0])
    assert "not used by this model" in figure.get_suptitle()
    titles = [axes.title.get_text() for axes in figure.axes[:3]]
    assert titles[0].startswith("raw, for FF and BP")
    assert not any("FF" in title for title in titles[1:])
    fields = viz.receptive_fields(args, learners["FF"].layers[0])
    assert not any(axes.patches for axes in fields.axes)
    assert "Cyan" not in fields.get_supxlabel()


@pytest.mark.parametrize(
    "settings, label, level",
    [
        ({"threshold": 2.0}, "ln 2: all goodness at θ", np.log(2)),
        ({"threshold": "halfway"}, "ln 2: both passes alike", np.log(2)),
        (
            {"threshold": None, "negatives": "all"},
            "ln 10: all labels alike",
            np.log(10),
        ),
    ],
)
def test_ff_loss_is_held_against_that_of_a_layer_that_tells_nothing_apart(
    models, settings, label, level
):
    _, args, arrays = ff.load_model(models())
    vars(args).update(settings)
    (line,) = [
        line
        for line in viz.curves(args, arrays).axes[2].lines
        if line.get_label().startswith("ln")
    ]
    assert (line.get_label(), line.get_ydata()[0]) == (label, level)


def test_without_bp_the_curves_say_which_flag_brings_it(models):
    _, args, arrays = ff.load_model(models(2, False))
    accuracy, _, _, bp_loss = viz.curves(args, arrays).axes
    assert [t.get_text() for t in bp_loss.texts] == [
        "no BP in this model: --bp-baseline"
    ]
    assert not bp_loss.lines
    assert not [line for line in accuracy.lines if "BP" in line.get_label()]


def test_a_missing_model_is_trained_and_said_and_not_saved(call, tmp_path):
    flags = *SMALL, "--n-epochs", 1, "--n-layers", 1, "--per-class-test-subset", 20
    model, outdir = tmp_path / "none.npz", tmp_path / "viz"
    lines = call(viz.main, "--model", model, "--outdir", outdir, *flags)
    said = f"{model} does not exist: training a model, which will not be saved"
    assert lines[0] == f"[synthetic] {said}"
    assert all(line.startswith("[synthetic] ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["viz"]
    assert sorted(path.name for path in outdir.iterdir()) == FIGURES


@pytest.mark.parametrize("flags, names", [([], "FF BP"), (["--no-bp-baseline"], "FF")])
def test_without_a_model_backprop_is_trained_too_unless_it_is_refused(
    call, tmp_path, flags, names
):
    small = *SMALL, "--n-epochs", 1, "--n-layers", 1, "--per-class-test-subset", 20
    model = "--model", tmp_path / "none.npz", "--outdir", tmp_path / "viz"
    lines = call(viz.main, *model, *small, *flags)
    (header,) = [line for line in lines if " images " in line and " class " in line]
    assert header.replace(" %", "").split()[3:] == names.split()


def test_the_model_that_visualize_trains_is_the_one_that_the_main_script_trains(
    data, monkeypatch
):
    monkeypatch.setattr(ff, "make_synthetic", lambda: data)
    parser, args = ff.Parser("", ""), arguments(n_epochs=1)
    args.model = Path("no such model.npz")
    _, _, arrays, _ = viz.get_model(args, parser, lambda *line: None)
    _, expected = ff.run(args, data, lambda *line: None)
    for name in set(expected) - {"ff_wallclock", "bp_wallclock"}:
        np.testing.assert_array_equal(arrays[name], expected[name], name)


def test_the_arguments_of_a_model_win_over_other_flags_and_that_is_said(
    call, models, tmp_path
):
    flags = "--n-layers", 3, "--n-epochs", 2, "--per-class-test-subset", 20
    model = models()
    lines = call(viz.main, "--model", model, "--outdir", tmp_path, *flags)
    said = [line for line in lines if "was made with" in line]
    assert said == [f"{model} was made with n_layers = 2, which is used"]


def test_runs_are_compared_in_one_figure_by_the_mean_of_their_seeds(
    call, data, tmp_path
):
    paths = []
    for seed, label_input in ((0, "corner"), (1, "corner"), (0, "everywhere")):
        args = arguments(n_epochs=1)
        args.seed, args.label_input = seed, label_input
        _, arrays = ff.run(args, data, lambda *line: None)
        for k, name in enumerate(("ff_full_test_acc", "bp_full_test_acc")):
            arrays[name] = np.float64(0.2 + 0.1 * seed + 0.05 * k)
        paths.append(tmp_path / f"{label_input}{seed}.npz")
        ff.save_npz(paths[-1], arrays)
    *lines, _ = call(viz.main, "--runs", *paths, "--outdir", tmp_path)
    assert lines == [f"[synthetic] wrote {tmp_path / 'closing_the_gap.png'}"]
    runs = [ff.load_model(path)[1:] for path in paths]
    (axes,) = viz.closing_the_gap(runs).axes
    rows = [text.get_text() for text in axes.get_yticklabels()]
    expected = ["label to every unit", "label in a corner"]
    assert [row.split(",")[0] for row in rows] == expected
    assert [text.get_text() for text in axes.texts] == ["20.0", "25.0", "25.0", "30.0"]
    assert rows[0].splitlines()[-1] == "θ = 2, learning rate 0.01, of BP 0.01"


OTHER_VALUES = {
    "train_subset": 100,
    "n_epochs": 1,
    "n_layers": 1,
    "channels": 1,
    "batch_size": 1,
    "lr": 0.1,
    "lr_schedule": "linear",
    "weight_decay": 0.1,
    "augment": True,
    "fields": [11, 3],
    "shift": 3,
    "whiten": True,
    "label_input": "everywhere",
    "pass_up": "neutral",
    "layer_rates": [1, 0.5],
    "scored": "last",
    "negatives": "sampled",
    "threshold": "halfway",
    "temperature": 0.1,
    "bp_baseline": True,
}


def test_a_row_is_named_after_all_that_decides_its_accuracy_and_nothing_else():
    names = [viz.describe(ff.training_arguments())]
    for name, value in OTHER_VALUES.items():
        names.append(viz.describe(ff.training_arguments(**{name: value})))
    assert len(set(names)) == len(names)
    two_fields = {"fields": [11, 5]}
    for same in ({"seed": 7}, {"eval_subset": 7}, {"threshold": 2}, two_fields):
        assert viz.describe(ff.training_arguments(**same)) == names[0]
    one_layer = ff.training_arguments(n_layers=1)
    same = ff.training_arguments(n_layers=1, scored="last")
    assert viz.describe(same) == viz.describe(one_layer)
    with_bp = viz.describe(ff.training_arguments(bp_baseline=True, lr=0.01))
    same = ff.training_arguments(bp_baseline=True, bp_lr=0.01)
    assert viz.describe(same) == with_bp
    other = ff.training_arguments(bp_baseline=True, bp_lr=0.02)
    assert viz.describe(other) != with_bp


def test_a_run_without_backprop_shares_the_row_of_the_same_with_it():
    with_bp, without = (ff.training_arguments(bp_baseline=b) for b in (True, False))
    other = ff.training_arguments(lr=0.5)
    names = viz.row_names([without, with_bp, other])
    assert names == [viz.describe(with_bp)] * 2 + [viz.describe(other)]
    assert viz.row_names([without, other]) == [*map(viz.describe, (without, other))]


def test_a_setting_without_words_of_its_own_is_named_too(monkeypatch):
    known, args = ff.training_arguments(look_ahead=0), arguments()
    monkeypatch.setattr(ff, "training_arguments", lambda: known)
    monkeypatch.setattr(
        ff, "TRAINING_ARGUMENTS", (*ff.TRAINING_ARGUMENTS, "look_ahead")
    )
    args.look_ahead = 3
    assert "look ahead 3" in viz.describe(args)


def save_run(path, accuracy=0.3, **changes):
    """A model of one tiny layer that was not trained, but "tested"."""
    changes = {"dataset": "cifar10"} | changes
    args = ff.training_arguments(n_layers=1, channels=1, n_epochs=1, **changes)
    learners = ff.make_learners(args)
    for learner in learners:
        ff.set_epochs(learner, 1)
    tested = {f"{one.name.lower()}_full_test_acc": accuracy for one in learners}
    ff.save_npz(path, ff.model_arrays(args, learners, tested))
    return path


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dataset": "synthetic", "seed": 1}, "SYNTHETIC DATA"),
        ({}, "same settings and seed"),
        ({"eval_subset": 9}, "same settings and seed"),
    ],
)
def test_runs_that_are_no_fair_comparison_are_refused(call, tmp_path, changes, words):
    first = save_run(tmp_path / "first.npz")
    second = save_run(tmp_path / "second.npz", **changes)
    outdir = tmp_path / "viz"
    for paths in ([first, second], [second, first]):
        with pytest.raises(ff.RunError, match=words) as refused:
            call(viz.main, "--runs", *paths, "--outdir", outdir)
        assert "first.npz" in str(refused.value)
        assert "second.npz" in str(refused.value)
    assert not list(outdir.iterdir())


def test_a_run_given_twice_does_not_count_as_two_seeds(call, tmp_path):
    path = save_run(tmp_path / "run.npz")
    with pytest.raises(ff.RunError, match="one run counts once"):
        call(viz.main, "--runs", path, path, "--outdir", tmp_path)


@pytest.mark.parametrize("accuracies", [[0.1], [0.6], [0.1, 0.5, 0.99]])
def test_no_text_of_the_figure_of_runs_covers_another_or_a_point(tmp_path, accuracies):
    runs = []
    for k, accuracy in enumerate(accuracies):
        path = tmp_path / f"{k}.npz"
        changes = {
            "bp_baseline": True,
            "batch_size": k + 1,
            "label_input": "everywhere",
        }
        save_run(path, accuracy, **changes)
        runs.append(ff.load_model(path)[1:])
    with matplotlib.style.context(["default", viz.STYLE]):
        figure = viz.closing_the_gap(runs)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        points = [
            axes.transData.transform(point)
            for line in axes.lines
            if line.get_marker() != "None"
            for point in line.get_xydata()
        ]
        parts = [axes.get_legend(), *axes.texts, *axes.get_yticklabels()]
        parts += [figure._suptitle, figure._supxlabel, axes.xaxis.label]
        boxes = [part.get_window_extent() for part in parts]
    assert len(points) == 4 * len(accuracies)
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert not any(box.contains(*point) for point in points)


def test_a_run_without_a_full_test_is_not_compared(call, models, tmp_path):
    with pytest.raises(ff.RunError, match="--full-test"):
        call(viz.main, "--runs", models(), "--outdir", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def movement(tmp_path):
    """A file of tests/data_movement.py --out, with prices by chance."""
    rng, rows = np.random.default_rng(0), []
    for batch in data_movement.BATCHES:
        for settings in data_movement.SETTINGS:
            for name, order in ("FF", ""), ("FF", "by layer"), ("BP", ""):
                case = {"learner": name, "settings": settings, "batch": batch}
                case |= {"order": order, "work": "train_step", "variants": []}
                for optimiser, evict in (True, True), (True, False), (False, True):
                    for word in data_movement.WORDS:
                        prices = rng.uniform(1, 2, len(data_movement.KINDS))
                        prices *= 1e11 * word * (1 + optimiser) / batch
                        kinds = dict(zip(data_movement.KINDS, prices.tolist()))
                        variant = {"word": word, "evict": evict, "kinds": kinds}
                        case["variants"].append(variant | {"optimiser": optimiser})
                rows.append(case)
    path = tmp_path / "movement.json"
    path.write_text(json.dumps({"rows": rows, "machine": {}, "versions": {}}))
    return path


def test_the_figure_of_data_movement_is_whole_and_the_only_one(
    call, movement, tmp_path
):
    outdir = tmp_path / "new"
    lines = call(viz.main, "--data-movement", movement, "--outdir", outdir)
    (path,) = outdir.iterdir()
    assert path.name == "data_movement.png"
    assert lines == [f"wrote {path}"]
    assert path.stat().st_size < 400_000
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert 1000 <= pixels.shape[1] <= 1600
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_the_prices_that_are_drawn_are_those_of_the_file(movement):
    prices = {}
    for row in json.loads(movement.read_text())["rows"]:
        case = row["settings"], row["order"], row["batch"], row["learner"]
        for variant in row["variants"]:
            which = variant["optimiser"], variant["evict"], variant["word"]
            prices[(*case, *which)] = variant["kinds"]

    def total(*case):
        return sum(prices[case].values())

    ratios, *panels = viz.data_movement(viz.read_movement(movement)).axes
    lines = lines_of(ratios)
    for name, settings, order in (
        ("recurrent network", "recurrent", ""),
        ("textbook order of loops", "textbook", ""),
        ("one layer, ten labels", "one-layer", ""),
        ("headline", "headline", ""),
        ("headline, layer after layer", "headline", "by layer"),
    ):
        expected, spans = [], []
        for x, batch in enumerate([1, 8, 64, 256]):
            found = [
                total(settings, order, batch, "FF", True, *rest)
                / total(settings, "", batch, "BP", True, *rest)
                for rest in ((True, 4), (True, 1), (False, 4), (False, 1))
            ]
            expected.append(found[0])
            spans.append([[x, min(found)], [x, max(found)]])
        np.testing.assert_allclose(lines[name], expected)
        index = list(lines).index(name)
        drawn = ratios.collections[index].get_segments()
        np.testing.assert_allclose(drawn, spans)
    ticks = [tick.get_text() for tick in ratios.get_xticklabels()]
    assert ticks == ["1", "8", "64", "256"]

    assert len(panels) == 4
    for axes, (settings, batch) in zip(
        panels,
        [
            (["headline", "one-layer"], 1),
            (["headline", "one-layer"], 64),
            (["recurrent"], 1),
            (["recurrent"], 64),
        ],
        strict=True,
    ):
        assert axes.title.get_text() == f"batch {batch}"
        cases = [(s, "", batch, name) for s in settings for name in ("FF", "BP")]
        heights = np.reshape([bar.get_height() for bar in axes.patches], (-1, 2, 7))
        for case, (adam, other), line, text in zip(
            cases, heights, axes.lines, axes.texts, strict=True
        ):
            whole = prices[(*case, True, True, 4)]
            without = prices[(*case, False, True, 4)]
            for k, kind in enumerate(viz.KINDS):
                difference = whole[kind] - without[kind]
                np.testing.assert_allclose(1e9 * adam[k], difference)
                np.testing.assert_allclose(1e9 * other[k], without[kind])
            np.testing.assert_allclose(line.get_ydata(), adam.sum())
            price = sum(whole.values()) / 1e9
            assert float(text.get_text()) == pytest.approx(price, rel=0.006)
            assert text.xy[1] == pytest.approx(price)
            assert price < axes.get_ylim()[1]


def test_no_text_of_the_figure_of_data_movement_covers_another(movement):
    with matplotlib.style.context(["default", viz.STYLE]):
        figure = viz.data_movement(viz.read_movement(movement))
        figure.draw_without_rendering()
        parts = [figure._suptitle, figure._supxlabel, figure.axes[0].get_legend()]
        parts += figure.subfigs[1].legends
        for axes in figure.axes:
            parts += [axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.texts]
            parts += [
                *axes.get_xticklabels(which="both"),
                *axes.get_yticklabels()[1:-1],
            ]
        boxes = [part.get_window_extent() for part in parts if part.get_visible()]
    boxes = [box for box in boxes if box.width and box.height]
    assert len(boxes) > 40
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def without_a_row(content):
    content["rows"].pop(0)


def without_a_variant(content):
    content["rows"][0]["variants"].pop(0)


def without_a_kind(content):
    del content["rows"][0]["variants"][0]["kinds"]["weights"]


def with_a_price(price):
    def change(content):
        kinds = content["rows"][0]["variants"][0]["kinds"]
        kinds.update(dict.fromkeys(kinds, price))

    return change


@pytest.mark.parametrize(
    "change",
    [
        without_a_row,
        without_a_variant,
        without_a_kind,
        with_a_price(0),
        with_a_price(-1),
        with_a_price(math.nan),
        with_a_price(math.inf),
        with_a_price("much"),
        with_a_price(10**400),
        lambda content: content.pop("rows"),
        lambda content: content.update(rows=3),
        lambda content: content.update(rows=["row"]),
        lambda content: content.update(rows=[]),
    ],
)
def test_a_foreign_file_of_data_movement_is_refused(movement, change):
    content = json.loads(movement.read_text())
    change(content)
    movement.write_text(json.dumps(content))
    with pytest.raises(ff.RunError, match=r"movement\.json is not what .* writes"):
        viz.read_movement(movement)


def test_a_damaged_file_of_data_movement_is_one_line_and_no_figure(
    movement, models, tmp_path
):
    half = tmp_path / "half.json"
    half.write_bytes(movement.read_bytes()[:999])
    for path in (half, models(), tmp_path, tmp_path / "none.json"):
        outdir = tmp_path / "viz"
        code, out, err = script(viz, "--data-movement", path, "--outdir", outdir)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert str(path) in err
        assert not list(outdir.iterdir())


def test_a_write_that_fails_is_one_error_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "figure.png").mkdir()
    with pytest.raises(ff.RunError, match=r"cannot write .*figure\.png"):
        ff.write_whole(tmp_path / "figure.png", lambda file: file.write(b"content"))
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


# ---------------------------------------------------------------- animation


CORNER = {"label_input": "corner", "threshold": 2.0}
CORNER_HALFWAY = {"label_input": "corner", "threshold": "halfway"}
EVERYWHERE = {"label_input": "everywhere", "threshold": 0.3}
HALFWAY = {"label_input": "everywhere", "threshold": "halfway", "negatives": "sampled"}
WHITENED = {"label_input": "everywhere", "negatives": "all", "pass_up": "neutral"}
WHITENED |= {"whiten": True, "threshold": None, "temperature": 0.05}
ANIMATED = CORNER, CORNER_HALFWAY, EVERYWHERE, HALFWAY, WHITENED


@pytest.mark.parametrize(
    "every, epochs", [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (9, [0, 3])]
)
def test_there_is_a_frame_before_training_at_every_snapshot_and_at_the_end(
    data, every, epochs
):
    args = arguments(n_epochs=3)
    args.bp_baseline, args.snapshot_every = False, every
    snapshots = animation.make_snapshots(args, data, lambda line: None)
    assert [snapshot.epoch for snapshot in snapshots] == epochs


def test_the_gif_loops_for_ever_at_its_speed_and_rests_on_its_last_frame(
    call, tmp_path
):
    out = tmp_path / "a.gif"
    lines = call(animation.main, *SMALL, "--epochs", 2, "--fps", 5, "--out", out)
    assert all(line.startswith("[synthetic] ") for line in lines)
    assert re.fullmatch(r"\[synthetic\] wrote .*a\.gif: 3 frames, \d+ kB", lines[-2])
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
    assert out.stat().st_size < 200_000
    with Image.open(out) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 3, 0)
        assert gif.width >= 700
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
    assert durations == [200, 200, 2000]  # milliseconds


def test_the_frames_of_the_gif_look_as_they_were_drawn():
    rng = np.random.default_rng(0)
    frames = [np.full((80, 90, 3), 255, np.uint8) for _ in range(3)]
    for i, frame in enumerate(frames):
        frame[:32, :32] = 8 * rng.integers(0, 2, (32, 32, 1)) + [200, 100, 20]
        frame[40:50, : 20 * (i + 1)] = [0, 114, 178]
        frame[60:70, 80 - 20 * i :] = 0
    encoded = animation.make_gif(frames, fps=4)
    with Image.open(animation.io.BytesIO(encoded)) as gif:
        assert gif.n_frames == 3
        for i, frame in enumerate(frames):
            gif.seek(i)
            found = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(found - frame).max() <= 16


def test_mean_goodness_is_that_of_each_image_with_its_true_and_nine_wrong_labels(data):
    (learner,) = ff.make_learners(arguments(bp_baseline=False))
    images, labels = data[2][:70], data[3][:70]
    true, wrong = animation.mean_goodness(learner, images, labels)
    expected_true, expected_wrong = [], []
    for image, label in zip(images, labels):
        g = learner.label_goodness(image[None])[:, :, 0]
        expected_true.append(g[:, label])
        expected_wrong += [g[:, k] for k in range(10) if k != label]
    np.testing.assert_allclose(true, np.mean(expected_true, axis=0), rtol=1e-4)
    np.testing.assert_allclose(wrong, np.mean(expected_wrong, axis=0), rtol=1e-4)


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("settings", ANIMATED)
def test_axes_stay_as_they_are_from_the_first_frame_to_the_last(
    data, n_layers, settings
):
    args = arguments(n_layers, False)
    vars(args).update(settings)
    snapshots = animation.make_snapshots(args, data, lambda line: None)
    frames = [
        animation.draw_frame(args, snapshots, last, data[2][0], data[3][0])
        for last in range(len(snapshots))
    ]
    for frame in frames:
        assert "SYNTHETIC" in frame.get_suptitle()
        for axes, first in zip(frame.axes, frames[0].axes, strict=True):
            assert axes.get_position().bounds == first.get_position().bounds
            assert axes.get_xlim() == first.get_xlim()
            assert axes.get_ylim() == first.get_ylim()
        goodness, accuracy, _, labels = frame.axes
        for curves in (goodness, accuracy):  # all of it is within the axes
            for line in curves.lines:
                assert np.max(line.get_ydata()) <= curves.get_ylim()[1]
        assert max(accuracy.get_yticks()) <= 100
        low, high = labels.get_xlim()
        for bar in labels.patches:
            assert low <= min(0, bar.get_width()) <= max(0, bar.get_width()) <= high
        for line in labels.lines:  # theta, or zero
            assert low <= line.get_xdata()[0] <= high


def draw_last_frame(data, n_layers, settings):
    args = arguments(n_layers, False, n_epochs=1)
    vars(args).update(settings)
    snapshots = animation.make_snapshots(args, data, lambda line: None)
    frame = animation.draw_frame(args, snapshots, 1, data[2][0], data[3][0])
    return snapshots[1], frame


@pytest.mark.parametrize(
    "n_layers, settings, xlabel, theta",
    [
        (1, CORNER, "mean(h²), layer 0 (dotted: θ)", 2),
        (2, CORNER, "mean(h²), layer 1 (dotted: θ)", 2),
        (3, CORNER, "mean(h²), layers 1 to 2 (dotted: 2θ)", 4),
        (4, EVERYWHERE, "mean(h²), layers 0 to 3 (dotted: 4θ)", 1.2),
        (1, EVERYWHERE, "mean(h²), layer 0 (dotted: θ)", 0.3),
        (2, HALFWAY, "mean(h²), layers 0 to 1, above average", None),
        (2, CORNER_HALFWAY, "mean(h²), layer 1, above average", None),
    ],
)
def test_the_bars_are_the_goodness_of_the_layers_that_predict(
    data, n_layers, settings, xlabel, theta
):
    snapshot, frame = draw_last_frame(data, n_layers, settings)
    goodness, _, _, labels = frame.axes
    assert labels.get_xlabel() == xlabel
    lengths = [bar.get_width() for bar in labels.patches]
    average = snapshot.demo.mean() if theta is None else 0
    np.testing.assert_allclose(lengths, snapshot.demo - average)
    (line,) = labels.lines
    assert line.get_xdata()[0] == pytest.approx(theta or 0)
    dotted = [line for line in goodness.lines if "θ" in line.get_label()]
    assert len(dotted) == (theta is not None)


@pytest.mark.parametrize("objective", ["max", "min"])
def test_the_blue_bar_is_what_the_recurrent_network_predicts(data, objective):
    args = arguments(bp_baseline=False, n_epochs=1, objective=objective, **RECURRENT)
    snapshots = animation.make_snapshots(args, data, lambda line: None)
    frame = animation.draw_frame(args, snapshots, 1, data[2][0], data[3][0])
    learner = ff.make_learners(args)[0]
    ff.train(learner, data, args, tell=lambda line: None)
    (predicted,) = learner.predict(data[2][:1])
    colours = [bar.get_facecolor() for bar in frame.axes[3].patches]
    blue = matplotlib.colors.to_rgba(viz.LEARNER_LOOKS["FF"]["color"])
    assert [k for k, colour in enumerate(colours) if colour == blue] == [predicted]
    lengths = [bar.get_width() for bar in frame.axes[3].patches]
    assert (np.argmax if objective == "max" else np.argmin)(lengths) == predicted


@pytest.mark.parametrize("settings", ANIMATED)
def test_the_demo_image_is_what_the_network_sees(data, settings):
    _, frame = draw_last_frame(data, 2, settings)
    picture = frame.axes[2]
    block = settings["label_input"] == "corner"
    image = data[2][0] / 255
    if block:
        image = viz.encoded_image(data[2][0], data[3][0]).clip(0, 1)
    np.testing.assert_allclose(picture.images[0].get_array(), image)
    assert bool(picture.patches) == block
    title = picture.title.get_text()
    assert ("with its true label" in title, "raw, no label" in title) == (
        block,
        not block,
    )


def test_labels_that_all_score_the_same_but_for_rounding_are_no_prediction(data):
    args = arguments(2, False)
    vars(args).update(HALFWAY)
    learner = ff.make_learners(args)[0]
    demo = learner.label_scores(data[2][:1])[:, 0]
    axes = matplotlib.figure.Figure().subplots()
    animation.draw_labels(axes, args, [0, 1], demo, label=7)
    assert [text.get_text() for text in axes.texts] == [" ◀ true label"]


@pytest.mark.parametrize(
    "fps, milliseconds",
    [(4, 250), (50, 20), (40, 30), (45, 20), (3, 330), (0.1, 10_000), (100 / 3, 30)],
)
def test_the_speed_of_the_gif_is_the_nearest_that_its_steps_of_10_ms_allow(
    fps, milliseconds
):
    assert animation.frame_time(fps) == milliseconds


def test_the_last_frame_is_never_shorter_than_the_others():
    frames = [np.full((8, 8, 3), 80 * i, np.uint8) for i in range(3)]
    with Image.open(animation.io.BytesIO(animation.make_gif(frames, fps=0.2))) as gif:
        for i in range(3):
            gif.seek(i)
            assert gif.info["duration"] == 5000


def test_a_speed_that_is_not_the_one_asked_for_is_said(call, tmp_path):
    flags = *SMALL, "--epochs", 1, "--n-layers", 1, "--out", tmp_path / "a.gif"
    assert (
        "2 frames, 33.3 a second (instead of 40), "
        in call(animation.main, *flags, "--fps", 40)[-2]
    )


@pytest.mark.parametrize(
    "best, texts",
    [(3, {"true label", "predicted"}), (7, {"predicted, right"})],
)
def test_truth_and_prediction_are_marked_with_words_and_a_hatch(best, texts):
    axes = matplotlib.figure.Figure().subplots()
    demo = np.linspace(1, 2, 10)
    demo[best] = 3
    animation.draw_labels(axes, arguments(), [1], demo, label=7)
    assert {text.get_text().removeprefix(" ◀ ") for text in axes.texts} == texts
    assert [k for k, bar in enumerate(axes.patches) if bar.get_hatch()] == [7]


# ------------------------------------------------- the scripts as they are run


@pytest.mark.parametrize(
    "module, flags",
    [
        (viz, ["--per-class-test-subset", "0"]),
        (viz, ["--per-class-test-subset", "10001"]),
        (viz, ["--outdir", __file__]),
        (viz, ["--n-layers", "5"]),
        (viz, ["--bp-lr", "0.1", "--no-bp-baseline"]),
        (viz, ["--model", "model.npz", "--runs", "a.npz"]),
        (viz, ["--seed", "1", "--runs", "a.npz"]),
        (viz, ["--data-movement", "a.json", "--runs", "a.npz"]),
        (viz, ["--seed", "1", "--data-movement", "a.json"]),
        (viz, ["--receptive-fields", "a.npz", "--runs", "a.npz"]),
        (viz, ["--seed", "1", "--receptive-fields", "a.npz"]),
        (animation, ["--fps", "0"]),
        (animation, ["--epochs", "0"]),
        (animation, ["--snapshot-every", "1.5"]),
        (animation, ["--out", "no/such/folder/a.gif"]),
        (animation, ["--bp-baseline"]),
        (animation, ["--bp-lr", "0.1"]),
        (animation, ["--label-input", "nowhere"]),
    ],
)
def test_a_flag_that_makes_no_sense_is_one_line_of_usage_error(module, flags):
    code, out, err = script(module, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{Path(module.__file__).name}: error: " in err
    assert flags[0] in err or flags[1] in err


# Settings that a user may have for figures of his own.
MATPLOTLIBRC = """
backend: module://backend_of_another_program
image.origin: lower
axes.facecolor: black
axes.grid.axis: x
axes.xmargin: 0.3
axes.labelcolor: white
axes.titlelocation: right
text.color: white
text.usetex: True
font.size: 30
lines.linewidth: 9
legend.loc: lower left
legend.framealpha: 1
figure.facecolor: yellow
savefig.facecolor: red
savefig.transparent: True
savefig.bbox: tight
xtick.labelsize: 4
axes.prop_cycle: cycler(color=["white"])
"""


@pytest.mark.parametrize(
    "module, flags",
    [
        (viz, ["--model", "{model}", "--per-class-test-subset", "20", "--outdir"]),
        (animation, [*SMALL, "--epochs", "1", "--out"]),
    ],
)
def test_what_is_drawn_does_not_depend_on_the_settings_of_the_user(
    call, models, tmp_path, module, flags
):
    flags = [flag.format(model=models()) for flag in flags]
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    call(module.main, *flags, tmp_path / "expected")
    code, _, err = script(
        module,
        *flags,
        tmp_path / "found",
        MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
        MPLBACKEND="module://matplotlib_inline.backend_inline",
    )
    assert code == 0, err
    expected, found = tmp_path / "expected", tmp_path / "found"
    names = FIGURES if expected.is_dir() else [""]
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_damaged_model_is_one_line_and_no_figure(models, tmp_path):
    damaged = tmp_path / "model.npz"
    content = bytearray(models().read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    code, out, err = script(viz, "--model", damaged, "--outdir", tmp_path / "viz")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(damaged) in err
    assert not list((tmp_path / "viz").glob("*"))


DEFAULTS = {
    viz: {"--n-epochs": "10", "--train-subset": "10000", "--bp-baseline": "True"},
    animation: {"--epochs": "8", "--train-subset": "4000", "--eval-subset": "500"},
}


@pytest.mark.parametrize("module", [viz, animation])
def test_help_shows_every_default(module):
    code, out, _ = script(module, "--help")
    assert code == 0
    flags = re.findall(r"^  (--[a-z-]+),? (?:[A-Z]+|\{|--no-)", out, re.MULTILINE)
    assert len(flags) > 10
    assert len(re.findall(r"default:", out)) == len(flags)
    words = " ".join(out.split())
    for flag, default in DEFAULTS[module].items():
        assert re.search(rf"{flag}\b[^(]*\(default: {default}\)", words), flag
