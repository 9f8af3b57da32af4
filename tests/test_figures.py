"""The figures and the animation: what is drawn, what is written, what is said."""

import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import ff_cifar_locally_connected as ff
import make_ff_cifar_locally_connected_gif as animation
import visualize_ff_cifar_locally_connected as viz

FIGURES = [
    "example_images.png",
    "example_label_encoded.png",
    "ff_vs_bp_curves.png",
    "per_class_accuracy.png",
    "receptive_fields_layer0.png",
]
MODELS = {
    "headline": {},
    "without BP": {"bp_baseline": False, "n_layers": 1},
    "three layers": {"n_layers": 3},
    "softmax": {"loss": "softmax", "bp_baseline": False},
    "best": {"recipe": "best", "channels": 3},
    "recurrent": {"recipe": "recurrent"},
    "min": {"recipe": "recurrent", "objective": "min", "n_layers": 3},
}
SMALL = ["--dataset", "synthetic", "--train-subset", "64", "--eval-subset", "20"]
N = 9  # test images that are drawn: so few that some classes have none


def arguments(name="headline", **changes):
    small = {"dataset": "synthetic", "train_subset": 64, "eval_subset": 20}
    small |= {"n_epochs": 2, "bp_baseline": True}
    return ff.training_arguments(**small | MODELS[name] | changes)


@pytest.fixture(scope="module")
def data():
    return ff.make_synthetic()


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    """model(name): the path of one of MODELS."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def model(name="headline"):
        path = folder / f"{name}.npz"
        np.savez(path, **ff.run(arguments(name), data)[1])
        return path

    return model


@pytest.fixture(scope="module")
def figures(model, data):
    """figures(name): those of one of MODELS by name, of the first N test images."""

    @functools.cache
    def figures(name="headline"):
        learners, args, arrays = ff.load_model(model(name))
        images, labels = data[2][:N], data[3][:N]
        accuracies = viz.measure_accuracies(learners, images, labels)
        layer_0 = learners["FF"].layers[0]
        drawn = {
            "examples": draw(viz.example_images, args, data[2], data[3]),
            "encoded": draw(viz.example_label_encoded, args, images[0], labels[0]),
            "fields": draw(viz.receptive_fields, args, layer_0),
            "classes": draw(viz.per_class_accuracy, args, accuracies, N),
            "curves": draw(viz.curves, args, arrays),
        }
        if args.recipe == "recurrent":
            settling = viz.settle(learners["FF"], images, labels)
            drawn["recurrent"] = draw(viz.recurrent, args, settling, N)
        return drawn

    return figures


@pytest.fixture
def call(data, monkeypatch, capsys):
    """call(main, *flags): the lines that the script prints, with the data made once."""
    monkeypatch.setattr(ff, "make_synthetic", lambda: data)
    monkeypatch.setattr(ff, "TAG", "")

    def call(main, *flags):
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, flags)])
        capsys.readouterr()
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


def draw(function, *arguments, style=viz.STYLE):
    """The figure that function(*arguments) draws, in the style of a script."""
    with matplotlib.style.context(["default", style]):
        figure = function(*arguments)
        figure.draw_without_rendering()
    return figure


def texts_of(figure):
    """All that a drawn figure says, but for its legends."""
    yield from filter(None, (figure._suptitle, figure._supxlabel))
    for axes in figure.axes:
        yield from (axes.title, axes._left_title, *axes.texts)
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            yield axis.label
            low, high = sorted(axis.get_view_interval())
            for at, text in zip(axis.get_ticklocs(), axis.get_ticklabels()):
                if low <= at <= high:
                    yield text


def assert_nothing_overlaps(figure):
    """No text lies outside the figure, on another one, or on a point of a curve, and no
    legend on any of these or on a line."""
    texts = [text for text in texts_of(figure) if text.get_text()]
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    boxes = [part.get_window_extent() for part in texts + legends]
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i]), (texts + legends)[i]
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    for line in (line for axes in figure.axes for line in axes.lines):
        path = line.get_transform().transform_path(line.get_path())
        points = path.vertices if line.get_marker() != "None" else []
        assert not any(box.contains(*point) for box in boxes for point in points)
        for box in boxes[len(texts) :]:
            between = path.interpolated(50).vertices
            assert not any(box.contains(*point) for point in between)


def lines_of(axes):
    """{label: what is drawn at each x}"""
    return {line.get_label(): line.get_ydata() for line in axes.lines}


# ------------------------------------------------------------------ figures


@pytest.mark.parametrize("name", ["headline", "min"])
def test_a_model_gives_whole_figures_that_fit_a_page(call, model, tmp_path, name):
    outdir = tmp_path / "new" / "folder"
    flags = "--outdir", outdir, "--per-class-test-subset", N
    lines = call(viz.main, "--model", model(name), *flags)
    assert all(line.startswith("[synthetic] ") for line in lines)
    assert not [line for line in lines if "was made with" in line]  # no flags, no loss
    names = [*FIGURES, "recurrent.png"] if name == "min" else FIGURES
    assert sorted(path.name for path in outdir.iterdir()) == names
    for figure in names:
        assert f"[synthetic] wrote {outdir / figure}" in lines
        assert (outdir / figure).stat().st_size < 400_000
        with Image.open(outdir / figure) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert 1000 <= pixels.shape[1] <= 1600
        assert pixels.std() > 10
        # Nothing is cut off: the outermost pixels are white.
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all()


@pytest.mark.parametrize("name", MODELS)
def test_no_text_covers_another_or_a_curve_and_all_name_their_data(figures, name):
    for figure in figures(name).values():
        assert_nothing_overlaps(figure)
        assert figure.get_suptitle().endswith("· SYNTHETIC DATA, not CIFAR-10")
    assert viz.data_name("cifar10") == "CIFAR-10"


def test_each_example_is_an_image_of_the_class_that_it_is_named_after(figures, data):
    figure = figures()["examples"]
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


def test_the_cyan_box_lies_around_the_label_block(figures):
    boxes = [axes.patches[0] for axes in figures()["encoded"].axes if axes.patches]
    assert len(boxes) == 4  # two images and their magnified blocks
    for box in boxes:
        assert box.get_bbox().bounds == (-0.5, -0.5, 10, 3)
        assert matplotlib.colors.to_hex(box.get_edgecolor()) == "#00ffff"


def test_receptive_fields_are_weights_of_the_same_channels_everywhere(model, figures):
    W = ff.load_model(model())[2]["ff_layer0_W"]
    grid = np.reshape(figures()["fields"].axes, (4, 6))
    limit = 6 * np.sqrt(2 / 363)
    for (channel, column), axes in np.ndenumerate(grid):
        i, j = viz.POSITIONS[column]
        weights = (2 * axes.images[0].get_array() - 1) * limit
        expected = W[i, j, :, channel].reshape(11, 11, 3).clip(-limit, limit)
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        sees_block = i < 3 and j < 10
        assert bool(axes.patches) == sees_block


@pytest.mark.parametrize(
    "name, note",
    [
        ("headline", "Cyan: where the label block lies in the field."),
        ("best", "The input is whitened."),
        ("recurrent", "Plain grey at an edge: beyond the image, no weights."),
    ],
)
def test_only_a_model_with_a_label_block_is_said_to_see_one(figures, name, note):
    fields, encoded = figures(name)["fields"], figures(name)["encoded"]
    block = name == "headline"
    assert fields.get_supxlabel().splitlines()[1].strip() == note
    assert any(axes.patches for axes in fields.axes) == block
    corner = fields.axes[0].images[0].get_array()[0, 0]
    assert (corner == 0.5).all() == (name == "recurrent")
    assert ("not used by this model" in encoded.get_suptitle()) != block
    titles = [axes.get_title("left").split()[0] for axes in encoded.axes[1:3]]
    assert titles == (["FF,"] * 2 if block else ["block,"] * 2)


def test_a_smaller_stack_than_the_paper_has_can_be_drawn():
    layer = ff.Layer([ff.Connection(np.random.default_rng(0), 32, 3, 29, 2)])
    figure = draw(viz.receptive_fields, arguments(), layer)
    assert len(figure.axes) == 2 * 6


def test_the_fields_of_another_model_are_drawn_under_its_name(model, tmp_path):
    figure = tmp_path / "viz" / "receptive_fields_best.png"
    flags = "--receptive-fields", model("best"), "--outdir", figure.parent
    code, out, err = script(viz, *flags)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"[synthetic] wrote {figure}"
    assert "not CIFAR-10 results" in out.splitlines()[-1]
    assert [*figure.parent.iterdir()] == [figure]


@pytest.mark.parametrize("name", ["headline", "recurrent"])
def test_accuracies_by_class_are_those_of_the_saved_weights(
    call, model, figures, data, tmp_path, name
):
    flags = "--outdir", tmp_path, "--per-class-test-subset", N
    lines = call(viz.main, "--model", model(name), *flags)
    learners, _, _ = ff.load_model(model(name))
    images, labels = data[2][:N], data[3][:N]
    names = ["FF", "BP"]
    columns = [learners[learner].predict(images) for learner in names]
    if name == "recurrent":
        names.insert(1, "FF one pass")
        columns.insert(1, learners["FF"].predict_one_pass(images))
    bars = figures(name)["classes"].axes[0].containers
    assert [one.get_label().split(",")[0] for one in bars] == names
    for k, label in enumerate([*ff.CLASSES, "all"]):
        (row,) = [line.split() for line in lines if f" {label} " in line]
        own = (labels == k) | (label == "all")
        assert int(row[2]) == own.sum()
        for column, cell, of_learner in zip(columns, row[3:], bars, strict=True):
            if not own.any():
                assert cell == "-"
                assert np.isnan(of_learner[k].get_height())
                continue
            expected = 100 * np.mean(column[own] == labels[own])
            assert float(cell) == pytest.approx(expected, abs=0.051)
            if label != "all":
                assert of_learner[k].get_height() == pytest.approx(expected)
    assert len(set(labels)) < 10


@pytest.mark.parametrize("name", MODELS)
def test_curves_show_the_history_that_the_model_holds(model, figures, name):
    _, args, arrays = ff.load_model(model(name))
    accuracy, goodness, ff_loss, bp_loss = figures(name)["curves"].axes
    for learner in ("FF", "FF one pass", "BP"):
        key = learner.lower().replace(" ", "_")
        lines = lines_of(accuracy)
        assert (f"{learner}, test" in lines) == (f"{key}_test_acc" in arrays)
        for title, images in ("test", "test"), ("training", "train"):
            if f"{key}_test_acc" in arrays:
                expected = 100 * arrays[f"{key}_{images}_acc"]
                np.testing.assert_array_equal(lines[f"{learner}, {title}"], expected)
    for i in range(args.n_layers):
        for axes, label, key in (
            (goodness, f"layer {i}, true label", "ff_g_pos"),
            (goodness, f"layer {i}, wrong label", "ff_g_neg"),
            (ff_loss, f"layer {i}", "ff_loss_per_layer"),
        ):
            np.testing.assert_array_equal(lines_of(axes)[label], arrays[key][i])
    softmax, passes = args.loss == "softmax", 10 if args.negatives == "all" else 2
    assert ("threshold θ = 2" in lines_of(goodness)) != softmax
    alike = "all labels alike" if softmax else "all goodness at θ"
    assert lines_of(ff_loss)[f"ln {passes}: {alike}"][0] == np.log(passes)
    if args.bp_baseline:
        np.testing.assert_array_equal(lines_of(bp_loss)["BP"], arrays["bp_loss"])
    else:
        assert not bp_loss.lines
        assert bp_loss.get_title("left") == "no BP in this model: --bp-baseline"


@pytest.mark.parametrize("n_epochs", [1, 2, 90])
def test_any_number_of_epochs_is_drawn_at_whole_ones_with_few_marks(model, n_epochs):
    _, args, arrays = ff.load_model(model())
    args.n_epochs = n_epochs
    history = {
        name: np.resize(array, (*array.shape[:-1], n_epochs))
        for name, array in arrays.items()
        if array.shape[-1:] == (2,)
    }
    figure = draw(viz.curves, args, history)
    assert_nothing_overlaps(figure)
    for axes in figure.axes:
        assert all(tick == int(tick) for tick in axes.get_xticks())
        for line in axes.lines:
            assert len(line.get_xdata()[:: line.get_markevery()]) < 24


@pytest.mark.parametrize("name", ["recurrent", "min"])
def test_the_figure_of_a_recurrent_network_is_how_its_goodness_settles(
    model, figures, data, name
):
    learners, args, _ = ff.load_model(model(name))
    learner, (images, labels) = learners["FF"], (data[2][:N], data[3][:N])
    figure = figures(name)["recurrent"]
    *layers, accuracy = figure.axes
    low = args.objective == "min"
    best, word = (np.argmin, "lowest") if low else (np.argmax, "highest")
    true, wrong, average, right = [], [], [], []  # by image
    for image, label in zip(images, labels, strict=True):
        g = learner.goodness_by_iteration(image[None], 10)[..., 0].astype(float)
        others = np.delete(g, label, axis=2)
        true.append(g[:, :, label])
        wrong.append(others.min(axis=2) if low else others.max(axis=2))
        average.append(g.mean(axis=2))
        right.append([best(row.sum(axis=0)) == label for row in g])
    true, wrong, average = (np.mean(g, axis=0) for g in (true, wrong, average))
    for i, axes in enumerate(layers):
        lines = lines_of(axes)
        for line, g in ("true label", true), (f"{word} wrong label", wrong):
            np.testing.assert_allclose(lines[line], (g - average)[:, i], atol=1e-4)
        ends = f"{average[0, i]:.2f} → {average[-1, i]:.2f}"
        assert axes.get_title("left") == f"Layer {i}, average {ends}"
    lines = lines_of(accuracy)
    alone = 100 * np.mean(right, axis=0)
    np.testing.assert_allclose(lines["one iteration alone"], alone)
    window = 100 * np.mean(learner.predict(images) == labels)
    one_pass = 100 * np.mean(learner.predict_one_pass(images) == labels)
    for line, value in (
        (f"mean of iterations 4 to 6: {window:.1f} %", window),
        (f"one pass, the classifier: {one_pass:.1f} %", one_pass),
    ):
        np.testing.assert_allclose(lines[line], value)
    assert f"{N} test images" in figure.get_suptitle()
    for axes in figure.axes:
        (band,) = axes.patches
        assert (band.get_x(), band.get_width()) == (3.5, 3)


# ------------------------------------------- which model, which runs, which file


@pytest.mark.parametrize(
    "name, flags", [("headline", ""), ("without BP", "--no-bp-baseline --n-layers 1")]
)
def test_a_missing_model_is_trained_as_the_main_script_does_and_not_saved(
    call, model, tmp_path, name, flags
):
    path, shown = tmp_path / "none.npz", ("--per-class-test-subset", N)
    call(viz.main, "--model", model(name), "--outdir", tmp_path / "saved", *shown)
    flags = *SMALL, "--epochs", 2, *flags.split(), *shown
    lines = call(viz.main, "--model", path, "--outdir", tmp_path / "new", *flags)
    said = f"{path} does not exist: training a model, which is not saved"
    assert lines[0] == f"[synthetic] {said}"
    assert all(line.startswith("[synthetic] ") for line in lines)
    for figure in FIGURES:
        expected, found = (tmp_path / folder / figure for folder in ("saved", "new"))
        assert expected.read_bytes() == found.read_bytes()
    assert not path.exists()


def test_the_arguments_of_a_model_win_over_other_flags_and_that_is_said(
    call, model, tmp_path
):
    flags = "--n-layers", 3, "--n-epochs", 2, "--per-class-test-subset", 20
    lines = call(viz.main, "--model", model(), "--outdir", tmp_path, *flags)
    said = [line for line in lines if "was made with" in line]
    assert said == [f"[synthetic] {model()} was made with n_layers = 2, which is used"]


def save_run(path, dataset="cifar10", **accuracies):
    """What --runs needs of a saved run: its data, and accuracies on all test images."""
    config = json.dumps({"arguments": {"dataset": dataset}})
    np.savez(path, config=config, **accuracies)
    return path


@pytest.mark.parametrize(
    "dataset, tag", [("cifar10", ""), ("synthetic", "[synthetic] ")]
)
def test_runs_are_compared_by_the_mean_of_their_seeds_in_the_order_given(
    call, tmp_path, dataset, tag
):
    paths = [
        save_run(tmp_path / f"{name}.npz", dataset, **accuracies)
        for name, accuracies in (
            ("wide-net-1", {"ff_full_test_acc": 0.2, "bp_full_test_acc": 0.25}),
            ("a$b$", {"ff_full_test_acc": 0.4, "ff_full_test_one_pass_acc": 0.45}),
            ("wide-net-0", {"ff_full_test_acc": 0.3, "bp_full_test_acc": 0.35}),
        )
    ]
    lines = call(viz.main, "--runs", *paths, "--outdir", tmp_path)
    assert lines == [f"{tag}wrote {tmp_path / 'closing_the_gap.png'}"]
    figure = draw(viz.closing_the_gap, *viz.read_runs(paths))
    assert ("SYNTHETIC" in figure.get_suptitle()) == bool(tag)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["wide-net", "a$b$"]
    assert axes.yaxis_inverted()  # from top to bottom
    means = [(text.get_text(), round(text.xy[1])) for text in axes.texts]
    assert means == [("25.0", 0), ("30.0", 0), ("40.0", 1), ("45.0", 1)]
    seeds = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "."]
    np.testing.assert_allclose(np.concatenate(seeds), [20, 30, 25, 35, 40, 45])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    looks = ["FF, mean", "FF one pass, mean", "BP, mean", "one seed", "chance"]
    assert names == looks


@pytest.mark.parametrize("accuracies", [[0.1], [0.6], [0.1, 0.5, 0.99]])
def test_no_text_of_the_figure_of_runs_covers_another_or_a_point(accuracies):
    rows = {
        f"run of {k}": {"FF": [100 * a], "FF one pass": [100 * a], "BP": [100 * a]}
        for k, a in enumerate(accuracies)
    }
    assert_nothing_overlaps(draw(viz.closing_the_gap, "cifar10", rows))


def test_runs_that_cannot_be_compared_are_refused_in_a_line_that_names_the_file(
    call, tmp_path
):
    tested = {"ff_full_test_acc": 0.2}
    (tmp_path / "b").mkdir()
    good = save_run(tmp_path / "a-0.npz", **tested)
    same = save_run(tmp_path / "b" / "a-0.npz", **tested)
    other = save_run(tmp_path / "c-0.npz", "synthetic", **tested)
    untested = save_run(tmp_path / "d-0.npz")
    bare, text = tmp_path / "e-0.npz", tmp_path / "f-0.npz"
    np.savez(bare, **tested)
    text.write_text("text")
    for path, words in (
        (same, "of the same name"),
        (other, "c-0.npz are of different data"),
        (untested, "d-0.npz was not made with --full-test"),
        (bare, "e-0.npz is no sound model"),
        (text, "f-0.npz is no sound model"),
        (tmp_path / "none.npz", "none.npz is no sound model"),
    ):
        with pytest.raises(ff.RunError, match=re.escape(words)):
            call(viz.main, "--runs", good, path, "--outdir", tmp_path / "viz")
    assert not list((tmp_path / "viz").iterdir())


def test_a_figure_that_cannot_be_written_is_one_error_and_leaves_nothing_behind(
    call, tmp_path
):
    path = save_run(tmp_path / "a-0.npz", ff_full_test_acc=0.2)
    (tmp_path / "viz" / "closing_the_gap.png").mkdir(parents=True)
    with pytest.raises(ff.RunError, match=r"cannot write .*closing_the_gap\.png"):
        call(viz.main, "--runs", path, "--outdir", tmp_path / "viz")
    assert len([*(tmp_path / "viz").iterdir()]) == 1


# ---------------------------------------------------------------- animation


@pytest.fixture(scope="module")
def animate(data):
    """animate(name): the arguments of one of MODELS, the trained learner, the frames."""

    @functools.cache
    def animate(name):
        args = arguments(name, bp_baseline=False)
        args.snapshot_every = 1
        (learner,) = ff.make_learners(args)
        ff.train(learner, data, args)
        what = animation.draw_frame, args, animation.make_snapshots(args, data)
        demo = data[2][0], data[3][0]
        frames = [draw(*what, i, *demo, style=animation.STYLE) for i in range(3)]
        return args, learner, frames

    return animate


@pytest.mark.parametrize(
    "every, epochs", [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (9, [0, 3])]
)
def test_there_is_a_frame_before_training_at_every_snapshot_and_at_the_end(
    data, every, epochs
):
    args = arguments("without BP", n_epochs=3)
    args.snapshot_every = every
    assert list(animation.make_snapshots(args, data)["epoch"]) == epochs


@pytest.mark.parametrize("name", MODELS)
def test_axes_stay_as_they_are_from_the_first_frame_to_the_last(animate, name):
    *_, frames = animate(name)
    for frame in frames:
        assert_nothing_overlaps(frame)
        assert "SYNTHETIC" in frame.get_suptitle()
        for axes, first in zip(frame.axes, frames[0].axes, strict=True):
            assert axes.get_position().bounds == first.get_position().bounds
            assert axes.get_xlim() == first.get_xlim()
            assert axes.get_ylim() == first.get_ylim()
        goodness, accuracy, _, labels = frame.axes
        for curves in (goodness, accuracy):  # all of it is within the axes
            for line in curves.lines:
                assert np.max(line.get_ydata()) <= curves.get_ylim()[1]
        low, high = labels.get_xlim()
        for bar in labels.patches:
            assert low <= min(0, bar.get_width()) <= max(0, bar.get_width()) <= high
        for line in labels.lines:  # theta, or zero
            assert low <= line.get_xdata()[0] <= high


@pytest.mark.parametrize("name", MODELS)
def test_the_last_frame_shows_what_the_trained_learner_does(animate, data, name):
    (args, learner, frames), (_, _, images, labels) = animate(name), data
    goodness, accuracy, picture, bars = frames[-1].axes
    label, predicted = int(labels[0]), int(learner.predict(images[:1])[0])
    g = [learner.label_goodness(image[None])[..., 0] for image in images[:20]]
    lines = lines_of(goodness) | lines_of(accuracy)
    for i in range(args.n_layers):
        true = [one[i, k] for one, k in zip(g, labels)]
        wrong = [np.delete(one[i], k) for one, k in zip(g, labels)]
        for kind, values in ("true", true), ("wrong", wrong):
            drawn = lines[f"layer {i}, {kind} label"][-1]
            np.testing.assert_allclose(drawn, np.mean(values), 1e-4)
    right = np.mean(learner.predict(images[:20]) == labels[:20])
    np.testing.assert_allclose(lines["FF, test"][-1], 100 * right)
    right = learner.history[-1]["train_acc"]
    np.testing.assert_allclose(lines["FF, training"][-1], 100 * right)

    theta = args.threshold if args.loss == "threshold" else 0
    first = int(args.recipe != "recurrent" and args.n_layers > 1)  # that predicts
    demo = g[0][first:].mean(axis=0)
    expected = demo if theta else demo - demo.mean()
    lengths = [bar.get_width() for bar in bars.patches]
    np.testing.assert_allclose(lengths, expected, atol=1e-5)
    (line,) = bars.lines
    assert line.get_xdata()[0] == theta
    assert len([name for name in lines if "θ" in name]) == bool(theta)
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars.patches]
    assert [k for k, one in enumerate(colours) if one == viz.BLUE] == [predicted]
    # Said a second time, in words, and the truth by a hatch.
    assert [k for k, bar in enumerate(bars.patches) if bar.get_hatch()] == [label]
    words = {round(text.get_position()[1]): text.get_text()[3:] for text in bars.texts}
    named = "predicted, right" if predicted == label else "predicted"
    assert words == {label: "true label"} | {predicted: named}

    block = args.label_input == "corner"
    image = viz.encoded_image(images[0], label).clip(0, 1) if block else images[0] / 255
    np.testing.assert_allclose(picture.images[0].get_array(), image)
    assert bool(picture.patches) == block
    assert ("no label in it" in picture.get_title("left")) != block


def test_labels_that_all_score_the_same_but_for_rounding_are_no_prediction(animate):
    *_, frames = animate("best")
    texts = [text.get_text() for text in frames[0].axes[3].texts]
    assert texts == [" ◀ true label"]


def test_the_gif_loops_for_ever_at_its_speed_and_rests_on_its_last_frame(
    call, tmp_path
):
    out = tmp_path / "a.gif"
    lines = call(animation.main, *SMALL, "--epochs", 2, "--fps", 5, "--out", out)
    assert all(line.startswith("[synthetic] ") for line in lines)
    assert re.fullmatch(r"\[synthetic\] wrote .*a\.gif: 3 frames, \d+ kB", lines[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
    assert out.stat().st_size < 200_000
    with Image.open(out) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 3, 0)
        assert gif.width >= 700


@pytest.mark.parametrize(
    "fps, milliseconds, last",
    [(4, 250, 2000), (50, 20, 2000), (45, 20, 2000), (3, 330, 2000), (0.2, 5000, 5000)],
)
def test_the_frames_of_the_gif_look_as_they_were_drawn_and_last_as_asked(
    fps, milliseconds, last
):
    rng = np.random.default_rng(0)
    frames = [np.full((80, 90, 3), 255, np.uint8) for _ in range(3)]
    for i, frame in enumerate(frames):
        frame[:32, :32] = 8 * rng.integers(0, 2, (32, 32, 1)) + [200, 100, 20]
        frame[40:50, : 20 * (i + 1)] = [0, 114, 178]
        frame[60:70, 80 - 20 * i :] = 0
    with Image.open(io.BytesIO(animation.make_gif(frames, fps))) as gif:
        assert gif.n_frames == 3
        for i, frame in enumerate(frames):
            gif.seek(i)
            found = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(found - frame).max() <= 16
            assert gif.info["duration"] == (last if i == 2 else milliseconds)


# ------------------------------------------------- the scripts as they are run


@pytest.mark.parametrize(
    "module, flags",
    [
        (viz, ["--per-class-test-subset", "10001"]),
        (viz, ["--outdir", __file__]),
        (viz, ["--runs", "a.npz", "--model", "model.npz"]),
        (viz, ["--receptive-fields", "a.npz", "--runs", "a.npz"]),
        (viz, ["--seed", "1", "--runs", "a.npz"]),
        (viz, ["--recipe", "recurrent", "--receptive-fields", "a.npz"]),
        (animation, ["--fps", "0"]),
        (animation, ["--snapshot-every", "1.5"]),
        (animation, ["--out", "no/such/folder/a.gif"]),
        (animation, ["--bp-baseline"]),
    ],
)
def test_a_flag_that_makes_no_sense_is_a_usage_error_before_any_work(
    call, tmp_path, monkeypatch, module, flags
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ff.UsageError) as refused:
        call(module.main, *flags)
    assert flags[0] in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "module, code, flags",
    [
        (viz, 2, ["--n-layers", "5"]),
        (animation, 2, ["--n-layers", "5"]),
        (viz, 1, ["--model", __file__, "--outdir", "{viz}"]),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(tmp_path, module, code, flags):
    found, out, err = script(module, *[flag.format(viz=tmp_path) for flag in flags])
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(f"{Path(module.__file__).name}: ")
    assert not list(tmp_path.iterdir())


# Settings that a user may have for figures of his own.
MATPLOTLIBRC = """
backend: module://backend_of_another_program
image.origin: lower
axes.facecolor: black
axes.titlelocation: right
text.usetex: True
font.size: 30
savefig.transparent: True
savefig.bbox: tight
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
    call, model, tmp_path, module, flags
):
    flags = [flag.format(model=model()) for flag in flags]
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    call(module.main, *flags, tmp_path / "expected")
    code, out, err = script(
        module,
        *flags,
        tmp_path / "found",
        MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
        MPLBACKEND="module://matplotlib_inline.backend_inline",
    )
    assert code == 0, err
    assert "not CIFAR-10 results" in out.splitlines()[-1]
    expected, found = tmp_path / "expected", tmp_path / "found"
    for name in FIGURES if expected.is_dir() else [""]:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize(
    "module, defaults",
    [
        (viz, "--model model.npz --per-class-test-subset 10000 --outdir viz"),
        (viz, "--epochs 10 --train-subset 10000 --bp-baseline True"),
        (animation, "--fps 4 --epochs 8 --train-subset 4000 --eval-subset 500"),
        (animation, "--snapshot-every 1 --out ff_cifar_locally_connected.gif"),
    ],
)
def test_help_shows_the_flags_and_their_defaults(module, defaults):
    code, out, _ = script(module, "--help")
    assert code == 0
    words, defaults = " ".join(out.split()), defaults.split()
    for flag, default in zip(defaults[::2], defaults[1::2]):
        assert re.search(rf"{flag}\b[^(]*\(default: {default}\)", words), flag
