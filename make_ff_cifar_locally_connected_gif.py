# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "matplotlib>=3.8.4", "imageio>=2.34", "pillow>=10.1"]
# ///
"""Train Forward-Forward and render an animation of how it learns.

    python3 make_ff_cifar_locally_connected_gif.py --epochs 8 --fps 4

A frame shows a snapshot: before training, after every --snapshot-every epochs, and at
the end. The demo image is the first test image, whatever becomes of it. The training
flags are those of the other scripts; it shows FF, and no backprop. The repository's own
animation is replaced, unless --out names another file. Last lines (each layer's loss and
goodness; training and test accuracy in percent; seconds):

    FF     7  0.639  2.229  1.847  0.613  2.339  1.725  26.00  24.00    5.3      1
    FF     8  0.634  2.246  1.817  0.606  2.395  1.677  26.20  21.60    6.1      0
    wrote ff_cifar_locally_connected.gif: 9 frames, 84 kB
"""

import io
from pathlib import Path

import ff_cifar_locally_connected as ff  # before numpy: it sets the threads of BLAS
import visualize_ff_cifar_locally_connected as viz  # before matplotlib: see there

# isort: split
import imageio.v3 as iio
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

SIZE, DPI = (7, 5.2), 130  # inches, pixels per inch
# Left, bottom, width and height of the axes, in shares of the frame. A layout that
# adapts to the content would shake from frame to frame.
GOODNESS_AT = 0.085, 0.6, 0.39, 0.3
ACCURACY_AT = 0.575, 0.6, 0.405, 0.3
PICTURE_AT = 0.085, 0.035, 0.39, 0.41
LABELS_AT = 0.575, 0.1, 0.405, 0.345
LAST_FRAME = 2000  # milliseconds
COLOURS = 128  # of the palette that all frames share
STYLE = viz.STYLE | {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8,
    "legend.handlelength": 1.8,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.titlesize": 10,
}


# ---------------------------------------------------------------- snapshots


def make_snapshots(args, data):
    """Train FF: what each frame shows, {name: (snapshots, ...)}.

    epoch; n_images, tested; ff_g_pos and ff_g_neg (L,), their mean goodness with their
    true label and with the nine others; ff_train_acc and ff_test_acc, fractions; demo
    (N_CLASSES,), the first test image's goodness with each label, mean of the layers
    that predict
    """
    train_x, train_y, test_x, test_y = data
    train_x, train_y = train_x[: args.train_subset], train_y[: args.train_subset]
    n, (learner,), snapshots = args.eval_subset, ff.make_learners(args), []
    if args.whiten:
        learner.whitening = ff.whitening_filter(train_x)

    def snapshot(accuracies):
        epoch = len(learner.history)
        if epoch % args.snapshot_every and epoch < args.n_epochs:
            return
        g = ff.in_batches(learner.label_goodness, test_x[:n])
        means = accuracies | ff.step_statistics(None, g, test_y[:n])
        demo = learner.label_goodness(test_x[:1])[learner.scored, :, 0].mean(axis=0)
        names = "g_pos", "g_neg", "train_acc", "test_acc"
        shown = {f"ff_{name}": means[name] for name in names} | {"demo": demo}
        snapshots.append(shown | {"epoch": epoch, "n_images": len(test_x[:n])})

    train = ff.accuracy(learner, train_x[:n], train_y[:n])
    test = ff.accuracy(learner, test_x[:n], test_y[:n])
    snapshot({"train_acc": train, "test_acc": test})
    ff.train(learner, data, args, lambda: snapshot(learner.history[-1]))
    return {name: np.array([one[name] for one in snapshots]) for name in snapshots[0]}


# ------------------------------------------------------------------- frames


def draw_frame(args, snapshots, last, image, label):
    """The figure of a snapshot and those before it, with axes that fit all of them.

    image: the demo image, uint8 (H, W, 3), of class `label`
    """
    so_far = {name: values[: last + 1].T for name, values in snapshots.items()}
    epochs = so_far["epoch"]  # and goodness by layer and epoch, as in model.npz
    figure = Figure(SIZE, DPI)
    data = viz.DATA_NAMES.get(args.dataset, args.dataset)
    title = f"Forward-Forward, recipe {args.recipe}, epoch {epochs[-1]}"
    figure.suptitle(f"{title} of {args.n_epochs} · {data}")
    places = GOODNESS_AT, ACCURACY_AT, PICTURE_AT, LABELS_AT
    goodness, accuracy, picture, labels = map(figure.add_axes, places)
    viz.plot_goodness(goodness, args, epochs, so_far)
    true, wrong = snapshots["ff_g_pos"], snapshots["ff_g_neg"]
    what, g = "Goodness", [true, wrong, args.threshold]
    if args.loss == "softmax":
        what, g = "Goodness, true − wrong label", [true - wrong]
        goodness.set_ylabel(None)  # small numbers take its room, their unit above it
        goodness.ticklabel_format(axis="y", scilimits=(-3, 4))
        goodness.yaxis.get_offset_text().set_x(-0.2)
    lowest, highest = min(0, *map(np.min, g)), max(0, *map(np.max, g))
    room = 0.05 * (highest - lowest)
    goodness.set_ylim(lowest - room * (lowest < 0), highest + room)
    goodness.set_title(f"{what}, {so_far['n_images'][-1]:,} test images")

    viz.plot_accuracies(accuracy, epochs, so_far)
    train, test = (snapshots[f"ff_{name}_acc"] for name in ("train", "test"))
    accuracy.set_ylim(0, 105 * max(train.max(), test.max(), 0.2))
    accuracy.set_title(
        f"Accuracy: test {100 * test[last]:.1f} %, training {100 * train[last]:.1f} %"
    )
    for axes in (goodness, accuracy):
        axes.locator_params("y", nbins=5)
        viz.finish_curves(axes, 0, args.n_epochs)

    if args.label_input == "corner":
        viz.show_image(picture, viz.encoded_image(image, label))
        viz.box_label_block(picture, linewidth=2)
        picture.set_title(f"Test image 0 with its true label: {args.classes[label]}")
    else:
        viz.show_image(picture, image / 255)
        picture.set_title(f"Test image 0, raw, no label in it: {args.classes[label]}")
    draw_labels(labels, args, snapshots["demo"], last, label)
    return figure


def draw_labels(axes, args, demo, last, label):
    """Bars of the demo image's goodness with each label, (snapshots, N_CLASSES); with
    --loss softmax, where it counts in comparison alone, above the average of the ten."""
    lengths, unit, mark, look = demo, "dotted: θ", args.threshold, viz.REFERENCE
    if args.loss == "softmax":
        lengths = demo - demo.mean(axis=1, keepdims=True)
        unit, mark = "above average", 0
        look = {"color": "black", "linewidth": 0.8, "zorder": 4}
    axes.axvline(mark, **look)
    colours, names = np.full(ff.N_CLASSES, "#a0a0a0", object), {label: "true label"}
    # Label weights start at zero: what tells the labels apart then is rounding alone.
    if np.ptp(demo[last]) > 1e-5 * demo[last].max():
        best = np.argmin if args.objective == "min" else np.argmax
        predicted = int(best(demo[last]))
        colours[predicted] = viz.BLUE
        names[predicted] = "predicted, right" if predicted == label else "predicted"
    bars = axes.barh(range(ff.N_CLASSES), lengths[last], color=colours)
    bars[label].set(hatch="////", edgecolor="black", linewidth=1)
    for k, name in names.items():
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        at = max(lengths[last, k], 0)
        axes.text(at, k, f" ◀ {name}", va="center", fontsize=8.5, bbox=white)
    low, high = min(0, lengths.min()), max(mark, lengths.max())
    room = 0.6 if low < 0 else 0.5  # for the words beside the bars
    axes.set_xlim(1.05 * low, high + room * (high - low))
    axes.locator_params("x", nbins=5)
    axes.set_yticks(range(ff.N_CLASSES), args.classes)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_title("Test image 0: goodness with each label")
    axes.set_xlabel(f"mean(h²), layers that predict ({unit})")


def make_gif(draw, n_frames, fps):
    """The bytes of a GIF of draw(0), draw(1), ..., RGB frames, that loops for ever.

    draw(i): uint8 (H, W, 3). All frames share the palette of the last, which shows what
    the others do, and are not dithered, so that text stays crisp, and pixels that do not
    change are transparent, so that they cost next to nothing. Of a frame that is drawn,
    only a byte for each pixel is kept: any number of frames fits into memory.
    """
    method, gif = Image.Quantize.MAXCOVERAGE, io.BytesIO()
    last = Image.fromarray(draw(n_frames - 1)).quantize(COLOURS, method, dither=0)
    palette, step = last.getpalette(), 10 * round(100 / fps)  # GIF has steps of 10 ms
    durations = [step] * (n_frames - 1) + [max(LAST_FRAME, step)]
    options = {"palette": palette + [0, 0, 0], "transparency": len(palette) // 3}
    options |= {"mode": "P", "optimize": True, "duration": durations, "loop": 0}
    with iio.imopen(gif, "w", extension=".gif", plugin="pillow") as file:
        for i in range(n_frames):
            frame = Image.fromarray(draw(i)).quantize(palette=last, dither=0)
            file.write(np.asarray(frame), is_batch=False, **options)
    return gif.getvalue()


# ------------------------------------------------------------- command line


def main():
    parser = ff.Parser(
        "Train Forward-Forward and render an animation of how it learns.",
        "python3 make_ff_cifar_locally_connected_gif.py --epochs 8 --fps 4",
    )
    animation = parser.add_argument_group("animation")
    help = "frames in a second, to the nearest that GIF can say (default: %(default)s)"
    speed = {"type": ff.number(float, 0.1, 50), "default": 4}
    animation.add_argument("--fps", metavar="N", help=help, **speed)
    help = "epochs between two frames (default: %(default)s)"
    count = {"type": ff.number(int, 1), "default": 1}
    animation.add_argument("--snapshot-every", metavar="N", help=help, **count)
    help = "the GIF to write, or to replace (default: %(default)s)"
    file = {"type": ff.destination, "default": Path("ff_cifar_locally_connected.gif")}
    animation.add_argument("--out", metavar="FILE", help=help, **file)
    ff.add_training_flags(parser)
    parser.set_defaults(n_epochs=8, train_subset=4000, eval_subset=500)
    args = ff.parse(parser)
    parser.parse_args([f"--out={args.out}"])  # whether the default can be written
    if args.bp_baseline:
        parser.error("--bp-baseline: the animation shows Forward-Forward alone")
    if args.out.suffix.lower() != ".gif":
        parser.error(f"--out {args.out}: the animation is a .gif")
    data = _, _, test_x, test_y = ff.load_data(args)
    snapshots = make_snapshots(args, data)
    n_frames = len(snapshots["epoch"])

    def draw(i):
        canvas = FigureCanvasAgg(draw_frame(args, snapshots, i, test_x[0], test_y[0]))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]

    # "default": the user's own settings must not change the frames.
    with matplotlib.style.context(["default", STYLE]):
        gif = make_gif(draw, n_frames, args.fps)
    if ff.write_whole(args.out, lambda file: file.write(gif), keep=True):
        ff.tell(f"wrote {args.out}: {n_frames} frames, {len(gif) / 1e3:.0f} kB")


if __name__ == "__main__":
    ff.command(main)
