# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "matplotlib>=3.8.4", "pillow>=10.1"]
# ///
"""Controls: what simpler learners reach on the same images as Forward-Forward.

    uv run tests/controls.py                    # all controls, all test images, 3 seeds
    uv run tests/controls.py pixels --bp-lr 0.001 --held-out --seeds 1
    uv run tests/controls.py --plot viz/label_share.png

With --held-out the accuracy is on the last 5,000 training images, which nothing was
trained on: there the learning rates were chosen. --plot draws where the activity of the
headline's layer 0 goes as it learns, and what that costs. (What a layer is worth that
stays at its random start, the training module says itself, by --layer-rates: 0,1 or,
for best, 0,0.2.)
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ff_cifar_locally_connected as ff  # before numpy: it sets the threads of BLAS

# isort: split
import numpy as np
from matplotlib.figure import Figure

import visualize_ff_cifar_locally_connected as viz


class SoftmaxRegression(ff.Backprop):
    """No layers: softmax cross-entropy of a linear readout of the pixels."""

    def __init__(self, args):
        super().__init__(args)
        W = np.zeros((np.prod(ff.IMAGE_SHAPE), ff.N_CLASSES), np.float32)
        self.layers, self.readout["W_out"] = [], ff.Parameter(W, decays=True)

    def forward(self, images):
        x = ff.normalised_maps(images, self.whitening)
        W, b = (parameter.value for parameter in self.readout.values())
        return [], [x], W.T @ x.reshape(-1, len(images)) + b[:, None]


class RandomStack(ff.Backprop):
    """The readout alone learns: the layers below keep their random start."""

    def __init__(self, args):
        super().__init__(args)
        for layer in self.layers:
            for parameter in layer.parameters():
                parameter.rate = np.float32(0)


class SeeingUnits(ff.ForwardForward):
    """The headline, but that layer 0's goodness is the mean over fewer of its units: those
    whose field holds a part of the label block."""

    def __init__(self, args):
        super().__init__(args)
        layer = self.layers[0]
        shares = np.zeros((*layer.shape, 1, 1), np.float32)
        block = shares[: ff.LABEL_ROWS, : ff.LABEL_LEN]
        block[:] = layer.n_units / block.size  # in what mean(h^2) becomes
        self.shares = layer.piece(shares, slice(layer.own_rows))

    def train_step(self, images, labels):
        usual = ff.goodness, ff.goodness_gradient

        def shares(h):
            """Of a piece (t, T, N, P, B): layer 0's first alone has two passes."""
            if h.shape[1] == self.layers[0].tiles:
                return self.shares if h.shape[3] > 1 else np.float32(0)
            return np.float32(1)

        ff.goodness = lambda h: usual[0](h * np.sqrt(shares(h)))
        ff.goodness_gradient = lambda h, dg: shares(h) * usual[1](h.copy(), dg)
        try:
            return super().train_step(images, labels)
        finally:
            ff.goodness, ff.goodness_gradient = usual


# Learning rates chosen on held-out images, of 0.0001, 0.0003, 0.001, 0.003, 0.01
LINEAR, BEST_IMAGES = {"lr_schedule": "linear"}, {"recipe": "best", "n_epochs": 20}
CONTROLS = {
    "pixels": (SoftmaxRegression, LINEAR | {"bp_lr": 0.003}),
    "pixels, best's images": (SoftmaxRegression, BEST_IMAGES | {"bp_lr": 0.0003}),
    "random stack": (RandomStack, {"bp_lr": 0.001}),
    "random layer, one-layer": (RandomStack, {"recipe": "one-layer", "bp_lr": 0.01}),
    "units that see": (SeeingUnits, {}),
}


def label_share(learner, images, labels):
    """The share of the sum of h^2 of layer 0 that is at the 30 positions which see the
    label, with these labels (B,)."""
    layer, x = learner.layers[0], ff.Maps(ff.normalised_maps(images))
    x.maps[: ff.LABEL_ROWS, : ff.LABEL_LEN] = 0  # layer 0 adds W times the block
    h = np.zeros((*layer.shape, 1, len(images)), np.float32)

    @layer.in_pieces
    def _(rows):
        layer.multiply([x], rows)
        layer.put(layer.activity([x], labels[None], rows), rows, h)

    energy = np.square(h, dtype=float).sum(axis=(2, 3, 4))
    return energy[: ff.LABEL_ROWS, : ff.LABEL_LEN].sum() / energy.sum()


def by_epoch(kind, data, seed, settings):
    """label_share() of 200 test images and the accuracy on all: (11, 2), before training
    and after each epoch."""
    args, rows = ff.training_arguments(**settings, seed=seed), []
    learner = kind(args)

    def look():
        share = label_share(learner, data[2][:200], data[3][:200])
        rows.append((share, ff.accuracy(learner, *data[2:])))

    look()
    ff.train(learner, data, args, look)
    return rows


def plot(data, seeds):
    """by_epoch() of three learners: the mean and the range over seeds."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    figure.suptitle("Forward-Forward, headline: where the activity of layer 0 goes")
    left, right = figure.subplots(1, 2)
    rows = (
        ("as it is", ff.ForwardForward, {}, viz.VERMILION),
        ("goodness of the units that see the label", SeeingUnits, {}, viz.BLUE),
        ("layer 0 frozen", ff.ForwardForward, {"layer_rates": [0, 1]}, "0.4"),
    )
    for name, kind, settings, color in rows:
        found = [by_epoch(kind, data, seed, settings) for seed in range(seeds)]
        low, mean, high = (100 * f(found, axis=0) for f in (np.min, np.mean, np.max))
        for i, axes in enumerate((left, right)):
            axes.plot(mean[:, i], color=color, label=name)
            between = range(len(mean)), low[:, i], high[:, i]
            axes.fill_between(*between, color=color, alpha=0.25, linewidth=0)
        (first, _), (last, accuracy) = mean[[0, -1]]
        ff.tell(f"{name}: share {first:.1f} to {last:.1f} %, accuracy {accuracy:.2f} %")
    title = "share of layer 0's Σh² at the 30 of 484 positions\nthat see the label, %"
    left.set(title=title, ylim=(0, 100), xlabel="epoch")
    right.set(title=f"accuracy on all test images, %\nmean and range of {seeds} seeds")
    right.set(ylim=(0, None), xlabel="epoch")
    right.axhline(10, **viz.REFERENCE, label="chance")
    right.legend(loc="lower right")
    return figure


def main():
    parser = ff.Parser("Train controls.", "controls.py pixels --seeds 1")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONTROLS))
    parser.add_argument("--seeds", type=ff.number(int, 1), default=3)
    parser.add_argument("--bp-lr", type=ff.number(float, 1e-12), help="for this time")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--plot", type=ff.destination, metavar="FILE")
    args = parser.parse_args()
    for name in args.names:
        if name not in CONTROLS:
            parser.error(f"{name!r} is none of {', '.join(CONTROLS)}")
    data = ff.load_data(ff.training_arguments(dataset="cifar10"))
    if args.plot:
        figures = {args.plot.stem: partial(plot, data, args.seeds)}
        viz.write_figures(figures, args.plot.parent)
        return
    if args.held_out:
        x, y = data[:2]
        data = x[:-5000], y[:-5000], x[-5000:], y[-5000:]
    rate = {"bp_lr": args.bp_lr} if args.bp_lr else {}
    for name in args.names or CONTROLS:
        kind, settings = CONTROLS[name]
        found = []
        for seed in range(args.seeds):
            control = ff.training_arguments(**settings | rate, seed=seed)
            learner = kind(control)
            ff.train(learner, data, control)
            found.append(100 * ff.accuracy(learner, *data[2:]))
        sd = f" ± {np.std(found, ddof=1):.2f}" if args.seeds > 1 else ""
        ff.tell(f"{name}: {np.mean(found):.2f}{sd} % (n = {args.seeds})")


if __name__ == "__main__":
    ff.command(main)
