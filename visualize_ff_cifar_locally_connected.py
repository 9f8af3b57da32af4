# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "matplotlib>=3.8.4", "pillow>=10.1"]
# ///
"""Draw the figures of viz/ from a model that was saved with --save.

    python3 visualize_ff_cifar_locally_connected.py --model model.npz

The accuracies by class are computed anew from the model's weights. Where the model
file is missing, FF and BP are trained with the training flags, drawn, and not saved.
Of a recurrent network viz/recurrent.png is drawn too: how it settles.
With --runs FILES, viz/closing_the_gap.png is drawn of these models instead, with
--receptive-fields NAME.npz viz/receptive_fields_NAME.png, of layer 0 of another model,
and with --data-movement FILE, which tests/data_movement.py --out writes,
viz/data_movement.png.
With the headline model, the last lines are:

    ship            1000      7.7     33.7
    truck           1000     16.0     37.9
    all            10000     24.8     35.8
    wrote viz/example_images.png
    wrote viz/example_label_encoded.png
    wrote viz/receptive_fields_layer0.png
    wrote viz/per_class_accuracy.png
    wrote viz/ff_vs_bp_curves.png
"""

import argparse
import io
import itertools
import json
import os
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

import ff_cifar_locally_connected as ff  # before numpy: it sets the threads of BLAS

if __name__ == "__main__":
    # A notebook exports the name of its backend, and where that is not installed,
    # matplotlib's import fails. No backend is needed to write files.
    os.environ.pop("MPLBACKEND", None)

# isort: split
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

# -------------------------------------------------------------------- style
# Colours of Okabe and Ito, which colour-blind people can tell apart. What a colour
# says is always said a second time, by a line style, a marker, a hatch or a word.

SKY, ORANGE, PURPLE, GREEN = "#56b4e9", "#e69f00", "#cc79a7", "#009e73"
LEARNER_LOOKS = {
    "FF": {"color": "#0072b2", "linestyle": "-", "marker": "o"},
    "FF one pass": {"color": GREEN, "linestyle": "-.", "marker": "^"},
    "BP": {"color": "#d55e00", "linestyle": "--", "marker": "s"},
}
LEARNER_HATCHES = {"FF": "", "FF one pass": "...", "BP": "///"}
LAYER_LOOKS = (
    {"color": SKY, "marker": "o"},
    {"color": PURPLE, "marker": "D"},
    {"color": ORANGE, "marker": "^"},
    {"color": GREEN, "marker": "v"},
)
AVERAGE = {"color": "0.35", "linewidth": 0.8, "zorder": 1.5}
REFERENCE = {"color": "0.35", "linestyle": ":", "linewidth": 1.4}  # chance, theta
CYAN = "#00ffff"  # the label block

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
}


def new_figure(title, args, width, height):
    """An empty figure (inches) whose title names the data that it shows, if any."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(f"{title} · {data_name(args)}" if args else title)
    return figure


def data_name(args):
    return "CIFAR-10" if args.dataset == "cifar10" else "SYNTHETIC DATA, not CIFAR-10"


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
    box.set(edgecolor=CYAN, linewidth=linewidth)
    axes.add_patch(box)


def mark_every(points):
    """Markers on at most about 12 of a curve's points."""
    return max(1, points // 12)


# ------------------------------------------------------------------ figures


def example_images(args, images, labels):
    """The first image of each class, named. images uint8 (B, H, W, 3), labels (B,)."""
    figure = new_figure("The ten classes", args, 10, 4.9)
    for k, axes in enumerate(figure.subplots(2, 5).flat):
        show_image(axes, images[np.argmax(labels == k)] / 255)
        axes.set_title(f"{k}  {ff.CLASSES[k]}")
    return figure


def example_label_encoded(args, image, label):
    """An image, uint8 (H, W, 3), raw, with its true label and with a wrong one."""
    wrong = (label + 5) % ff.N_CLASSES
    title, raw, seen = "What the learners see", "BP", "FF"
    text = "the label block, magnified  →\nwhite +1, black −1"
    if args.label_input != "corner":
        title = "The label block (not used by this model)"
        raw, seen = "FF and BP", "block"
        units = "the last layer" if args.label_input == "top" else "every unit"
        text = (
            f"Instead of a block, this model has\nlabel weights in {units}.\n\n{text}"
        )
    figure = new_figure(title, args, 10, 5.4)
    panels = (
        (f"raw, for {raw}: {ff.CLASSES[label]}", None),
        (f"{seen}, positive: true label {ff.CLASSES[label]}", label),
        (f"{seen}, negative: wrong label {ff.CLASSES[wrong]}", wrong),
    )
    grid = figure.subplots(2, 3, height_ratios=(4, 1))
    for (title, written), (axes, block) in zip(panels, grid.T, strict=True):
        axes.set_title(title, fontsize=11.5)
        if written is None:
            show_image(axes, image / 255)
            block.axis("off")
            block.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
            continue
        pixels = encoded_image(image, written)
        show_image(axes, pixels)
        box_label_block(axes)
        show_image(block, pixels[: ff.LABEL_ROWS, : ff.LABEL_LEN])
        box_label_block(block)
        block.set_xticks(range(ff.N_CLASSES), ff.CLASSES, rotation=90, fontsize=10)
        block.tick_params(length=0)
        block.get_xticklabels()[written].set_weight("bold")
    return figure


# Layer-0 positions (row, column): the first three see the label block, or a part of
# it; the others do not.
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
    figure = new_figure(title, args, 10, 1.6 + 1.8 * rows)
    corner = args.label_input == "corner"
    note = ""
    if corner:
        note = "Cyan: where the label block lies in the field."
    elif layer.connections[0].padding:
        note = "Plain grey at an edge: beyond the image, no weights."
    if args.whiten:
        note = f"The input is whitened. {note}"
    grid = figure.subplots(rows, len(POSITIONS), squeeze=False)
    for column, position in zip(grid.T, POSITIONS, strict=True):
        i, j = np.minimum(position, last)
        for channel, axes in enumerate(column):
            weights = W[i, j, :, channel]
            show_image(axes, 0.5 + weights.reshape(R, R, ff.DEPTH) / (2 * limit))
            axes.spines[:].set(visible=True, color="0.7")
            seen = min(ff.LABEL_ROWS - i, R), min(ff.LABEL_LEN - j, R)
            if min(seen) > 0 and corner:
                box_label_block(axes, *seen, linewidth=2)
            strength = np.sqrt(np.mean(weights**2)) / initial
            axes.set_xlabel(f"rms ×{strength:.1f}", fontsize=10.5, labelpad=3)
        column[0].set_title(f"row {i},\ncolumn {j}", fontsize=11, loc="center")
    for channel, axes in enumerate(grid[:, 0]):
        axes.set_ylabel(f"channel {channel}", fontsize=11)
    figure.supxlabel(
        f"One colour scale: grey 0, black and white ∓{limit:.2f}, {limit / initial:.0f} "
        "standard deviations of the initial weights; red, green and blue\nare the "
        "input's. rms: in units of the initial one, ×1.0 = as strong as it began. "
        + note,
        fontsize=10.5,
    )
    return figure


def per_class_accuracy(args, accuracies, n_images):
    """Bars of measure_accuracies()'s result for the first n_images test images."""
    figure = new_figure("Test accuracy by class", args, 11, 4.9)
    axes = figure.subplots()
    width = 0.8 / len(accuracies)
    for k, (name, (by_class, overall)) in enumerate(accuracies.items()):
        bars = axes.bar(
            np.arange(ff.N_CLASSES) + (k - (len(accuracies) - 1) / 2) * width,
            100 * by_class,
            width,
            color=LEARNER_LOOKS[name]["color"],
            hatch=LEARNER_HATCHES[name],
            label=f"{name}, all classes: {100 * overall:.1f} %",
        )
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.bar_label(bars, fmt="{:.0f}", fontsize=10.5, padding=2, bbox=white)
    axes.axhline(100 / ff.N_CLASSES, **REFERENCE, zorder=0.5, label="chance: 10 %")
    axes.set_xlim(-0.6, ff.N_CLASSES - 0.4)
    axes.set_xticks(range(ff.N_CLASSES), ff.CLASSES)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    highest = max(np.nanmax(by_class) for by_class, _ in accuracies.values())
    axes.set(yticks=range(0, 101, 20), ylim=(0, 112 * max(highest, 0.2)))
    axes.set_ylabel("accuracy, % of the class's images")
    axes.set_title(f"of the first {n_images:,} test images")
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3 if len(accuracies) < 3 else 2,  # one row, or two
        borderaxespad=0.2,
    )
    return figure


def is_number(threshold):
    """Whether there is one theta to draw: not if it is "halfway" or if there is none."""
    return isinstance(threshold, (int, float))


def plot_goodness(axes, epochs, g_true, g_wrong, threshold):
    """Goodness (L, E) of each layer with true and with wrong labels, and theta."""
    spacing = mark_every(len(epochs))
    for i, g in enumerate(g_true):
        look = {**LAYER_LOOKS[i], "markevery": spacing}
        axes.plot(epochs, g, label=f"layer {i}, true label", **look)
    if is_number(threshold):
        axes.axhline(threshold, **REFERENCE, label=f"threshold θ = {threshold:g}")
    for i, g in enumerate(g_wrong):
        look = {**LAYER_LOOKS[i], "markevery": spacing, "markerfacecolor": "white"}
        axes.plot(epochs, g, "--", label=f"layer {i}, wrong label", **look)
    axes.set(ylabel="goodness, mean(h²)")


def plot_accuracies(axes, epochs, train, test):
    """Each learner's accuracies {name: (E,)}, fractions, in percent; and chance."""
    spacing = mark_every(len(epochs))
    for name, values in test.items():
        look = {**LEARNER_LOOKS[name], "markevery": spacing}
        axes.plot(epochs, 100 * values, label=f"{name}, test", **look)
    axes.axhline(100 / ff.N_CLASSES, **REFERENCE, label="chance")
    for name, values in train.items():
        look = {**LEARNER_LOOKS[name], "markevery": spacing, "markerfacecolor": "white"}
        axes.plot(epochs, 100 * values, lw=1, label=f"{name}, training", **look)
    axes.set(ylabel="accuracy, %")


def whole_epochs():
    """Ticks at whole numbers, even where that leaves room for one only."""
    return MaxNLocator(integer=True, min_n_ticks=1)


def add_headroom(axes, share):
    """Leave `share` of the axes' height free at the top, for the legend."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (high - low) * share / (1 - share))


def curves(args, arrays):
    """Accuracies, goodness and losses by epoch, from the arrays of model.npz."""
    learners = "FF and BP" if args.bp_baseline else "FF"
    title = f"{learners}, {args.train_subset:,} training images"
    figure = new_figure(f"{title}, seed {args.seed}", args, 11, 8.4)
    (top_left, top_right), (low_left, low_right) = figure.subplots(2, 2)
    epochs = np.arange(1, args.n_epochs + 1)
    spacing = mark_every(args.n_epochs)

    prefixes = {name: name.lower().replace(" ", "_") for name in LEARNER_LOOKS}
    train, test = (
        {
            name: arrays[f"{prefix}_{images}_acc"]
            for name, prefix in prefixes.items()
            if f"{prefix}_{images}_acc" in arrays
        }
        for images in ("train", "test")
    )
    plot_accuracies(top_left, epochs, train, test)
    evaluated = f"{args.eval_subset:,} images of each set"
    if args.train_subset < args.eval_subset:
        evaluated = f"{args.eval_subset:,} test, {args.train_subset:,} training images"
    top_left.set_title(f"Accuracy, first {evaluated}")
    top_left.set_ylim(bottom=0)

    plot_goodness(
        top_right, epochs, arrays["ff_g_pos"], arrays["ff_g_neg"], args.threshold
    )
    low = " (true: to be low)" if args.objective == "min" else ""
    top_right.set_title(f"FF: goodness, mean of the epoch{low}")

    for i, loss in enumerate(arrays["ff_loss_per_layer"]):
        look = {**LAYER_LOOKS[i], "markevery": spacing}
        low_left.plot(epochs, loss, label=f"layer {i}", **look)
    passes, sample, alike = 2, "sample", "all goodness at θ"
    if args.threshold == "halfway":
        alike = "both passes alike"
    if args.negatives == "all":  # a softmax over the labels of each image
        passes, sample, alike = ff.N_CLASSES, "image", "all labels alike"
    low_left.axhline(np.log(passes), **REFERENCE, label=f"ln {passes}: {alike}")
    low_left.set(title="FF: loss, mean of the epoch", ylabel=f"loss per {sample}, nats")

    low_right.set_title("BP: loss, mean of the epoch")
    if args.bp_baseline:
        look = {**LEARNER_LOOKS["BP"], "markevery": spacing}
        low_right.plot(epochs, arrays["bp_loss"], label="BP", **look)
        low_right.axhline(np.log(10), **REFERENCE, label="ln 10: chance")
        low_right.set(ylabel="cross-entropy per image, nats")
    else:
        text = "no BP in this model: --bp-baseline"
        low_right.text(0.5, 0.5, text, ha="center", transform=low_right.transAxes)
        low_right.axis("off")

    for axes in (top_left, top_right, low_left, low_right):
        if axes.lines:
            axes.set_xlabel("epoch")
            axes.set_xlim(0.5, args.n_epochs + 0.5)
            axes.xaxis.set_major_locator(whole_epochs())
            add_headroom(axes, 0.1 * -(-len(axes.lines) // 2))
            axes.legend(loc="upper right", ncols=2)
    top_left.set_yticks([tick for tick in top_left.get_yticks() if 0 <= tick <= 100])
    return figure


SHOWN_ITERATIONS = 10  # as many as the paper runs, which predicts from WINDOW
SETTLING_IMAGES = 1000  # at most, as each takes all labels through all iterations


class Settling(NamedTuple):
    """How the goodness settles, over n iterations; means over images."""

    true: np.ndarray  # (n, L) goodness of the true label
    wrong: np.ndarray  # (n, L) of the best wrong label, for the layer at that iteration
    average: np.ndarray  # (n, L) of the ten labels
    accuracy: np.ndarray  # (n,) fraction, predicting from one iteration alone
    window: float  # accuracy from the mean of the iterations WINDOW
    one_pass: float  # accuracy of the one-pass classifier
    demo: np.ndarray  # (n, N_CLASSES) the first image's goodness, summed over layers
    predicted: int  # the first image's label, from WINDOW
    n_images: int


def settle(learner, images, labels):
    """The Settling of a recurrent network over images, uint8 (B, H, W, 3)."""

    def work(x):
        return learner.goodness_by_iteration(x, SHOWN_ITERATIONS)

    g = ff.in_batches(work, images)  # (n, L, N_CLASSES, B)
    at = np.s_[:, :, labels, np.arange(len(labels))]
    others = learner.sign * g
    others[at] = -np.inf
    total = g.sum(axis=1)
    alone = (learner.sign * total).argmax(axis=1)
    window, one_pass = (ff.predict(learner, images, way.method) for way in learner.ways)
    return Settling(
        true=g[at].mean(axis=-1),
        wrong=learner.sign * others.max(axis=2).mean(axis=-1),
        average=g.mean(axis=(2, 3)),
        accuracy=(alone == labels).mean(axis=1),
        window=np.mean(window == labels),
        one_pass=np.mean(one_pass == labels),
        demo=total[:, :, 0],
        predicted=int(window[0]),
        n_images=len(images),
    )


def recurrent(args, settling, image, label):
    """How a recurrent network settles; image, uint8 (H, W, 3), is that of the demo."""
    title = f"The recurrent network settles, {settling.n_images:,} test images"
    figure = new_figure(title, args, 11, 8.6)
    extreme = "highest" if args.objective == "max" else "lowest"
    first, *_, last = ff.WINDOW
    iterations = np.arange(1, len(settling.true) + 1)
    upper, lower = figure.subfigures(2)
    tops = upper.subplots(1, args.n_layers)
    low_left, low_right = lower.subplots(1, 2)

    for i, (axes, average) in enumerate(zip(tops, settling.average.T, strict=True)):
        look, hollow = LAYER_LOOKS[i], LAYER_LOOKS[i] | {"markerfacecolor": "white"}
        true, wrong = (g[:, i] - average for g in (settling.true, settling.wrong))
        axes.plot(iterations, true, label="true label", **look)
        axes.plot(iterations, wrong, "--", label=f"{extreme} wrong label", **hollow)
        axes.axhline(0, **AVERAGE)
        axes.set_title(f"Layer {i}, average {average[0]:.2f} → {average[-1]:.2f}")
    tops[0].set_ylabel("goodness, mean(h²),\nabove average")

    look, other = LEARNER_LOOKS["FF"], LEARNER_LOOKS["FF one pass"]
    accuracy = 100 * settling.accuracy
    low_left.plot(iterations, accuracy, label="one iteration alone", **look)
    for value, color, style, name in (
        (settling.window, look["color"], ":", f"mean of iterations {first} to {last}"),
        (settling.one_pass, other["color"], "-.", "one pass, the classifier"),
    ):
        named = f"{name}: {100 * value:.1f} %"
        low_left.axhline(100 * value, color=color, linestyle=style, label=named)
    low_left.set(title="Accuracy, all layers summed", ylabel="accuracy, %")

    for axes in (*tops, low_left):
        add_headroom(axes, 0.09 * len(axes.lines))
        axes.legend(loc="upper left")
    low, high = low_left.get_ylim()
    ticks = low_left.get_yticks()
    low_left.set_yticks([tick for tick in ticks if low <= tick <= min(high, 100)])
    plot_labels(low_right, iterations, settling, image, label)
    for axes in (*tops, low_left, low_right):
        axes.axvspan(first - 0.5, last + 0.5, color="0.92", zorder=0)
        axes.set(xlabel="iteration", xlim=(0.5, iterations[-1] + 0.5))
        axes.set_xticks(iterations)
        axes.grid(False, axis="x")
    figure.supxlabel(
        "Above average: less the average of an image's ten labels, which the layers' "
        "titles give for the first and last iteration.\n"
        f"This model is to give the true label the {extreme} goodness; {extreme} wrong "
        "label: of the other nine, for each image, layer and iteration.\n"
        f"Grey: iterations {first} to {last}, whose mean predicts.",
        fontsize=10.5,
    )
    return figure


def plot_labels(axes, iterations, settling, image, label):
    """The first image, and how its goodness with each label settles."""
    demo = settling.demo - settling.demo.mean(axis=1, keepdims=True)
    words = {label: "true label"}
    right = settling.predicted == label
    words[settling.predicted] = "predicted, right" if right else "predicted"
    axes.plot(iterations, demo, color="#a0a0a0", lw=1.3)
    blue = LEARNER_LOOKS["FF"]["color"]
    axes.plot(iterations, demo[:, settling.predicted], color=blue, lw=3.2)
    axes.plot(iterations, demo[:, label], "--", color="black", lw=1.6)
    axes.axhline(0, **AVERAGE)
    add_headroom(axes, 0.32)
    picture = axes.inset_axes((0.02, 0.7, 0.5, 0.28))
    show_image(picture, image / 255)
    picture.set_anchor("NW")
    # The names are in the order of the ends, but evenly spaced: none overlap.
    places = np.linspace(0.02, 0.98, ff.N_CLASSES)
    for k, place in zip(demo[-1].argsort(), places, strict=True):
        axes.annotate(
            ff.CLASSES[k] + (f" ◀ {words[k]}" if k in words else ""),
            (iterations[-1], demo[-1, k]),
            xytext=(1.1, place),
            textcoords="axes fraction",
            va="center",
            fontsize=10.5,
            weight="bold" if k in words else "normal",
            arrowprops={"arrowstyle": "-", "color": "0.6", "relpos": (0, 0.5)},
        )
    axes.set_title(f"Test image 0: {ff.CLASSES[label]}")
    axes.set_ylabel("goodness, all layers summed,\nabove average")


# What the name of a row leaves out: each row shows its seeds, the title the data, and
# no test accuracy depends on the images that were looked at during training.
UNNAMED = "seed", "dataset", "eval_subset"
NAMED_ALWAYS = "label_input", "negatives", "threshold", "temperature"
NAMED_ALWAYS += "lr", "lr_schedule", "bp_baseline", "bp_lr"
PHRASES = {
    "train_subset": "{:,} training images",
    "n_epochs": "{} epochs",
    "n_layers": "{} layers",
    "network": "{} network",
    "channels": "{} channels",
    "batch_size": "batches of {}",
    "weight_decay": "weight decay {:g}",
    "augment": "augmented images",
    "fields": "fields of {}",
    "shift": "shifts of up to {}",
    "whiten": "whitened images",
    "pass_up": "{} label upwards",
    "layer_rates": "layers at {} of the rate",
    "scored": "{} layer predicts",
}


def describe(args):
    """A run's name: its differences from the headline; theta and learning rates.

    Runs have the same name if and only if they differ in nothing but what is UNNAMED
    or in how the same settings were given.
    """
    headline = ff.training_arguments()
    places = {
        "corner": "in a corner",
        "everywhere": "to every unit",
        "top": "from above",
    }
    words = [f"label {places[args.label_input]}"]
    wrong = {
        "uniform": "random wrong labels",
        "sampled": "hard wrong labels",
        "all": "all ten labels",
        "classifier": "a classifier's wrong labels",
    }
    words.append(wrong[args.negatives])
    for name in ff.TRAINING_ARGUMENTS:
        value, usual = getattr(args, name), getattr(headline, name)
        if isinstance(value, list):  # of the layers that there are
            value, usual = (
                " and ".join(f"{number:g}" for number in numbers[: args.n_layers])
                for numbers in (value, usual)
            )
        one_layer = name == "scored" and args.n_layers == 1  # all is the last
        if name in UNNAMED + NAMED_ALWAYS or value == usual or one_layer:
            continue
        phrase = PHRASES.get(name, name.replace("_", " ") + " {}").format(value)
        one = value == 1 and value is not True
        words.append(phrase.removesuffix("s") if one else phrase)
    falls = " → 0" if args.lr_schedule == "linear" else ""
    numbers = [f"learning rate {args.lr:g}{falls}"]
    if args.temperature != headline.temperature:
        numbers.insert(0, f"T = {args.temperature:g}")
    if args.threshold is not None:
        halfway = args.threshold == "halfway"
        numbers.insert(0, "θ halfway" if halfway else f"θ = {args.threshold:g}")
    if args.bp_baseline:
        numbers.append(f"of BP {args.bp_lr or args.lr:g}{falls}")
    # Lines break at commas only.
    unbroken = ", ".join(word.replace(" ", "\N{NO-BREAK SPACE}") for word in words)
    lines = textwrap.fill(unbroken, 64).replace("\N{NO-BREAK SPACE}", " ")
    return f"{lines}\n{', '.join(numbers)}"


def row_names(settings):
    """The row of each run, by their arguments: describe(), but that a run without
    backprop shares the row of one that differs in nothing else, if there is one."""

    def alone(args):
        return describe(argparse.Namespace(**vars(args) | {"bp_baseline": False}))

    with_bp = {alone(args): describe(args) for args in settings if args.bp_baseline}
    return [
        describe(args) if args.bp_baseline else with_bp.get(alone(args), alone(args))
        for args in settings
    ]


def closing_the_gap(runs):
    """Test accuracies of FF and BP in many runs, seed by seed, and their means.

    runs: (arguments, arrays of model.npz) each; see row_names()
    """
    groups = {}
    for name, (_, arrays) in zip(row_names([args for args, _ in runs]), runs):
        groups.setdefault(name, []).append(arrays)
    rows = []
    for row, group in groups.items():
        accuracies = {}
        for name in ("FF", "BP"):
            key = f"{name.lower()}_full_test_acc"
            found = [100 * float(arrays[key]) for arrays in group if key in arrays]
            if found:
                accuracies[name] = found
        rows.append((row, accuracies))
    rows.sort(key=lambda row: np.mean(row[1]["FF"]))

    title = "Closing the gap: all 10,000 test images"
    lines = max(row.count("\n") + 1 for row in groups)
    height = 2.4 + (0.19 + 0.18 * lines) * len(rows)
    figure = new_figure(title, runs[0][0], 11, height)
    axes = figure.subplots()
    for y, (_, accuracies) in enumerate(rows):
        means = {name: np.mean(values) for name, values in accuracies.items()}
        axes.plot(means.values(), [y] * len(means), color="0.8", linewidth=3, zorder=1)
        for name, values in accuracies.items():
            look, mean = LEARNER_LOOKS[name], means[name]
            colour, marker = look["color"], look["marker"]
            at = y + (0.14 if name == "FF" else -0.14) * (len(means) - 1)  # no overlap
            axes.plot(mean, at, marker, color=colour, markersize=8, zorder=2)
            axes.plot(values, [at] * len(values), ".", color="0.2", ms=4, zorder=3)
            side = -1 if mean == min(means.values()) else 1
            axes.annotate(
                f"{mean:.1f}",
                (min(values) if side < 0 else max(values), at),
                xytext=(10 * side, 0),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                va="center",
                fontsize=10.5,
                color=colour,
            )
    for name in sorted({name for _, row in rows for name in row}, reverse=True):
        look = LEARNER_LOOKS[name]
        label = f"{name}, mean"
        axes.plot([], [], look["marker"], color=look["color"], ms=8, label=label)
    axes.plot([], [], ".", color="0.2", ms=4, label="one seed")
    axes.axvline(100 / ff.N_CLASSES, **REFERENCE, label="chance")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=10.5)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("test accuracy, %")
    # Above the axes, where it can cover no point.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
    headline = ff.training_arguments()
    figure.supxlabel(
        f"Where a row does not say otherwise: {headline.n_layers} layers, "
        f"{headline.channels} channels, {headline.train_subset:,} training images, "
        f"{headline.n_epochs} epochs, batches of {headline.batch_size}.\n"
        "θ: threshold of the goodness; halfway: between an image's two passes. T: "
        f"temperature, else {headline.temperature:g}. → 0: falling linearly.",
        fontsize=10.5,
    )
    return figure


# The settings, and the order of the work, that are compared: name and look.
MOVEMENTS = {
    ("recurrent", ""): ("recurrent network", {"color": PURPLE, "marker": "D"}),
    ("textbook", ""): ("textbook order of loops", {"color": SKY, "marker": "v"}),
    ("one-layer", ""): ("one layer, ten labels", {"color": GREEN, "marker": "^"}),
    ("headline", ""): ("headline", {"color": "black", "marker": "o"}),
    ("headline", "by layer"): (
        "headline, layer after layer",
        {"color": "black", "marker": "s", "ls": "--", "markerfacecolor": "white"},
    ),
}
# Settings whose bars share a scale, and their names.
STACKS = {"headline": "headline", "one-layer": "ten labels"}, {"recurrent": "recurrent"}
STACKED_BATCHES = 1, 64
KINDS = {  # of what is read: their looks
    "Adam's moments": {"facecolor": ORANGE},
    "gradients": {"facecolor": "#f0e442", "hatch": "xxx"},
    "weights": {"facecolor": SKY, "hatch": "///"},
    "activities": {"facecolor": GREEN, "hatch": "..."},
    "gathered inputs": {"facecolor": PURPLE, "hatch": "\\\\\\"},
    "images": {"facecolor": "0.6"},
    "others": {"facecolor": "0.6"},
}
ADAM_LINE = {"color": "black", "linewidth": 2.5}


class Movement(NamedTuple):
    """Prices of training steps, as tests/data_movement.py gives them for an image."""

    batches: list
    ratios: dict  # {key of MOVEMENTS: (batches, variants) FF / BP}, the main one first
    stacks: dict  # {(settings, batch, learner): (2, kinds) for Adam, and for all else}


def read_movement(path):
    """The Movement in a file; RunError if there is none."""
    try:
        steps = {}  # prices (kinds,) by row and variant
        for row in json.loads(path.read_bytes())["rows"]:
            case = row["settings"], row["order"], row["batch"], row["learner"]
            for v in row["variants"] if row["work"] == "train_step" else ():
                prices = np.array([v["kinds"][kind] for kind in KINDS], float)
                steps[(*case, v["optimiser"], v["evict"], v["word"])] = prices
        variants = list(itertools.product((True,), (True, False), (4, 1)))
        batches = sorted({batch for _, _, batch, *_ in steps})

        def totals(settings, order, name):
            return np.array(
                [
                    [steps[(settings, order, batch, name, *v)].sum() for v in variants]
                    for batch in batches
                ]
            )

        ratios = {
            (settings, order): totals(settings, order, "FF")
            / totals(settings, "", "BP")
            for settings, order in MOVEMENTS
        }
        stacks = {}
        for case in itertools.product(
            itertools.chain(*STACKS), STACKED_BATCHES, ("FF", "BP")
        ):
            settings, *where = case
            whole, other = (
                steps[(settings, "", *where, adam, True, 4)] for adam in (True, False)
            )
            stacks[case] = np.array([whole - other, other])
        numbers = np.concatenate([ratio.ravel() for ratio in ratios.values()])
        if not (0 < numbers).all() or not np.isfinite(numbers).all():
            raise ValueError("a price is not above 0")
    except OSError as error:
        raise ff.RunError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise ff.RunError(
            f"{path} is not what tests/data_movement.py --out writes: {error!r}"
        ) from error
    return Movement(batches, ratios, stacks)


def data_movement(movement):
    """What FF pays to fetch its operands, in units of BP, and what for."""
    title = "What a training step pays to fetch its operands"
    figure = new_figure(title, None, 11, 9)
    upper, lower = figure.subfigures(2, height_ratios=(1, 1.25))
    plot_ratios(upper.subplots(), movement)
    panels = list(itertools.product(STACKS, STACKED_BATCHES))
    widths = [0.6 + len(group) for group, _ in panels]
    grid = lower.subplots(1, len(panels), width_ratios=widths)
    for (group, batch), axes in zip(panels, grid, strict=True):
        plot_stacks(axes, movement, group, batch)
    grid[0].set_ylabel("price for an image, 10⁹")
    names = {kind: kind for kind in KINDS} | {"images": "rest", "others": "rest"}
    parts = {names[kind]: Patch(lw=0, **look) for kind, look in KINDS.items()}
    parts["below: for the optimiser"] = Line2D([], [], **ADAM_LINE)
    handles, words = list(parts.values())[::-1], list(parts)[::-1]
    lower.legend(handles, words, loc="outside right center", title="what is read")
    figure.supxlabel(
        "Price (ByteDMD): of each byte that is read, the square root of how many bytes "
        "were used since it was used last; for words of 4 bytes and\n"
        "without dead values. Vertical lines: from the least to the most, also with words "
        "of 1 byte and with dead values. For the optimiser:\n"
        "what a step would not pay without Adam. FF's recurrent network has top-down "
        "weights, BP's has none.",
        fontsize=10.5,
    )
    return figure


def plot_ratios(axes, movement):
    """FF / BP by the size of the batch."""
    x = np.arange(len(movement.batches))
    for key, (name, look) in MOVEMENTS.items():
        ratios = movement.ratios[key]
        axes.plot(x, ratios[:, 0], label=name, **look)
        axes.vlines(x, ratios.min(axis=1), ratios.max(axis=1), color=look["color"])
    axes.axhline(1, **REFERENCE, label="as dear as BP")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(x, movement.batches)
    axes.set(xlabel="images in a batch", ylabel="price of FF / price of BP")
    axes.grid(False, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def plot_stacks(axes, movement, group, batch):
    """Bars of FF beside BP: what is read for Adam, then all else."""
    starts = 2.5 * np.arange(len(group))
    for start, settings in zip(starts, group, strict=True):
        for at, learner in (start, "FF"), (start + 1, "BP"):
            bottom, prices = 0, movement.stacks[settings, batch, learner] / 1e9
            for part in prices:
                for look, price in zip(KINDS.values(), part, strict=True):
                    axes.bar(at, price, 0.8, bottom, **look)
                    bottom += price
            axes.plot([at - 0.4, at + 0.4], [prices[0].sum()] * 2, **ADAM_LINE)
            digits = max(0, 2 - int(np.log10(bottom)))
            over = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{bottom:.{digits}f}", (at, bottom), **over)
    axes.set_xticks(np.add.outer(starts, (0, 1)).ravel(), ["FF", "BP"] * len(group))
    axes.set_xticks(starts + 0.5, group.values(), minor=True)
    axes.tick_params(axis="x", which="minor", pad=22)
    axes.tick_params(axis="x", which="both", length=0)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.set_title(f"batch {batch}")
    axes.grid(False, axis="x")


# ------------------------------------------------------------- command line


def get_model(args, parser, tell):
    """The learners by name, the arguments and the arrays of a loaded or new model."""
    if args.model.exists():
        learners, saved, arrays = ff.load_model(args.model)
        defaults = vars(ff.with_threshold(parser.parse_args([])))
        for name in ff.TRAINING_ARGUMENTS:
            ours, theirs = getattr(args, name), getattr(saved, name)
            if ours not in (theirs, defaults[name]):
                tell(f"{args.model} was made with {name} = {theirs}, which is used")
        saved.cache_dir = args.cache_dir
        return learners, saved, arrays, ff.load_data(saved)

    data = ff.load_data(args)  # which may make the lines those of synthetic data
    tell(f"{args.model} does not exist: training a model, which will not be saved")
    learners, arrays = ff.run(args, data, tell)
    return {learner.name: learner for learner in learners}, args, arrays, data


def measure_accuracies(learners, images, labels):
    """{name: (accuracy by class (N_CLASSES,), overall)}, fractions; nan: no images."""
    accuracies = {}
    ways = [(learner, way) for learner in learners.values() for way in learner.ways]
    for learner, way in ways:
        predictions = ff.predict(learner, images, way.method)
        by_class = ff.class_accuracies(predictions, labels)
        by_class[np.bincount(labels, minlength=ff.N_CLASSES) == 0] = np.nan
        accuracies[way.told] = by_class, np.mean(predictions == labels)
    return accuracies


def print_accuracies(accuracies, labels, tell):
    widths = [max(9, len(name) + 4) for name in accuracies]
    columns = zip(accuracies, widths, strict=True)
    headings = "".join(f"{name + ' %':>{width}}" for name, width in columns)
    tell(f"{'class':12}{'images':>8}{headings}")
    counts = [*np.bincount(labels, minlength=ff.N_CLASSES), len(labels)]
    columns = [[*by_class, overall] for by_class, overall in accuracies.values()]
    for name, count, *values in zip(
        [*ff.CLASSES, "all"], counts, *columns, strict=True
    ):
        cells = zip(values, widths, strict=True)
        row = "".join(f"{100 * value:{width}.1f}" for value, width in cells)
        tell(f"{name:12}{count:8}" + row.replace("nan", "  -"))


def draw_model(args, parser):
    """The arguments of one model, and its figures by name."""
    learners, trained, arrays, data = get_model(args, parser, ff.teller(args))
    tell = ff.teller(trained)
    _, _, test_x, test_y = data
    count = args.per_class_test_subset
    accuracies = measure_accuracies(learners, test_x[:count], test_y[:count])
    print_accuracies(accuracies, test_y[:count], tell)
    layer_0 = learners["FF"].layers[0]
    figures = {
        "example_images": example_images(trained, test_x, test_y),
        "example_label_encoded": example_label_encoded(trained, test_x[0], test_y[0]),
        "receptive_fields_layer0": receptive_fields(trained, layer_0),
        "per_class_accuracy": per_class_accuracy(trained, accuracies, count),
        "ff_vs_bp_curves": curves(trained, arrays),
    }
    if trained.network == "recurrent":
        seen = min(count, SETTLING_IMAGES)
        settling = settle(learners["FF"], test_x[:seen], test_y[:seen])
        figures["recurrent"] = recurrent(trained, settling, test_x[0], test_y[0])
    return trained, figures


def draw_runs(args, _):
    """The arguments of the first of many saved runs, and the figure of them all."""
    runs, paths = [], {}
    for path in args.runs:
        _, trained, arrays = ff.load_model(path)
        if "ff_full_test_acc" not in arrays:
            raise ff.RunError(f"{path} was not made with --full-test")
        runs.append((trained, arrays))
        data, others = data_name(trained), data_name(runs[0][0])
        if data != others:
            raise ff.RunError(
                f"{path} is of {data}, {args.runs[0]} of {others}: one figure compares "
                "runs on the same data"
            )
    settings = [trained for trained, _ in runs]
    for i, (name, trained) in enumerate(zip(row_names(settings), settings)):
        twin = paths.setdefault((name, trained.seed), i)
        if twin != i:
            raise ff.RunError(
                f"{args.runs[twin]} and {args.runs[i]} have the same settings and seed: "
                "one run counts once"
            )
    return runs[0][0], {"closing_the_gap": closing_the_gap(runs)}


def draw_fields(args, _):
    """The arguments of a saved model, and the figure of its layer 0."""
    path = args.receptive_fields
    learners, trained, _ = ff.load_model(path)
    figure = receptive_fields(trained, learners["FF"].layers[0])
    return trained, {f"receptive_fields_{path.stem}": figure}


def draw_movement(args, _):
    """The arguments, and the figure of what tests/data_movement.py wrote."""
    figure = data_movement(read_movement(args.data_movement))
    return args, {"data_movement": figure}


def main():
    parser = ff.Parser(
        "Draw the figures of a saved model, or of one that is trained for them.",
        "python3 visualize_ff_cifar_locally_connected.py --model model.npz",
    )
    help = "file made with --save (default: model.npz); trains a model if there is none"
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--model", type=Path, default="model.npz", metavar="FILE", help=help
    )
    help = "draw closing_the_gap.png of these saved runs instead (default: none)"
    what.add_argument("--runs", type=Path, nargs="+", metavar="FILE", help=help)
    help = "draw receptive_fields_NAME.png of this file, NAME.npz, instead "
    help += "(default: none)"
    what.add_argument("--receptive-fields", type=Path, metavar="FILE", help=help)
    help = "draw data_movement.png of this file, which tests/data_movement.py --out "
    help += "writes, instead (default: none)"
    what.add_argument("--data-movement", type=Path, metavar="FILE", help=help)
    help = (
        f"test images behind the accuracies by class, and up to {SETTLING_IMAGES} of "
    )
    help += f"them behind recurrent.png (default: {ff.N_TEST})"
    parser.add_argument(
        "--per-class-test-subset",
        type=ff.number(int, 1, ff.N_TEST),
        default=ff.N_TEST,
        metavar="N",
        help=help,
    )
    help = "folder of the figures, made if there is none (default: viz)"
    parser.add_argument("--outdir", type=Path, default="viz", metavar="DIR", help=help)
    ff.add_training_flags(parser)
    parser.set_defaults(bp_baseline=True)
    args = ff.parse(parser)
    defaults = vars(ff.with_threshold(parser.parse_args([])))
    draw, instead = draw_model, None
    if args.runs:
        draw, instead = draw_runs, "--runs"
    if args.receptive_fields:
        draw, instead = draw_fields, "--receptive-fields"
    if args.data_movement:
        draw, instead = draw_movement, "--data-movement"
    files = "model", "runs", "receptive_fields", "data_movement", "outdir"
    for name, value in vars(args).items():
        unused = name not in files
        if instead and unused and value != defaults[name]:
            parser.error(f"--{name.replace('_', '-')} has no meaning with {instead}")
    try:
        args.outdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.outdir):
            pass
    except OSError as error:
        parser.error(f"cannot write into {args.outdir}: {error.strerror or error}")

    # "default": the user's own settings must not change the figures.
    with matplotlib.style.context(["default", STYLE]):
        drawn, figures = draw(args, parser)
        tell = ff.teller(drawn)
        for name, figure in figures.items():
            png = io.BytesIO()
            figure.savefig(png, format="png")
            path = args.outdir / f"{name}.png"
            ff.write_whole(path, lambda file, png=png: file.write(png.getvalue()))
            tell(f"wrote {path}")
    ff.tell_data(drawn, tell)


if __name__ == "__main__":
    ff.command(main)
