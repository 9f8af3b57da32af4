# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "matplotlib>=3.8.4", "imageio>=2.34", "pillow>=10.1"]
# ///
"""Train Forward-Forward and render an animation of how it learns.

    python3 make_ff_cifar_locally_connected_gif.py --epochs 8 --fps 4

A frame shows a snapshot: before training, after every --snapshot-every epochs, and at
the end. The demo image is the first test image, whatever becomes of it. The training
flags are those of the other scripts, without backprop's. Last lines (each layer's loss
and goodness; training and test accuracy in percent; seconds):

    FF     7  0.639  2.229  1.847  0.613  2.339  1.725  26.00  24.00    2.7      0
    FF     8  0.634  2.246  1.817  0.606  2.395  1.677  26.20  21.60    3.1      0
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
    scored: np.ndarray  # the layers whose goodness a score sums


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
    learner, *_ = ff.make_learners(args)  # FF is the first
    ff.fit_whitening(learner, train_x[: args.train_subset])
    snapshots = []

    def snapshot(epoch, train_accuracy, test_accuracy):
        g = mean_goodness(learner, test_x[:n], test_y[:n])
        # What predict() compares, but for the sign of --objective min.
        demo = learner.sign * learner.label_scores(test_x[:1])[:, 0]
        scored = np.arange(len(g[0]))[learner.scored]
        snapshots.append(
            Snapshot(epoch, *g, train_accuracy, test_accuracy, demo, scored)
        )

    def after_epoch():
        epoch = len(learner.history["wallclock"])
        if epoch % args.snapshot_every == 0 or epoch == args.n_epochs:
            train_accuracy = learner.history["train_acc"][-1]
            test_accuracy = learner.history["test_acc"][-1]
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
        axes.xaxis.set_major_locator(viz.whole_epochs())

    viz.plot_goodness(
        goodness, so_far.epoch, so_far.g_true.T, so_far.g_wrong.T, args.threshold
    )
    theta = args.threshold if viz.is_number(args.threshold) else 0
    highest = max(columns.g_true.max(), columns.g_wrong.max(), theta)
    rows = len(goodness.lines) // 2 + 1
    goodness.set_ylim(0, 1.05 * highest)
    goodness.locator_params("y", steps=[1, 2, 5, 10])  # short numbers, little room
    viz.add_headroom(goodness, 0.06 + 0.1 * rows)
    goodness.set_title(f"Goodness, {args.eval_subset:,} test images")
    goodness.legend(loc="upper left", ncols=2)

    train, test = {"FF": so_far.train_accuracy}, {"FF": so_far.test_accuracy}
    viz.plot_accuracies(accuracy, so_far.epoch, train, test)
    highest = max(columns.train_accuracy.max(), columns.test_accuracy.max(), 0.2)
    accuracy.set_ylim(0, 105 * highest)
    viz.add_headroom(accuracy, 0.26)
    end = min(100, accuracy.get_ylim()[1])
    accuracy.set_yticks([tick for tick in accuracy.get_yticks() if 0 <= tick <= end])
    accuracy.set_title(
        f"Accuracy: test {100 * shown[-1].test_accuracy:.1f} %, "
        f"training {100 * shown[-1].train_accuracy:.1f} %"
    )
    accuracy.legend(loc="upper left", ncols=2)

    if args.label_input == "corner":
        viz.show_image(picture, viz.encoded_image(image, label))
        viz.box_label_block(picture, linewidth=2)
        picture.set_title(f"Test image 0 with its true label: {ff.CLASSES[label]}")
    else:
        viz.show_image(picture, image / 255)
        picture.set_title(f"Test image 0, raw, no label in it: {ff.CLASSES[label]}")

    scored = shown[-1].scored
    draw_labels(labels, args, scored, shown[-1].demo, label)
    lengths = bar_lengths(args, columns.demo)
    ends = 0, lengths.min(), lengths.max(), len(scored) * theta
    low, high = 1.05 * min(ends), max(ends)
    room = 0.6 if low < 0 else 0.5  # for the words beside the bars
    labels.set_xlim(low, high + room * (high - low))
    return figure


def bar_lengths(args, demo):
    """What stands for the demo image's goodness (..., N_CLASSES).

    The goodness; but where no fixed theta holds it, and it only counts in comparison
    with that of other labels, what it is above their mean.
    """
    fixed = viz.is_number(args.threshold)
    return demo if fixed else demo - demo.mean(axis=-1, keepdims=True)


def draw_labels(axes, args, scored, demo, label):
    """Bars of the demo image's goodness (N_CLASSES,) with each label.

    scored: the layers whose goodness it sums
    """
    lengths, names = bar_lengths(args, demo), {label: "true label"}
    colours = np.full(ff.N_CLASSES, "#a0a0a0", object)
    # Label weights start at zero: what tells the labels apart then is rounding alone.
    if np.ptp(demo) > 1e-5 * demo.max():
        predicted = int(demo.argmin() if args.objective == "min" else demo.argmax())
        colours[predicted] = viz.LEARNER_LOOKS["FF"]["color"]
        names[predicted] = "predicted, right" if predicted == label else "predicted"
    bars = axes.barh(range(ff.N_CLASSES), lengths, color=colours)
    bars[label].set(hatch="////", edgecolor="black", linewidth=1)
    for k, name in names.items():
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        at = max(lengths[k], 0)
        axes.text(at, k, f" ◀ {name}", va="center", fontsize=8.5, bbox=white)
    axes.set_yticks(range(ff.N_CLASSES), ff.CLASSES)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    layers = f"layer {scored[-1]}"
    if len(scored) > 1:
        layers = f"layers {scored[0]} to {scored[-1]}"
    axes.set_title("Test image 0: goodness with each label")
    if viz.is_number(args.threshold):
        axes.axvline(len(scored) * args.threshold, **viz.REFERENCE)
        theta = f"{len(scored)}θ" if len(scored) > 1 else "θ"
        axes.set_xlabel(f"mean(h²), {layers} (dotted: {theta})")
    else:
        axes.axvline(0, color="black", linewidth=0.8, zorder=4)
        axes.locator_params("x", nbins=4)
        axes.set_xlabel(f"mean(h²), {layers}, above average")


def frame_time(fps):
    """The milliseconds of a frame, at the speed next to fps: GIF has steps of 10."""
    steps = int(100 / fps)
    return 10 * min(steps, steps + 1, key=lambda n: abs(100 / n - fps))


def make_gif(frames, fps):
    """The bytes of a GIF of RGB frames, uint8 (H, W, 3), that loops for ever.

    All frames share one palette and are not dithered, so that text stays crisp, and
    pixels that do not change are transparent, so that they cost next to nothing.
    """
    pixels = Image.fromarray(np.concatenate(frames))
    indexed = pixels.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=0)
    palette = indexed.getpalette()
    durations = [frame_time(fps)] * len(frames)
    durations[-1] = max(LAST_FRAME, durations[-1])
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
    animation = parser.add_argument_group("animation")
    speed, count = ff.number(float, 0.1, 50), ff.number(int, 1)
    for flag, default, kind, help in (
        ("--fps", 4, speed, "frames in a second, to the nearest that GIF can say"),
        ("--snapshot-every", 1, count, "epochs between two frames"),
    ):
        help += f" (default: {default})"
        animation.add_argument(flag, default=default, type=kind, metavar="N", help=help)
    default = "ff_cifar_locally_connected.gif"
    animation.add_argument(
        "--out",
        type=ff.destination,
        default=default,
        metavar="FILE",
        help=f"the GIF to write (default: {default})",
    )
    ff.add_training_flags(parser, backprop=False)
    parser.set_defaults(n_epochs=8, train_subset=4000, eval_subset=500)
    args = ff.parse(parser)
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
    ff.write_result(args.out, lambda file: file.write(gif))
    wanted, played = f"{args.fps:.3g}", f"{1000 / frame_time(args.fps):.3g}"
    instead = f", {played} a second (instead of {wanted})" if played != wanted else ""
    tell(f"wrote {args.out}: {len(frames)} frames{instead}, {len(gif) / 1e3:.0f} kB")
    ff.tell_data(args, tell)


if __name__ == "__main__":
    ff.command(main)
