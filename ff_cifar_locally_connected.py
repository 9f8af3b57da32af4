# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "pillow>=10.1"]
# ///
# ruff: noqa: B023  what is defined under @layer.in_pieces runs at once
"""Forward-Forward against backprop on CIFAR-10, with locally-connected layers.

Trains the same stack of locally-connected ReLU layers (no weight sharing) twice:
with Hinton's Forward-Forward algorithm (FF, arXiv:2212.13345), where each layer
learns by itself to give images with their true label a high goodness mean(h^2) and
images with a wrong label a low one; and with backpropagation (BP) through a softmax.

    python3 ff_cifar_locally_connected.py --bp-baseline --full-test --save model.npz

ends with these lines (and then the accuracies by class):

                 test %  error %   misses  train %   time s
    FF            24.91    75.09     7509    26.60     17.6
    BP            35.78    64.22     6422    54.30     15.4
    chance        10.00    90.00     9000
    (10000 test and 1000 training images; time without evaluation)
"""

import argparse
import contextlib
import ctypes
import functools
import glob
import hashlib
import itertools
import json
import math
import os
import platform
import re
import stat
import sys
import tarfile
import threading
import time
import urllib.request
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import NamedTuple

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("error: this needs Python 3.10 or newer")

# The layers share their work out to threads of their own (see Threads below), so a
# matrix product must stay on one core. BLAS reads these when numpy is first imported.
NUMPY_WAS_THERE = "numpy" in sys.modules
OMP_NUM_THREADS = os.environ.get("OMP_NUM_THREADS", "")
for _blas in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "BLIS_NUM", "VECLIB_MAXIMUM"):
    os.environ[f"{_blas}_THREADS"] = "1"

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

del os.environ["OMP_NUM_THREADS"]  # for the processes that this one starts
if OMP_NUM_THREADS:
    os.environ["OMP_NUM_THREADS"] = OMP_NUM_THREADS

# ------------------------------------------------------------------ constants

CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
CLASSES += ["dog", "frog", "horse", "ship", "truck"]
N_CLASSES = len(CLASSES)
N_TRAIN, N_TEST = 50_000, 10_000
IMAGE_SHAPE = SIDE, _, DEPTH = 32, 32, 3
CIFAR_MEAN = np.float32([0.4914, 0.4822, 0.4465])  # per channel, of the training set

LABEL_ROWS, LABEL_LEN = 3, N_CLASSES  # the label block, in the top left corner
LABEL_ON, LABEL_OFF = 1.0, -1.0
ALL_LABELS = np.arange(N_CLASSES)[:, None]  # (10, 1): a pass for each, of all images

# Hinton's recurrent network (sections 3.4 and 4): maps as large as the image
RECURRENT_FIELD = 11
DAMPING = 0.3  # the share of its last activity that a unit keeps in each iteration
ITERATIONS = 5  # of a training step, each of which learns
LABEL_GAIN = 3  # the label's initial weights, in units of He-normal ones
WINDOW = 4, 5, 6  # the iterations whose goodness predicts
CLASSIFIER_LR = 3e-4  # Adam's learning rate of the one-pass classifier

# ---------------------------------------------------------- images and labels


def normalise(images, mean=CIFAR_MEAN):
    """uint8 (..., H, W, 3) -> float32 x/255 - CIFAR_MEAN; mean: it, for other axes."""
    return np.multiply(images, np.float32(1 / 255), dtype=np.float32) - mean


def normalised_maps(images, whitening=None):
    """uint8 images as what layer 0 reads: normalised (H, W, 3, S, B).

    images: (B, H, W, 3), which all passes share, so that S = 1, or (S, B, H, W, 3)
    whitening: a filter of whitening_filter(), applied to them, or None
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images are to be uint8, 0 to 255, and not {images.dtype}")
    images = images if images.ndim == 5 else images[None]
    images = np.ascontiguousarray(images.transpose(2, 3, 4, 0, 1))
    x = normalise(images, CIFAR_MEAN[:, None, None])
    return x if whitening is None else filtered(x, whitening)


def encode_labels(pixels, labels):
    """Write the label block of each of `labels` (...) into `pixels` (..., H, W, 3).

    The block is LABEL_OFF but for the label's column, which is LABEL_ON. In place.
    """
    block = np.where(np.eye(N_CLASSES, dtype=bool), LABEL_ON, LABEL_OFF)[labels]
    pixels[..., :LABEL_ROWS, :LABEL_LEN, :] = block[..., None, :, None]
    return pixels


def wrong_labels(labels, rng, logits=None):
    """For each of `labels` (B,) one of the other nine, in proportion to exp(logits), by
    class (N_CLASSES, B); without logits, all of them equally likely."""
    if logits is None:
        return (labels + rng.integers(1, N_CLASSES, labels.shape, np.uint8)) % N_CLASSES
    # The largest of logits plus Gumbel noise is a sample of their softmax.
    noisy = logits + rng.gumbel(size=logits.shape)
    noisy[labels, np.arange(len(labels))] = -np.inf
    return noisy.argmax(axis=0).astype(np.uint8)


def pass_images(images, labels):
    """What the passes of a training step see of a batch, (B, H, W, 3) and labels (B,).

    Here the same images in all passes; or (P, B, H, W, 3), if negatives are to be other
    images: of two passes the first is the positive one, of ten that of the label.
    """
    return images


# ------------------------------------------------------------ Forward-Forward
# A pass is a forward computation with one label for each image: the true one and a
# wrong one in training, or all ten, in training and to predict. Axes: L layers (of one
# column), P passes, B images. What stands under @layer.in_pieces runs at once, in all
# threads, for t of T rows of T tiles of N units: a piece of a layer, h (t, T, N, P, B).


def activation(u):
    """ReLU of a piece of pre-activations, in place."""
    return np.clip(u, 0, np.inf, out=u)  # 4 times as fast as np.maximum(u, 0)


def activation_slope(h):
    """The derivative of activation(u) by u, from h = activation(u): a new array."""
    return h > 0


def goodness(h):
    """What a piece of a layer, h (t, T, N, P, B), adds to its goodness: (P, B).

    This sum over its pieces, divided by the number of units, is mean(h^2). The paper's
    goodness (section 2) is the sum; with the mean, layers of any size share theta.
    """
    return sum_of_squares(h)


def goodness_gradient(h, dg):
    """The derivative of the loss by h; dg (P, B) or a number: that by what goodness(h)
    returns. h may be written over."""
    return np.multiply(h, np.float32(2 * dg), out=h)


def sum_of_squares(h):
    """Over the units of a piece (t, T, N, P, B): (P, B)."""
    return np.einsum("ijnpb,ijnpb->ijpb", h, h).sum(axis=(0, 1), dtype=float)


def inverse_rms(squares, layer):
    """1 / root mean square (P, B) of an activity with these sums of squares (T, P, B)."""
    mean_square = squares.sum(axis=0) / layer.n_units
    return np.float32(1 / np.sqrt(np.maximum(mean_square, 1e-12)))


def cross_entropy(scores, true):
    """Softmax cross-entropy: the mean over images of -log p[true], and its derivative.

    scores (P, B): of each candidate for each image; true (B,): which one is right.
    """
    images = np.arange(scores.shape[1])
    scores = scores - scores.max(axis=0)
    log_p = scores - np.log(np.exp(scores).sum(axis=0))
    derivative = np.exp(log_p)
    derivative[derivative < 1e-12] = 0  # whose products are denormal numbers, slow ones
    derivative[true, images] -= 1
    return -log_p[true, images].mean(), derivative / len(images)


class Learner:
    """What FF and BP share: columns of layers, Adam, random streams, a history.

    layers: those of the first column, from the image up, then of the next; columns are
        stacks of the same shape that all read the image, and not each other
    name: in tables and, in small letters, in model.npz
    ways: {name in tables: (method that predicts labels (B,), its infix in model.npz)}
    readout: {name in model.npz: Parameter} of what is beside the layers
    whitening: the filter of --whiten, None until there is one
    history: a row for each epoch, {name in model.npz: value}
    """

    def __init__(self, args, learning_rate, label_input=None):
        uses = enumerate(("initialisation", "order", "negatives", "augmentation"))
        self.generators = {n: np.random.default_rng([args.seed, i]) for i, n in uses}
        self.columns, self.n_layers = args.columns, args.n_layers
        self.layers = make_layers(self.generators["initialisation"], args, label_input)
        self.adam = Adam(learning_rate, args.weight_decay)
        self.readout, self.whitening, self.history = {}, None, []

    def arrays(self):
        """All arrays that training changes in place, by name."""
        arrays, stack = {}, [p for layer in self.layers for p in layer.parameters()]
        for i, p in enumerate([*stack, *self.readout.values()]):
            arrays |= {f"{self.name}_{i}_{n}": vars(p)[n] for n in ("value", "m", "v")}
        return arrays

    def views(self):
        """Views of the weights by their names in model.npz, see Layer.views()."""
        prefix, views = self.name.lower(), {}
        for i, layer in enumerate(self.layers):
            views |= {f"{prefix}_layer{i}_{n}": v for n, v in layer.views().items()}
        readout = {n: parameter.value for n, parameter in self.readout.items()}
        return views | {f"{prefix}_{n}": (w, w.shape) for n, w in readout.items()}

    def weights(self):
        """The weights by their names in model.npz; set_weights() takes them back."""
        views, others = self.views().items(), {"whitening": self.whitening}
        weights = {name: view.copy().reshape(shape) for name, (view, shape) in views}
        return weights if self.whitening is None else weights | others

    def set_weights(self, arrays):
        for name, (view, shape) in self.views().items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} is {arrays[name].shape}, not {shape}")
            view[:] = arrays[name].reshape(view.shape)
        self.whitening = arrays.get("whitening")


class ForwardForward(Learner):
    """Layers that each learn, alone, a higher goodness for the true label than for others.

    With the label in the corner, a block of the image, a layer passes up its activity in
    each pass. With the label everywhere, by a weight for each label in every unit, it
    passes up its activity with a neutral label (0.1 of each), once for all passes.
    """

    name, ways = "FF", {"FF": ("predict", "")}

    def __init__(self, args):
        super().__init__(args, args.lr, args.label_input)
        self.everywhere = args.label_input == "everywhere"
        self.negatives, self.softmax = args.negatives, args.loss == "softmax"
        self.threshold, self.temperature = args.threshold, np.float32(args.temperature)
        self.sign = 1 if args.objective == "max" else -1
        for i, layer in enumerate(self.layers):
            for parameter in layer.parameters():
                parameter.rate = np.float32(args.layer_rates[i % self.n_layers])
        # The layers whose summed goodness predicts. In the corner, the first is left out
        # (unless it is alone), as in the paper; here most of its units see no label.
        self.scored = slice(-1 if self.everywhere else int(args.n_layers > 1), None)

    def forward(self, images, labels):
        """The goodness of each layer in each pass (columns*L, P, B), and what it read.

        images: uint8 (B, H, W, 3), which all passes share, or (P, B, H, W, 3)
        labels: those of each pass, (P, B) or (P, 1)
        """
        x, read, result = Maps(normalised_maps(images, self.whitening)), [], []
        if not self.everywhere:
            x.maps[:LABEL_ROWS, :LABEL_LEN] = 0  # layer 0 adds W times the block
        image, P, (S, B) = x, len(labels), x.maps.shape[3:]
        for i, layer in enumerate(self.layers):
            above = self.layers[i + 1] if (i + 1) % self.n_layers else None
            # By row of tiles, as the order of a sum must not depend on the threads.
            g = np.zeros((layer.tiles, P, B))
            squares = np.zeros((layer.tiles, S if self.everywhere else P, B))
            shared = self.everywhere or layer.block  # but for rows that see the block
            up = above and above.new_inputs(layer, S if shared else P, P, B)

            @layer.in_pieces
            def _(rows):
                layer.multiply([x], rows)
                h = layer.activity([x], labels, rows)
                g[rows.start] = goodness(h)
                if up:
                    h = self.passed_up(layer, x, h, rows)
                    squares[rows.start] = sum_of_squares(h)
                    up.put(layer, h, rows)

            result.append(g.sum(axis=0) / layer.n_units)
            read.append(x)
            # The input of the next layer is h / rms(h), so that only the direction of
            # the activity is passed on (section 2), and not its goodness.
            x = up._replace(scale=inverse_rms(squares, layer)) if up else image
        return np.stack(result), read

    def passed_up(self, layer, x, h, rows):
        """What goes up of a piece h, not to be written over, of a layer that reads x, before
        its division by the rms: the activity in each pass, or with a neutral label."""
        return layer.activity([x], None, rows) if self.everywhere else h

    def passes(self, labels, logits):
        """The labels of a step's passes, (P, B) or (P, 1), and which is the true one (B,).

        labels (B,); logits (N_CLASSES, B), whose softmax draws --negatives sampled
        """
        if self.negatives == "all":
            return ALL_LABELS, labels
        logits = logits if self.negatives == "sampled" else None
        wrong = wrong_labels(labels, self.generators["negatives"], logits)
        return np.stack([labels, wrong]), np.zeros_like(labels)

    def loss(self, g, true):
        """The loss of a layer with goodness g (P, B), and its derivative by g.

        true (B,): the pass with the true label, of two the first
        --loss threshold: log(1 + exp(-margin)), the mean over both passes. The margin is
            (g - theta) / T, with the other sign in the negative pass: -log p, where p =
            logistic(margin) is the probability that a pass is what it is (eq. 1).
        --loss softmax: -log p_true, where p = softmax(g / T) over the passes, two or
            ten. Of two it is SymBa's (arXiv:2303.08418).
        """
        if self.softmax:
            unit = self.sign * self.temperature
            loss, slope = cross_entropy(g / unit, true)
            return loss, slope / unit
        sign = self.sign * np.float32([[1], [-1]])
        margin = sign * (g - np.float32(self.threshold)) / self.temperature
        slope = sign * (np.tanh(margin / 2) - 1) / 2 / margin.size / self.temperature
        return np.logaddexp(0, -margin).mean(), slope

    def train_step(self, images, labels):
        """One step of every layer on a batch, uint8 (B, H, W, 3) and labels (B,).

        A layer's input is the activity from before the update of the one below: one
        forward computation serves the step. Returns means over the batch and the columns:
        each layer's loss, and its goodness with the true label and with the wrong ones.
        """
        hard = self.negatives == "sampled"
        logits = self.label_scores(images) / self.temperature if hard else None
        passes, true = self.passes(labels, logits)
        g, read = self.forward(pass_images(images, labels), passes)
        self.adam.begin_step()
        losses, slopes = zip(*(self.loss(g_layer, true) for g_layer in g))
        for layer, x, dg in zip(self.layers, read, slopes):
            dg = dg / layer.n_units

            @layer.in_pieces
            def _(rows):
                h = layer.activity([x], passes, rows)
                slope = activation_slope(h)
                same = h.shape[3] < len(dg)  # in all passes: their derivatives add up
                du = goodness_gradient(h, dg.sum(axis=0, keepdims=True) if same else dg)
                du *= slope
                # The layer learns from du and from x, which is a constant here: no
                # gradient crosses to the layer below.
                layer.update(self.adam, [x], passes, du[None], rows)

        return step_statistics(*map(self.mean_of_columns, (np.array(losses), g)), true)

    def mean_of_columns(self, values):
        """The mean over columns of values (layers, ...): (L, ...)."""
        return values.reshape(-1, self.n_layers, *values.shape[1:]).mean(axis=0)

    def label_goodness(self, images):
        """The goodness of each layer with each label, mean of columns: (L, N_CLASSES, B)."""
        g = self.mean_of_columns(self.forward(images, ALL_LABELS)[0])
        return check_finite(g, self, "goodness")

    def label_scores(self, images):
        """What decides between the labels: goodness summed over the scored layers."""
        return self.sign * self.label_goodness(images)[self.scored].sum(axis=0)

    def predict(self, images):
        """The labels of the highest score (B,)."""
        return self.label_scores(images).argmax(axis=0)


def step_statistics(losses, g, true):
    """What FF's train_step() returns, from losses (L,), g (L, P, B) and true (B,)."""
    g_true = g[:, true, np.arange(len(true))]
    g_wrong = (g.sum(axis=1) - g_true) / (g.shape[1] - 1)
    return {"loss_per_layer": losses, "g_pos": g_true.mean(1), "g_neg": g_wrong.mean(1)}


# ------------------------------------------------------- the recurrent network


class Recurrent(ForwardForward):
    """Hinton's network for CIFAR-10 (sections 3.4 and 4), which sees the label from above.

    Each hidden layer is a map of the image's size that reads the maps below and above it
    in the last iteration, each divided by its rms, synchronously with all others:

        y_l = d y_l + (1 - d) relu(W_l n_(l-1) + T_l n_(l+1) + b_l),  n = y / rms(y)

    where d is DAMPING and n_0 the image. The last layer adds V[label] in place of T n. All
    start from one bottom-up pass with a neutral label (0.1 of each). A layer learns,
    alone, from its goodness in each iteration; what it reads is a constant there, in
    layer and in time. A softmax classifier of the bottom-up pass is trained beside: it
    predicts in one pass, and draws the wrong label of --negatives sampled.
    """

    ways = ForwardForward.ways | {"FF one pass": ("predict_one_pass", "one_pass_")}

    def __init__(self, args):
        super().__init__(args)
        self.scored = slice(None)  # the goodness of all layers predicts
        n, rate = sum(layer.n_units for layer in self.layers), CLASSIFIER_LR / args.lr
        W, b = np.zeros((n, N_CLASSES), np.float32), np.zeros(N_CLASSES, np.float32)
        self.readout["W_class"] = Parameter(W, decays=True, rate=rate)
        self.readout["b_class"] = Parameter(b, rate=rate)

    def begin(self, images, P, slots):
        """The bottom-up pass: the state (y, n) of each layer, and the image's Maps.

        y (T, T, N, P, B): activity in tiles, the same in all passes that share images
        n (slots, H, W, C, P, B): normalised maps, zero around the edges; in slot 0 here
        """
        x, state = normalised_maps(images, self.whitening), []
        x /= np.sqrt(np.mean(x**2, axis=(0, 1, 2)))
        S, B = x.shape[3:]
        below = image = Maps(pad(x, RECURRENT_FIELD // 2))
        for layer in self.layers:
            side = layer.side + 2 * (RECURRENT_FIELD // 2)
            y = reuse(layer.buffers, "y", *layer.b.value.shape, P, B)
            n = reuse(layer.buffers, "n", slots, side, side, layer.channels, P, B)
            self.move(layer, [below], None, y, n[0], damping=0)
            below = Maps(n[0, :, :, :, :S])
            state.append((y, n))
        return state, image._replace(multiplied=True)

    def move(self, layer, inputs, labels, y, n, damping, d=None):
        """y = damping y + (1 - damping) relu(...): the layer's goodness (P, B).

        n: maps (H, W, C, P, B) to write y / rms(y) into, or None
        d: where to write the derivative of what goodness(y) returns by the new activity's
            pre-activation, but for its factor 1 - damping
        """
        g, squares = np.zeros((2, layer.tiles, *y.shape[3:]))

        @layer.in_pieces
        def _(rows):
            layer.multiply(inputs, rows)
            h = layer.activity(inputs, labels, rows)
            piece, slope = y[rows], d is not None and activation_slope(h)
            piece *= np.float32(damping)
            h *= np.float32(1 - damping)
            piece += h
            g[rows.start] = goodness(piece)
            squares[rows.start] = sum_of_squares(piece)
            if d is not None:
                h[:] = piece  # whose memory is still in the cache
                np.multiply(goodness_gradient(h, 1.0), slope, out=d[rows])

        if n is not None:
            scale = inverse_rms(squares, layer)
            tiles = layer.tiled(inside(n, RECURRENT_FIELD // 2))

            @layer.in_pieces
            def _(rows):
                np.multiply(y[rows].reshape(tiles[rows].shape), scale, out=tiles[rows])

        return g.sum(axis=0) / layer.n_units

    def iterate(self, state, image, labels, n, learns=False):
        """Yield the goodness (L, P, B) after each of n iterations from begin().

        labels (P, B) or (P, 1). If it learns, slot t of the maps is kept for iteration
        t + 1, and d (n, T, T, N, P, B) of each layer, see move().
        """
        slots = len(state[0][1])
        for t in range(n):
            before, g = [Maps(maps[t % slots]) for _, maps in state], []
            for i, (layer, (y, maps)) in enumerate(zip(self.layers, state)):
                inputs = [before[i - 1] if i else image, *before[i + 1 : i + 2]]
                # Synchronous: nobody reads the new maps before the next iteration.
                new = maps[(t + 1) % slots] if t + 1 < n else None
                d = reuse(layer.buffers, "d", n, *y.shape)[t] if learns else None
                g.append(self.move(layer, inputs, labels, y, new, DAMPING, d))
            yield np.stack(g)

    def classify(self, state):
        """The features (flat, B) and logits (N_CLASSES, B) of the one-pass classifier,
        which looks at the first pass."""
        maps = [inside(n[0, :, :, :, 0], RECURRENT_FIELD // 2) for _, n in state]
        x = np.concatenate([m.reshape(-1, m.shape[-1]) for m in maps])
        W, b = (parameter.value for parameter in self.readout.values())
        return x, W.T @ x + b[:, None]

    def train_step(self, images, labels):
        n, P = ITERATIONS, N_CLASSES if self.negatives == "all" else 2
        state, image = self.begin(pass_images(images, labels), P, n)
        x, logits = self.classify(state)
        passes, true = self.passes(labels, logits)
        g = np.stack([*self.iterate(state, image, passes, n, learns=True)])

        self.adam.begin_step()
        _, dlogits = cross_entropy(logits, labels)
        self.adam.update(self.readout["W_class"], x @ dlogits.T)
        self.adam.update(self.readout["b_class"], dlogits.sum(axis=1))
        losses, read = np.zeros(g.shape[:2]), [[*map(Maps, maps)] for _, maps in state]
        for i, layer in enumerate(self.layers):
            dg = np.zeros((n, P, len(images)))
            for t in range(n):
                losses[t, i], dg[t] = self.loss(g[t, i], true)
            dg = np.float32(dg * ((1 - DAMPING) / n / layer.n_units))
            d = reuse(layer.buffers, "d", n, *state[i][0].shape)
            inputs = [read[i - 1] if i else image, *read[i + 1 : i + 2]]

            @layer.in_pieces
            def _(rows):
                du = d[:, rows]
                du *= dg[:, None, None, None]
                layer.update(self.adam, inputs, passes, du, rows)

        return step_statistics(losses.mean(axis=0), g.mean(axis=0), true)

    def goodness_by_iteration(self, images, n):
        """The goodness with each label after each of n iterations: (n, L, N_CLASSES, B)."""
        state, image = self.begin(images, N_CLASSES, 2)
        return np.stack([*self.iterate(state, image, ALL_LABELS, n)])

    def label_goodness(self, images):
        """The mean goodness of the iterations that predict: (L, N_CLASSES, B)."""
        g = self.goodness_by_iteration(images, WINDOW[-1])[WINDOW[0] - 1 :]
        return check_finite(g.mean(axis=0), self, "goodness")

    def predict_one_pass(self, images):
        """The classifier's labels (B,), from the bottom-up pass alone."""
        logits = self.classify(self.begin(images, 1, 1)[0])[1]
        return check_finite(logits, self, "score").argmax(axis=0)


# ------------------------------------------------------------------- backprop


class Backprop(Learner):
    """The same stack, end to end, under a linear readout and softmax cross-entropy."""

    name, ways = "BP", {"BP": ("predict", "")}

    def __init__(self, args):
        super().__init__(args, args.bp_lr or args.lr)
        rng, n_units = self.generators["initialisation"], self.layers[-1].n_units
        W = rng.standard_normal((self.columns * n_units, N_CLASSES), np.float32)
        W *= np.float32(math.sqrt(2 / len(W)))
        self.readout["W_out"] = Parameter(W, decays=True)
        self.readout["b_out"] = Parameter(np.zeros(N_CLASSES, np.float32))

    def forward(self, images):
        """The Maps that each layer read, the maps (columns, H, W, C, 1, B) that they made,
        level by level, and the logits (N_CLASSES, B)."""
        image, read = normalised_maps(images, self.whitening), []
        B, n, first = len(images), self.columns, self.layers[: self.n_layers]
        made = [reuse(layer.buffers, "h", n, *layer.shape, 1, B) for layer in first]
        for i, layer in enumerate(self.layers):
            column, level = divmod(i, self.n_layers)
            below = made[level - 1][column] if level else image
            x, h = Maps(pad(below, layer.connections[0].padding)), made[level][column]

            @layer.in_pieces
            def _(rows):
                layer.multiply([x], rows)
                layer.put(layer.activity([x], None, rows), rows, h)

            read.append(x)
        W, b = (parameter.value for parameter in self.readout.values())
        return read, made, W.T @ made[-1].reshape(len(W), -1) + b[:, None]

    def train_step(self, images, labels):
        """One step on a batch, uint8 (B, H, W, 3) and labels (B,): its cross-entropy."""
        read, made, logits = self.forward(images)
        loss, dlogits = cross_entropy(logits, labels)
        L, (W, b) = self.n_layers, self.readout.values()
        dtop = (W.value @ dlogits).reshape(made[-1].shape)
        self.adam.begin_step()
        self.adam.update(W, made[-1].reshape(-1, len(images)) @ dlogits.T)
        self.adam.update(b, dlogits.sum(axis=1))
        for i in reversed(range(len(self.layers))):
            layer, x, (column, level) = self.layers[i], read[i], divmod(i, L)
            if level == L - 1:
                dh = dtop[column]
            du = np.multiply(dh, activation_slope(made[level][column]), out=dh)
            if level > 0:  # before its W moves
                dh = layer.input_gradient(du)

            @layer.in_pieces
            def _(rows):
                layer.update(self.adam, [x], None, layer.piece(du, rows)[None], rows)

        return {"loss": loss}

    def predict(self, images):
        return check_finite(self.forward(images)[2], self, "score").argmax(axis=0)


# ----------------------------------------------------- whitening, augmentation

# --whiten: side of the patches, the least variance, and the images that it looks at
WHITENING_FIELD, WHITENING_EPSILON, WHITENING_IMAGES = 5, 0.01, 2000


def whitening_filter(images):
    """A filter (F, F, 3, 3) by row, column, colour in and out, that decorrelates
    neighbouring pixels and colours: ZCA (Coates, Lee & Ng, AISTATS 2011, section 3.1.2).

    With C the mean of p p^T over patches p (F*F*3,) of normalised images, uint8 (n, H,
    W, 3), it is the part of (C + WHITENING_EPSILON)^(-1/2) that makes a patch's middle
    pixel, scaled to leave the mean square as it was.
    """
    F = WHITENING_FIELD
    x = normalise(images[:WHITENING_IMAGES])
    patches = sliding_window_view(x, (F, F), (1, 2))[:, ::F, ::F]
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, F * F * DEPTH)
    C = patches.T @ patches / np.float32(len(patches))
    variances, directions = np.linalg.eigh(C)
    zca = directions / np.sqrt(variances + np.float32(WHITENING_EPSILON)) @ directions.T
    middle = zca.reshape(-1, F * F, DEPTH)[:, F * F // 2]
    middle *= np.sqrt(np.trace(C) / (F * F) / np.trace(middle.T @ C @ middle))
    return middle.reshape(F, F, DEPTH, DEPTH)


def filtered(x, kernel):
    """Maps (H, W, 3, S, B) filtered by `kernel` (F, F, 3, 3), the edge repeated around.

    A row of pixels is one product of the F rows around it with a banded matrix.
    """
    (H, W, depth, *_), F = x.shape, len(kernel)
    around = [(F // 2, F // 2)] * 2 + [(0, 0)] * 2
    padded = np.pad(x.reshape(H, W, depth, -1), around, mode="edge")
    band = np.zeros((W, depth, F, W + F - 1, depth), np.float32)
    for column in range(W):
        band[column, :, :, column : column + F] = np.moveaxis(kernel, -1, 0)
    band, result = band.reshape(W * depth, -1), np.empty_like(x)

    def work(row):
        rows = padded[row : row + F].reshape(band.shape[1], -1)
        np.matmul(band, rows, out=result[row].reshape(W * depth, -1))

    parallel(work, range(H))
    return result


def augment(images, rng, shift):
    """Images (B, H, W, C), half of them mirrored, shifted by up to `shift` pixels each
    way, the edge repeated."""
    B, around = len(images), (shift, shift)
    padded = np.pad(images, ((0, 0), around, around, (0, 0)), mode="edge")
    crops = sliding_window_view(padded, (SIDE, SIDE), (1, 2))
    ends = [[2 * shift + 1], [2 * shift + 1], [2]]
    rows, columns, mirrored = rng.integers(0, ends, (3, B))
    crops = crops[np.arange(B), rows, columns].transpose(0, 2, 3, 1)
    return np.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)


# ---------------------------------------------------- training and evaluation


def make_learners(args):
    """FF and, with --bp-baseline, BP: equal initial weights, order and augmentation."""
    kind = Recurrent if args.recipe == "recurrent" else ForwardForward
    return [kind(args), *([Backprop(args)] if args.bp_baseline else [])]


def make_layers(rng, args, label_input=None):
    """The columns' layers; label_input: where the label enters, or None: a single pass.

    The recurrent network has maps of the image's size and, for a label, top-down weights.
    """
    recurrent, L, C = args.recipe == "recurrent", args.n_layers, args.channels
    layers, fields = [], [RECURRENT_FIELD] * L if recurrent else args.fields[:L]
    for i, field in [*enumerate(fields)] * args.columns:
        padding, label, differ = field // 2 if recurrent else 0, None, 0
        if label_input == "everywhere" and (i == L - 1 or not recurrent):
            label = "weights"
        if label_input == "corner" and i < 2:
            # Units of the first rows see the block, or units that do.
            label, differ = None if i else "block", LABEL_ROWS
        side, depth = (layers[-1].side, C) if i else (SIDE, DEPTH)
        connection = Connection(rng, side, depth, field, C, padding)
        layers.append(Layer([connection], label, differ))
    if recurrent and label_input:
        for layer in layers[:-1]:
            layer.connections.append(Connection(rng, SIDE, C, field, C, padding, "T"))
        V = layers[-1].V.value  # as if from a layer of ten units
        V[:] = rng.standard_normal(V.shape, np.float32)
        V *= np.float32(LABEL_GAIN * math.sqrt(2 / N_CLASSES))
    return layers


def in_batches(work, images):
    """work(images) (..., B) for any number of images, 64 at once: what fits caches."""
    parts = [work(images[i : i + 64]) for i in range(0, len(images), 64)]
    return np.concatenate(parts, axis=-1)


def accuracy(learner, images, labels, method="predict"):
    """The share of the images that are predicted right."""
    return np.mean(in_batches(getattr(learner, method), images) == labels)


def class_accuracies(predictions, labels):
    """The share of each class's images that are predicted right: (N_CLASSES,)."""
    right = np.bincount(labels[predictions == labels], minlength=N_CLASSES)
    return right / np.maximum(np.bincount(labels, minlength=N_CLASSES), 1)


def check_finite(values, learner, what):
    """The values; RunError where one is not finite: the learning rate is too high."""
    if not np.isfinite(values).all():
        rate = f"the learning rate is {learner.adam.learning_rate:g}, try a smaller one"
        raise RunError(f"{learner.name}: a {what} is not finite; {rate}")
    return values


def train(learner, data, args, after_epoch=None):
    """Train up to args.n_epochs epochs; tell a row and call after_epoch() after each.

    data: as of load_cifar10(), any number of images. Trains on the first
    args.train_subset, evaluates on the first args.eval_subset of these and of the test
    images. Accuracies are fractions, the wallclock seconds of training without
    evaluation. Raises RunError for data of other shapes, or numbers that are not finite.
    """
    train_x, train_y, test_x, test_y = data
    for x, y in (train_x, train_y), (test_x, test_y):
        is_label = y.dtype.kind in "iu" and np.isin(y, range(N_CLASSES)).all()
        if x.shape != (len(y), *IMAGE_SHAPE) or y.ndim > 1 or not is_label:
            raise RunError("data are (n, 32, 32, 3) images and (n,) labels from 0 to 9")
    train_x, train_y = train_x[: args.train_subset], train_y[: args.train_subset]
    if args.whiten and learner.whitening is None:
        learner.whitening = whitening_filter(train_x)
    n, history, random = args.eval_subset, learner.history, learner.generators
    steps = math.ceil(len(train_x) / args.batch_size)
    linear = args.lr_schedule == "linear"
    learner.adam.total_steps = steps * args.n_epochs if linear else None
    first, began = len(history), time.perf_counter()
    for epoch in range(first + 1, args.n_epochs + 1):
        start, row = time.perf_counter(), {}
        learner.adam.steps = steps * (epoch - 1)  # whatever an interrupted epoch did
        order = random["order"].permutation(len(train_x))
        for i in range(0, len(order), args.batch_size):
            where = f"epoch {epoch} of {args.n_epochs}, image {i} of {len(order)}"
            batch = order[i : i + args.batch_size]
            x = train_x[batch]
            if args.augment:
                x = augment(x, random["augmentation"], args.augment)
            for name, value in learner.train_step(x, train_y[batch]).items():
                check_finite(value, learner, f"{name} in {where}")
                row[name] = row.get(name, 0) + value * (len(batch) / len(order))
            show_progress(f"{learner.name} {where}")
        show_progress("")
        seconds = time.perf_counter() - start
        row["wallclock"] = seconds + (history[-1]["wallclock"] if history else 0.0)
        for method, infix in learner.ways.values():
            for name, x, y in ("train", train_x, train_y), ("test", test_x, test_y):
                row[f"{infix}{name}_acc"] = accuracy(learner, x[:n], y[:n], method)
        history.append(row)
        spent = (time.perf_counter() - began) / (epoch - first)
        cells = [*epoch_cells(row), ("ETA s", spent * (args.n_epochs - epoch), 0)]
        if epoch == first + 1:
            tell("   epoch" + "".join(f" {name:>6}" for name, *_ in cells))
        cells = "".join(f" {value:6.{digits}f}" for _, value, digits in cells)
        tell(f"{learner.name} {epoch:5}{cells}")
        if after_epoch:
            after_epoch()


def epoch_cells(row):
    """The cells of a row of a history, layer by layer: (heading, value, digits)."""
    if "loss" in row:
        yield "loss", row["loss"], 3
    else:
        names = "loss_per_layer", "g_pos", "g_neg"
        for i, values in enumerate(zip(*(row[name] for name in names))):
            yield from zip((f"loss {i}", f"g+ {i}", f"g- {i}"), values, (3, 3, 3))
    for way, infix in ("%", ""), ("1", "one_pass_"):
        for name in ("train", "test") if f"{infix}test_acc" in row else ():
            yield name + way, 100 * row[f"{infix}{name}_acc"], 2
    yield "time s", row["wallclock"], 1


# ------------------------------------------------ the locally-connected layer
# Axes: T x T tiles, K inputs and N outputs of a tile, P passes, B images; S = 1 where the
# passes share an input, else P. Maps are (H, W, C, S, B), images last, so that gathering
# a tile's inputs copies long runs.
#
# Tiles. Positions are taken 2 x 2 at a time (one at a time where the map's side is odd).
# A tile reads the union of its fields, (R+1) x (R+1) x C_in inputs, and one product per
# tile, (T, N, K) @ (T, K, S*B) -> (T, N, S*B), computes all its units; weights outside a
# unit's own field are zero and stay zero. That adds 19 % (layer 0) and 44 % (layer 1) of
# arithmetic; in return the products are four times as large, and tiles share most of
# what is gathered for them.
#
# Pieces. A thread works on a few rows of tiles at a time, from gathering their inputs to
# their activity, and in an update from gathering to Adam, so that what it works on stays
# in the cache. The activity of ten passes is computed a second time from W x in the
# update: that costs less than to write it down and read it again.
#
# What the passes share. W x is computed once for all passes with equal inputs, and pass
# p takes relu(scale_p (W x) + b + V[label]), where the scale is 1/rms of the pass. The
# gradient of W, sum_p scale_p du_p x, is one product of x with that sum: exactly so, as
# W (scale_p x) = scale_p (W x). In layer 0 a label block is a V[label], W times the
# block, and W x that of the image without it. Layer 1 reads in its first rows units that
# see the block: these rows of tiles are computed for each pass, all others once.

ROWS_AT_ONCE = 4  # rows of positions in a piece: long calls, yet cached data
PASSES_AT_ONCE = 2  # in a product: OpenBLAS has its fastest kernels for small ones


class Maps(NamedTuple):
    """What a connection reads in all the passes of a batch."""

    maps: np.ndarray  # (H, W, C, S, B): S = 1 where the passes share them, else P
    own: np.ndarray | None = None  # (rows, W, C, P, B): the first rows, if they differ
    scale: np.ndarray | None = None  # (P, B): a factor for each pass, or (1, B) for all
    multiplied: bool = False  # W x is there, from an earlier multiply()

    def at(self, rows):
        """What a piece reads; the first one reads what differs."""
        return self.maps if self.own is None or rows.start else self.own

    def put(self, layer, h, rows):
        """Write a piece h (t, T, N, P, B) of the layer below where it belongs."""
        layer.put(h[:, :, :, : self.maps.shape[3]], rows, self.maps)
        if self.own is not None:
            layer.put(h, rows, self.own)


class Connection:
    """W x: the weights between two maps, others at every position; stride 1.

    in_side, in_depth: an input is (in_side, in_side, in_depth)
    field, channels: side R of the receptive fields, and units that see each
    padding: zeros around the input that maps have to bring; no weights look at them
    name: of the weights, "W" or "T"
    """

    def __init__(self, rng, in_side, in_depth, field, channels, padding=0, name="W"):
        self.in_side, self.in_depth, self.padding = in_side, in_depth, padding
        self.field, self.channels, self.name = field, channels, name
        self.side = in_side + 2 * padding - field + 1
        self.tile = math.gcd(self.side, 2)  # positions in a tile, each way
        self.tiles = self.side // self.tile  # tiles in the map, each way
        self.window = field + self.tile - 1  # side of a tile's input
        self.buffers = {}
        T, t, K = self.tiles, self.tile, self.window**2 * in_depth
        weights = np.zeros((T, T, K, t * t * channels), np.float32)
        # By position and place in its field: whether that is in the image.
        inner = sliding_window_view(np.pad(np.ones(in_side, bool), padding), field)
        inner = inner.reshape(T, t, field)
        inner = inner[:, :, None, None, :, None] & inner[:, :, None]
        W = self.fields(weights)  # He-normal
        drawn = rng.standard_normal((t, t, T, T, *W.shape[4:]), np.float32)
        W[:] = drawn.transpose(2, 0, 3, 1, 4, 5, 6, 7) * inner[..., None, None]
        fan_in = inner.sum(axis=(4, 5), keepdims=True) * in_depth
        W *= np.sqrt(2 / fan_in)[..., None, None]
        self.W = Parameter(weights, decays=True)
        self.W.v[:] = np.inf  # so Adam makes no step, but where a field sees the image
        self.fields(self.W.v)[inner] = 0

    def fields(self, W):
        """View of weights in tiles (T, T, K, N) as those of each position's field: (T, t,
        T, t, R, R, C_in, channels), by its row, its column, and those in the field."""
        T, t, w, R = self.tiles, self.tile, self.window, self.field
        # In a tile the columns come first, see inputs(); a position's row in it moves the
        # field by as much.
        W = W.reshape(T, T, w, w, self.in_depth, t, t, self.channels)
        rows, columns, column, row, depth, i, j, channel = W.strides
        strides = rows, i + row, columns, j + column, row, column, depth, channel
        shape = T, t, T, t, R, R, self.in_depth, self.channels
        return np.ndarray(shape, W.dtype, W, 0, strides)

    def inputs(self, maps, rows):
        """What the products of these rows of tiles read of maps (H, W, C, S, B): the
        passes, a few at a time, and their tiles' inputs (t, T, K, S*B).

        A strip of the maps is copied for each row of tiles, columns first. In it the
        inputs of a tile are one run, and tiles share what both see: they are a view.
        """
        (_, columns, depth, S, B), t, w = maps.shape, self.tile, self.window
        for first in range(0, S, PASSES_AT_ONCE):
            passes = slice(first, min(first + PASSES_AT_ONCE, S))
            n = (passes.stop - first) * B
            strips = scratch("strips", rows.stop - rows.start, columns, w, depth, n)
            for strip, row in zip(strips, range(rows.start, rows.stop)):
                seen = maps[t * row : t * row + w, :, :, passes].swapaxes(0, 1)
                strip.reshape(seen.shape)[:] = seen
            shape = len(strips), self.tiles, w * w * depth, n
            strides = strips.strides[0], t * strips.strides[1], *strips.strides[3:]
            yield passes, np.ndarray(shape, np.float32, strips, 0, strides)

    def times(self, maps, rows, out):
        """W x of these rows of tiles, written to `out` (t, T, N, S, B)."""
        W = self.W.value[rows].swapaxes(2, 3)
        for passes, x in self.inputs(maps, rows):
            np.matmul(W, x, out=flat(out[:, :, :, passes]))
        return out

    def products(self, maps):
        """Where W x of such maps is kept for the update: (T, T, N, S, B)."""
        T, _, _, N = self.W.value.shape
        return reuse(self.buffers, ("Wx", maps.shape[3]), T, T, N, *maps.shape[3:])

    def product(self, x, rows):
        """What multiply() left for these rows of tiles, scaled: (t, T, N, P, B)."""
        Wx = self.products(x.at(rows))[rows]
        if x.scale is None:
            return Wx
        out = scratch("product", *Wx.shape[:3], *x.scale.shape)
        return np.multiply(Wx, x.scale, out=out)

    def weight_gradient(self, pairs, rows):
        """The gradient of W[rows] (t, T, K, N), in scratch.

        pairs: Maps that were read, and du (t, T, N, P, B), the derivative by the
            pre-activation; their products are summed
        """
        out = gradient = scratch("gradient", *self.W.value[rows].shape)
        for x, du in pairs:
            maps = x.at(rows)
            if x.scale is not None:
                du = du * x.scale
            if maps.shape[3] < du.shape[3]:
                # A product with ones is 3 times as fast as sum().
                du = np.ones((1, du.shape[3]), np.float32) @ du
            for passes, columns in self.inputs(maps, rows):
                # Products like their operands in the order of their rows.
                part = flat(du[:, :, :, passes]).swapaxes(2, 3)
                rhs = scratch("transposed", *part.shape)
                rhs[:] = part
                np.matmul(columns, rhs, out=out)
                if out is not gradient:
                    gradient += out
                out = scratch("more", *gradient.shape)
        return gradient


def pad(maps, padding):
    """Maps (H, W, ...) with so many zeros around them."""
    around = [(padding, padding)] * 2 + [(0, 0)] * (maps.ndim - 2)
    return np.pad(maps, around) if padding else maps


def inside(maps, padding):
    """View of maps (H, W, ...) without the padding around them."""
    return maps[padding : len(maps) - padding, padding : len(maps) - padding]


def flat(x):
    """View (t, T, N, ..., B) as (t, T, N, ...*B)."""
    return x.reshape(*x.shape[:3], -1)


class Layer:
    """relu(W x + b + V[label]), with W x the sum of its connections.

    label: "weights": every unit has a weight V for each label; "block": the label is in
        the input, and V is W times its block, in the first rows of tiles; None: no label
    differ: rows of positions, from the first, whose units see a block, or such units
    """

    def __init__(self, connections, label=None, differ=0):
        self.connections, first = connections, connections[0]
        self.field, self.channels = first.field, first.channels
        self.side, self.tile, self.tiles = first.side, first.tile, first.tiles
        self.shape = self.side, self.side, self.channels
        self.n_units = math.prod(self.shape)
        self.own_rows = math.ceil(min(differ, self.side) / self.tile)  # of tiles
        self.buffers, self.kept = {}, {}  # kept: see activity()
        tiles = self.tiles, self.tiles, self.tile**2 * self.channels
        self.b, self.V, self.block = Parameter(np.zeros(tiles, np.float32)), None, None
        if label == "weights":
            self.V = Parameter(np.zeros((*tiles, N_CLASSES), np.float32))
        if label == "block":
            blocks = np.zeros((N_CLASSES, *IMAGE_SHAPE), np.float32)
            encode_labels(blocks, np.arange(N_CLASSES))
            self.block = Maps(np.moveaxis(blocks, 0, -1)[:, :, :, None])

    def parameters(self):
        W = [connection.W for connection in self.connections]
        return [*W, self.b, self.V] if self.V else [*W, self.b]

    def views(self):
        """W and T (H, W, R*R*C_in, C), b (H, W, C) and V (N_CLASSES, H, W, C), by these
        names, as far as there are such: a view of each that has (T, t, T, t) for H and W
        and the field's axes for K, and that shape."""
        (H, _, C), T, t, views = self.shape, self.tiles, self.tile, {}
        for part in self.connections:
            shape = H, H, part.field**2 * part.in_depth, C
            views[part.name] = part.fields(part.W.value), shape
        views["b"] = self.b.value.reshape(T, T, t, t, C).swapaxes(1, 2), (H, H, C)
        if self.V:
            V = self.V.value.reshape(T, T, t, t, C, N_CLASSES).swapaxes(1, 2)
            views["V"] = np.moveaxis(V, -1, 0), (N_CLASSES, H, H, C)
        return views

    def tiled(self, maps):
        """View of maps (T1*tile, T2*tile, C, ...) as (T1, T2, tile, tile, C, ...)."""
        (rows, columns, *others), t = maps.shape, self.tile
        return maps.reshape(rows // t, t, columns // t, t, *others).swapaxes(1, 2)

    def piece(self, maps, rows):
        """These rows of tiles (t, T, N, ...) of maps (H, W, C, ...)."""
        tiles = self.tiled(maps)[rows]
        return tiles.reshape(*tiles.shape[:2], -1, *tiles.shape[5:])

    def put(self, h, rows, maps):
        """Write a piece h (t, T, N, S, B) into maps (H, W, C, P, B), as far as they go."""
        tiles = self.tiled(maps)[rows]
        h = h[: len(tiles)]
        tiles[:] = h.reshape(*tiles.shape[:5], *h.shape[3:])

    def new_inputs(self, below, S, P, B):
        """Maps to be filled with the activity of the layer below in P passes: S for all,
        but for the first rows, if only they differ."""
        maps, own = reuse(self.buffers, "maps", *below.shape, S, B), None
        if self.own_rows and S < P:
            # Whole tiles of the layer below, though the last may be seen in part.
            rows = (self.own_rows - 1) * self.tile + self.connections[0].window
            rows = math.ceil(rows / below.tile) * below.tile
            own = reuse(self.buffers, ("own", P), rows, *below.shape[1:], P, B)
        return Maps(maps, own)

    def in_pieces(self, work):
        """Call work(rows) for slices that cover the rows of tiles, in all threads."""
        first = max(1, self.own_rows)  # the rows that differ are the first piece
        starts = [0, *range(first, self.tiles, ROWS_AT_ONCE // self.tile), self.tiles]
        parallel(work, [slice(*ends) for ends in itertools.pairwise(starts)])

    def multiply(self, inputs, rows):
        """Compute W x of these rows of tiles: x is the Maps of each connection, or of
        the first ones, which alone take part."""
        self.kept.pop(rows.start, None)
        for connection, x in zip(self.connections, inputs):
            if not x.multiplied:
                maps = x.at(rows)
                connection.times(maps, rows, connection.products(maps)[rows])

    def activity(self, inputs, labels, rows):
        """A piece of the activity after multiply(), (t, T, N, P, B), in scratch.

        labels (P, B) or (P, 1): the label of each pass; None: no label, or a neutral one
        Where it is the same in all passes, (t, T, N, 1, B). With labels, of one or two
        passes, it is kept until the next multiply(), and may be written over once.
        """
        if rows.start in self.kept and self.kept[rows.start][0] is labels:
            return self.kept[rows.start][1]
        pairs, bias = zip(self.connections, inputs), self.bias(labels, rows)
        first, *others = (connection.product(x, rows) for connection, x in pairs)
        passes = max(x.shape[3] for x in (bias, first, *others))
        shape = *first.shape[:3], passes, first.shape[4]
        h = scratch(("h", passes), *shape)
        if passes <= 2 and labels is not None:  # spares 8 % of the headline's step
            h = reuse(self.buffers, rows.start, *shape)
            self.kept[rows.start] = labels, h
        np.add(first, bias, out=h)
        for other in others:
            h += other
        return activation(h)

    def bias(self, labels, rows):
        """b + V[label] of these rows of tiles, see activity(): (t, T, N, P, B or 1)."""
        b, V = self.b.value[rows, :, :, None], self.V and self.V.value[rows]
        if self.block and rows.start == 0:
            V = scratch("V", *b.shape, N_CLASSES)
            V = self.connections[0].times(self.block.maps, rows, V)[:, :, :, 0]
        if V is None:
            return b[..., None]
        if labels is None:
            return (b + V.mean(axis=3, keepdims=True))[..., None]
        return b[..., None] + V[..., labels]  # (P, 1): one for all images; or (P, B)

    def update(self, adam, inputs, labels, du, rows):
        """An Adam step of these rows of tiles.

        inputs, labels: see activity(); inputs may be lists of the Maps of each iteration
        du: the derivative of the loss by the pre-activation in each iteration, (n, t, T,
            N, P, B); n = 1 without recurrence
        """
        total = du.sum(0, out=scratch("total", *du.shape[1:])) if len(du) > 1 else du[0]
        has_label = self.V or (self.block and rows.start == 0)
        dV = bias_gradient(total, labels if has_label else None)
        for connection, x in zip(self.connections, inputs):
            # The same in all iterations, or each its own.
            pairs = [*zip(x, du)] if isinstance(x, list) else [(x, total)]
            if self.block and has_label:
                pairs.append((self.block, dV[:, :, :, None]))
            adam.update(connection.W, connection.weight_gradient(pairs, rows), rows)
        adam.update(self.b, dV.sum(axis=3), rows)
        if self.V:
            adam.update(self.V, dV, rows)

    def input_gradient(self, du):
        """The derivative by the input, from that by the pre-activation, of a single pass:
        maps (H, W, C, 1, B) both."""
        (connection,), t, B = self.connections, self.tile, du.shape[4]
        depth, w, padding = connection.in_depth, connection.window, connection.padding
        side = connection.in_side + 2 * padding
        strips = reuse(self.buffers, "strips", self.tiles, side, w, depth, B)

        @self.in_pieces
        def _(rows):  # sum W du over each row of tiles in its strip, see inputs()
            W = connection.W.value[rows]
            dx = scratch("dx", *W.shape[:3], B)
            np.matmul(W, flat(self.piece(du, rows)), out=dx)
            dx = dx.reshape(*W.shape[:2], w, w, depth, B)
            strips[rows] = 0
            for j in range(self.tiles):
                strips[rows, t * j : t * j + w] += dx[:, j]

        dx = np.zeros((side, side, depth, 1, B), np.float32)
        for i, strip in enumerate(strips):
            dx[t * i : t * i + w, :, :, 0] += strip.swapaxes(0, 1)
        return inside(dx, padding)


def bias_gradient(du, labels):
    """du (t, T, N, P, B) summed by label: (t, T, N, N_CLASSES), or 1 without labels."""
    t, T, N, P, B = du.shape
    if labels is None:
        return flat(du) @ np.ones((P * B, 1), np.float32)
    one_hot = np.eye(N_CLASSES, dtype=np.float32)[labels.ravel()]
    if labels.size == P * B:
        return flat(du) @ one_hot
    by_pass = du.reshape(t, T, N * P, B) @ np.ones((B, 1), np.float32)
    return by_pass.reshape(t, T, N, P) @ one_hot


# ----------------------------------------------------------------------- Adam


class Parameter:
    """An array that is learned, and the two moments that Adam keeps of its gradient.

    decays: whether weight decay takes from it
    rate: its learning rate, in units of Adam's; 0 freezes it
    """

    def __init__(self, value, decays=False, rate=1.0):
        self.value, self.decays, self.rate = value, decays, np.float32(rate)
        self.m, self.v = np.zeros((2, *value.shape), np.float32)


class Adam:
    """Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1), one slice at a time, in place.

    m and v are kept divided by 1-beta1 and 1-beta2, and the bias corrections are two
    scalars, which leaves ten passes over arrays that fit the cache.

    total_steps: the learning rate falls linearly, to 0 after so many; None: constant
    weight_decay: decoupled (AdamW, arXiv:1711.05101), of weights, not of biases; times
        learning_rate, whatever a parameter's own rate, unless that is 0
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, learning_rate, weight_decay=0.0):
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.steps, self.total_steps = 0, None

    def begin_step(self):
        """Count a step; the updates that follow belong to it."""
        share_left = 1 - self.steps / self.total_steps if self.total_steps else 1
        if share_left <= 0:
            raise RunError(f"no learning rate is left after {self.steps} planned steps")
        learning_rate = self.learning_rate * share_left
        self.steps += 1
        m_scale = (1 - self.BETA1) / (1 - self.BETA1**self.steps)
        v_scale = math.sqrt((1 - self.BETA2) / (1 - self.BETA2**self.steps))
        self.rate = np.float32(learning_rate * m_scale / v_scale)
        self.shrink = np.float32(1 - learning_rate * self.weight_decay)
        self.epsilon = np.float32(self.EPSILON / v_scale)

    def update(self, parameter, gradient, part=...):
        """Move parameter.value[part] against `gradient`, which is overwritten."""
        if parameter.rate == 0:  # frozen: no weight decay either
            return
        value, m, v = parameter.value[part], parameter.m[part], parameter.v[part]
        if self.steps % 128 == 0:
            # Moments of dead units decay into denormal numbers, which are very slow.
            m[np.abs(m) < 1e-32] = 0
            v[v < 1e-32] = 0
        m *= np.float32(self.BETA1)
        m += gradient
        v *= np.float32(self.BETA2)
        v += np.square(gradient, out=gradient)
        step = np.sqrt(v, out=gradient)
        step += self.epsilon
        np.divide(m, step, out=step)
        step *= self.rate * parameter.rate
        if parameter.decays and self.weight_decay:
            value *= self.shrink
        value -= step


# -------------------------------------------------------------------- threads
# numpy lets go of the interpreter while it computes, so plain threads are enough. No
# piece of work writes what another touches: results do not depend on their number.

_cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
_setting = OMP_NUM_THREADS.split(",")[0]  # of OpenMP's levels
THREADS = int(_setting if _setting.isdecimal() else 0) or min(8, len(_cores(0)))


@functools.cache
def make_pool(process):
    """The threads beside the one that calls parallel(); a fork has none of its parent's."""
    return ThreadPoolExecutor(max(1, THREADS - 1))


def time_elsewhere():
    """Seconds that other threads compute while this one multiplies two matrices."""
    ones = np.ones((1024, 1024), np.float32)
    before = time.process_time() - time.thread_time()
    np.matmul(ones, ones)
    return time.process_time() - time.thread_time() - before


if NUMPY_WAS_THERE:  # its OpenBLAS has read no variable, and has to be told
    _library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    for _names in itertools.product(("scipy_", ""), ("64_", "")):
        _name = "openblas_set_num_threads".join(_names)
        getattr(_library, _name, lambda n: None)(1)
    # Three times, as threads that were just made spin for a moment, unused.
    _pool = make_pool(os.getpid())
    if min(_pool.submit(time_elsewhere).result() for _ in range(3)) > 2e-3:
        warnings.warn("numpy keeps its own threads, slow: import this module before it")


def parallel(work, items):
    """Call work() for each of the items, on all threads, and wait for the end."""
    left = iter(items)  # next() is one step under the interpreter's lock

    def share():
        for item in left:
            work(item)

    pool = make_pool(os.getpid())
    others = [pool.submit(share) for _ in range(min(THREADS, len(items)) - 1)]
    share()
    for other in others:
        other.result()


_lock, _local = threading.Lock(), threading.local()


def reuse(memo, name, *shape):
    """A float32 array, at first zeros, the same at every call with this memo (a dict) as
    long as the shape stays: fresh memory costs more than the arithmetic that fills it."""
    with _lock:
        if name not in memo or memo[name].shape != shape:
            memo[name] = np.zeros(shape, np.float32)
        return memo[name]


def scratch(name, *shape):
    """A float32 array of this thread, in the memory of the last one of this name."""
    memo, size = _local.__dict__, math.prod(shape)
    if name not in memo or memo[name].size < size:
        memo[name] = np.empty(size, np.float32)
    return memo[name][:size].reshape(shape)


# ----------------------------------------------------------------------- data

# Two public sources of the same 60,000 images; the digest decides for both.
TORONTO_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/oxcdcd/cifar10"
CIFAR_SHA256 = "80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660"
NAMES = "train_x", "train_y", "test_x", "test_y"  # in cifar10.npz

TIMEOUT = 10.0  # seconds without a single byte from a server
FLOOR_SPEED, FLOOR_SECONDS = 100e3, 10.0  # bytes/s, judged after so many seconds
RETRY_WAITS = 1.0, 3.0, 9.0  # seconds before each new try of a dropped connection


def load_cifar10(cache_dir=None):
    """CIFAR-10 in Toronto's order, from the cache, an archive at hand or the network.

    Returns train_x (50000,32,32,3), train_y (50000,), test_x (10000,32,32,3) and
    test_y (10000,), all uint8; nothing whose SHA-256 is not CIFAR_SHA256. The cache is
    `cache_dir`, else $HINTON_CIFAR_CACHE, else ~/.cache/hinton-cifar. Raises NoFile
    where nothing is at hand and no server has it, and RunError for all else.
    """
    folder = cache_dir or os.environ.get("HINTON_CIFAR_CACHE")
    folder = Path(os.path.expanduser(folder or "~/.cache/hinton-cifar"))
    cached, problems, no_data = folder / "cifar10.npz", [], NoFile
    for source, read in (
        (cached, read_npz),
        (folder / "cifar-10-binary.tar.gz", read_toronto),
        (folder / "cifar10.zip", read_kaggle),
        (TORONTO_URL, read_toronto),
        (KAGGLE_URL, read_kaggle),
    ):
        is_file = isinstance(source, Path)
        try:
            if not is_file:
                folder.mkdir(parents=True, exist_ok=True)
            # A temporary file has no name: it is gone even if the process is killed.
            with open(source, "rb") if is_file else TemporaryFile(dir=folder) as file:
                if not is_file:
                    download(source, file)
                show_progress(f"reading {source}")
                arrays = read(file)
            digest = hashlib.sha256()
            for array in arrays:
                digest.update(array)
            if (came := digest.hexdigest()) != CIFAR_SHA256:
                raise ValueError(f"expected SHA-256 {CIFAR_SHA256}, came {came}")
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  parsers raise anything
            if is_file and isinstance(error, FileNotFoundError):
                continue
            problems.append(f"{source}: {error or type(error).__name__}")
            say(f"gave up on {problems[-1]}")
            # Whoever has a file there means the real data, or a disk that cannot be used
            # (whose errors have numbers; Pillow's have none).
            disk = OSError, PermissionError, FileExistsError, NotADirectoryError
            if is_file or (type(error) in disk and error.errno):
                no_data = RunError
            continue
        if source != cached:
            named = dict(zip(NAMES, arrays))
            if write_whole(cached, lambda f: np.savez(f, **named), is_result=False):
                say(f"made {cached} from {source}")
        show_progress("")
        return arrays
    at_hand = ", ".join(sorted(glob.glob("cifar*", root_dir=folder))) or "none"
    way = f"put cifar-10-binary.tar.gz or cifar10.zip into {folder} (it has: {at_hand})"
    if "CERTIFICATE_VERIFY" in (why := "; ".join(problems)):
        way += ", name certificates to trust in $SSL_CERT_FILE (python3 -m certifi)"
    raise no_data(f"no CIFAR-10 from {why}: {way}, or use --dataset synthetic")


def read_npz(file):
    with np.load(file, allow_pickle=False) as arrays:
        return tuple(arrays[name] for name in NAMES)


def read_toronto(file):
    """The arrays in Toronto's pickle-free archive: label byte, then R, G, B planes."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    names = [f"cifar-10-batches-bin/{name}.bin" for name in names]
    images, labels, arrays = empty_arrays()
    with tarfile.open(fileobj=file, mode="r|gz") as archive:
        for member in archive:
            if member.name in names:
                records = np.frombuffer(archive.extractfile(member).read(), np.uint8)
                records = records.reshape(-1, 1 + DEPTH * SIDE * SIDE)
                first = names.index(member.name) * (N_TRAIN // 5)
                planes = records[:, 1:].reshape(-1, DEPTH, SIDE, SIDE)
                images[first : first + len(records)] = planes.transpose(0, 2, 3, 1)
                labels[first : first + len(records)] = records[:, 0]
    return arrays


def read_kaggle(file):
    """The arrays in Kaggle's ImageFolder: .../train/frog/<index>_frog.png and so on."""
    pattern = rf"(?:.*/)?(train|test)/({'|'.join(CLASSES)})/(\d+)_\2\.png"
    images, labels, arrays = empty_arrays()
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if match := re.fullmatch(pattern, name):
                i = int(match[3]) + (N_TRAIN if match[1] == "test" else 0)
                images[i] = Image.open(archive.open(name), formats=["PNG"])
                labels[i] = CLASSES.index(match[2])
    return arrays


def empty_arrays():
    """Images and labels to be filled, of training and then of test; and the four parts."""
    x = np.zeros((N_TRAIN + N_TEST, *IMAGE_SHAPE), np.uint8)
    y = np.zeros(len(x), np.uint8)
    return x, y, (x[:N_TRAIN], y[:N_TRAIN], x[N_TRAIN:], y[N_TRAIN:])


def download(url, file):
    """Fetch the archive at `url` into the open `file`. A dropped connection is tried again
    after RETRY_WAITS; a source that answers an error, or too slowly, raises at once."""
    for wait in (*RETRY_WAITS, None):
        file.truncate(file.seek(0))
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                copy_response(response, file)
            return file.seek(0)
        except ConnectionError as error:
            if wait is None:
                raise
            say(f"{url}: {error}; trying again in {wait:g} s")
            time.sleep(wait)


def copy_response(response, file):
    """Copy an HTTP response's body into `file`, with progress shown."""
    total = int(response.headers.get("Content-Length") or 0)
    start, done = time.monotonic(), 0
    while data := response.read1(1 << 16):
        file.write(data)
        done += len(data)
        seconds = time.monotonic() - start
        if seconds > FLOOR_SECONDS and done < FLOOR_SPEED * seconds:
            raise ValueError(f"slower than {FLOOR_SPEED / 1e3:g} kB/s")
        show_progress(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB in {seconds:.0f} s")
    if done < total or done == 0:
        raise ConnectionError(f"closed after {done} of {total or 'unknown'} bytes")


def make_synthetic(seed=0):
    """A stand-in for what load_cifar10() returns: 4 x 4 blocks of colour, of each class
    its own, with a contrast of each image, under noise."""
    rng = np.random.default_rng(seed)
    images, labels, arrays = empty_arrays()
    labels[:] = rng.integers(0, N_CLASSES, len(labels))
    blocks = rng.uniform(-90, 90, (N_CLASSES, 4, 4, DEPTH)).repeat(8, 1).repeat(8, 2)
    for part in np.array_split(np.arange(len(labels)), 60):  # less memory than at once
        contrast = rng.uniform(-0.2, 1, (len(part), 1, 1, 1))
        noise = 60 * rng.standard_normal((len(part), *IMAGE_SHAPE), np.float32)
        images[part] = (128 + contrast * blocks[labels[part]] + noise).clip(0, 255)
    return arrays


# ---------------------------------------------------------------- saved files

MAKE_MODEL = "python3 ff_cifar_locally_connected.py --bp-baseline --full-test"
MAKE_MODEL += " --save model.npz"


def write_whole(path, write, keep=False, is_result=True):
    """Call write(file), and return True: it is whole at `path`. Where that fails, say
    so, leave `path` as it was, and return False.

    keep: it is written to the folder for temporary files then
    is_result: the exit code of the command is 1 then
    """
    target = Path(os.path.realpath(path))  # where a symbolic link leads
    temporary = target.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
        with contextlib.suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
        return True
    except BaseException as error:
        with contextlib.suppress(OSError):  # where it could not be made
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        say(f"cannot write {path}: {error.strerror or error}")
    UNWRITTEN.extend([path] * is_result)
    kept = Path(gettempdir(), os.urandom(8).hex() + target.suffix)
    if keep and write_whole(kept, write):
        say(f"what was to be there is in {kept}")
    return False


@contextlib.contextmanager
def reading(path, what, key, advice):
    """Gives the arrays of a file of ours, among them `key`; RunError, with advice, where
    that fails, and NoFile where there is none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if key not in arrays:
                raise ValueError("it is a file of another kind")
            yield arrays
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise anything
        kind = NoFile if isinstance(error, FileNotFoundError) else RunError
        raise kind(f"{path} is no sound {what} ({error!r}): {advice}") from error


def save_checkpoint(path, args, learners):
    """Everything that the rest of the run depends on; where that fails, a line."""
    state, arrays = {"arguments": training_values(args)}, {}
    for learner in learners:
        random = {n: rng.bit_generator.state for n, rng in learner.generators.items()}
        state[learner.name] = {"history": learner.history, "generators": random}
        arrays |= learner.arrays()
    state = json.dumps(state, default=lambda array: array.tolist())
    write_whole(path, lambda file: np.savez(file, state=state, **arrays))


def load_checkpoint(path, args, learners):
    """Put the state saved at `path` into the run; RunError where it does not fit."""
    advice = "give the same arguments, or another --checkpoint"
    with reading(path, "checkpoint of this run", "state", advice) as arrays:
        state = json.loads(str(arrays["state"]))
        theirs = vars(training_arguments(**state["arguments"]))
        for name, ours in training_values(args).items():
            if ours != (saved := theirs[name]):
                raise ValueError(f"it was made with {name} = {saved}, not {ours}")
        for learner in learners:
            saved = state[learner.name]
            for name, array in learner.arrays().items():
                array[...] = arrays[name].reshape(array.shape)
            learner.history += saved["history"]
            for name, rng in learner.generators.items():
                rng.bit_generator.state = saved["generators"][name]


def model_arrays(args, learners, full_test):
    """The arrays of model.npz, which the README lists; full_test: some, by their names."""
    layers = learners[0].layers[: args.n_layers]  # of all columns
    config = {"arguments": training_values(args), "versions": versions()}
    arrays = {
        "layer_specs": np.int32([(layer.field, layer.channels) for layer in layers]),
        "threshold": np.float64(args.threshold if args.loss == "threshold" else "nan"),
        "seed": np.int64(args.seed),
        "config": json.dumps(config),
    }
    for learner in learners:
        arrays |= learner.weights()
        for name in learner.history[0]:
            values = np.array([row[name] for row in learner.history], float)
            arrays[f"{learner.name.lower()}_{name}"] = np.ascontiguousarray(values.T)
    return arrays | full_test


def load_model(path):
    """The learners of a model.npz by name, the arguments of its run, and its arrays; or
    RunError, if it is damaged, incomplete or of other shapes. Nothing is unpickled."""
    with reading(path, "model", "config", f"make one with {MAKE_MODEL}") as file:
        arrays = dict(file)
        args = training_arguments(**json.loads(str(arrays["config"]))["arguments"])
        learners = make_learners(args)
        for learner in learners:
            learner.set_weights(arrays)
        shape = WHITENING_FIELD, WHITENING_FIELD, DEPTH, DEPTH
        if args.whiten and np.shape(arrays.get("whitening")) != shape:
            raise ValueError("it has no whitening filter")
    return {learner.name: learner for learner in learners}, args, arrays


# --------------------------------------------------------------- command line
# tell() prints results, say() on stderr what happens to a run, and show_progress()
# rewrites one line of a terminal.


class RunError(Exception):
    """A failure the user can mend; its text is the one line that is printed."""


class NoFile(RunError):
    """There is no such file, or no source that has CIFAR-10."""


class UsageError(RunError):
    """Arguments that make no sense."""


TAG = ""  # before every line about data that are not CIFAR-10
UNWRITTEN = []  # files that could not be written


def tell(line=""):
    print(f"{TAG}{line}", flush=True)


def say(line):
    show_progress("")
    print(" ".join(line.split()), file=sys.stderr)


def show_progress(text):
    """Rewrite the progress line of a terminal ("" clears it); nothing in a pipe."""
    if sys.stderr.isatty():
        # A terminal that does not tell its width says 0.
        width = min(79, os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        end = "" if text else "\r"
        print(f"\r{text:<{width}.{width}}", end=end, file=sys.stderr, flush=True)


LEGEND = """In the rows, for layer 0 and so on: the loss; g+ and g-, the goodness with true and
with wrong labels; means over the epoch and the columns. ETA: until FF or BP is trained."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; its help ends with the recipes."""

    def __init__(self, description=None, example=None):
        recipes = [f"{name}: {flags}" for name, flags in RECIPES.items()]
        recipes = "\n  ".join(["A recipe stands for these flags:", *recipes])
        epilog = f"example: {example}\n\n{recipes}\n\n{LEGEND}"
        super().__init__(description=description, epilog=epilog, allow_abbrev=False)
        self.formatter_class = argparse.RawDescriptionHelpFormatter

    def error(self, message):
        raise UsageError(f"error: {message} (--help lists the flags)")


class Values(list):
    """Numbers that are shown as on the command line: 11,5,5,5."""

    def __str__(self):
        return ",".join(f"{value:g}" for value in self)


def number(kind, low, high=1e12, many=False):
    """An argparse type: an int or float from low to high; many: as 11,5,5,5, a list."""

    def parse(text):
        values = Values(map(kind, text.split(",") if many else [text]))
        if not all(low <= value <= high for value in values):
            raise ValueError
        return values if many else values[0]

    parse.__name__ = f"{kind.__name__} from {low:g} to {high:g}"  # in its errors
    return parse


def destination(text):
    """An argparse type: a file that can be written, new or to be replaced."""
    path = os.path.realpath(text)
    try:
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode) or not mode & stat.S_IWUSR:
                raise OSError("it is no regular file, or protected against writing")
        with TemporaryFile(dir=os.path.dirname(path)):
            return Path(text)
    except OSError as error:
        reason = f"cannot write {text!r}: {error.strerror or error}"
        raise argparse.ArgumentTypeError(reason) from error


# What --recipe stands for: flags before those of the command line, which override them.
ALL_AT_ONCE = (
    "--train-subset 50000 --lr 0.02 --lr-schedule linear --label-input everywhere "
    "--negatives all --loss softmax --temperature 0.05 --bp-lr 0.001 "
)
RECIPES = {
    "headline": "",
    "one-layer": ALL_AT_ONCE + "--n-epochs 20 --n-layers 1 --augment 2",
    "best": ALL_AT_ONCE + "--n-epochs 90 --fields 5,9 --augment 4 --whiten "
    "--layer-rates 1,0.2 --columns 2",
    "recurrent": "--channels 3 --lr 0.003 --lr-schedule linear --label-input everywhere "
    "--negatives sampled --loss softmax --temperature 0.1",
}


def add_training_flags(parser):
    """The flags of a training run, for all scripts."""
    positive, count = number(float, 1e-12), number(int, 1)

    def flag(names, default, kind, help):
        options = {"type": kind, "metavar": "DIR" if kind is str else "N"}
        if isinstance(kind, tuple):
            options = {"choices": kind}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        help += " (default: %(default)s)"
        group.add_argument(*names.split(), default=default, help=help, **options)

    parser.set_defaults(classes=CLASSES)
    group = parser.add_argument_group("data")
    help = "auto: cifar10 or, where no source has it, synthetic: made-up images"
    flag("--dataset", "auto", ("auto", "cifar10", "synthetic"), help)
    flag("--cache-dir", None, str, "None: $HINTON_CIFAR_CACHE or ~/.cache/hinton-cifar")
    n_train, n_test = number(int, 1, N_TRAIN), number(int, 1, N_TEST)
    flag("--train-subset", 10_000, n_train, "train on the first N images")
    flag("--eval-subset", 1000, n_test, "evaluate on the first N of both sets")
    group = parser.add_argument_group("model and training")
    flag("--recipe", "headline", tuple(RECIPES), "a word for other flags, see below")
    flag("--seed", 0, number(int, 0), "seed of all random numbers")
    flag("--n-epochs --epochs", 10, count, "passes over the training images")
    flag("--n-layers", 2, number(int, 1, 4), "layers, 1 to 4; recurrent: 2 or 3")
    flag("--columns", 1, count, "stacks of such layers, side by side; recurrent: 1")
    flag("--channels", 8, count, "units at each position of a layer")
    flag("--fields", "11,5,5,5", number(int, 1, SIDE, many=True), "the layers' fields")
    flag("--batch-size", 64, count, "images in a step")
    flag("--lr", 0.01, positive, "Adam's learning rate")
    flag("--lr-schedule", "constant", ("constant", "linear"), "linear: falling to 0")
    flag("--weight-decay", 0.0, number(float, 0), "of weights, decoupled as in AdamW")
    help = "mirror at random, and shift by up to N pixels; 0: neither"
    flag("--augment", 0, number(int, 0, SIDE), help)
    flag("--whiten", False, bool, "decorrelate neighbouring pixels and colours (ZCA)")
    group = parser.add_argument_group("Forward-Forward")
    rates = number(float, 0, many=True)
    flag("--layer-rates", "1,1,1,1", rates, "the layers' rates, times --lr; 0: frozen")
    flag("--objective", "max", ("max", "min"), "recurrent: the true label's goodness")
    help = "the label is a block of the image, or a weight of every unit"
    flag("--label-input", "corner", ("corner", "everywhere"), help)
    help = "wrong labels: any one, one by softmax of the scores, or all nine"
    flag("--negatives", "uniform", ("uniform", "sampled", "all"), help)
    help = "goodness against a threshold, or softmax over the passes"
    flag("--loss", "threshold", ("threshold", "softmax"), help)
    flag("--threshold", 2.0, positive, "theta, of --loss threshold")
    flag("--temperature", 1.0, positive, "unit of goodness, in loss and negatives")
    group = parser.add_argument_group("backprop")
    flag("--bp-baseline", False, bool, "train the same stack with backprop too")
    flag("--bp-lr", None, positive, "learning rate of backprop; None: --lr")


def parse(parser, argv=None):
    """The arguments of a command line, after its recipe's flags; or a UsageError."""
    argv = sys.argv[1:] if argv is None else argv
    others = [word for word in argv if word not in ("-h", "--help")]
    recipe = parser.parse_args(others).recipe
    usual = vars(parser.parse_args(["--recipe", recipe, *RECIPES[recipe].split()]))
    if len(others) < len(argv):
        parser.set_defaults(**usual)  # for --help, which shows them and ends
    args = parser.parse_args(argv, argparse.Namespace(**usual))
    given = {name for name, value in vars(args).items() if value != usual[name]}
    recurrent, theta = recipe == "recurrent", args.loss == "threshold"
    L, fields, rates = args.n_layers, args.fields, args.layer_rates
    fixed, aim = recurrent and given & {"label_input", "fields"}, "objective" in given
    decay = max(args.lr, args.bp_lr or 0) * args.weight_decay
    for fault, message in (
        (theta and args.negatives == "all", "--negatives all needs --loss softmax"),
        (not theta and "threshold" in given, "--threshold needs --loss threshold"),
        (aim and not recurrent, "--objective needs --recipe recurrent"),
        (fixed, "--label-input and --fields do not fit --recipe recurrent"),
        (recurrent and args.columns > 1, "--recipe recurrent has one of --columns"),
        (recurrent and L not in (2, 3), "--recipe recurrent needs --n-layers 2 or 3"),
        (L > len(fields), f"--n-layers {L} needs as many --fields"),
        (L > len(rates), f"--n-layers {L} needs as many --layer-rates"),
        (sum(fields[:L]) - L >= SIDE, "--fields leave the last layer no position"),
        (decay > 1, "learning rate x --weight-decay is above 1"),
    ):
        if fault:
            parser.error(message)
    return args


def training_arguments(recipe="headline", dataset="cifar10", classes=CLASSES, **flags):
    """The arguments of a command line with this recipe, and other flags by their names.

    dataset, classes: the name of data of your own, and of its ten classes, for titles
    Raises TypeError for an unknown name, and UsageError for a refused value.
    """
    parser = Parser()
    add_training_flags(parser)
    if unknown := flags.keys() - vars(parser.parse_args([])).keys():
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    argv = ["--recipe", recipe]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            value = value if isinstance(value, (list, tuple)) else [value]
            argv.append(f"--{flag}={','.join(map(str, value))}")
    args = parse(parser, argv)
    args.dataset, args.classes = dataset, [*classes]
    if len(args.classes) != N_CLASSES:
        parser.error(f"there are to be {N_CLASSES} classes, not {len(args.classes)}")
    return args


def training_values(args):
    """The arguments that decide a training run: what a checkpoint has to agree on."""
    names = vars(training_arguments()).keys() - {"cache_dir"}
    return {name: getattr(args, name) for name in sorted(names)}


def load_data(args):
    """train_x, train_y, test_x, test_y of --dataset; "auto" becomes what it comes to."""
    global TAG
    data = None
    try:
        if args.dataset != "synthetic":
            data = load_cifar10(args.cache_dir)
    except NoFile as error:
        if args.dataset == "cifar10":
            raise
        say(f"[synthetic] made-up images run instead: {error}")
    args.dataset, TAG = ("cifar10", "") if data else ("synthetic", "[synthetic] ")
    return data or make_synthetic()


def versions():
    """What a run was made with."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "threads": THREADS,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def run(args, data, full_test=False, checkpoint=None):
    """Train and evaluate; returns the learners and the arrays of model.npz.

    full_test: evaluate on all test images at the end, by class too
    checkpoint: the file to go on from, if it exists, and to write after each epoch
    """
    train_x, _, test_x, test_y = data
    learners, n_train = make_learners(args), min(args.train_subset, len(train_x))
    names = "recipe", "seed", "columns", "lr", "lr_schedule", "layer_rates", "bp_lr"
    names += "label_input", "negatives", "loss", "temperature", "threshold"
    for values in (versions(), {name: vars(args)[name] for name in names}):
        tell(", ".join(f"{name} {value}" for name, value in values.items()))
    tell(f"{args.dataset}: trains on {n_train} of {train_x.shape}, test {test_x.shape}")
    for i, layer in enumerate(learners[0].layers[: args.n_layers]):
        first = layer.connections[0]
        # v is infinite where nothing is learned.
        size = sum(np.isfinite(parameter.v).sum() for parameter in layer.parameters())
        tell(
            f"layer {i}: {first.in_side}x{first.in_side}x{first.in_depth}, fields "
            f"{layer.field}x{layer.field} -> {layer.side}x{layer.side}x{layer.channels}"
            f", {args.columns * size:,} parameters"
        )
    if checkpoint:
        with contextlib.suppress(NoFile):
            load_checkpoint(checkpoint, args, learners)
            tell(f"going on from {checkpoint}")
    save = checkpoint and (lambda: save_checkpoint(checkpoint, args, learners))
    for learner in learners:
        train(learner, data, args, save)

    n_test = len(test_y) if full_test else min(args.eval_subset, len(test_y))
    accuracies, by_class = {}, {}
    tell()
    tell(f"{'':12}{'test %':>7}{'error %':>9}{'misses':>9}{'train %':>9}{'time s':>9}")
    for learner in learners:
        row = learner.history[-1]
        for name, (method, infix) in learner.ways.items():
            test = row[f"{infix}test_acc"]
            if full_test:
                predictions = in_batches(getattr(learner, method), test_x)
                test = np.mean(predictions == test_y)
                by_class[name] = class_accuracies(predictions, test_y)
                accuracies[f"{learner.name.lower()}_full_test_{infix}acc"] = test
            tell(
                f"{name:12}{100 * test:7.2f}{100 - 100 * test:9.2f}"
                f"{round((1 - test) * n_test):9}{100 * row[f'{infix}train_acc']:9.2f}"
                f"{row['wallclock']:9.1f}"
            )
    tell(f"{'chance':12}{10:7.2f}{90:9.2f}{n_test * 9 // 10:9}")
    n_train = min(args.eval_subset, n_train)
    tell(f"({n_test} test and {n_train} training images; time without evaluation)")
    if full_test:
        tell()
        tell(f"{'class':10}" + "".join(f"{name + ' %':>15}" for name in by_class))
        for label, *values in zip(args.classes, *by_class.values()):
            tell(f"{label:10}" + "".join(f"{100 * v:15.1f}" for v in values))
    return learners, model_arrays(args, learners, accuracies)


def command(main):
    """Run a script's main(): one line and an exit code for what goes wrong."""
    UNWRITTEN.clear()
    try:
        with warnings.catch_warnings():
            # An overflow ends in a number that is not finite, which is an error by itself.
            warnings.simplefilter("ignore", RuntimeWarning)
            main()
        if TAG:
            tell("these are not CIFAR-10 results: the images are made up")
        if UNWRITTEN:
            sys.exit(1)
    except BrokenPipeError:  # whoever reads the results, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RunError, MemoryError) as error:
        memory = "not enough memory: " if isinstance(error, MemoryError) else ""
        say(f"{Path(sys.argv[0]).name}: {memory}{error}")
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last epoch that it saved"
        say("interrupted" + goes_on * any("--checkpoint" in word for word in sys.argv))
        sys.exit(130)


def main():
    parser = Parser("Train Forward-Forward and backprop on CIFAR-10.", MAKE_MODEL)
    add_training_flags(parser)
    group = parser.add_argument_group("results")
    help = "evaluate on all test images at the end, by class too"
    group.add_argument("--full-test", action="store_true", help=help)
    file = {"type": destination, "metavar": "FILE"}
    group.add_argument("--save", help="write weights and history to this .npz", **file)
    help = "save the run's state here after every epoch, and go on from it if it exists"
    group.add_argument("--checkpoint", help=help, **file)
    args = parse(parser)
    _, arrays = run(args, load_data(args), args.full_test, args.checkpoint)
    if args.save and write_whole(args.save, lambda f: np.savez(f, **arrays), keep=True):
        tell()
        tell(f"saved {args.save} ({args.save.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    command(main)
