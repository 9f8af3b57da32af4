# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0", "pillow>=10"]
# ///
"""Forward-Forward against backprop on CIFAR-10, with locally-connected layers.

Trains the same stack of locally-connected ReLU layers (no weight sharing) twice:
with Hinton's Forward-Forward algorithm (FF, arXiv:2212.13345), where each layer
learns by itself to give images with their true label a high goodness mean(h^2) and
images with a wrong label a low one; and with backpropagation (BP) through a softmax.

    python3 ff_cifar_locally_connected.py --bp-baseline --full-test --save model.npz

ends with these lines (and then the accuracies by class):

                 test %  error %   misses  train %   time s
    FF            24.87    75.13     7513    26.90     15.7
    BP            37.63    62.37     6237    53.70     18.7
    chance        10.00    90.00     9000
    (10000 test and 1000 training images; time without evaluation)
"""

import argparse
import gzip
import hashlib
import http.client
import io
import json
import math
import os
import platform
import re
import ssl
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The layers share their tiles out to threads of their own (see Threads below), so a
# matrix product must stay on one core. BLAS reads these when numpy is first imported.
for _blas in ("OPENBLAS_NUM", "MKL_NUM", "BLIS_NUM", "VECLIB_MAXIMUM"):
    os.environ[f"{_blas}_THREADS"] = "1"

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

# ------------------------------------------------------------------ constants

CLASSES = ("airplane", "automobile", "bird", "cat", "deer")
CLASSES += ("dog", "frog", "horse", "ship", "truck")
N_CLASSES = len(CLASSES)
N_TRAIN, N_TEST = 50_000, 10_000
IMAGE_SHAPE = SIDE, _, DEPTH = 32, 32, 3
CIFAR_MEAN = np.float32([0.4914, 0.4822, 0.4465])  # per channel, of the training set

LABEL_ROWS, LABEL_LEN = 3, N_CLASSES  # the label block, in the top left corner
LABEL_ON, LABEL_OFF = 1.0, -1.0

RECEPTIVE_FIELDS = 11, 5, 5, 5  # side of layer i's receptive fields
CHANNELS = 8  # units at each position, unless --channels says otherwise


# ------------------------------------------------------------- label encoding

# Spread out over an image, as a subtraction of 3 numbers at a time is ten times slower.
MEAN_IMAGE = np.tile(CIFAR_MEAN, (SIDE, SIDE, 1))


def normalise(images):
    """uint8 (..., H, W, 3) -> float32 x/255 - CIFAR_MEAN."""
    return np.multiply(images, np.float32(1 / 255), dtype=np.float32) - MEAN_IMAGE


def encode_labels(pixels, labels):
    """Write the label block of each of `labels` (...) into `pixels` (..., H, W, 3).

    The block is LABEL_OFF but for the label's column, which is LABEL_ON. In place.
    """
    block = np.where(np.eye(N_CLASSES, dtype=bool), LABEL_ON, LABEL_OFF)[labels]
    pixels[..., :LABEL_ROWS, :LABEL_LEN, :] = block[..., None, :, None]
    return pixels


# ------------------------------------------------------------ Forward-Forward


def count_units(h):
    return h.shape[0] * h.shape[1] * h.shape[4]


def goodness(h):
    """mean(h^2) over a layer's units: (T, T, P, B, N) -> (P, B).

    The paper's (section 2) is the sum; with the mean, layers of any size share theta.
    """
    return np.vecdot(h, h).sum(axis=(0, 1)) / count_units(h)


def goodness_derivative(h):
    """dg/du by the pre-activations u, (T, T, P, B, N), and a factor: 2 relu(u) / units.

    Another goodness has another one; it must be zero where relu(u) is. It also needs
    an rms of its own in ForwardForward.forward().
    """
    return h, np.float32(2 / count_units(h))


class ForwardForward:
    """Layers that each learn, alone, a goodness above threshold for the true label.

    threshold: theta; or "halfway", between the goodness of an image's two passes: then
        the loss depends on their difference alone, as in SymBa (arXiv:2303.08418)
    temperature: the unit of goodness, in the loss and in the choice of negatives
    label_input: "corner", a block of the image, or "everywhere", top-down to all units
    negatives: how the wrong label is chosen, see wrong_labels()
    generators["negatives"] draws it
    """

    name = "FF"

    def __init__(
        self,
        layers,
        adam,
        generators,
        threshold,
        temperature,
        label_input,
        negatives,
    ):
        self.layers, self.adam, self.generators = layers, adam, generators
        self.threshold, self.temperature = threshold, np.float32(temperature)
        self.label_input, self.negatives = label_input, negatives
        # In the corner, layer 0 is left out of a prediction (unless it is alone), as in
        # the paper: most of its units do not see the label.
        corner = label_input == "corner" and len(layers) > 1
        self.scored = slice(1, None) if corner else slice(None)
        self.columns = [
            f"{name} {i}" for i in range(len(layers)) for name in ("loss", "g+", "g-")
        ]
        self.history = new_history(self.columns)

    def parameters(self):
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    def forward(self, images, labels):
        """Yield layer, activity (T, T, P, B, N) and goodness (P, B), bottom up.

        images uint8 (B, H, W, 3); labels (P, B) or (P, 1), those of each pass
        """
        x, others, scale = normalise(images), None, None
        if self.label_input == "corner":
            rows, columns = self.layers[0].sees
            others = np.repeat(x[None, :, :rows, :columns], len(labels) - 1, axis=0)
            encode_labels(x, labels[0])
            encode_labels(others, labels[1:])
        for layer, above in zip(self.layers, [*self.layers[1:], None], strict=True):
            h = layer.forward(x, labels, others, scale)
            g = goodness(h)
            yield layer, h, g
            if above:
                # The input of the next layer is h / rms(h), so that only the
                # direction of the activity is passed on (section 2). g is its square;
                # with another goodness, take mean(h^2) here.
                scale = 1 / np.sqrt(np.maximum(g, np.float32(1e-12)))
                x = layer.maps("x maps", h[:, :, 0])
                rows, columns = above.sees
                corner = h[: -(-rows // layer.tile), : -(-columns // layer.tile), 1:]
                others = layer.maps("others maps", corner)[:, :, :rows, :columns]

    def wrong_labels(self, images, labels):
        """A label for each image that is not its own, by self.negatives.

        "uniform": any of the other nine. "hardest": the one of highest goodness.
        "sampled": in proportion to a softmax of goodness / temperature (the paper's
        softmax is that of a classifier trained beside it). The goodness is the one that
        predicts, the sum over the scored layers: it finds the labels that the network
        as a whole takes for true, and one wrong label serves all layers, so that each
        sees what the one below makes of it.
        """
        rng = self.generators["negatives"]
        if self.negatives == "uniform":
            other = rng.integers(1, N_CLASSES, len(labels), np.uint8)
            return (labels + other) % N_CLASSES
        scores = self.label_scores(images)
        scores[labels, np.arange(len(labels))] = -np.inf
        if self.negatives == "sampled":  # the largest of logits + Gumbel noise
            scores = scores / self.temperature + rng.gumbel(size=scores.shape)
        return scores.argmax(axis=0).astype(np.uint8)

    def loss(self, g):
        """The mean of log(1 + exp(-margin)) of goodness g (2, B), and dloss/dg (2, B).

        margin: (g - theta) / temperature of the positive pass, minus that of the other
        """
        sign = np.float32([[1], [-1]])
        halfway = self.threshold == "halfway"
        theta = g.mean(axis=0) if halfway else np.float32(self.threshold)
        margin = sign * (g - theta) / self.temperature
        # Halfway, theta moves with g, but as both margins are then equal, what that
        # adds to the derivative in one pass is taken away in the other.
        slope = sign * (np.tanh(margin / 2) - 1) / 2 / margin.size / self.temperature
        return np.logaddexp(0, -margin).mean(), slope

    def train_step(self, images, labels):
        """One step of every layer on a batch, uint8 (B, H, W, 3) and labels (B,).

        A layer's input is the activity from before the update of the one below:
        one forward pass serves the whole step. Returns the batch means of
        self.columns: the loss over both passes, and the goodness of each.
        """
        negatives = self.wrong_labels(images, labels)
        self.adam.begin_step()
        statistics = []
        passes = list(self.forward(images, np.stack([labels, negatives])))
        for layer, h, g in passes:
            loss, slope = self.loss(g)
            statistics += loss, *g.mean(axis=1)
            dg, factor = goodness_derivative(h)
            layer.backward(dg, self.adam, slope * factor)
        return np.array(statistics)

    def label_goodness(self, images):
        """The goodness of each layer with each label: (L, N_CLASSES, B)."""
        passes = self.forward(images, np.arange(N_CLASSES)[:, None])
        return np.stack([g for _, _, g in passes])

    def label_scores(self, images):
        """What decides between the labels: goodness summed over the scored layers."""
        return self.label_goodness(images)[self.scored].sum(axis=0)

    def predict(self, images):
        """The labels of the highest score (B,)."""
        return self.label_scores(images).argmax(axis=0)


# ------------------------------------------------------------------- backprop


class Backprop:
    """The same stack, end to end, under a linear readout and softmax cross-entropy."""

    name = "BP"
    columns = ("loss",)

    def __init__(self, layers, adam, generators):
        self.layers, self.adam, self.generators = layers, adam, generators
        self.history = new_history(self.columns)
        flat = layers[-1].side ** 2 * layers[-1].channels
        W = generators["initialisation"].standard_normal((flat, N_CLASSES), np.float32)
        self.W_out = Parameter(W * np.float32(math.sqrt(2 / flat)), decays=True)
        self.b_out = Parameter(np.zeros(N_CLASSES, np.float32))

    def parameters(self):
        stack = [parameter for layer in self.layers for parameter in layer.parameters()]
        return [*stack, self.W_out, self.b_out]

    def forward(self, images):
        """The layers' activities (T, T, 1, B, N) and the logits (B, N_CLASSES)."""
        x, activities = normalise(images), []
        for layer in self.layers:
            activities.append(layer.forward(x))
            x = layer.maps("x maps", activities[-1][:, :, 0])
        self.flat = x.reshape(len(x), -1)
        return activities, self.flat @ self.W_out.value + self.b_out.value

    def train_step(self, images, labels):
        """One step on a batch, uint8 (B, H, W, 3) and labels (B,): [cross-entropy]."""
        activities, logits = self.forward(images)
        rows = np.arange(len(labels))
        logits -= logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=1))
        loss = (log_sum - logits[rows, labels]).mean()
        dlogits = np.exp(logits - log_sum[:, None])
        dlogits[rows, labels] -= 1
        dlogits /= len(labels)

        self.adam.begin_step()
        side = self.layers[-1].side
        dh = (dlogits @ self.W_out.value.T).reshape(len(labels), side, side, -1)
        self.adam.update(self.W_out, self.flat.T @ dlogits)
        self.adam.update(self.b_out, dlogits.sum(axis=0))
        bottom = self.layers[0]
        for layer, h in zip(reversed(self.layers), reversed(activities)):
            du = layer.tiled(dh).reshape(h.shape)
            du *= h > 0
            dh = layer.backward(du, self.adam, input_gradient=layer is not bottom)
        return np.array([loss])

    def predict(self, images):
        return self.forward(images)[1].argmax(axis=1)


# ---------------------------------------------------- training and evaluation

EVALUATION_BATCH = 64  # images; their activities with ten labels still fit the caches
STREAMS = "initialisation", "order", "negatives", "augmentation"


def make_learners(args):
    """FF and, with --bp-baseline, BP: equal initial weights, order and augmentation."""

    def parts(label_input, learning_rate):
        streams = enumerate(STREAMS)
        generators = {
            name: np.random.default_rng([args.seed, i]) for i, name in streams
        }
        rng = generators["initialisation"]
        layers = make_layers(rng, args.n_layers, args.channels, label_input)
        steps = args.n_epochs * -(-args.train_subset // args.batch_size)
        total_steps = steps if args.lr_schedule == "linear" else None
        return layers, Adam(learning_rate, total_steps, args.weight_decay), generators

    forward_forward = ForwardForward(
        *parts(args.label_input, args.lr),
        args.threshold,
        args.temperature,
        args.label_input,
        args.negatives,
    )
    if not args.bp_baseline:
        return [forward_forward]
    return [forward_forward, Backprop(*parts(None, args.bp_lr or args.lr))]


def augment(images, rng):
    """Images (B, H, W, C), half of them mirrored, shifted by up to 2 pixels each way."""
    B = len(images)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    crops = sliding_window_view(padded, (SIDE, SIDE), (1, 2))
    rows, columns, mirrored = rng.integers(0, [[5], [5], [2]], (3, B))
    crops = crops[np.arange(B), rows, columns].transpose(0, 2, 3, 1)
    return np.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)


def in_batches(work, images):
    """work(images) (..., B), for any number of images, a batch at a time."""
    starts = range(0, len(images), EVALUATION_BATCH)
    parts = [work(images[i : i + EVALUATION_BATCH]) for i in starts]
    return np.concatenate(parts, axis=-1)


def predict(learner, images):
    """The predicted labels of any number of uint8 images."""
    return in_batches(learner.predict, images)


def accuracy(learner, images, labels):
    """The share of the images that are predicted right."""
    return float(np.mean(predict(learner, images) == labels))


def class_accuracies(predictions, labels):
    """The share of each class's images that are predicted right: (N_CLASSES,)."""
    right = np.bincount(labels[predictions == labels], minlength=N_CLASSES)
    return right / np.maximum(np.bincount(labels, minlength=N_CLASSES), 1)


def train_epoch(learner, images, labels, args, where):
    """One pass over the images: the means of learner.columns, and the seconds it took.

    Raises RunError, naming `where`, when a loss is no longer finite.
    """
    start = time.perf_counter()
    order = learner.generators["order"].permutation(len(images))
    starts = range(0, len(images), args.batch_size)
    total = np.zeros(len(learner.columns))
    for step, i in enumerate(starts):
        batch = order[i : i + args.batch_size]
        x = images[batch]
        if args.augment:
            x = augment(x, learner.generators["augmentation"])
        statistics = learner.train_step(x, labels[batch])
        if not np.isfinite(statistics).all():
            bad = int(np.argmin(np.isfinite(statistics)))
            column = learner.columns[bad].replace(" ", " of layer ")
            flag = "--bp-lr" if learner.name == "BP" and args.bp_lr else "--lr"
            raise RunError(
                f"{where}: {column} is {statistics[bad]} at step {step + 1}, with "
                f"learning rate {learner.adam.learning_rate:g}; try a smaller {flag}"
            )
        total += len(batch) * statistics
        show_progress(f"{where}, step {step + 1} of {len(starts)}")
    show_progress("")
    return total / len(images), time.perf_counter() - start


def train(learner, data, args, after_epoch=None, tell=print):
    """Train up to args.n_epochs epochs; tell a row and call after_epoch() after each.

    data: (train_x, train_y, test_x, test_y). Trains on the first args.train_subset
    images; evaluates on the first args.eval_subset of these and of the test images.
    learner.history (E, columns) grows by a row an epoch: the means of learner.columns,
    the training and test accuracies (fractions), and the seconds of training since its
    start, without evaluation.
    """
    train_x, train_y, test_x, test_y = data
    train_x, train_y = train_x[: args.train_subset], train_y[: args.train_subset]
    n, name = args.eval_subset, learner.name
    first, began = len(learner.history), time.perf_counter()
    if first < args.n_epochs:
        columns = [*learner.columns, "train%", "test%", "time s", "ETA s"]
        tell("   epoch" + "".join(f"{column:>7}" for column in columns))
    for epoch in range(first + 1, args.n_epochs + 1):
        where = f"{name} epoch {epoch} of {args.n_epochs}"
        statistics, seconds = train_epoch(learner, train_x, train_y, args, where)
        train_accuracy = accuracy(learner, train_x[:n], train_y[:n])
        test_accuracy = accuracy(learner, test_x[:n], test_y[:n])
        seconds += learner.history[-1, -1] if epoch > 1 else 0.0
        row = [*statistics, train_accuracy, test_accuracy, seconds]
        learner.history = np.vstack([learner.history, row])
        left = (time.perf_counter() - began) / (epoch - first) * (args.n_epochs - epoch)
        tell(
            f"{name} {epoch:>5}"
            + "".join(f"{value:7.3f}" for value in statistics)
            + f"{100 * train_accuracy:7.2f}{100 * test_accuracy:7.2f}"
            + f"{seconds:7.1f}{left:7.0f}"
        )
        if after_epoch:
            after_epoch()


# ------------------------------------------------ the locally-connected layer

# Axes: B images, P passes (one label each: the positive and the negative pass, or the
# ten labels of a prediction), T x T tiles, K inputs of a tile, N outputs of a tile.
#
# Tiles. Positions are taken 2 x 2 at a time (one at a time where the map's side is
# odd). A tile reads the union of its fields, (R+1) x (R+1) x C_in inputs, and one
# matrix product per tile, (T, B, K) @ (T, K, N) -> (T, B, N), computes all its units;
# weights outside a unit's own field are zero and stay zero. That adds 19 % (layer 0)
# and 44 % (layer 1) of arithmetic with zeros; in return the products are four times as
# wide, and 0.30 and 0.36 of the numbers are copied to gather the inputs.
#
# What the passes share. The passes of an image differ only in the label block, which
# reaches only the `corner`, the first tiles of the first rows, in layer 0 and, through
# the units there, in layer 1. All other tiles see the same input x in each pass, up to
# a scale: for FF, 1/rms of the pass. So W x is computed once, for the first pass, and
# pass p takes relu(scale_p (W x) + b); the weight gradient, sum_p scale_p du_p x, is
# one product of x with that sum. The other passes are computed in the corner only.
# This is exact, as W (scale_p x) = scale_p (W x).
#
# With top-down weights the label is no part of the image. In layer 0 all passes see the
# same input, and the corner is empty; above, their inputs differ in every tile, and the
# corner is the whole map. Each pass adds its label's weights to the biases.

ROWS_AT_ONCE = 2  # rows of tiles that a thread works on: long calls, yet cached data


class LocallyConnected:
    """relu(W x + b) with weights of its own at every position; stride 1, no padding.

    in_side, in_depth: an input is (in_side, in_side, in_depth)
    field: side R of the receptive fields; the output's side is in_side - R + 1
    channels: units at each position, which all see the same field
    differs: rows and columns of the input, from the top left, where passes differ
    top_down: every unit has a weight V for each label, added to its W x + b
    """

    def __init__(
        self, rng, in_side, in_depth, field, channels, differs=(0, 0), top_down=False
    ):
        self.in_side, self.in_depth = in_side, in_depth
        self.field, self.channels = field, channels
        self.side = in_side - field + 1
        self.tile = 2 - self.side % 2  # positions in a tile, each way
        self.tiles = self.side // self.tile  # tiles in the map, each way
        self.window = field + self.tile - 1  # side of a tile's input
        self.corner = [-(-min(d, self.side) // self.tile) for d in differs]
        # Rows and columns of the input that the corner reads.
        self.sees = [(c - 1) * self.tile + self.window if c else 0 for c in self.corner]

        self.buffers = {}
        tiles = self.tiles, self.tiles
        K, N = self.window**2 * in_depth, self.tile**2 * channels
        self.W = Parameter(np.zeros((*tiles, K, N), np.float32), decays=True)
        self.b = Parameter(np.zeros((*tiles, N), np.float32))
        self.V = None
        if top_down:
            self.V = Parameter(np.zeros((*tiles, N_CLASSES, N), np.float32))
        # Infinite second moments outside the fields: there Adam's steps are zero.
        self.W.v[:] = np.inf
        for _, v in self.fields(self.W.v):
            v[:] = 0
        for at, W in self.fields(self.W.value):  # He-normal
            W[:] = rng.standard_normal(W.shape, np.float32)
            W *= math.sqrt(2 / (field**2 * in_depth))

    # From maps to tiles and back.

    def fields(self, W):
        """For each position in a tile: where it is in a map, and its part of W."""
        t, w, r = self.tile, self.window, self.field
        shape = *W.shape[:2], w, w, self.in_depth, t, t, self.channels
        for i, j in np.ndindex(t, t):
            at = np.s_[i::t, j::t]
            yield at, W.reshape(shape)[:, :, i : i + r, j : j + r, :, i, j]

    def tiled(self, maps):
        """View of maps (..., T1*tile, T2*tile, C) as (T1, T2, ..., tile, tile, C)."""
        *others, rows, columns, channels = maps.shape
        t = self.tile
        tiles = maps.reshape(*others, rows // t, t, columns // t, t, channels)
        return np.moveaxis(tiles, (-5, -3), (0, 1))

    def parameters(self):
        return [self.W, self.b, self.V] if self.V else [self.W, self.b]

    def get_weights(self):
        """W (side, side, R*R*C_in, channels), K in order row, column, channel; b (side,
        side, channels); and, with top-down weights, V (N_CLASSES, side, side, channels)
        """
        K = self.field**2 * self.in_depth
        W = np.empty((self.side, self.side, K, self.channels), np.float32)
        for at, field in self.fields(self.W.value):
            W[at] = field.reshape(W[at].shape)
        return W, *(self.maps(None, p.value) for p in self.parameters()[1:])

    def set_weights(self, W, *others):
        """Take over weights of the shapes of get_weights()."""
        for at, field in self.fields(self.W.value):
            field[:] = W[at].reshape(field.shape)
        for parameter, maps in zip(self.parameters()[1:], others, strict=True):
            parameter.value[:] = self.tiled(maps).reshape(parameter.value.shape)

    def n_parameters(self):
        fan_in = self.field**2 * self.in_depth
        labels = N_CLASSES if self.V else 0
        return self.side**2 * self.channels * (fan_in + 1 + labels)

    def maps(self, name, h):
        """Tiles (T1, T2, ..., N) as maps (..., T1*tile, T2*tile, C).

        The array is the layer's buffer of that name, or, without a name, a new one.
        """
        sides = [n * self.tile for n in h.shape[:2]]
        shape = *h.shape[2:-1], *sides, self.channels
        maps = self.buffer(name, *shape) if name else np.empty(shape, h.dtype)
        tiled = self.tiled(maps)
        tiled[:] = h.reshape(tiled.shape)
        return maps

    # Computation.

    def buffer(self, name, *shape):
        """A float32 array that stays with the layer; see scratch()."""
        if (name, shape) not in self.buffers:
            self.buffers[name, shape] = np.empty(shape, np.float32)
        return self.buffers[name, shape]

    def in_rows(self, work):
        """Call work(rows) for slices that cover the rows of tiles, in all threads."""
        starts = range(0, self.tiles, ROWS_AT_ONCE)
        spans = [slice(start, start + ROWS_AT_ONCE) for start in starts]
        parallel(lambda i: work(spans[i]), len(spans))

    def gather(self, maps):
        """View of the tiles' inputs: (..., H, W, C) -> (T, T, ..., R', R', C)."""
        windows = sliding_window_view(maps, (self.window, self.window), (-3, -2))
        windows = windows[..., :: self.tile, :: self.tile, :, :, :]
        return np.moveaxis(windows, (-5, -4, -3), (0, 1, -1))

    def forward(self, x, labels=None, others=None, scale=None):
        """The activity of all passes in tiles, (T, T, P, B, N).

        x (B, in_side, in_side, in_depth): the input of the first pass
        labels (P, B) or (P, 1): the label of each pass; None: one, without a label
        others (P-1, B, *self.sees, in_depth): that of the others, in the corner
        scale (P, B): a factor for each pass's inputs
        The array is written over by the next call; the inputs are kept for backward().
        """
        W, b = self.W.value, self.b.value
        P, B, K = 1 if labels is None else len(labels), len(x), W.shape[2]
        r, c = self.corner
        windows = self.gather(x)
        self.x = self.buffer("x", *W.shape[:2], B, K)
        self.scale, self.labels = scale, labels
        if P > 1 and r:
            corner_windows = self.gather(others)
            self.others = self.buffer("others", r, c, (P - 1) * B, K)
        h = self.buffer("h", *W.shape[:2], P, B, b.shape[2])

        def work(rows):
            x, u = self.x[rows], h[rows]
            x.reshape(windows[rows].shape)[:] = windows[rows]
            np.matmul(x, W[rows], out=u[:, :, 0])
            u[:, :, 1:] = u[:, :, :1]
            if P > 1 and rows.start < r:
                y = self.others[rows]
                y.reshape(corner_windows[rows].shape)[:] = corner_windows[rows]
                own = u[: len(y), :c, 1:].reshape(*y.shape[:3], -1)  # a view
                np.matmul(y, W[rows][: len(y), :c], out=own)
            if scale is not None:
                u *= scale[:, :, None]
            if self.V:
                biases = b[rows, :, None] + self.V.value[rows]
                u += np.take(biases, labels, axis=2)
            else:
                u += b[rows, :, None, None]
            np.maximum(u, 0, out=u)

        self.in_rows(work)
        return h

    def weight_gradient(self, du, rows):
        """The gradient of W[rows] (t, T, K, N), from du of these rows (t, T, P, B, N).

        du is written over, and so is the gradient at this thread's next call.
        """
        gradient = scratch("gradient", *self.W.value[rows].shape)
        P = du.shape[2]
        r, c = self.corner if P > 1 and rows.start < self.corner[0] else (0, 0)
        if r:
            y = self.others[rows]
            r = len(y)
            own = du[:r, :c, 1:].reshape(r, c, y.shape[2], -1)
            corner = y.swapaxes(2, 3) @ own
            du[:r, :c, 1:] = 0
        total = du[:, :, 0] if P == 1 else du.sum(axis=2)
        np.matmul(self.x[rows].swapaxes(2, 3), total, out=gradient)
        if r:
            gradient[:r, :c] += corner
        return gradient

    def backward(self, du, adam, factor=None, input_gradient=False):
        """An Adam step of W and b, for the inputs of the last forward().

        du (T, T, P, B, N), times factor (P, B) if given: the derivative of the loss by
        the pre-activation. Returns the derivative by x where it is asked for (P = 1).
        """
        T, _, P, B, N = du.shape
        as_it_is = P == 1 and factor is None and self.scale is None
        factor = np.ones((P, B), np.float32) if factor is None else factor
        scaled = factor if self.scale is None else factor * self.scale
        # The gradient of V[label] sums over that label's samples, that of b over all.
        samples = factor.reshape(1, -1)
        if self.V:
            one_hot = np.eye(N_CLASSES, dtype=np.float32)[:, self.labels.ravel()]
            samples = samples * one_hot
        if input_gradient:
            strip = self.window, self.in_side, self.in_depth, B
            strips = self.buffer("strips", T, *strip)

        def work(rows):
            d = du[rows]
            per_label = samples @ d.reshape(*d.shape[:2], P * B, N)
            if not as_it_is:
                d = np.multiply(d, scaled[:, :, None], out=scratch("d", *d.shape))
            gradient = self.weight_gradient(d, rows)
            if input_gradient:
                self.input_gradient(d[:, :, 0], rows, strips[rows])
            adam.update(self.W, gradient, rows)
            adam.update(self.b, per_label.sum(axis=2), rows)
            if self.V:
                adam.update(self.V, per_label, rows)

        self.in_rows(work)
        if not input_gradient:
            return None
        t, w = self.tile, self.window
        dx = np.zeros((self.in_side, *strips.shape[2:]), np.float32)
        for i, strip in enumerate(strips):
            dx[t * i : t * i + w] += strip
        return np.moveaxis(dx, 3, 0)

    def input_gradient(self, du, rows, strips):
        """Sum W du, du (t, T, B, N), over each row of tiles in its strip of the input."""
        t, w = self.tile, self.window
        W = self.W.value[rows]
        dx = scratch("dx", *W.shape[:3], du.shape[2])
        np.matmul(W, du.swapaxes(2, 3), out=dx)
        dx = dx.reshape(*W.shape[:2], w, w, self.in_depth, -1)
        strips[:] = 0
        for j in range(W.shape[1]):
            strips[:, :, t * j : t * j + w] += dx[:, j]


def make_layers(rng, n_layers, channels, label_input=None):
    """The stack; label_input: "corner", "everywhere", or None for a single pass."""
    layers, side, depth = [], SIDE, DEPTH
    for i, field in enumerate(RECEPTIVE_FIELDS[:n_layers]):
        if label_input is None or (label_input == "everywhere" and i == 0):
            differs = 0, 0
        elif label_input == "corner" and i < 2:
            # Fields of units beyond the block's rows and columns miss it, and these
            # units are again those that the fields of layer 1 miss.
            differs = LABEL_ROWS, LABEL_LEN
        else:  # each pass had a scale and bias of its own
            differs = side, side
        top_down = label_input == "everywhere"
        layer = LocallyConnected(rng, side, depth, field, channels, differs, top_down)
        layers.append(layer)
        side, depth = layer.side, channels
    return layers


def new_history(columns):
    """What train() adds a row an epoch to: the columns, both accuracies, seconds."""
    return np.empty((0, len(columns) + 3))


# ----------------------------------------------------------------------- Adam


class Parameter:
    """An array that is learned, and the two moments that Adam keeps of its gradient."""

    def __init__(self, value, decays=False):
        self.value, self.decays = value, decays
        self.m = np.zeros_like(value)
        self.v = np.zeros_like(value)


class Adam:
    """Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1), one slice at a time, in place.

    m and v are kept divided by 1-beta1 and 1-beta2, and the bias corrections are
    folded into two scalars, which leaves ten passes over arrays that fit the cache.

    total_steps: the learning rate falls linearly, to 0 after so many; None: constant
    weight_decay: decoupled (AdamW, arXiv:1711.05101), of weights, not of biases
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, learning_rate, total_steps=None, weight_decay=0.0):
        self.learning_rate, self.total_steps = learning_rate, total_steps
        self.weight_decay = weight_decay
        self.steps = 0

    def begin_step(self):
        """Count a step; the updates that follow belong to it."""
        share_left = 1 - self.steps / self.total_steps if self.total_steps else 1
        learning_rate = self.learning_rate * share_left
        self.steps += 1
        m_scale = (1 - self.BETA1) / (1 - self.BETA1**self.steps)
        v_scale = math.sqrt((1 - self.BETA2) / (1 - self.BETA2**self.steps))
        self.rate = np.float32(learning_rate * m_scale / v_scale)
        self.kept = np.float32(1 - learning_rate * self.weight_decay)
        self.epsilon = np.float32(self.EPSILON / v_scale)

    def update(self, parameter, gradient, part=...):
        """Move parameter.value[part] against `gradient`, which is overwritten."""
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
        step *= self.rate
        if parameter.decays and self.weight_decay:
            value *= self.kept
        value -= step


# -------------------------------------------------------------------- threads

# numpy lets go of the interpreter while it computes, so plain threads are enough.
# Each piece of work writes what no other piece touches: the results do not depend on
# the number of threads.


def count_threads():
    """$OMP_NUM_THREADS, else the cores this process may use, but no more than 8."""
    if setting := os.environ.get("OMP_NUM_THREADS", ""):
        return int(setting) if setting.isdecimal() and int(setting) > 0 else 1
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


THREADS = count_threads()
POOL = ThreadPoolExecutor(max(1, THREADS - 1))


def parallel(work, count):
    """Call work(i) for every i below `count`, on all threads, and wait for the end."""

    indices, lock = iter(range(count)), threading.Lock()

    def share():
        while True:
            with lock:
                i = next(indices, None)
            if i is None:
                return
            work(i)

    others = [POOL.submit(share) for _ in range(min(THREADS, count) - 1)]
    share()
    for other in others:
        other.result()


_scratch = threading.local()


def scratch(name, *shape):
    """A float32 array of this thread for passing use, the same at every call.

    Fresh memory costs more in page faults than the arithmetic that fills it.
    """
    arrays = _scratch.__dict__
    if (name, shape) not in arrays:
        arrays[name, shape] = np.empty(shape, np.float32)
    return arrays[name, shape]


# ----------------------------------------------------------------------- data

# Two public sources of the same 60,000 images; the digest decides for both.
TORONTO_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/oxcdcd/cifar10"
CIFAR_SHA256 = "80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660"

TIMEOUT = 10.0  # seconds without a single byte from a server
FLOOR_SPEED, FLOOR_SECONDS = 100e3, 10.0  # bytes/s, judged over this many seconds
RETRY_WAITS = 1.0, 3.0, 9.0  # seconds before each new try of a dropped connection
MAX_ARCHIVE = 400_000_000  # bytes, downloaded or unpacked; the real ones have < 190e6
MAX_PNG = 20_000  # bytes read of one image; the real ones have about 2,300


def load_cifar10(cache_dir=None):
    """CIFAR-10 in Toronto's order, from the cache, an archive at hand or the network.

    Returns train_x (50000,32,32,3), train_y (50000,), test_x (10000,32,32,3) and
    test_y (10000,), all uint8. The cache folder is `cache_dir`, else
    $HINTON_CIFAR_CACHE, else ~/.cache/hinton-cifar. Whatever the source, nothing is
    cached or returned unless its SHA-256 is CIFAR_SHA256. Raises RunError.
    """
    folder = cache_dir or os.environ.get("HINTON_CIFAR_CACHE")
    folder = Path(folder or "~/.cache/hinton-cifar").expanduser()
    cached = folder / "cifar10.npz"
    tried = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make the cache folder {folder}: {error}; choose another with "
            "--cache-dir"
        ) from error
    for source, read in (
        (cached, read_npz),
        (folder / "cifar-10-binary.tar.gz", read_toronto),
        (folder / "cifar10.zip", read_kaggle),
        (TORONTO_URL, read_toronto),
        (KAGGLE_URL, read_kaggle),
    ):
        try:
            if isinstance(source, Path) and not source.exists():
                continue
            arrays = read_source(source, read, folder)
        except RunError as error:
            tried.append(str(error))
            say(f"gave up on {error}")
            continue
        except OSError as error:  # a full disk, no permission
            raise RunError(
                f"cannot get {source} into the cache folder {folder}: {error}; "
                "choose another with --cache-dir"
            ) from error
        if source != cached:
            save_npz(cached, arrays)
            say(f"made {cached} from {source}")
        return tuple(arrays[name] for name in empty_arrays())
    raise RunError(
        f"no CIFAR-10 from {'; '.join(tried)}. Put cifar-10-binary.tar.gz (Toronto's) or "
        f"cifar10.zip (Kaggle's) into {folder}, or use --dataset synthetic"
    )


def read_source(source, read, folder):
    """The arrays that read(file) finds in a file or at a URL, checked; or RunError."""
    # A temporary file without a name is gone even when the process is killed.
    is_file = isinstance(source, Path)
    with open(source, "rb") if is_file else tempfile.TemporaryFile(dir=folder) as file:
        if not is_file:
            download(source, file)
            file.seek(0)
        show_progress(f"reading {source}")
        try:
            arrays = read(file)
            check_like(arrays, empty_arrays())
            digest = hashlib.sha256()
            for name in empty_arrays():
                digest.update(arrays[name])
            if digest.hexdigest() != CIFAR_SHA256:
                raise ValueError(
                    f"expected SHA-256 {CIFAR_SHA256}, came {digest.hexdigest()}"
                )
        except Exception as error:  # parsers raise anything on damaged bytes
            raise RunError(f"{source}: {error or type(error).__name__}") from error
        show_progress("")
        return arrays


def empty_arrays():
    """The four arrays by name, in the order of the digest, for a reader to fill."""
    return {
        "train_x": np.empty((N_TRAIN, *IMAGE_SHAPE), np.uint8),
        "train_y": np.empty(N_TRAIN, np.uint8),
        "test_x": np.empty((N_TEST, *IMAGE_SHAPE), np.uint8),
        "test_y": np.empty(N_TEST, np.uint8),
    }


def read_toronto(file):
    """The arrays in Toronto's pickle-free archive: label byte, then R, G, B planes."""
    unpacked = gzip.GzipFile(fileobj=file).read(MAX_ARCHIVE + 1)
    if len(unpacked) > MAX_ARCHIVE:
        raise ValueError(f"unpacks to more than {MAX_ARCHIVE} bytes")
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    batches = {f"cifar-10-batches-bin/{name}.bin": b"" for name in names}
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r|") as archive:
        for member in archive:
            plain = member.isreg() and not member.issparse()
            if plain and member.name in batches:
                batches[member.name] = archive.extractfile(member).read()
    records = np.frombuffer(b"".join(batches.values()), np.uint8)
    expected = N_TRAIN + N_TEST, 1 + DEPTH * SIDE * SIDE
    if len(records) != math.prod(expected):
        raise ValueError(
            f"expected {math.prod(expected)} bytes in {', '.join(batches)}, "
            f"came {len(records)}"
        )
    records, arrays = records.reshape(expected), empty_arrays()
    for split, part in ("train", records[:N_TRAIN]), ("test", records[N_TRAIN:]):
        planes = part[:, 1:].reshape(-1, DEPTH, SIDE, SIDE)
        arrays[f"{split}_x"][:] = planes.transpose(0, 2, 3, 1)
        arrays[f"{split}_y"][:] = part[:, 0]
    return arrays


def read_kaggle(file):
    """The arrays in Kaggle's ImageFolder: .../train/frog/<index>_frog.png and so on."""
    pattern = rf"(?:.*/)?(train|test)/({'|'.join(CLASSES)})/(\d+)_\2\.png"
    images = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if match := re.fullmatch(pattern, member.filename):
                label = CLASSES.index(match[2])
                images[match[1], int(match[3])] = member, label
        arrays = empty_arrays()
        for split in ("train", "test"):
            for i in range(len(arrays[f"{split}_y"])):
                if (split, i) not in images:
                    raise ValueError(f"image {i} of {split} is missing")
                member, arrays[f"{split}_y"][i] = images[split, i]
                png = io.BytesIO(archive.open(member).read(MAX_PNG))
                with Image.open(png, formats=["PNG"]) as image:
                    if (*image.size, image.mode) != (SIDE, SIDE, "RGB"):
                        raise ValueError(
                            f"{member.filename}: expected {SIDE}x{SIDE} RGB, came "
                            f"{image.width}x{image.height} {image.mode}"
                        )
                    arrays[f"{split}_x"][i] = image
    return arrays


class SecureRedirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.type == "https" and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"redirects from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url, file):
    """Fetch the archive at `url` into the open `file`.

    A dropped connection is tried again after RETRY_WAITS; a source that answers an
    error, something else, too much, or too slowly is given up: RunError.
    """
    opener = urllib.request.build_opener(SecureRedirect)
    for wait in (*RETRY_WAITS, None):
        file.seek(0)
        file.truncate()
        try:
            with opener.open(url, timeout=TIMEOUT) as response:
                return copy_response(response, file)
        except (urllib.error.URLError, TimeoutError, ValueError) as error:
            raise RunError(f"{url}: {error}") from error
        except (ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            problem = f"{url}: {error or type(error).__name__}"
            if wait is None:
                raise RunError(problem) from error
            say(f"{problem}; trying again in {wait:g} s")
            time.sleep(wait)


def copy_response(response, file):
    """Copy an HTTP response's body into `file`, checked and with progress shown."""
    total = int(response.headers.get("Content-Length") or 0)
    start = last = time.monotonic()
    done = done_at_last = 0
    while data := response.read1(1 << 16):
        if done == 0 and data[0] not in b"\x1fP":
            raise ValueError(f"expected a gzip or zip archive, came {data[:20]!r}")
        file.write(data)
        done += len(data)
        if done > MAX_ARCHIVE:
            raise ValueError(f"more than {MAX_ARCHIVE} bytes")
        now = time.monotonic()
        rate = done / max(now - start, 1e-3)
        left = f", {(total - done) / rate:.0f} s left" if total else ""
        show_progress(
            f"{done / 1e6:.1f} of {total / 1e6:.1f} MB, {rate / 1e6:.2f} MB/s{left}"
        )
        if now - last > FLOOR_SECONDS:
            if done - done_at_last < FLOOR_SPEED * (now - last):
                raise ValueError(f"slower than {FLOOR_SPEED / 1e3:g} kB/s")
            last, done_at_last = now, done
    if done < total or done == 0:
        raise ConnectionError(f"closed after {done} of {total or 'unknown'} bytes")


def make_synthetic(seed=0):
    """A stand-in for CIFAR-10 that needs no network: noisy coloured gratings.

    Class k is a grating of orientation 18k degrees with a random phase, period and
    pair of colours. Returns arrays of the shapes and types of load_cifar10.
    """
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:SIDE, :SIDE].astype(np.float32)

    def images_and_labels(count):
        labels = rng.integers(0, N_CLASSES, count).astype(np.uint8)
        images = np.empty((count, *IMAGE_SHAPE), np.uint8)
        for part in np.array_split(np.arange(count), max(1, count // 1000)):
            angle = (np.pi / N_CLASSES * labels[part])[:, None, None]
            period, phase = rng.uniform([[5], [0]], [[9], [1]], (2, len(part)))
            along = row * np.sin(angle) + column * np.cos(angle)
            cycles = along / period[:, None, None] + phase[:, None, None]
            wave = 0.5 + 0.5 * np.sin(2 * np.pi * cycles.astype(np.float32))
            dark = rng.uniform(0, 135, (len(part), 1, 1, 3))
            light = rng.uniform(120, 255, (len(part), 1, 1, 3))
            pixels = dark + (light - dark) * wave[..., None]
            pixels += 20 * rng.standard_normal(pixels.shape, dtype=np.float32)
            images[part] = pixels.clip(0, 255)
        return images, labels

    return *images_and_labels(N_TRAIN), *images_and_labels(N_TEST)


# ---------------------------------------------------------------- saved files


def write_whole(path, write):
    """Call write(file): it is whole at `path`, or RunError and `path` as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise RunError(
                f"cannot write {path}: {reason}; make room, or choose another folder"
            ) from error
        raise


def save_npz(path, arrays):
    """Write an uncompressed .npz file, whole or not at all."""
    write_whole(path, lambda file: np.savez(file, **arrays))


def read_npz(file):
    """The arrays of an uncompressed .npz file; nothing is unpickled."""
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("expected an uncompressed .npz file")
            with archive.open(member) as data:
                array = np.lib.format.read_array(data, allow_pickle=False)
                if data.read(1):  # the end, which is where zipfile checks the CRC
                    raise ValueError(f"{member.filename} is longer than its array")
            arrays[member.filename.removesuffix(".npy")] = array
    return arrays


def check_like(arrays, expected):
    """ValueError unless `arrays` has the names, shapes and types of `expected`."""
    if different := sorted(arrays.keys() ^ expected.keys()):
        raise ValueError(f"missing or not expected: {', '.join(different)}")
    for name, array in expected.items():
        found, array = arrays[name], np.asarray(array)
        text = found.dtype.kind == array.dtype.kind == "U"  # of any length
        if found.shape != array.shape or not (text or found.dtype == array.dtype):
            raise ValueError(
                f"{name}: expected {array.dtype} {array.shape}, "
                f"came {found.dtype} {found.shape}"
            )


MAKE_MODEL = (
    "python3 ff_cifar_locally_connected.py --bp-baseline --full-test --save model.npz"
)


def load_npz(path, what):
    """The arrays of a file of ours; RunError, with what to do, if it is damaged."""
    try:
        with open(path, "rb") as file:
            return read_npz(file)
    except FileNotFoundError as error:
        raise RunError(f"{path}: there is no such {what}") from error
    except Exception as error:  # zipfile and numpy raise anything on damaged bytes
        reason = error or type(error).__name__
        raise RunError(f"{path} is no sound {what} ({reason})") from error


def live_arrays(learners):
    """All arrays that training changes, by name."""
    return {
        f"{learner.name}_{i}_{part}": getattr(parameter, part)
        for learner in learners
        for i, parameter in enumerate(learner.parameters())
        for part in ("value", "m", "v")
    }


def save_checkpoint(path, args, learners):
    """Everything that the rest of the run depends on, whole or not at all."""
    state = {
        "arguments": {name: getattr(args, name) for name in TRAINING_ARGUMENTS},
        "steps": [learner.adam.steps for learner in learners],
        "generators": [
            {name: rng.bit_generator.state for name, rng in learner.generators.items()}
            for learner in learners
        ],
    }
    arrays = {"state": json.dumps(state), **live_arrays(learners)}
    arrays |= {f"{one.name}_history": one.history for one in learners}
    save_npz(path, arrays)


def load_checkpoint(path, args, learners):
    """Put the state saved at `path` into the run; RunError where it does not fit."""
    ways_out = "give another --checkpoint, or delete it to start anew"
    arrays = load_npz(path, f"checkpoint: {ways_out}")
    try:
        state = json.loads(str(arrays["state"]))
        for name in TRAINING_ARGUMENTS:
            ours, saved = getattr(args, name), state["arguments"][name]
            if ours != saved:
                raise RunError(
                    f"{path} was made with {name} = {saved}, not {ours}: give the same "
                    "arguments, or another --checkpoint"
                )
        live = live_arrays(learners)
        expected = {"state": "", **live}
        for learner in learners:
            name = f"{learner.name}_history"
            expected[name] = np.empty((len(arrays[name]), learner.history.shape[1]))
        check_like(arrays, expected)
        for name, array in live.items():
            array[...] = arrays[name]
        for learner, steps in zip(learners, state["steps"], strict=True):
            learner.history = arrays[f"{learner.name}_history"]
            learner.adam.steps = int(steps)
        for learner, states in zip(learners, state["generators"], strict=True):
            for name, generator in learner.generators.items():
                generator.bit_generator.state = states[name]
    except RunError:
        raise
    except Exception as error:  # the state may hold anything
        reason = f"{type(error).__name__} {error}"
        raise RunError(
            f"{path} is no checkpoint of this run ({reason}): {ways_out}"
        ) from error


def model_arrays(args, learners, full_test):
    """The arrays of model.npz: the README lists them."""
    layers = learners[0].layers
    arguments = {name: getattr(args, name) for name in TRAINING_ARGUMENTS}
    halfway = args.threshold == "halfway"
    arrays = {
        "layer_specs": np.int32([(layer.field, layer.channels) for layer in layers]),
        "threshold": np.float64(math.nan if halfway else args.threshold),
        "seed": np.int64(args.seed),
        "config": json.dumps({"arguments": arguments, "versions": versions()}),
    }
    for learner in learners:
        prefix, history = learner.name.lower(), learner.history
        for i, layer in enumerate(learner.layers):
            for name, weights in zip("WbV", layer.get_weights(), strict=False):
                arrays[f"{prefix}_layer{i}_{name}"] = weights
        *statistics, train_accuracy, test_accuracy, seconds = history.T
        if prefix == "ff":
            statistics = np.reshape(statistics, (len(layers), 3, len(history)))
            for k, name in enumerate(("loss_per_layer", "g_pos", "g_neg")):
                arrays[f"ff_{name}"] = statistics[:, k]
        else:
            arrays["bp_W_out"] = learner.W_out.value
            arrays["bp_b_out"] = learner.b_out.value
            arrays["bp_loss"] = statistics[0]
        arrays[f"{prefix}_train_acc"] = train_accuracy
        arrays[f"{prefix}_test_acc"] = test_accuracy
        arrays[f"{prefix}_wallclock"] = seconds
        if learner.name in full_test:
            arrays[f"{prefix}_full_test_acc"] = np.float64(full_test[learner.name])
    return arrays


def load_model(path):
    """The learners of a model.npz by name, the arguments of its run, and its arrays.

    RunError if it is damaged, incomplete or of other shapes, or holds what is not
    finite; what is pickled is refused, never loaded.
    """
    arrays = load_npz(path, f"model: make one with {MAKE_MODEL}")
    try:
        config = json.loads(str(arrays["config"]))["arguments"]
        args = argparse.Namespace(**{name: config[name] for name in TRAINING_ARGUMENTS})
        specs = [[field, args.channels] for field in RECEPTIVE_FIELDS[: args.n_layers]]
        saved = arrays["layer_specs"].tolist()
        if len(specs) != args.n_layers or not specs or saved != specs:
            raise ValueError("layer_specs and config differ")
        learners = make_learners(args)
        epochs = len(arrays["ff_wallclock"])
        for learner in learners:
            learner.history = np.zeros((epochs, learner.history.shape[1]))
        full_test = {
            learner.name: 0.0
            for learner in learners
            if f"{learner.name.lower()}_full_test_acc" in arrays
        }
        expected = model_arrays(args, learners, full_test)
        check_like(arrays, expected)
        for name in ("threshold", "seed"):
            if not np.array_equal(arrays[name], expected[name], equal_nan=True):
                raise ValueError(f"{name} and config differ")
        for name, array in arrays.items():
            sound = array.dtype.kind != "f" or np.isfinite(array).all()
            if not sound and (name, args.threshold) != ("threshold", "halfway"):
                raise ValueError(f"{name} is not finite")
        for learner in learners:
            prefix = learner.name.lower()
            for i, layer in enumerate(learner.layers):
                names = "WbV" if layer.V else "Wb"
                layer.set_weights(*(arrays[f"{prefix}_layer{i}_{n}"] for n in names))
            if prefix == "bp":
                learner.W_out.value[...] = arrays["bp_W_out"]
                learner.b_out.value[...] = arrays["bp_b_out"]
    except Exception as error:  # config may hold anything
        reason = f"{type(error).__name__} {error}"
        raise RunError(
            f"{path} is no sound model ({reason}): make one with {MAKE_MODEL}"
        ) from error
    return {learner.name: learner for learner in learners}, args, arrays


# --------------------------------------------------------------- command line


class RunError(Exception):
    """A failure the user can mend; its text is the one line that is printed."""

    def __init__(self, text):
        super().__init__(" ".join(text.split()))


def show_progress(text):
    """Rewrite the progress line of a terminal ("" clears it); nothing in a pipe."""
    if sys.stderr.isatty():
        end = "" if text else "\r"
        print(f"\r{text:<78.78}", end=end, file=sys.stderr, flush=True)


def say(line):
    """Tell the user something about the run that is not a result (to stderr)."""
    show_progress("")
    print(line, file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def __init__(self, description, example):
        super().__init__(
            description=description,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message):
        message = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def number(kind, low, high=2**63 - 1):
    """An argparse type: an int or float from low to high."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            what, form = ("a whole number", "d") if kind is int else ("a number", "g")
            limits = f"from {low:{form}} to {high:{form}}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {limits}")
        return value

    return parse


def threshold(text):
    """An argparse type: theta, a number above 0, or "halfway"."""
    try:
        return text if text == "halfway" else number(float, 1e-12)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or halfway") from error


def destination(text):
    """An argparse type: a regular file that can be written, new or to be replaced."""
    path = Path(text)
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {reason}") from error
    return path


def add_data_flags(parser):
    """The flags of the data; returns their group."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        choices=("cifar10", "synthetic"),
        default="cifar10",
        help="default: cifar10; synthetic: made-up gratings, without a network",
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="default: $HINTON_CIFAR_CACHE, else ~/.cache/hinton-cifar",
    )
    return group


def add_training_flags(parser, backprop=True):
    """The flags of a training run, for all scripts; those of backprop, if it runs."""
    subset, evaluated = number(int, 1, N_TRAIN), number(int, 1, N_TEST)
    count, positive = number(int, 1), number(float, 1e-12)
    depth, at_least_0 = number(int, 1, len(RECEPTIVE_FIELDS)), number(float, 0)
    group = add_data_flags(parser)

    def add(flags, default, kind, help, metavar="N"):
        flags, help = flags.split(), help + " (default: %(default)s)"
        group.add_argument(
            *flags, default=default, type=kind, help=help, metavar=metavar
        )

    def choose(flag, *choices_and_help):
        *choices, help = choices_and_help
        help += " (default: %(default)s)"
        group.add_argument(flag, default=choices[0], choices=choices, help=help)

    add("--train-subset", 10_000, subset, "train on the first N images")
    help = "evaluate after each epoch on the first N training and N test images"
    add("--eval-subset", 1000, evaluated, help)
    group = parser.add_argument_group("model and training")
    add("--seed", 0, number(int, 0), "seed of weights, order and negatives")
    add("--n-epochs --epochs", 10, count, "passes over the training images")
    add("--n-layers", 2, depth, "locally-connected layers, 1 to 4")
    add("--channels", CHANNELS, count, "units at each position of a layer")
    add("--batch-size", 64, count, "images in a step")
    add("--lr", 0.01, positive, "Adam's learning rate")
    help = "constant, or falling linearly to 0"
    choose("--lr-schedule", "constant", "linear", help)
    add("--weight-decay", 0.0, at_least_0, "of weights, decoupled as in AdamW")
    help = "mirror images at random and shift them by up to 2 pixels"
    group.add_argument("--augment", action="store_true", help=help)
    group = parser.add_argument_group("Forward-Forward")
    help = "where the label enters: a block of the image, or top-down into all units"
    choose("--label-input", "corner", "everywhere", help)
    help = "the wrong label: any, that of highest goodness, or by softmax of goodness"
    choose("--negatives", "uniform", "hardest", "sampled", help)
    help = "theta, a goodness; or halfway: between the two passes of each image"
    add("--threshold", 2.0, threshold, help, "N|halfway")
    help = "unit of goodness, in the loss and in the softmax of --negatives sampled"
    add("--temperature", 1.0, positive, help)
    if backprop:
        group = parser.add_argument_group("backprop")
        help = "train the same stack with backprop too (default: %(default)s)"
        switch = argparse.BooleanOptionalAction
        group.add_argument("--bp-baseline", action=switch, help=help)
        help = "learning rate of backprop (default: --lr)"
        group.add_argument("--bp-lr", type=positive, metavar="N", help=help)
    # Set above, Python before 3.13 would say it in the help a second time.
    parser.set_defaults(bp_baseline=False, bp_lr=None)


def parse(parser):
    """The arguments of a parser with the training flags; they must fit together."""
    args = parser.parse_args()
    if args.bp_lr and not args.bp_baseline:
        parser.error("--bp-lr needs --bp-baseline")
    return args


def training_arguments(**changes):
    """The training flags' defaults with `changes`, for use without a command line."""
    parser = Parser("", "")
    add_training_flags(parser)
    args = parser.parse_args([])
    vars(args).update(changes)
    return args


# The arguments that decide a training run: what a checkpoint has to agree on.
TRAINING_ARGUMENTS = tuple(
    name for name in vars(training_arguments()) if name != "cache_dir"
)


def load_data(args):
    """train_x, train_y, test_x, test_y of --dataset."""
    if args.dataset == "synthetic":
        return make_synthetic()
    return load_cifar10(args.cache_dir)


def teller(args):
    """print, but every line about synthetic data says so."""
    tag = "[synthetic] " if args.dataset == "synthetic" else ""
    return lambda line="": print(tag + line, flush=True)


def versions():
    """What a run was made with."""
    blas = np.show_config(mode="dicts")["Build Dependencies"].get("blas", {})
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "threads": THREADS,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def run(args, data, tell, full_test=False, checkpoint=None):
    """Train and evaluate; returns the learners and the arrays of model.npz.

    full_test: evaluate on all test images at the end, by class too
    checkpoint: the file to go on from, if it exists, and to write after each epoch
    """
    train_x, _, test_x, test_y = data
    tell(", ".join(f"{name} {version}" for name, version in versions().items()))
    tell(
        f"{args.dataset}: {args.train_subset} of {len(train_x)} training images, "
        f"{len(test_x)} test images, {SIDE}x{SIDE}x{DEPTH} uint8"
    )
    learners = make_learners(args)
    for i, layer in enumerate(learners[0].layers):
        tell(
            f"layer {i}: {layer.in_side}x{layer.in_side}x{layer.in_depth}, fields "
            f"{layer.field}x{layer.field} -> {layer.side}x{layer.side}x{layer.channels}"
            f", {layer.n_parameters():,} parameters"
        )
    if checkpoint and checkpoint.exists():
        load_checkpoint(checkpoint, args, learners)
        tell(f"going on from {checkpoint}")

    def after_epoch():
        if checkpoint:
            save_checkpoint(checkpoint, args, learners)

    for learner in learners:
        train(learner, data, args, after_epoch, tell)

    if full_test:
        predictions = {one.name: predict(one, test_x) for one in learners}
    else:
        test_y = test_y[: args.eval_subset]
        predictions = {}
    tell()
    tell(f"{'':10}{'test %':>9}{'error %':>9}{'misses':>9}{'train %':>9}{'time s':>9}")
    accuracies = {}
    for learner in learners:
        *_, train_accuracy, test_accuracy, seconds = learner.history[-1]
        if learner.name in predictions:
            test_accuracy = np.mean(predictions[learner.name] == test_y)
            accuracies[learner.name] = test_accuracy
        tell(
            f"{learner.name:10}{100 * test_accuracy:9.2f}{100 - 100 * test_accuracy:9.2f}"
            f"{round((1 - test_accuracy) * len(test_y)):9}{100 * train_accuracy:9.2f}"
            f"{seconds:9.1f}"
        )
    tell(f"{'chance':10}{10:9.2f}{90:9.2f}{len(test_y) * 9 // 10:9}")
    seen = min(args.eval_subset, args.train_subset)
    tell(f"({len(test_y)} test and {seen} training images; time without evaluation)")
    if predictions:
        tell()
        tell(f"{'class':10}" + "".join(f"{name + ' %':>9}" for name in predictions))
        columns = [class_accuracies(p, test_y) for p in predictions.values()]
        for label, *values in zip(CLASSES, *columns):
            tell(f"{label:10}" + "".join(f"{100 * value:9.1f}" for value in values))
    return learners, model_arrays(args, learners, accuracies)


def command(main):
    """Run a script's main(): one line and an exit code for what goes wrong."""
    # An overflow ends in a loss that is not finite, which train_epoch() reports.
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    try:
        main()
    except RunError as error:
        say(f"{Path(sys.argv[0]).name}: {error}")
        sys.exit(1)
    except MemoryError:
        say(f"{Path(sys.argv[0]).name}: not enough memory: fewer --channels or images")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted; a training with --checkpoint FILE goes on when started again")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"{Path(sys.argv[0]).name}: the reader of the output has gone away")


def main():
    parser = Parser(
        "Train Forward-Forward and backprop on CIFAR-10, with locally-connected layers.",
        MAKE_MODEL,
    )
    add_training_flags(parser)
    group = parser.add_argument_group("results")
    help = "evaluate on all test images at the end, by class too"
    group.add_argument("--full-test", action="store_true", help=help)
    help = "write weights and history to this .npz file"
    group.add_argument("--save", type=destination, metavar="FILE", help=help)
    help = "save the run's state here after every epoch, and go on from it if it exists"
    group.add_argument("--checkpoint", type=destination, metavar="FILE", help=help)
    args = parse(parser)
    if args.save and args.save == args.checkpoint:
        parser.error("--save and --checkpoint are the same file")

    tell = teller(args)
    _, arrays = run(args, load_data(args), tell, args.full_test, args.checkpoint)
    if args.save:
        save_npz(args.save, arrays)
        tell()
        tell(f"saved {args.save} ({args.save.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    command(main)
