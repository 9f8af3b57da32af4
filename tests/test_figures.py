"""The figures and the animation: what is drawn, what is written, what is said."""

import functools
import io
import json
import re
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import small
from PIL import Image

import ff_cifar_locally_connected as ff
import make_ff_cifar_locally_connected_gif as animation
import visualize_ff_cifar_locally_connected as viz

ROOT = Path(viz.__file__).parent
VIZ, GIF = viz.__name__, animation.__name__
FIGURES = {"example_images", "example_label_encoded", "ff_vs_bp_curves"}
FIGURES |= {"per_class_accuracy", "receptive_fields_layer0"}
SYNTHETIC = "SYNTHETIC DATA, not CIFAR-10"
KINDS = [f"kind-{k}" for k in range(10)]
ONE_LAYER = {"n_layers": 1, "fields": [29], "lr": 0.3, "n_epochs": 1}
MODELS = {
    "headline": {},
    "softmax": ONE_LAYER | {"loss": "softmax", "bp_baseline": False},
    "best": {"recipe": "best", "channels": 3},
    "recurrent": {"recipe": "recurrent", "channels": 1},
    "min": {"recipe": "recurrent", "objective": "min", "n_layers": 3, "channels": 1},
    "own": {"dataset": "my data", "classes": KINDS, "n_layers": 3, "n_epochs": 30},
}
SMALL = ["--dataset=synthetic", "--train-subset=64", "--eval-subset=20", "--epochs=2"]
CONSTANTS = {"N_TRAIN": 200, "N_TEST": 50}
with pytest.MonkeyPatch.context() as few:
    for constant, value in CONSTANTS.items():
        few.setattr(ff, constant, value)
    DATA = ff.make_synthetic()
N = 9  # test images that are drawn: so few that some classes have none
IMAGES, LABELS = (array[:N] for array in DATA[2:])


@pytest.fixture(scope="module", autouse=True)
def small_runs(tmp_path_factory):
    """A folder for the files, and little data; what a script changes is taken back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("figures"))
        patch.setattr(ff, "make_synthetic", lambda: DATA)
        patch.setattr(ff, "TAG", "")
        yield


def arguments(name="headline", **changes):
    usual = {"dataset": "synthetic", "train_subset": 64, "eval_subset": 20}
    usual |= {"n_epochs": 2, "bp_baseline": True}
    return ff.training_arguments(**usual | MODELS[name] | changes)


@functools.cache
def made(name="headline"):
    """One of MODELS: its data (one's own are fewer, none of class 9), file, what that
    holds, figures of the first N test images, and frames by epoch, the first and last."""
    args, data, path = arguments(name), DATA, Path(f"{name}.npz").absolute()
    if name == "own":
        (train_x, train_y, *test), few = DATA, DATA[3] != 9
        data = train_x[:40], train_y[:40], *(array[few][:15] for array in test)
    np.savez(path, **ff.run(args, data)[1])
    model = ff.load_model(path)
    figures = viz.draw_model(*model, data, N)
    figures = {what: draw(function) for what, function in figures.items()}
    args.bp_baseline, args.snapshot_every = False, max(1, args.n_epochs - 1)
    snapshots, frames = animation.make_snapshots(args, data), {}
    for i, epoch in enumerate(snapshots["epoch"]):
        what = animation.draw_frame, args, snapshots, i, data[2][0], data[3][0]
        frames[epoch] = draw(*what, style=animation.STYLE)
    found = {"data": data, "path": path, "model": model}
    return SimpleNamespace(**found, figures=figures, frames=frames)


@functools.cache
def written(name="headline"):
    """The folder of the figures that the script makes, and what it prints."""
    outdir, n_layers = Path("new", name), 4 if name == "min" else 2
    flags = "--outdir", outdir, "--n-layers", n_layers, "--per-class-test-subset", N
    code, out, err = small.here(VIZ, "--model", made(name).path, *flags)
    assert (code, err) == (0, "")
    return outdir, out.splitlines()


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
            yield from (axis.label, *(tick.label1 for tick in axis._update_ticks()))


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
    lines = [line for axes in figure.axes for line in axes.lines]
    for line in (line for line in lines if len(line.get_xdata())):
        path = line.get_transform().transform_path(line.get_path())
        points = path.vertices if line.get_marker() != "None" else []
        assert not any(box.contains(*point) for box in boxes for point in points)
        for box in boxes[len(texts) :]:
            between = path.interpolated(50).vertices
            assert not any(box.contains(*point) for point in between)


def lines_of(axes):
    """{label: what is drawn at each x}"""
    return {line.get_label(): line.get_ydata() for line in axes.lines}


def words(texts):
    return [text.get_text() for text in texts]


@pytest.mark.parametrize("name", ["headline", "min"])
def test_a_model_gives_whole_figures_that_fit_a_page_whatever_other_flags_say(name):
    outdir, lines = written(name)
    assert all(line.startswith("[synthetic] ") for line in lines)
    used = f"[synthetic] {made(name).path} was made with n_layers = 3, which is used"
    assert [line for line in lines if "made with" in line] == [used] * (name == "min")
    changed = {"recurrent", "example_label_encoded"} if name == "min" else set()
    assert {path.stem for path in outdir.iterdir()} == FIGURES ^ changed
    for path in outdir.iterdir():
        assert f"[synthetic] wrote {path}" in lines
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert 1000 <= pixels.shape[1] <= 1600
        # Nothing is cut off: the outermost pixels are white.
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all()


@pytest.mark.parametrize("name", MODELS)
def test_no_text_covers_another_or_a_curve_and_all_name_their_data(name):
    called = "my data" if name == "own" else SYNTHETIC
    for figure in (*made(name).figures.values(), *made(name).frames.values()):
        assert_nothing_overlaps(figure)
        assert figure.get_suptitle().endswith(f" · {called}")


def test_an_example_is_an_image_of_the_class_that_it_is_named_after():
    *_, images, labels = made("own").data
    for k, axes in enumerate(made("own").figures["example_images"].axes):
        assert axes.get_title("left").split() == [str(k), KINDS[k]]
        shown = [np.round(255 * image.get_array()) for image in axes.images]
        assert len(shown) == (k in labels)
        for image in shown:
            assert [*labels[(images == image).all(axis=(1, 2, 3))]] == [k]


def test_ff_is_shown_to_see_the_image_with_a_label_block_in_a_cyan_box():
    _, _, (image, *_), (label, *_) = made("own").data
    raw, *encoded, _, true, wrong = made("own").figures["example_label_encoded"].axes
    assert raw.get_title("left") == f"raw, for BP: {KINDS[label]}"
    np.testing.assert_allclose(raw.images[0].get_array(), image / 255, atol=1e-6)
    cases = (
        ("positive: true", true, label),
        ("negative: wrong", wrong, (label + 5) % 10),
    )
    for axes, (kind, block, k) in zip(encoded, cases, strict=True):
        assert axes.get_title("left") == f"FF, {kind} label {KINDS[k]}"
        assert words(block.get_xticklabels()) == KINDS
        assert block.get_xticklabels()[k].get_weight() == "bold"
        expected = image / 255
        expected[:3, :10] = np.eye(10)[k, :, None]
        shown = axes.images[0].get_array(), block.images[0].get_array()
        np.testing.assert_allclose(shown[0], expected, atol=1e-6)
        np.testing.assert_array_equal(shown[1], expected[:3, :10])
        for (box,) in axes.patches, block.patches:
            assert box.get_bbox().bounds == (-0.5, -0.5, 10, 3)
            assert matplotlib.colors.to_hex(box.get_edgecolor()) == "#00ffff"


def test_weights_of_whitened_pixels_can_be_told_as_weights_of_pixels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 32, 3, 1, 1), np.float32)
    kernel, W = rng.standard_normal((5, 5, 3, 3)), rng.standard_normal((7, 7, 3))
    whitened, pixels = ff.filtered(x, kernel)[10:17, 12:19], x[8:19, 10:21]
    found = np.sum(viz.in_pixels(W, kernel) * pixels[..., 0, 0])
    np.testing.assert_allclose(found, np.sum(W * whitened[..., 0, 0]), 1e-4)


NOTES = {
    "headline": " Cyan: where the label block lies in the field.",
    "softmax": " Cyan: where the label block lies in the field.",
    "best": " Seen through the whitening; the middle 5x5 are the unit's own.",
    "recurrent": "",
}


@pytest.mark.parametrize("name", NOTES)
def test_receptive_fields_are_weights_of_the_same_channels_everywhere(name):
    learners, args, arrays = made(name).model
    W, R = arrays["ff_layer0_W"], learners["FF"].layers[0].field
    C, last, corner = args.channels, len(W) - 1, args.label_input == "corner"
    W = np.moveaxis(W.reshape(*W.shape[:2], R, R, 3, C), -1, 2)
    initial = np.random.default_rng(0).normal(0, np.sqrt(2 / R**2 / 3), (9999, R, R, 3))
    if name == "best":
        W, initial = (viz.in_pixels(w, arrays["whitening"]) for w in (W, initial))
    W = W / np.sqrt(np.mean(initial**2))
    limit = 2 * np.sqrt(np.mean(W**2)) if name == "softmax" else 6  # strong weights
    figure = made(name).figures["receptive_fields_layer0"]
    assert f"layer 0, recipe {args.recipe} ·" in figure.get_suptitle()
    note = figure.get_supxlabel().splitlines()[1]
    assert note == f"Rows and columns 0 to {last}.{NOTES[name]}"
    grid, spread = np.reshape(figure.axes, (min(C, 4), 6)), np.array([0.2, 0.5, 0.8])
    for (channel, column), axes in np.ndenumerate(grid):
        i, j = np.minimum(viz.POSITIONS[column], last)
        if not corner:
            i, j = map(round, last * spread[[column // 3 * 2, column % 3]])
        expected, sees = W[i, j, channel], corner and i < 3 and j < 10
        weights = limit * (2 * axes.images[0].get_array() - 1)
        np.testing.assert_allclose(weights, expected.clip(-limit, limit), atol=0.02)
        rms = float(axes.get_xlabel().removeprefix("rms ×"))
        assert abs(rms - np.sqrt(np.mean(expected**2))) < 0.06
        block = [(-0.5, -0.5, min(10 - j, R), 3 - i)] if sees else []
        assert [box.get_bbox().bounds for box in axes.patches] == block
        assert axes.get_title() == f"row {i},\ncolumn {j}" * (channel == 0)
        assert axes.get_ylabel() == f"channel {channel}" * (column == 0)


@pytest.mark.parametrize("name", ["headline", "min"])
def test_accuracies_by_class_are_those_of_the_saved_weights(name):
    predictions = {
        way: getattr(learner, method)(IMAGES)
        for learner in made(name).model[0].values()
        for way, (method, _) in learner.ways.items()
    }
    (axes,) = made(name).figures["per_class_accuracy"].axes
    assert axes.get_title("left") == f"of the first {N} test images"
    rows = {row[1]: row[2:] for row in map(str.split, written(name)[1])}
    for k, kind in enumerate([*ff.CLASSES, "all"]):
        own = (LABELS == k) | (kind == "all")
        count, *cells = rows[kind]
        assert int(count) == own.sum()
        columns = zip(predictions.items(), cells, axes.containers, strict=True)
        for (way, predicted), cell, bars in columns:
            right = 100 * np.mean((predicted == LABELS)[own]) if own.any() else np.nan
            assert cell == (f"{right:.1f}" if own.any() else "-")
            if kind == "all":
                assert bars.get_label() == f"{way}, all classes: {right:.1f} %"
            else:
                np.testing.assert_allclose(bars[k].get_height(), right)
                assert not right >= axes.get_ylim()[1]


@pytest.mark.parametrize("name", MODELS)
def test_curves_show_the_history_that_the_model_holds(name):
    _, args, arrays = made(name).model
    figure, softmax = made(name).figures["ff_vs_bp_curves"], args.loss == "softmax"
    n_train, n_test = (40, 15) if name == "own" else (64, 20)
    title = f"{'FF and BP' if args.bp_baseline else 'FF'}, {n_train} training images"
    assert figure.get_suptitle().startswith(f"{title}, seed 0 · ")
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[0] == f"Accuracy, first {n_test} test, 20 training images"
    assert ("to be low" in titles[1]) == (name == "min")
    assert ("no BP" in titles[3]) != args.bp_baseline
    passes = 10 if args.negatives == "all" else 2
    alike = "all labels alike" if softmax else "all goodness at θ"
    lines = {f"ln {passes}: {alike}": np.log(passes), "chance": 10}
    lines |= {"no difference": 0} if softmax else {"threshold θ = 2": 2}
    if args.bp_baseline:
        lines |= {"ln 10: chance": np.log(10), "BP": arrays["bp_loss"]}
    for learner in ("FF", "FF one pass", "BP"):
        key = learner.lower().replace(" ", "_")
        for kind, images in ("test", "test"), ("training", "train"):
            if f"{key}_test_acc" in arrays:
                lines[f"{learner}, {kind}"] = 100 * arrays[f"{key}_{images}_acc"]
    for i in range(args.n_layers):
        true, wrong = arrays["ff_g_pos"][i], arrays["ff_g_neg"][i]
        both = {f"layer {i}, true label": true, f"layer {i}, wrong label": wrong}
        lines |= {f"layer {i}, difference": true - wrong} if softmax else both
        lines[f"layer {i}"] = arrays["ff_loss_per_layer"][i]
    drawn = [line for axes in figure.axes for line in axes.lines]
    assert sorted(line.get_label() for line in drawn) == sorted(lines)
    for line in drawn:
        assert np.all(np.equal(line.get_ydata(), lines[line.get_label()]))
        assert len(line.get_xdata()[:: line.get_markevery()]) < 24
    for axes in figure.axes[: 3 + args.bp_baseline]:
        assert axes.get_xlim() == (0.5, args.n_epochs + 0.5)
        assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("name", ["recurrent", "min"])
def test_the_figure_of_a_recurrent_network_is_how_its_goodness_settles(name):
    learner, figure = made(name).model[0]["FF"], made(name).figures["recurrent"]
    *layers, accuracy = figure.axes
    sign, word = (-1, "lowest") if name == "min" else (1, "highest")
    means, right = [], []  # by image
    for image, label in zip(IMAGES, LABELS, strict=True):
        g = learner.goodness_by_iteration(image[None], 10)[..., 0].astype(float)
        wrong = sign * (sign * np.delete(g, label, axis=2)).max(axis=2)
        means.append([g[:, :, label], wrong, g.mean(axis=2)])
        right.append((sign * g.sum(axis=1)).argmax(axis=1) == label)
    for i, axes in enumerate(layers):
        true, wrong, average = np.mean(means, axis=0)[..., i]
        for line, g in ("true label", true), (f"{word} wrong label", wrong):
            np.testing.assert_allclose(lines_of(axes)[line], g - average, atol=1e-4)
        ends = f"{average[0]:.2f} → {average[-1]:.2f}"
        assert axes.get_title("left") == f"Layer {i}, average {ends}"
    window = 100 * np.mean(learner.predict(IMAGES) == LABELS)
    one_pass = 100 * np.mean(learner.predict_one_pass(IMAGES) == LABELS)
    for line, value in (
        ("one iteration alone", 100 * np.mean(right, axis=0)),
        (f"mean of iterations 4 to 6: {window:.1f} %", window),
        (f"one pass, the classifier: {one_pass:.1f} %", one_pass),
    ):
        np.testing.assert_allclose(lines_of(accuracy)[line], value)
    assert f"{N} test images" in figure.get_suptitle()


def test_a_missing_model_is_trained_as_the_main_script_does_and_not_saved():
    flags = *SMALL, "--per-class-test-subset", N, "--outdir", "trained"
    code, out, err = small.here(VIZ, "--model", "none.npz", *flags)
    assert (code, err) == (0, "")
    assert "none.npz does not exist: training a model, which is not saved\n" in out
    assert all(line.startswith("[synthetic] ") for line in out.splitlines())
    for path in written()[0].iterdir():
        assert Path("trained", path.name).read_bytes() == path.read_bytes()
    assert not Path("none.npz").exists()


def test_a_model_of_ones_own_data_is_drawn_by_the_call_that_its_error_names(tmp_path):
    code, out, err = small.here(VIZ, "--model", made("own").path, "--outdir", tmp_path)
    assert (code, out) == (1, "")
    small.assert_one_line(err, f"{made('own').path} is of my data")
    (call,) = re.findall(r"viz\.write_figures\(.*\)", err)
    names = {"FILE": made("own").path, "DATA": made("own").data, "FOLDER": tmp_path}
    eval(call, {"ff": ff, "viz": viz, **names})
    assert {path.stem for path in tmp_path.iterdir()} == FIGURES


def save_run(path, dataset="cifar10", **accuracies):
    """What --runs needs of a saved run: its data, and accuracies on all test images."""
    config = json.dumps({"arguments": {"dataset": dataset}})
    np.savez(path, config=config, **accuracies)
    return path


@pytest.mark.parametrize("dataset", ["cifar10", "synthetic"])
def test_runs_are_compared_by_the_mean_of_their_seeds(tmp_path, dataset):
    paths = [
        save_run(tmp_path / f"{run}.npz", dataset, ff_full_test_acc=right, **other)
        for run, right, other in (
            ("a$b$-1", 0.2, {"bp_full_test_acc": 0.25}),
            ("best-0", 0.4, {"ff_full_test_one_pass_acc": 0.45}),
            ("a$b$-0", 0.3, {"bp_full_test_acc": 0.35}),
        )
    ]
    code, out, err = small.here(VIZ, "--runs", *paths, "--outdir", tmp_path)
    assert (code, err) == (0, "")
    tag = "[synthetic] " if dataset == "synthetic" else ""
    assert out.splitlines()[0] == f"{tag}wrote {tmp_path / 'closing_the_gap.png'}"
    figure = draw(viz.closing_the_gap, *viz.read_runs(paths))
    assert_nothing_overlaps(figure)
    name = SYNTHETIC if dataset == "synthetic" else "CIFAR-10"
    assert figure.get_suptitle().endswith(f": all test images · {name}")
    axes, table = figure.axes
    assert words(axes.get_yticklabels()) == [viz.ROWS["best"], "a$b$"]
    assert axes.yaxis_inverted()  # from top to bottom
    means = {text.get_position(): text.get_text() for text in table.texts}
    assert means == {(0, 0): "40.0", (0, 1): "25.0", (1, 0): "45.0", (2, 1): "30.0"}
    assert [line.get_marker() for line in table.lines] == ["o", "^", "s"]
    drawn = {"o": [40, 25], "^": [45], "s": [30], ".": [40, 20, 30, 45, 25, 35]}
    for marker, expected in drawn.items():
        x = [line.get_xdata() for line in axes.lines if line.get_marker() == marker]
        np.testing.assert_allclose(np.concatenate(x), expected)
    looks = ["FF, mean", "FF one pass, mean", "BP, mean", "one seed"]
    assert words(axes.get_legend().get_texts()) == looks


def test_the_rows_that_have_words_are_those_of_the_readme_in_its_order():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [*viz.ROWS] == re.findall(r"(?m)^\| `([a-z][a-z0-9-]+)` \|", readme)


REFUSED = [  # script, flags, exit code, words
    (VIZ, "--model text", 1, "text is no sound model"),
    (VIZ, f"--model {'m' * 304}", 1, "mmm is no sound model"),
    (VIZ, "--receptive-fields none.npz", 1, "none.npz is no sound model"),
    (VIZ, "--runs a-0.npz a-0.npz", 1, "two files of the same name"),
    (VIZ, "--runs a-0.npz c-0.npz", 1, "a-0.npz and c-0.npz are of different data"),
    (VIZ, "--runs a-0.npz d-0.npz", 1, "d-0.npz was not made with --full-test"),
    (VIZ, "--runs a-0.npz e-0.npz", 1, "e-0.npz is no sound model"),
    (VIZ, "--per-class-test-subset 10001", 2, "--per-class-test-subset"),
    (VIZ, "--outdir text", 2, "--outdir text: "),
    (VIZ, "--runs a-0.npz --model model.npz", 2, "--model"),
    (VIZ, "--runs a-0.npz --seed 1", 2, "--runs"),
    (GIF, "--fps 0", 2, "--fps"),
    (GIF, "--out no/such/folder/a.gif", 2, "no/such/folder/a.gif"),
    (GIF, "--out a.mp4", 2, "--out a.mp4: "),
    (GIF, "--bp-baseline", 2, "--bp-baseline"),
]


@pytest.mark.parametrize("script, flags, code, reason", REFUSED)
def test_flags_and_files_without_sense_are_one_line_that_names_them_before_any_work(
    tmp_path, monkeypatch, script, flags, code, reason
):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("text")
    save_run("a-0.npz", ff_full_test_acc=0.2)
    save_run("c-0.npz", "synthetic", ff_full_test_acc=0.2)
    save_run("d-0.npz")
    np.savez("e-0.npz", ff_full_test_acc=0.2)
    before = {*tmp_path.rglob("*"), tmp_path / "viz"}
    found, out, err = small.here(script, *flags.split())
    assert (found, out) == (code, "")
    small.assert_one_line(err, f"{script}.py: {'error: ' * (code == 2)}", reason)
    assert before.issuperset(tmp_path.rglob("*"))


def test_what_cannot_be_written_is_kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (folder := tmp_path / "drive").mkdir()
    monkeypatch.setattr(ff, "make_synthetic", lambda: folder.rmdir() or DATA)
    (blocked := tmp_path / "viz" / "closing_the_gap.png").mkdir(parents=True)
    (here := tmp_path / "here" / "ff_cifar_locally_connected.gif").mkdir(parents=True)
    monkeypatch.chdir(here.parent)  # whose GIF cannot be written, and need not be
    path, gif = save_run("a-0.npz", ff_full_test_acc=0.2), folder / "a.gif"
    for script, file, *flags in (
        (VIZ, blocked, "--runs", path, "--outdir", blocked.parent),
        (GIF, gif, *SMALL, "--out", gif),
    ):
        code, out, err = small.here(script, *flags)
        (kept,) = tmp_path.glob(f"*{file.suffix}")
        failed, told = err.splitlines()
        assert (code, failed.split(": ")[0]) == (1, f"cannot write {file}")
        assert told == f"what was to be there is in {kept}"
        assert "wrote" not in out
        Image.open(kept).verify()
    assert not [*tmp_path.rglob("*.tmp")]
    figures = dict.fromkeys([blocked.stem, "other"], matplotlib.figure.Figure)
    viz.write_figures(figures, blocked.parent)  # of which all others are written
    Image.open(blocked.with_name("other.png")).verify()


def test_there_is_a_frame_before_training_at_every_snapshot_and_at_the_end():
    args = arguments("best", n_epochs=3, bp_baseline=False)
    (learner,) = ff.make_learners(args)
    learner.whitening = ff.whitening_filter(DATA[0][:64])
    g = learner.label_goodness(DATA[2][:20]).mean(axis=(1, 2))
    for args.snapshot_every, epochs in (1, [0, 1, 2, 3]), (2, [0, 2, 3]), (9, [0, 3]):
        snapshots = animation.make_snapshots(args, DATA)
        assert [*snapshots["epoch"]] == epochs
        np.testing.assert_allclose(snapshots["ff_g_pos"][0], g, 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_axes_stay_as_they_are_from_the_first_frame_to_the_last(name):
    first, recipe = made(name).frames[0], made(name).model[1].recipe
    for epoch, frame in made(name).frames.items():
        title = f"recipe {recipe}, epoch {epoch} of {max(made(name).frames)} · "
        assert title in frame.get_suptitle()
        for axes, before in zip(frame.axes, first.axes, strict=True):
            assert axes.get_position().bounds == before.get_position().bounds
            assert axes.axis() == before.axis()
        *curves, _, labels = frame.axes
        for axes in curves:  # all of it is within the axes
            low, high = axes.get_ylim()
            for y in lines_of(axes).values():
                assert low <= np.min(y) <= np.max(y) <= high
        low, high = labels.get_xlim()
        theta = labels.lines[0].get_xdata()  # or zero
        ends = [0, *theta, *(bar.get_width() for bar in labels.patches)]
        assert low <= min(ends) <= max(ends) <= high
    if name == "best":  # of which labels differ by rounding alone before training
        assert words(first.axes[3].texts) == [" ◀ true label"]


@pytest.mark.parametrize("name", MODELS)
def test_the_last_frame_shows_what_the_trained_learner_does(name):
    (learners, args, arrays), (*_, images, labels) = made(name).model, made(name).data
    learner, images, labels = learners["FF"], images[:20], labels[:20]
    goodness, accuracy, picture, bars = made(name).frames[args.n_epochs].axes
    label, predicted = int(labels[0]), int(learner.predict(images[:1])[0])
    theta = args.threshold if args.loss == "threshold" else 0
    what = "Goodness" if theta else "Goodness, true − wrong label"
    assert goodness.get_title("left") == f"{what}, {len(images)} test images"
    g = [learner.label_goodness(image[None])[..., 0] for image in images]
    lines = lines_of(goodness) | lines_of(accuracy)
    for i in range(args.n_layers):
        true = np.mean([one[i, k] for one, k in zip(g, labels)])
        wrong = np.mean([np.delete(one[i], k) for one, k in zip(g, labels)])
        both = {"true label": true, "wrong label": wrong}
        for kind, value in (both if theta else {"difference": true - wrong}).items():
            *_, last = lines[f"layer {i}, {kind}"]
            np.testing.assert_allclose(last, value, 1e-4, 1e-5)
    for title, key in ("test", "ff_test_acc"), ("training", "ff_train_acc"):
        right = 100 * arrays[key][-1]
        np.testing.assert_allclose(lines[f"FF, {title}"][-1], right)
        assert f"{title} {right:.1f} %" in accuracy.get_title("left")

    first = int(args.recipe != "recurrent" and args.n_layers > 1)  # that predicts
    demo = g[0][first:].mean(axis=0)
    expected = demo if theta else demo - demo.mean()
    lengths = [bar.get_width() for bar in bars.patches]
    np.testing.assert_allclose(lengths, expected, atol=1e-5)
    assert bars.lines[0].get_xdata()[0] == theta
    assert words(bars.get_yticklabels()) == args.classes
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars.patches]
    assert [k for k, one in enumerate(colours) if one == viz.BLUE] == [predicted]
    # Said a second time, in words, and the truth by a hatch.
    assert [k for k, bar in enumerate(bars.patches) if bar.get_hatch()] == [label]
    said = {round(text.get_position()[1]): text.get_text()[3:] for text in bars.texts}
    named = "predicted, right" if predicted == label else "predicted"
    assert said == {label: "true label"} | {predicted: named}

    block = args.label_input == "corner"
    image = viz.encoded_image(images[0], label).clip(0, 1) if block else images[0] / 255
    np.testing.assert_allclose(picture.images[0].get_array(), image)
    assert bool(picture.patches) == block
    assert picture.get_title("left").endswith(f": {args.classes[label]}")


def test_the_gif_loops_for_ever_at_its_speed_and_is_the_only_file(tmp_path):
    path = tmp_path / "a.GIF"
    code, out, err = small.here(GIF, *SMALL, "--fps", 5, "--out", path)
    *_, said, _ = lines = out.splitlines()
    assert (code, err) == (0, "")
    assert all(line.startswith("[synthetic] ") for line in lines)
    assert re.fullmatch(rf"\[synthetic\] wrote {path}: 3 frames, \d+ kB", said)
    assert [*tmp_path.iterdir()] == [path]
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.info["loop"]) == ("GIF", 3, 0)
        assert (image.width, image.info["duration"]) == (910, 200)


def test_the_frames_of_the_gif_look_as_they_were_drawn_last_as_asked_and_are_let_go():
    rng = np.random.default_rng(0)
    frames, drawn = np.full((4, 80, 90, 3), 255, np.uint8), []
    for i, frame in enumerate(frames):
        frame[:32, :32] = 8 * rng.integers(0, 2, (32, 32, 1)) + [200, 100, 20]
        frame[40:50, : 20 * (i + 1)] = [0, 114, 178]
        frame[60:70, 80 - 20 * i :] = 0
        frame[70:75, 80 - 20 * i :] = [16, 8, 8]  # nearly black

    def draw(i):
        assert sum(frame() is not None for frame in drawn) < 2
        frame = frames[i].copy()
        drawn.append(weakref.ref(frame))
        return frame

    for fps, duration, last in (4, 250, 2000), (45, 20, 2000), (0.2, 5000, 5000):
        with Image.open(io.BytesIO(animation.make_gif(draw, 4, fps))) as gif:
            assert gif.n_frames == 4
            for i, frame in enumerate(frames):
                gif.seek(i)
                found = np.asarray(gif.convert("RGB")).astype(int)
                assert np.abs(found - frame).max() <= 8
                assert gif.info["duration"] == (last if i == 3 else duration)


# Settings that a user may have for figures of his own.
MATPLOTLIBRC = """
backend: module://backend_of_another_program
image.origin: lower
text.usetex: True
font.size: 30
savefig.bbox: tight
"""


def test_what_is_drawn_does_not_depend_on_settings_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    (tmp_path / "usual").mkdir()
    settings = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    fields = "--receptive-fields", made("softmax").path, "--outdir", "."
    monkeypatch.chdir(tmp_path / "usual")
    for file, script, *flags in (
        ("receptive_fields_softmax.png", VIZ, *fields),
        ("a.gif", GIF, *SMALL, "--out", "a.gif"),
    ):
        options = {"script": script, "env": settings, "cwd": tmp_path}
        code, _, err = small.finish(small.start(CONSTANTS, *flags, **options))
        assert (code, err) == (0, "")
        assert small.here(script, *flags)[0] == 0
        assert Path(file).read_bytes() == (tmp_path / file).read_bytes()
