# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0", "matplotlib>=3.8", "imageio>=2.34", "pillow>=10"]
# ///
"""Train Forward-Forward and render an animation of how it learns.

    python3 make_ff_cifar_locally_connected_gif.py --epochs 8 --fps 4

A frame shows a snapshot: before training, after every --snapshot-every epochs, and at
the end. The demo image is the first test image, whatever becomes of it. Last lines
(each layer's loss and goodness; training and test accuracy in percent; seconds):

    FF     7  0.639  2.229  1.847  0.613  2.339  1.725  26.00  24.00    8.1      2
    FF     8  0.634  2.246  1.817  0.606  2.395  1.677  26.20  21.60    9.2      0
    wrote ff_cifar_locally_connected.gif: 9 frames, 82 kB
"""

import io
import os
from typing import NamedTuple

import ff_cifar_locally_connected as ff  # before numpy: it sets the threads of BLAS

if __name__ == "__main__":
    os.environ.pop("MPLBACKEND", None)  # may be one that is not installed here

# isort: split
import imageio.v3 as iio
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

import visualize_ff_cifar_locally_connected as viz

SIZE, DPI = (7, 5.2), 130  # inches, pixels per inch
# Left, bottom, width and height of the axes, in shares of the frame. A layout that
# adapts to the content would shake from frame to frame.
GOODNESS_AT = 0.085, 0.6, 0.39, 0.3
ACCURACY_AT = 0.575, 0.6, 0.405, 0.3
PICTURE_AT = 0.085, 0.035, 0.39, 0.41
LABELS_AT = 0.575, 0.1, 0.405, 0.345
LAST_FRAME = 2000  # milliseconds
COLOURS = 255  # of the palette that all frames share
STYLE = viz.STYLE | {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8,
    "legend.handlelength": 1.8,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.titlesize": 11.5,
}


class Snapshot(NamedTuple):
    """What a frame adds to the ones before it."""

    epoch: int
    g_true: np.ndarray  # (L,) mean goodness of the test images with their true label
    g_wrong: np.ndarray  # (L,) and with the nine others
    train_accuracy: float  # fraction
    test_accuracy: float
    demo: np.ndarray  # (N_CLASSES,) the demo image's goodness with each label


# ---------------------------------------------------------------- snapshots


def mean_goodness(learner, images, labels):
    """The layers' goodness (L,), true and wrong label, over images (B, H, W, 3)."""
    g = ff.in_batches(learner.label_goodness, images)  # (L, N_CLASSES, B)
    true = g[:, labels, np.arange(len(labels))]
    wrong = (g.sum(axis=1) - true) / (ff.N_CLASSES - 1)
    return true.mean(axis=1), wrong.mean(axis=1)


def make_snapshots(args, data, tell):
    """Train FF, and return its Snapshots."""
    train_x, train_y, test_x, test_y = data
    n = args.eval_subset
    (learner,) = ff.make_learners(args)
    snapshots = []

    def snapshot(epoch, train_accuracy, test_accuracy):
        g = mean_goodness(learner, test_x[:n], test_y[:n])
        demo = learner.label_scores(test_x[:1])[:, 0]  # what predict() compares
        snapshots.append(Snapshot(epoch, *g, train_accuracy, test_accuracy, demo))

    def after_epoch():
        epoch = len(learner.history)
        if epoch % args.snapshot_every == 0 or epoch == args.n_epochs:
            *_, train_accuracy, test_accuracy, _ = learner.history[-1]
            snapshot(epoch, train_accuracy, test_accuracy)

    seen = min(n, args.train_subset)
    snapshot(
        0,
        ff.accuracy(learner, train_x[:seen], train_y[:seen]),
        ff.accuracy(learner, test_x[:n], test_y[:n]),
    )
    ff.train(learner, data, args, after_epoch, tell)
    return snapshots


# ------------------------------------------------------------------- frames


def draw_frame(args, snapshots, last, image, label):
    """The figure of snapshots[: last + 1], with axes that fit all the snapshots.

    image: the demo image, uint8 (H, W, 3), of class `label`
    """
    shown = snapshots[: last + 1]
    figure = Figure(SIZE, DPI)
    figure.suptitle(
        f"Forward-Forward, epoch {shown[-1].epoch} of {args.n_epochs} · "
        f"{viz.data_name(args)}"
    )
    places = GOODNESS_AT, ACCURACY_AT, PICTURE_AT, LABELS_AT
    goodness, accuracy, picture, labels = map(figure.add_axes, places)
    columns = Snapshot(*map(np.array, zip(*snapshots, strict=True)))
    so_far = Snapshot(*(column[: last + 1] for column in columns))
    span = 0.04 * args.n_epochs
    for axes in (goodness, accuracy):
        axes.set(xlabel="epoch", xlim=(-span, args.n_epochs + span))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    viz.plot_goodness(
        goodness, so_far.epoch, so_far.g_true.T, so_far.g_wrong.T, args.threshold
    )
    highest = max(columns.g_true.max(), columns.g_wrong.max(), args.threshold)
    rows = len(goodness.lines) // 2 + 1
    goodness.set_ylim(0, 1.05 * highest)
    viz.add_headroom(goodness, 0.06 + 0.1 * rows)
    goodness.set_title(f"Goodness, {args.eval_subset:,} test images")
    goodness.legend(loc="upper left", ncols=2)

    train, test = {"FF": so_far.train_accuracy}, {"FF": so_far.test_accuracy}
    viz.plot_accuracies(accuracy, so_far.epoch, train, test)
    highest = max(columns.train_accuracy.max(), columns.test_accuracy.max(), 0.2)
    accuracy.set_ylim(0, 105 * highest)
    viz.add_headroom(accuracy, 0.26)
    accuracy.set_title(
        f"Accuracy: test {100 * shown[-1].test_accuracy:.1f} %, "
        f"training {100 * shown[-1].train_accuracy:.1f} %"
    )
    accuracy.legend(loc="upper left", ncols=2)

    viz.show_image(picture, viz.encoded_image(image, label))
    viz.box_label_block(picture, linewidth=2)
    picture.set_title(f"Test image 0 with its true label: {ff.CLASSES[label]}")

    draw_labels(labels, args, shown[-1].demo, label)
    labels.set_xlim(0, 1.5 * max(columns.demo.max(), args.threshold))
    return figure


def draw_labels(axes, args, demo, label):
    """Bars of the demo image's goodness (N_CLASSES,) with each label."""
    predicted = int(demo.argmax())
    colours = np.full(ff.N_CLASSES, "#a0a0a0", object)
    colours[predicted] = viz.LEARNER_LOOKS["FF"]["color"]
    bars = axes.barh(range(ff.N_CLASSES), demo, color=colours)
    bars[label].set(hatch="////", edgecolor="black", linewidth=1)
    names = {label: "true label"}
    names[predicted] = "predicted, right" if predicted == label else "predicted"
    for k, name in names.items():
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.text(demo[k], k, f" ◀ {name}", va="center", fontsize=8.5, bbox=white)
    voters = max(1, args.n_layers - 1)
    axes.axvline(voters * args.threshold, **viz.REFERENCE)
    axes.set_yticks(range(ff.N_CLASSES), ff.CLASSES)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    layers = f"layers 1 to {voters}" if voters > 1 else f"layer {args.n_layers - 1}"
    theta = f"{voters}θ" if voters > 1 else "θ"
    axes.set_title("Test image 0: goodness with each label")
    axes.set_xlabel(f"mean(h²), {layers} (dotted: {theta})")


def make_gif(frames, fps):
    """The bytes of a GIF of RGB frames, uint8 (H, W, 3), that loops for ever.

    All frames share one palette and are not dithered, so that text stays crisp, and
    pixels that do not change are transparent, so that they cost next to nothing.
    """
    pixels = Image.fromarray(np.concatenate(frames))
    indexed = pixels.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=0)
    palette = indexed.getpalette()
    durations = [round(1000 / fps)] * len(frames)  # milliseconds
    durations[-1] = LAST_FRAME
    gif = io.BytesIO()
    iio.imwrite(
        gif,
        np.split(np.asarray(indexed), len(frames)),
        extension=".gif",
        plugin="pillow",
        mode="P",
        palette=palette + [0, 0, 0],
        transparency=len(palette) // 3,
        optimize=True,
        duration=durations,
        loop=0,
    )
    return gif.getvalue()


# ------------------------------------------------------------- command line


def main():
    parser = ff.Parser(
        "Train Forward-Forward and render an animation of how it learns.",
        "python3 make_ff_cifar_locally_connected_gif.py --epochs 8 --fps 4",
    )
    data = ff.add_data_flags(parser)
    model = parser.add_argument_group("model and training")
    animation = parser.add_argument_group("animation")
    count, positive = ff.number(int, 1), ff.number(float, 1e-12)
    layers = ff.number(int, 1, len(ff.RECEPTIVE_FIELDS))
    train_subset, eval_subset = (
        ff.number(int, 1, ff.N_TRAIN),
        ff.number(int, 1, ff.N_TEST),
    )
    for group, flag, default, kind, help in (
        (data, "--train-subset", 4000, train_subset, "train on the first N images"),
        (data, "--eval-subset", 500, eval_subset, "evaluate on the first N images"),
        (model, "--seed", 0, ff.number(int, 0), "seed of weights, order and negatives"),
        (model, "--epochs", 8, count, "passes over the training images"),
        (model, "--n-layers", 2, layers, "locally-connected layers, 1 to 4"),
        (model, "--batch-size", 64, count, "images in a step"),
        (model, "--lr", 0.01, positive, "Adam's learning rate"),
        (model, "--threshold", 2.0, positive, "theta, of the goodness"),
        (animation, "--fps", 4, ff.number(float, 0.1, 50), "frames in a second"),
        (animation, "--snapshot-every", 1, count, "epochs between two frames"),
    ):
        help += f" (default: {default})"
        group.add_argument(flag, default=default, type=kind, metavar="N", help=help)
    default = "ff_cifar_locally_connected.gif"
    animation.add_argument(
        "--out",
        type=ff.destination,
        default=default,
        metavar="FILE",
        help=f"the GIF to write (default: {default})",
    )
    args = parser.parse_args()
    args.n_epochs = args.epochs
    args = ff.training_arguments(**vars(args))
    tell = ff.teller(args)
    data = ff.load_data(args)
    snapshots = make_snapshots(args, data, tell)
    _, _, test_x, test_y = data
    frames = []
    # "default": the user's own settings must not change the frames.
    with matplotlib.style.context(["default", STYLE]):
        for last in range(len(snapshots)):
            figure = draw_frame(args, snapshots, last, test_x[0], test_y[0])
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            frames.append(np.asarray(canvas.buffer_rgba())[..., :3])
    gif = make_gif(frames, args.fps)
    ff.write_whole(args.out, lambda file: file.write(gif))
    tell(f"wrote {args.out}: {len(frames)} frames, {len(gif) / 1e3:.0f} kB")


if __name__ == "__main__":
    ff.command(main)
