# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "matplotlib>=3.8.4", "pillow>=10.1"]
# ///
"""Draw the figures of viz/ from a model that was saved with --save.

    python3 visualize_ff_cifar_locally_connected.py --model model.npz

The accuracies by class are computed anew from the model's weights. Where the model
file is missing, FF and BP are trained with the training flags, drawn, and not saved.
Of a recurrent network viz/recurrent.png is drawn too: how it settles.
With --runs FILES, viz/closing_the_gap.png is drawn instead: a row for each NAME of
files NAME-SEED.npz, in their order. With --receptive-fields NAME.npz it is
viz/receptive_fields_NAME.png, of layer 0 of another model.
With the headline model, the last lines are:

    truck           1000          16.1          37.9
    all            10000          24.9          35.8
    wrote viz/example_images.png
    wrote viz/example_label_encoded.png
    wrote viz/receptive_fields_layer0.png
    wrote viz/per_class_accuracy.png
    wrote viz/ff_vs_bp_curves.png
"""

import json
import os
import re
import sys
import tempfile
from functools import partial
from pathlib import Path

import ff_cifar_locally_connected as ff  # before numpy: it sets the threads of BLAS

if "IPython" not in sys.modules:
    # A notebook tells the programs that it starts to use its backend, and where that is
    # not installed, matplotlib's import fails. Files need no backend.
    os.environ.pop("MPLBACKEND", None)

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

# -------------------------------------------------------------------- style
# Colours of Okabe and Ito, which colour-blind people can tell apart. What a colour
# says is always said a second time, by a line style, a marker, a hatch or a word.

BLUE, GREEN, VERMILION = "#0072b2", "#009e73", "#d55e00"
LEARNER_LOOKS = {
    "FF": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "FF one pass": {"color": GREEN, "linestyle": "-.", "marker": "^"},
    "BP": {"color": VERMILION, "linestyle": "--", "marker": "s"},
}
LEARNER_HATCHES = {"FF": "", "FF one pass": "...", "BP": "///"}
LAYER_LOOKS = (
    {"color": "#56b4e9", "marker": "o"},
    {"color": "#cc79a7", "marker": "D"},
    {"color": "#e69f00", "marker": "^"},
    {"color": GREEN, "marker": "v"},
)
REFERENCE = {"color": "0.35", "linestyle": ":", "linewidth": 1.4}  # chance, theta
CYAN = "#00ffff"  # the label block
DATA_NAMES = {"cifar10": "CIFAR-10", "synthetic": "SYNTHETIC DATA, not CIFAR-10"}

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 2,
    "lines.markersize": 5.5,
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
    "hatch.color": "white",
    "savefig.dpi": 130,
    "text.parse_math": False,  # the name of a file may hold any sign
}


def new_figure(title, dataset, width, height):
    """An empty figure (inches) whose title names the data that it shows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(f"{title} · {data_name(dataset)}")
    return figure


def data_name(dataset):
    """What a title calls the data: your own by the name that you gave them."""
    return DATA_NAMES.get(dataset, dataset)


def show_image(axes, image):
    """Show pixels (H, W, 3) in [0, 1], of an image or of anything like one."""
    axes.imshow(image.clip(0, 1), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def encoded_image(image, label):
    """uint8 (H, W, 3) as FF sees it with `label`, moved back to [0, 1] to be shown.

    The block's -1 and 1 lie beyond what can be shown: they become black and white.
    """
    return ff.encode_labels(ff.normalise(image), label) + ff.CIFAR_MEAN


def box_label_block(axes, rows=ff.LABEL_ROWS, columns=ff.LABEL_LEN, linewidth=3):
    """Draw the cyan box around the label block, in the top left corner."""
    box = Rectangle((-0.5, -0.5), columns, rows, fill=False, clip_on=False)
    axes.add_patch(box).set(edgecolor=CYAN, linewidth=linewidth)


def plot_goodness(axes, args, epochs, arrays):
    """Goodness of each layer with true and with wrong labels, and theta, if it counts.

    arrays: of model.npz, by their names there; for plot_accuracies() too
    """
    for i, g in enumerate(arrays["ff_g_pos"]):
        axes.plot(epochs, g, label=f"layer {i}, true label", **LAYER_LOOKS[i])
    if args.loss == "threshold":
        name = f"threshold θ = {args.threshold:g}"
        axes.axhline(args.threshold, **REFERENCE, label=name)
    for i, g in enumerate(arrays["ff_g_neg"]):
        look = LAYER_LOOKS[i] | {"linestyle": "--", "markerfacecolor": "white"}
        axes.plot(epochs, g, label=f"layer {i}, wrong label", **look)
    axes.set_ylabel("goodness, mean(h²)")


def plot_accuracies(axes, epochs, arrays):
    """The accuracies of each learner, in percent, and chance."""
    keys = {name: name.lower().replace(" ", "_") for name in LEARNER_LOOKS}
    keys = {name: key for name, key in keys.items() if f"{key}_test_acc" in arrays}
    for name, key in keys.items():
        test, look = 100 * arrays[f"{key}_test_acc"], LEARNER_LOOKS[name]
        axes.plot(epochs, test, label=f"{name}, test", **look)
    axes.axhline(100 / ff.N_CLASSES, **REFERENCE, label="chance")
    for name, key in keys.items():
        train, look = 100 * arrays[f"{key}_train_acc"], LEARNER_LOOKS[name]
        look = look | {"linewidth": 1, "markerfacecolor": "white"}
        axes.plot(epochs, train, label=f"{name}, training", **look)
    axes.set_ylabel("accuracy, %")


def finish_curves(axes, first, last):
    """Whole epochs from first to last along x, about 12 markers, and a legend."""
    axes.set(xlabel="epoch", xlim=(first - 0.5, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for line in axes.lines:
        line.set_markevery(max(1, len(line.get_xdata()) // 12))
    add_legend(axes, columns=2)


def add_legend(axes, columns=1):
    """A legend above all that is drawn, where the axes have no numbers."""
    (low, high), ticks = axes.get_ylim(), axes.get_yticks()
    share = 0.06 + 0.1 * -(-len(axes.lines) // columns)  # of the height
    axes.set_ylim(low, high + (high - low) * share / (1 - share))
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.legend(loc="upper left", ncols=columns)


# -------------------------------------------------------- figures of a model


def example_images(args, images, labels):
    """The first image of each class, named. images uint8 (B, H, W, 3), labels (B,)."""
    figure = new_figure("The ten classes", args.dataset, 10, 4.9)
    for k, axes in enumerate(figure.subplots(2, 5).flat):
        axes.axis("off")
        axes.set_title(f"{k}  {args.classes[k]}")
        for image in images[labels == k][:1]:  # your own data may have none
            show_image(axes, image / 255)
    return figure


def example_label_encoded(args, image, label):
    """An image, uint8 (H, W, 3), raw, with its true label and with a wrong one."""
    wrong = (label + 5) % ff.N_CLASSES
    title, raw, encoded = "What the learners see", "BP", "FF"
    text = "the label block, magnified  →\nwhite +1, black −1"
    if args.label_input != "corner":
        title = "The label block (not used by this model)"
        raw, encoded = "FF and BP", "block"
        text = f"Instead of a block, this model\nhas weights for the label.\n\n{text}"
    figure = new_figure(title, args.dataset, 10, 5.4)
    (raw_axes, *uppers), (words, *lowers) = figure.subplots(2, 3, height_ratios=(4, 1))
    raw_axes.set_title(f"raw, for {raw}: {args.classes[label]}", fontsize=11.5)
    show_image(raw_axes, image / 255)
    words.axis("off")
    words.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    cases = ("positive: true", label), ("negative: wrong", wrong)
    for (name, k), upper, lower in zip(cases, uppers, lowers, strict=True):
        upper.set_title(f"{encoded}, {name} label {args.classes[k]}", fontsize=11.5)
        pixels = encoded_image(image, k)
        show_image(upper, pixels)
        show_image(lower, pixels[: ff.LABEL_ROWS, : ff.LABEL_LEN])
        box_label_block(upper)
        box_label_block(lower)
        lower.set_xticks(range(ff.N_CLASSES), args.classes, rotation=90, fontsize=10)
        lower.tick_params(length=0)
        lower.get_xticklabels()[k].set_weight("bold")
    return figure


# (row, column) in layer 0; the first three see the label block, or a part of it
POSITIONS = (0, 0), (1, 5), (2, 9), (0, 16), (11, 11), (21, 21)
SHOWN_CHANNELS = 4  # the first ones, unchosen
FULL_COLOUR = 6  # standard deviations of the initial weights


def receptive_fields(args, layer):
    """FF's layer-0 weights at six positions, the same channels at each, on one scale.

    The scale is set by the initial weights, so that fields that learned little show
    the faint noise they began with, unless most have grown far beyond them; strong
    weights go beyond it and are clipped.
    """
    R, W = layer.field, layer.get_weights()["W"]
    initial = np.sqrt(2 / W.shape[2])  # standard deviation, He-normal
    limit = max(FULL_COLOUR * initial, 2 * np.sqrt(np.mean(W**2)))
    rows, last = min(SHOWN_CHANNELS, layer.channels), layer.side - 1
    title = "Receptive fields of FF's layer 0"
    figure = new_figure(title, args.dataset, 10, 1.6 + 1.8 * rows)
    corner = args.label_input == "corner"
    grid = figure.subplots(rows, len(POSITIONS), squeeze=False)
    for column, position in zip(grid.T, POSITIONS, strict=True):
        i, j = np.minimum(position, last)
        for channel, axes in enumerate(column):
            weights = W[i, j, :, channel]
            show_image(axes, 0.5 + weights.reshape(R, R, ff.DEPTH) / (2 * limit))
            axes.spines[:].set(visible=True, color="0.7")
            in_sight = min(ff.LABEL_ROWS - i, R), min(ff.LABEL_LEN - j, R)
            if min(in_sight) > 0 and corner:
                box_label_block(axes, *in_sight, linewidth=2)
            strength = np.sqrt(np.mean(weights**2)) / initial
            axes.set_xlabel(f"rms ×{strength:.1f}", fontsize=10.5, labelpad=3)
        column[0].set_title(f"row {i},\ncolumn {j}", fontsize=11, loc="center")
    for channel, axes in enumerate(grid[:, 0]):
        axes.set_ylabel(f"channel {channel}", fontsize=11)
    note = ""
    if corner:
        note = "Cyan: where the label block lies in the field."
    elif layer.connections[0].padding:
        note = "Plain grey at an edge: beyond the image, no weights."
    if args.whiten:
        note = f"The input is whitened. {note}"
    scale = f"Grey 0, black and white ∓{limit:.2f}, {limit / initial:.0f} standard "
    scale += "deviations of the initial weights; rms in units of the initial one."
    figure.supxlabel(f"{scale}\n{note}".strip(), fontsize=10.5)
    return figure


def per_class_accuracy(args, accuracies, n_images):
    """Bars of measure_accuracies()'s result for the first n_images test images."""
    figure = new_figure("Test accuracy by class", args.dataset, 11, 4.9)
    axes = figure.subplots()
    width = 0.8 / len(accuracies)
    # The numbers of three bars stand close, and their names in two rows.
    size, columns = (10.5, 3) if len(accuracies) < 3 else (9, 2)
    for k, (name, (by_class, overall)) in enumerate(accuracies.items()):
        at = np.arange(ff.N_CLASSES) + (k - (len(accuracies) - 1) / 2) * width
        look = {"color": LEARNER_LOOKS[name]["color"], "hatch": LEARNER_HATCHES[name]}
        label = f"{name}, all classes: {100 * overall:.1f} %"
        bars = axes.bar(at, 100 * by_class, width, label=label, **look)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.bar_label(bars, fmt="{:.0f}", fontsize=size, padding=2, bbox=white)
    axes.axhline(100 / ff.N_CLASSES, **REFERENCE, zorder=0.5, label="chance: 10 %")
    axes.set_xlim(-0.6, ff.N_CLASSES - 0.4)
    axes.set_ylabel("accuracy, % of the class's images")
    axes.set_xticks(range(ff.N_CLASSES), args.classes)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    highest = max(np.nanmax(by_class) for by_class, _ in accuracies.values())
    axes.set(yticks=range(0, 101, 20), ylim=(0, 112 * max(highest, 0.2)))
    axes.set_title(f"of the first {n_images:,} test images")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns)
    return figure


def curves(args, arrays, n_train, n_test):
    """Accuracies, goodness and losses by epoch, from the arrays of model.npz.

    n_train: images that it was trained on; n_test: test images after each epoch
    """
    learners = "FF and BP" if args.bp_baseline else "FF"
    title = f"{learners}, {n_train:,} training images, seed {args.seed}"
    figure = new_figure(title, args.dataset, 11, 8.4)
    (top_left, top_right), (low_left, low_right) = figure.subplots(2, 2)
    epochs = np.arange(1, args.n_epochs + 1)

    plot_accuracies(top_left, epochs, arrays)
    seen = min(n_train, args.eval_subset)
    top_left.set_title(f"Accuracy, first {n_test:,} test, {seen:,} training images")
    top_left.set_ylim(bottom=0)

    plot_goodness(top_right, args, epochs, arrays)
    low = " (true: to be low)" if args.objective == "min" else ""
    top_right.set_title(f"FF: goodness, mean of the epoch{low}")

    for i, loss in enumerate(arrays["ff_loss_per_layer"]):
        low_left.plot(epochs, loss, label=f"layer {i}", **LAYER_LOOKS[i])
    passes = ff.N_CLASSES if args.negatives == "all" else 2
    sample, alike = "sample", "all goodness at θ"
    if args.loss == "softmax":
        sample, alike = "image", "all labels alike"
    low_left.axhline(np.log(passes), **REFERENCE, label=f"ln {passes}: {alike}")
    low_left.set(title="FF: loss, mean of the epoch", ylabel=f"loss per {sample}, nats")

    if args.bp_baseline:
        low_right.plot(epochs, arrays["bp_loss"], label="BP", **LEARNER_LOOKS["BP"])
        low_right.axhline(np.log(10), **REFERENCE, label="ln 10: chance")
        low_right.set_title("BP: loss, mean of the epoch")
        low_right.set_ylabel("cross-entropy per image, nats")
    else:
        low_right.set_title("no BP in this model: --bp-baseline")
        low_right.axis("off")
    for axes in (top_left, top_right, low_left, low_right):
        if axes.lines:
            finish_curves(axes, 1, args.n_epochs)
    return figure


SHOWN_ITERATIONS = 10  # as many as the paper runs, which predicts from WINDOW
SETTLING_IMAGES = 1000  # at most, as each takes all labels through all iterations


def settle(learner, images, labels):
    """How a recurrent network settles over n iterations, on uint8 (B, H, W, 3).

    Means over the images: the goodness (n, L) of the true label, of the best wrong one
    for that layer and iteration, and of all ten; the accuracy (n,) of an iteration alone.
    """
    n = SHOWN_ITERATIONS  # g: (n, L, N_CLASSES, B)
    g = ff.in_batches(lambda x: learner.goodness_by_iteration(x, n), images)
    at = np.s_[:, :, labels, np.arange(len(labels))]
    others = learner.sign * g
    alone = others.sum(axis=1).argmax(axis=1) == labels
    others[at] = -np.inf
    wrong = learner.sign * others.max(axis=2)
    return [x.mean(axis=-1) for x in (g[at], wrong, g.mean(axis=2), alone)]


def recurrent(args, learner, images, labels):
    """How a recurrent network settles on uint8 images (B, H, W, 3)."""
    true, wrong, average, alone = settle(learner, images, labels)
    title = f"The recurrent network settles, {len(labels):,} test images"
    figure = new_figure(title, args.dataset, 11, 8.2)
    extreme = "highest" if args.objective == "max" else "lowest"
    first, *_, last = ff.WINDOW
    iterations = np.arange(1, SHOWN_ITERATIONS + 1)
    layers = range(args.n_layers)
    panels = figure.subplot_mosaic([[*layers], ["accuracy"] * len(layers)])
    for i in layers:
        axes, look = panels[i], LAYER_LOOKS[i]
        axes.plot(iterations, (true - average)[:, i], label="true label", **look)
        look = look | {"linestyle": "--", "markerfacecolor": "white"}
        label = f"{extreme} wrong label"
        axes.plot(iterations, (wrong - average)[:, i], label=label, **look)
        ends = f"{average[0, i]:.2f} → {average[-1, i]:.2f}"
        axes.set_title(f"Layer {i}, average {ends}")
    panels[0].set_ylabel("goodness, mean(h²),\nabove average")

    axes, look = panels["accuracy"], LEARNER_LOOKS["FF"]
    axes.plot(iterations, 100 * alone, label="one iteration alone", **look)
    for method, name, color, style in (
        ("predict", f"mean of iterations {first} to {last}", BLUE, ":"),
        ("predict_one_pass", "one pass, the classifier", GREEN, "-."),
    ):
        value = 100 * ff.accuracy(learner, images, labels, method)
        name += f": {value:.1f} %"
        axes.axhline(value, color=color, linestyle=style, label=name)
    axes.set(title="Accuracy, all layers summed", ylabel="accuracy, %")
    for axes in panels.values():
        add_legend(axes)
        axes.axvspan(first - 0.5, last + 0.5, color="0.92", zorder=0)
        axes.set(xlabel="iteration", xlim=(0.5, SHOWN_ITERATIONS + 0.5))
        axes.set_xticks(iterations)
        axes.grid(False, axis="x")
    figure.supxlabel(
        "Above average: less the average of an image's ten labels, which the layers' "
        "titles give for the first and last iteration.\n"
        f"{extreme.capitalize()} wrong label: of nine, for each image, layer and "
        f"iteration. Grey: iterations {first} to {last}, whose mean predicts.",
        fontsize=10.5,
    )
    return figure


# --------------------------------------------------------- figure of many runs

FULL_TEST = {  # names in model.npz
    "FF": "ff_full_test_acc",
    "FF one pass": "ff_full_test_one_pass_acc",
    "BP": "bp_full_test_acc",
}


def read_runs(paths):
    """The data of saved runs, and their accuracies in percent: {row: {learner: list}}.

    A row is named by its files, without their seeds: best-0.npz and best-1.npz are
    two seeds of "best".
    """
    if len({path.stem for path in paths}) < len(paths):
        raise ff.RunError("two files of the same name: each run counts once")
    rows, first = {}, None
    for path in paths:
        advice = f"make one with {ff.MAKE_MODEL}"
        with ff.reading(path, "model", "config", advice) as arrays:
            dataset = json.loads(str(arrays["config"]))["arguments"]["dataset"]
            tested = {n: float(arrays[k]) for n, k in FULL_TEST.items() if k in arrays}
        if "FF" not in tested:
            raise ff.RunError(f"{path} was not made with --full-test")
        if dataset != (first := first or dataset):
            raise ff.RunError(f"{paths[0]} and {path} are of different data")
        row = rows.setdefault(re.sub(r"-\d+$", "", path.stem), {})
        for name, accuracy in tested.items():
            row.setdefault(name, []).append(100 * accuracy)
    return dataset, rows


def closing_the_gap(dataset, rows):
    """Test accuracies of FF and BP seed by seed, and their means; see read_runs()."""
    title = "Closing the gap: all test images"
    figure = new_figure(title, dataset, 11, 1.9 + 0.55 * len(rows))
    axes = figure.subplots()
    for y, accuracies in enumerate(rows.values()):
        means = [np.mean(values) for values in accuracies.values()]
        axes.plot([min(means), max(means)], [y, y], color="0.8", lw=3, zorder=1)
        for k, (name, values) in enumerate(accuracies.items()):
            look, mean = LEARNER_LOOKS[name], means[k]
            at = y + 0.28 * (k - (len(means) - 1) / 2)  # no overlap
            axes.plot(mean, at, look["marker"], color=look["color"], ms=8, zorder=2)
            axes.plot(values, [at] * len(values), ".", color="0.2", ms=4, zorder=3)
            end, side, ha = min(values), -1, "right"
            if mean > min(means):
                end, side, ha = max(values), 1, "left"
            place = {"xytext": (10 * side, 0), "textcoords": "offset points", "ha": ha}
            text = {"color": look["color"], "size": 10.5, "va": "center"}
            axes.annotate(f"{mean:.1f}", (end, at), **place, **text)
    for name, look in LEARNER_LOOKS.items():
        if any(name in accuracies for accuracies in rows.values()):
            look = look | {"linestyle": "none", "markersize": 8}
            axes.plot([], [], label=f"{name}, mean", **look)
    axes.plot([], [], ".", color="0.2", ms=4, label="one seed")
    axes.axvline(100 / ff.N_CLASSES, **REFERENCE, label="chance")
    axes.set_yticks(range(len(rows)), rows)
    # The first row is on top.
    axes.set(xlabel="test accuracy, %", ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    # Above the axes, where it can cover no point.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5)
    return figure


# ------------------------------------------------------------- command line


def get_model(args, usual):
    """The learners by name, arguments, arrays and data of a saved model, or of a new one;
    usual: the arguments of a command line without flags."""
    try:
        learners, saved, arrays = ff.load_model(args.model)
    except ff.NoFile:
        data = ff.load_data(args)
        ff.tell(f"{args.model} does not exist: training a model, which is not saved")
        learners, arrays = ff.run(args, data)
        return {learner.name: learner for learner in learners}, args, arrays, data
    if saved.dataset not in ("auto", *DATA_NAMES):
        raise ff.RunError(
            f"{args.model} is of {saved.dataset}, which no script can load; with DATA, "
            "its four arrays, and viz, this module, Python draws it: "
            "viz.write_figures(viz.draw_model(*ff.load_model(FILE), DATA), FOLDER)"
        )
    saved.cache_dir = args.cache_dir
    data = ff.load_data(saved)
    for name, theirs in ff.training_values(saved).items():
        if getattr(args, name) not in (theirs, getattr(usual, name)):
            ff.tell(f"{args.model} was made with {name} = {theirs}, which is used")
    return learners, saved, arrays, data


def measure_accuracies(learners, images, labels):
    """{name: (accuracy by class (N_CLASSES,), overall)}, fractions; nan: no images."""
    accuracies = {}
    for learner in learners.values():
        for name, (method, _) in learner.ways.items():
            predictions = ff.in_batches(getattr(learner, method), images)
            by_class = ff.class_accuracies(predictions, labels)
            by_class[np.bincount(labels, minlength=ff.N_CLASSES) == 0] = np.nan
            accuracies[name] = by_class, np.mean(predictions == labels)
    return accuracies


def print_accuracies(args, accuracies, labels):
    headings = "".join(f"{name + ' %':>14}" for name in accuracies)
    ff.tell(f"{'class':12}{'images':>8}{headings}")
    counts = [*np.bincount(labels, minlength=ff.N_CLASSES), len(labels)]
    columns = [[*by_class, overall] for by_class, overall in accuracies.values()]
    for name, count, *values in zip([*args.classes, "all"], counts, *columns):
        row = "".join(f"{100 * value:14.1f}" for value in values)
        ff.tell(f"{name:12}{count:8}" + row.replace("nan", "  -"))


def draw_model(learners, args, arrays, data, n_images=ff.N_TEST):
    """The figures of a model, {name: function that draws it}; prints its accuracies.

    learners, args, arrays: of ff.load_model(); data: the model's, as of ff.load_data();
    n_images: test images that are looked at, the first ones
    """
    train_x, _, test_x, test_y = data
    images, labels = test_x[:n_images], test_y[:n_images]
    accuracies, FF = measure_accuracies(learners, images, labels), learners["FF"]
    print_accuracies(args, accuracies, labels)
    counts = len(train_x[: args.train_subset]), len(test_x[: args.eval_subset])
    figures = {
        "example_images": (example_images, test_x, test_y),
        "example_label_encoded": (example_label_encoded, test_x[0], test_y[0]),
        "receptive_fields_layer0": (receptive_fields, FF.layers[0]),
        "per_class_accuracy": (per_class_accuracy, accuracies, len(labels)),
        "ff_vs_bp_curves": (curves, arrays, *counts),
    }
    if args.recipe == "recurrent":
        few = images[:SETTLING_IMAGES], labels[:SETTLING_IMAGES]
        figures["recurrent"] = (recurrent, FF, *few)
    return {name: partial(draw, args, *of) for name, (draw, *of) in figures.items()}


def write_figures(figures, outdir):
    """Draw figures, {name: function that draws it}, into a folder that exists."""
    # "default": the user's own settings must not change the figures.
    with matplotlib.style.context(["default", STYLE]):
        for name, draw in figures.items():
            path = Path(outdir, f"{name}.png")
            if ff.write_whole(path, partial(draw().savefig, format="png"), keep=True):
                ff.tell(f"wrote {path}")


def main():
    parser = ff.Parser(
        "Draw the figures of a saved model, or of one that is trained for them.",
        "python3 visualize_ff_cifar_locally_connected.py --model model.npz",
    )
    what = parser.add_mutually_exclusive_group()
    help = "file made with --save; a model is trained where it is missing"
    help += " (default: %(default)s)"
    what.add_argument("--model", type=Path, default="model.npz", help=help)
    help = "draw closing_the_gap.png instead: a row for each NAME of runs NAME-SEED.npz"
    what.add_argument("--runs", type=Path, nargs="+", metavar="FILE", help=help)
    help = "draw receptive_fields_NAME.png of this NAME.npz instead"
    what.add_argument("--receptive-fields", type=Path, metavar="FILE", help=help)
    help = "test images that are looked at; for recurrent.png the first "
    help += f"{SETTLING_IMAGES} of them (default: %(default)s)"
    count = {"type": ff.number(int, 1, ff.N_TEST), "default": ff.N_TEST}
    parser.add_argument("--per-class-test-subset", **count, metavar="N", help=help)
    help = "folder of the figures, made if there is none (default: %(default)s)"
    parser.add_argument("--outdir", type=Path, default="viz", metavar="DIR", help=help)
    ff.add_training_flags(parser)
    parser.set_defaults(bp_baseline=True)
    usual, args = ff.parse(parser, []), ff.parse(parser)
    own = {name: vars(args)[name] for name in ("runs", "receptive_fields", "outdir")}
    if (args.runs or args.receptive_fields) and vars(args) != vars(usual) | own:
        parser.error("--runs and --receptive-fields go with --outdir alone")
    try:
        args.outdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.outdir).close()
    except OSError as error:
        parser.error(f"--outdir {args.outdir}: {error.strerror or error}")

    if args.runs:
        dataset, rows = read_runs(args.runs)
        figures = {"closing_the_gap": partial(closing_the_gap, dataset, rows)}
    elif path := args.receptive_fields:
        learners, trained, _ = ff.load_model(path)
        draw = partial(receptive_fields, trained, learners["FF"].layers[0])
        dataset, figures = trained.dataset, {f"receptive_fields_{path.stem}": draw}
    else:
        learners, trained, *others = get_model(args, usual)
        figures = draw_model(learners, trained, *others, args.per_class_test_subset)
        dataset = trained.dataset
    ff.TAG = "[synthetic] " if dataset == "synthetic" else ""
    write_figures(figures, args.outdir)


if __name__ == "__main__":
    ff.command(main)
