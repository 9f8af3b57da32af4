# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "matplotlib>=3.8.4", "pillow>=10.1"]
# ///
"""Draw the figures of viz/ from a model that was saved with --save.

    python3 visualize_ff_cifar_locally_connected.py --model model.npz

What stands in viz/ already, the repository's own pictures, is replaced: to keep it,
give another --outdir. The accuracies by class are computed anew from the weights. Where
the model file is missing, FF and BP are trained with the training flags, drawn, and not
saved. Of a recurrent network viz/recurrent.png is drawn too: how it settles.
With --runs FILES, viz/closing_the_gap.png is drawn instead: a row for each NAME of
files NAME-SEED.npz. With --receptive-fields NAME.npz it is receptive_fields_NAME.png,
of layer 0 of another model. With the headline model, the last lines are:

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
WRONG = {"linestyle": "--", "markerfacecolor": "white"}  # labels, over LAYER_LOOKS
REFERENCE = {"color": "0.35", "linestyle": ":", "linewidth": 1.4}  # chance, theta
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
    """An empty figure (inches) whose title names the data, your own as you do."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(f"{title} · {DATA_NAMES.get(dataset, dataset)}")
    return figure


def show_image(axes, image):
    """Show pixels (H, W, 3) in [0, 1], of an image or of anything like one."""
    axes.imshow(image.clip(0, 1), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def encoded_image(image, label):
    """uint8 (H, W, 3) as FF sees it with `label`, but for --whiten, and in [0, 1].

    The block's -1 and 1 lie beyond what can be shown: they become black and white.
    """
    return ff.encode_labels(ff.normalise(image), label) + ff.CIFAR_MEAN


def box_label_block(axes, rows=ff.LABEL_ROWS, columns=ff.LABEL_LEN, linewidth=3):
    """Draw the cyan box around the label block, in the top left corner."""
    box = Rectangle((-0.5, -0.5), columns, rows, fill=False, clip_on=False)
    axes.add_patch(box).set(edgecolor="cyan", linewidth=linewidth)


def plot_goodness(axes, args, epochs, arrays):
    """Goodness of each layer with true and with wrong labels, and theta; with --loss
    softmax, to which it counts in comparison alone, the difference, which is small.
    arrays: of model.npz, by their names there; for plot_accuracies() too"""
    true, wrong = arrays["ff_g_pos"], arrays["ff_g_neg"]
    if args.loss == "softmax":
        for i, g in enumerate(true - wrong):
            axes.plot(epochs, g, label=f"layer {i}, difference", **LAYER_LOOKS[i])
        axes.axhline(0, **REFERENCE, label="no difference")
        axes.set_ylabel("mean(h²), true − wrong")
        return
    for i, g in enumerate(true):
        axes.plot(epochs, g, label=f"layer {i}, true label", **LAYER_LOOKS[i])
    name = f"threshold θ = {args.threshold:g}"
    axes.axhline(args.threshold, **REFERENCE, label=name)
    for i, g in enumerate(wrong):
        axes.plot(epochs, g, label=f"layer {i}, wrong label", **LAYER_LOOKS[i] | WRONG)
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


def finish_curves(axes, first, last, **legend):
    """Whole epochs from first to last along x, at most 23 markers, and a legend."""
    axes.set(xlabel="epoch", xlim=(first - 0.5, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for line in axes.lines:
        line.set_markevery(max(1, len(line.get_xdata()) // 12))
    add_legend(axes, columns=2, **legend)


def add_legend(axes, columns=1, row=0.1):
    """A legend above all that is drawn; row: the height of its rows, in that of axes."""
    (low, high), ticks = axes.get_ylim(), axes.get_yticks()
    share = 0.06 + row * -(-len(axes.lines) // columns)  # where axes have no numbers
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
    title = "What the learners see" + ", unwhitened" * args.whiten
    figure = new_figure(title, args.dataset, 10, 5.4)
    (raw_axes, *uppers), (words, *lowers) = figure.subplots(2, 3, height_ratios=(4, 1))
    raw_axes.set_title(f"raw, for BP: {args.classes[label]}", fontsize=11.5)
    show_image(raw_axes, image / 255)
    words.axis("off")
    text = "the label block, magnified  →\nwhite +1, black −1"
    words.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    cases = ("positive: true", label), ("negative: wrong", (label + 5) % ff.N_CLASSES)
    for (name, k), upper, lower in zip(cases, uppers, lowers, strict=True):
        upper.set_title(f"FF, {name} label {args.classes[k]}", fontsize=11.5)
        pixels = encoded_image(image, k)
        show_image(upper, pixels)
        show_image(lower, pixels[: ff.LABEL_ROWS, : ff.LABEL_LEN])
        box_label_block(upper)
        box_label_block(lower)
        lower.set_xticks(range(ff.N_CLASSES), args.classes, rotation=90, fontsize=10)
        lower.tick_params(length=0)
        lower.get_xticklabels()[k].set_weight("bold")
    return figure


# (row, column) in layer 0; the first three see the label block, or a part of it. Without
# a block: shares of the way to the last row and column, all over the image.
POSITIONS = (0, 0), (1, 5), (2, 9), (0, 16), (11, 11), (21, 21)
SHARES = (0.2, 0.2), (0.2, 0.5), (0.2, 0.8), (0.8, 0.2), (0.8, 0.5), (0.8, 0.8)


def in_pixels(W, kernel):
    """Weights (..., R, R, 3) of what ff.filtered() makes with kernel (F, F, 3, 3), as
    weights (..., R + F - 1, R + F - 1, 3) of what it is made from."""
    R, F = W.shape[-2], len(kernel)
    result = np.zeros((*W.shape[:-3], R + F - 1, R + F - 1, ff.DEPTH))
    for i, j in np.ndindex(F, F):
        result[..., i : i + R, j : j + R, :] += W @ kernel[i, j].T
    return result


def receptive_fields(args, learner):
    """FF's layer-0 weights at six positions, the same channels at each, on one scale.

    Those of whitened pixels are drawn as weights of the pixels themselves. The scale is
    set by the initial weights, so that fields that learned little show the faint noise
    they began with, unless most have grown far beyond them; strong ones are clipped.
    """
    layer, corner = learner.layers[0], args.label_input == "corner"
    R, W, last = layer.field, learner.weights()["ff_layer0_W"], layer.side - 1
    positions = np.rint(np.multiply(SHARES, last)).astype(int)
    note, kernel = f"Rows and columns 0 to {last}.", np.eye(ff.DEPTH)[None, None]
    if corner:  # the block is written into the whitened image: no weights of pixels
        positions = np.minimum(POSITIONS, last)
        what = "whitened field" if args.whiten else "field"
        note += f" Cyan: where the label block lies in the {what}."
    elif args.whiten:
        kernel = learner.whitening
        note += f" Seen through the whitening; the middle {R}x{R} are the unit's own."
    fields = in_pixels(np.moveaxis(W, 3, 2).reshape(*W.shape[:2], -1, R, R, 3), kernel)
    # The root mean square that a field begins with: He-normal weights, filtered.
    initial = np.sqrt(2 / 3 * np.sum(kernel**2) / fields[0, 0, 0].size)
    limit = max(6 * initial, 2 * np.sqrt(np.sum(fields**2) / W.size))
    rows = min(4, layer.channels)  # the first ones of the first column, unchosen
    title = f"Receptive fields of FF's layer 0, recipe {args.recipe}"
    figure = new_figure(title, args.dataset, 10, 1.6 + 1.8 * rows)
    grid = figure.subplots(rows, len(positions), squeeze=False)
    for column, (i, j) in zip(grid.T, positions, strict=True):
        for weights, axes in zip(fields[i, j], column):
            show_image(axes, 0.5 + weights / (2 * limit))
            axes.spines[:].set(visible=True, color="0.7")
            in_sight = min(ff.LABEL_ROWS - i, R), min(ff.LABEL_LEN - j, R)
            if min(in_sight) > 0 and corner:
                box_label_block(axes, *in_sight, linewidth=2)
            strength = np.sqrt(np.mean(weights**2)) / initial
            axes.set_xlabel(f"rms ×{strength:.1f}", fontsize=10.5, labelpad=3)
        column[0].set_title(f"row {i},\ncolumn {j}", fontsize=11, loc="center")
    for channel, axes in enumerate(grid[:, 0]):
        axes.set_ylabel(f"channel {channel}", fontsize=11)
    scale = f"Grey 0, black and white ∓{limit:.2f}, {limit / initial:.0f} times the "
    scale += "initial weights' rms, which is ×1."
    figure.supxlabel(f"{scale}\n{note}", fontsize=10.5)
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
    axes.set(ylabel="accuracy in the class, %", xlim=(-0.6, ff.N_CLASSES - 0.4))
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
            finish_curves(axes, 1, args.n_epochs, row=0.065)
    return figure


def settle(learner, images, labels):
    """How a recurrent network settles over n iterations, on uint8 (B, H, W, 3).

    Means over the images: the goodness (n, L) of the true label, of the best wrong one
    for that layer and iteration, and of all ten; the accuracy (n,) of an iteration alone.
    """
    n = 10  # as many as the paper runs, which predicts from WINDOW
    g = ff.in_batches(lambda x: learner.goodness_by_iteration(x, n), images)
    at = np.s_[:, :, labels, np.arange(len(labels))]  # of g (n, L, N_CLASSES, B)
    scores = learner.sign * g
    alone = scores.sum(axis=1).argmax(axis=1) == labels
    scores[at] = -np.inf  # leaves the wrong labels
    wrong = learner.sign * scores.max(axis=2)
    return [x.mean(axis=-1) for x in (g[at], wrong, g.mean(axis=2), alone)]


def recurrent(args, learner, images, labels):
    """How a recurrent network settles on uint8 images (B, H, W, 3)."""
    true, wrong, average, alone = settle(learner, images, labels)
    title = f"The recurrent network settles, {len(labels):,} test images"
    figure = new_figure(title, args.dataset, 11, 8.2)
    extreme = "highest" if args.objective == "max" else "lowest"
    first, *_, last = ff.WINDOW
    iterations, layers = np.arange(1, len(alone) + 1), range(args.n_layers)
    panels = figure.subplot_mosaic([[*layers], ["accuracy"] * len(layers)])
    for i in layers:
        axes, look = panels[i], LAYER_LOOKS[i]
        axes.plot(iterations, (true - average)[:, i], label="true label", **look)
        label = f"{extreme} wrong label"
        axes.plot(iterations, (wrong - average)[:, i], label=label, **look | WRONG)
        axes.set_title(f"Layer {i}, average {average[0, i]:.2f} → {average[-1, i]:.2f}")
    panels[0].set_ylabel("goodness, mean(h²),\nabove average")

    axes, look = panels["accuracy"], LEARNER_LOOKS["FF"]
    axes.plot(iterations, 100 * alone, label="one iteration alone", **look)
    for method, name, color, style in (
        ("predict", f"mean of iterations {first} to {last}", BLUE, ":"),
        ("predict_one_pass", "one pass, the classifier", GREEN, "-."),
    ):
        value = 100 * ff.accuracy(learner, images, labels, method)
        axes.axhline(value, label=f"{name}: {value:.1f} %", color=color, ls=style)
    axes.set(title="Accuracy, all layers summed", ylabel="accuracy, %")
    for axes in panels.values():
        add_legend(axes)
        axes.axvspan(first - 0.5, last + 0.5, color="0.92", zorder=0)
        axes.set(xlabel="iteration", xlim=(0.5, len(alone) + 0.5))
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

FULL_TEST = "ff_full_test_acc", "ff_full_test_one_pass_acc", "bp_full_test_acc"
ROWS = {  # how the figure calls the README's runs, in their order
    "headline": "headline: 10,000 images, label in a corner",
    "random-labels": "label to every unit, random wrong labels",
    "hard-labels": "hard wrong labels",
    "ten-labels": "all ten labels at once",
    "ten-labels-1": "one layer, all ten labels at once",
    "recurrent": "Hinton's recurrent network",
    "recurrent-50000": "Hinton's recurrent network, 50,000 images",
    "one-layer": "one layer, 50,000 images, 20 epochs",
    "whitened": "one layer, whitened, 6 epochs",
    "second-layer": "two layers, 6 epochs",
    "third-layer": "three layers, 6 epochs",
    "one-column": "two layers, 90 epochs",
    "four-columns": "four columns of two layers, 50 epochs",
    "best": "best: two columns of two layers, 90 epochs",
}


def read_runs(paths):
    """The data of saved runs, and their accuracies in percent: {row: {learner: list}}.

    A row is named by its files, without their seeds: best-0.npz and best-1.npz are
    two seeds of "best". The README's own come first, in its order.
    """
    if len({path.stem for path in paths}) < len(paths):
        raise ff.RunError("two files of the same name: each run counts once")
    rows, first = {}, None
    for path in paths:
        advice = f"make one with {ff.MAKE_MODEL}"
        with ff.reading(path, "model", "config", advice) as arrays:
            dataset = json.loads(str(arrays["config"]))["arguments"]["dataset"]
            keys = zip(LEARNER_LOOKS, FULL_TEST)
            tested = {name: float(arrays[key]) for name, key in keys if key in arrays}
        if "FF" not in tested:
            raise ff.RunError(f"{path} was not made with --full-test")
        if dataset != (first := first or dataset):
            raise ff.RunError(f"{paths[0]} and {path} are of different data")
        row = rows.setdefault(re.sub(r"-\d+$", "", path.stem), {})
        for name, accuracy in tested.items():
            row.setdefault(name, []).append(100 * accuracy)
    return dataset, {name: rows[name] for name in ROWS | rows if name in rows}


def closing_the_gap(dataset, rows):
    """Test accuracies of FF and BP seed by seed, and their means; see read_runs()."""
    title = "Closing the gap: all test images"
    figure = new_figure(title, dataset, 11, 1.4 + 0.24 * len(rows))
    names = [n for n in LEARNER_LOOKS if any(n in row for row in rows.values())]
    axes, table = figure.subplots(1, 2, sharey=True, width_ratios=(14, len(names)))
    table.axis("off")
    table.set_xlim(-0.5, len(names) - 0.5)
    text = {"fontsize": 10.5, "ha": "center", "va": "center"}
    for k, name in enumerate(names):
        look = LEARNER_LOOKS[name] | {"linestyle": "none", "markersize": 6.5}
        axes.plot([], [], label=f"{name}, mean", **look)
        table.plot(k, -1.1, clip_on=False, **look)
        for y, row in enumerate(rows.values()):
            if values := row.get(name):
                mean, at = np.mean(values), y + 0.25 * (k - (len(names) - 1) / 2)
                axes.plot(mean, at, **look)
                axes.plot(values, [at] * len(values), ".", color="0.2", markersize=3)
                table.text(k, y, f"{mean:.1f}", color=look["color"], **text)
    axes.plot([], [], ".", color="0.2", markersize=3, label="one seed")
    axes.set_yticks(range(len(rows)), [ROWS.get(row, row) for row in rows])
    # The first row is on top.
    axes.set(xlabel="test accuracy, %", ylim=(len(rows) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0, labelsize=10.5)
    # Above the axes, where it can cover no point.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
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
        "receptive_fields_layer0": (receptive_fields, FF),
        "per_class_accuracy": (per_class_accuracy, accuracies, len(labels)),
        "ff_vs_bp_curves": (curves, arrays, *counts),
    }
    if args.label_input != "corner":
        del figures["example_label_encoded"]  # it has no block
    if args.recipe == "recurrent":
        figures["recurrent"] = recurrent, FF, images, labels
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
    help = "file made with --save; if missing, one is trained (default: %(default)s)"
    what.add_argument("--model", type=Path, default="model.npz", help=help)
    help = "draw closing_the_gap.png instead: a row for each NAME of runs NAME-SEED.npz"
    what.add_argument("--runs", type=Path, nargs="+", metavar="FILE", help=help)
    help = "draw receptive_fields_NAME.png of this NAME.npz instead"
    what.add_argument("--receptive-fields", type=Path, metavar="FILE", help=help)
    help = "test images that are looked at, the first ones (default: %(default)s)"
    count = {"type": ff.number(int, 1, ff.N_TEST), "default": ff.N_TEST}
    parser.add_argument("--per-class-test-subset", **count, metavar="N", help=help)
    help = "folder of the figures, whose own are replaced (default: %(default)s)"
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
        draw = partial(receptive_fields, trained, learners["FF"])
        dataset, figures = trained.dataset, {f"receptive_fields_{path.stem}": draw}
    else:
        learners, trained, *others = get_model(args, usual)
        figures = draw_model(learners, trained, *others, args.per_class_test_subset)
        dataset = trained.dataset
    ff.TAG = "[synthetic] " if dataset == "synthetic" else ""
    write_figures(figures, args.outdir)


if __name__ == "__main__":
    ff.command(main)
