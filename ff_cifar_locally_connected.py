# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "pillow>=10.1"]
# ///
"""Forward-Forward against backprop on CIFAR-10, with locally-connected layers.

Trains the same stack of locally-connected ReLU layers (no weight sharing) twice:
with Hinton's Forward-Forward algorithm (FF, arXiv:2212.13345), where each layer
learns by itself to give images with their true label a high goodness mean(h^2) and
images with a wrong label a low one; and with backpropagation (BP) through a softmax.

    python3 ff_cifar_locally_connected.py --bp-baseline --full-test --save model.npz

ends with these lines (and then the accuracies by class):

                 test %  error %   misses  train %   time s
    FF            24.84    75.16     7516    26.70      9.8
    BP            35.78    64.22     6422    54.30      9.2
    chance        10.00    90.00     9000
    (10000 test and 1000 training images; time without evaluation)
"""

import argparse
import contextlib
import ctypes
import gzip
import hashlib
import http.client
import io
import itertools
import json
import math
import os
import platform
import re
import secrets
import ssl
import stat
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
from typing import NamedTuple

# The layers share their tiles out to threads of their own (see Threads below), so a
# matrix product must stay on one core. BLAS reads these when numpy is first imported,
# and where it already is, limit_blas() has to tell it.
NUMPY_WAS_THERE = "numpy" in sys.modules
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

SHIFT = 2  # pixels, see augment()

# --whiten: side of the patches, the least variance, and the images that it looks at
WHITENING_FIELD, WHITENING_EPSILON, WHITENING_IMAGES = 5, 0.01, 2000

# Hinton's recurrent network (sections 3.4 and 4): maps as large as the image
RECURRENT_FIELD, RECURRENT_CHANNELS = 11, 3
KEPT = 0.3  # of a unit's last activity, in each iteration
ITERATIONS = 5  # of a training step, each of which learns
LABEL_GAIN = 3  # the label's initial weights, in units of He-normal ones
WINDOW = 4, 5, 6  # the iterations whose goodness predicts
CLASSIFIER_LR = 3e-4  # Adam's learning rate of the one-pass classifier

# What the flags are where neither a recipe nor the command line says otherwise.
NETWORKS = {
    "feedforward": {"threshold": 2.0},
    "recurrent": {
        "channels": RECURRENT_CHANNELS,
        "lr": 0.003,
        "lr_schedule": "linear",
        "label_input": "top",
        "negatives": "classifier",
        "threshold": "halfway",
        "temperature": 0.05,
    },
}
# --recipe: what differs from the flags' defaults, which are the headline.
RECIPES = {
    "headline": {},
    "one-layer": {
        "train_subset": 50_000,
        "n_epochs": 20,
        "n_layers": 1,
        "augment": True,
        "lr": 0.02,
        "lr_schedule": "linear",
        "label_input": "everywhere",
        "negatives": "all",
        "temperature": 0.05,
        "bp_lr": 0.001,
    },
    "best": {
        "train_subset": 50_000,
        "n_epochs": 90,
        "fields": "5,9",
        "augment": True,
        "shift": 4,
        "whiten": True,
        "lr": 0.02,
        "layer_rates": "1,0.2",
        "lr_schedule": "linear",
        "label_input": "everywhere",
        "pass_up": "neutral",
        "negatives": "all",
        "temperature": 0.05,
        "scored": "last",
        "bp_lr": 0.001,
    },
}


# ------------------------------------------------------------- label encoding


def normalise(images, mean=CIFAR_MEAN):
    """uint8 (..., H, W, 3) -> float32 x/255 - CIFAR_MEAN; mean: it, for other axes."""
    return np.multiply(images, np.float32(1 / 255), dtype=np.float32) - mean


def normalised_maps(images, whitening=None):
    """uint8 (B, H, W, 3) -> normalised (H, W, 3, 1, B): one map for all passes.

    whitening: a filter of whitening_filter(), applied to them, or None
    """
    images = np.ascontiguousarray(np.moveaxis(images, 0, -1))
    x = normalise(images, CIFAR_MEAN[:, None])
    if whitening is not None:
        x = filtered(x, whitening)
    return x[:, :, :, None]


def whitening_filter(images):
    """ZCA whitening of patches, as a filter (F, F, 3, 3) by row, column, colour in and
    out: what decorrelates neighbouring pixels and colours.

    With C the mean of p p^T over patches p (F*F*3,) of normalised images, uint8 (n, H,
    W, 3), it is the part of (C + WHITENING_EPSILON)^(-1/2) that makes a patch's middle
    pixel, scaled to leave the mean square as it was. Coates, Lee & Ng (AISTATS 2011,
    section 3.1.2) whiten patches so.
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
    """Maps (H, W, 3, B) filtered by `kernel` (F, F, 3, 3), the edge repeated around.

    A row of pixels is one product of the F rows around it with a banded matrix.
    """
    (H, W, depth, B), F = x.shape, len(kernel)
    around = F // 2, F // 2
    padded = np.pad(x, (around, around, (0, 0), (0, 0)), mode="edge")
    band = np.zeros((W, depth, F, W + F - 1, depth), np.float32)
    for column in range(W):
        band[column, :, :, column : column + F] = np.moveaxis(kernel, -1, 0)
    band, result = band.reshape(W * depth, -1), np.empty_like(x)

    def work(row):
        rows = padded[row : row + F].reshape(-1, B)
        np.matmul(band, rows, out=result[row].reshape(-1, B))

    parallel(work, H)
    return result


def encode_labels(pixels, labels):
    """Write the label block of each of `labels` (...) into `pixels` (..., H, W, 3).

    The block is LABEL_OFF but for the label's column, which is LABEL_ON. In place.
    """
    block = np.where(np.eye(N_CLASSES, dtype=bool), LABEL_ON, LABEL_OFF)[labels]
    pixels[..., :LABEL_ROWS, :LABEL_LEN, :] = block[..., None, :, None]
    return pixels


def wrong_labels(labels, rng):
    """For each of `labels` one of the other nine, all of them equally likely."""
    other = rng.integers(1, N_CLASSES, labels.shape, np.uint8)
    return (labels + other) % N_CLASSES


def sample_wrong_labels(logits, labels, rng):
    """A wrong label for each of `labels` (B,), in proportion to exp(logits (N, B))."""
    # The largest of logits plus Gumbel noise is a sample of their softmax.
    noisy = logits + rng.gumbel(size=logits.shape)
    noisy[labels, np.arange(len(labels))] = -np.inf
    return noisy.argmax(axis=0).astype(np.uint8)


# ------------------------------------------------------------ Forward-Forward
# A pass is a forward computation with one label for each image: the true one and a
# wrong one in training, or all ten, in training and to predict. Axes: L layers,
# P passes, B images. A layer shows its activity h piece by piece, see Layer.forward().

ALL_LABELS = np.arange(N_CLASSES)[:, None]  # (P, 1): in each pass one label for all


def goodness(h):
    """What a piece of a layer, h (t, T, N, P, B), adds to its goodness: (P, B).

    The goodness is mean(h^2) over all units of the layer: the sum over its pieces,
    divided by the number of units. The paper's (section 2) is the sum; with the mean,
    layers of any size share theta.
    """
    return sum_of_squares(h)


def sum_of_squares(h):
    """Over the units of a piece (t, T, N, P, B): (P, B)."""
    return np.einsum("ijnpb,ijnpb->ijpb", h, h).sum(axis=(0, 1), dtype=float)


def inverse_rms(squares, layer):
    """1 / root mean square (P, B) of an activity with these sums of squares (T, P, B)."""
    mean_square = squares.sum(axis=0) / layer.n_units
    return np.float32(1 / np.sqrt(np.maximum(mean_square, 1e-12)))


def goodness_gradient(h, dg):
    """The derivative by h, from that by what goodness(h) returns, dg (P, B).

    h is written over. It must be zero where h is, as ReLU has no slope there.
    """
    return np.multiply(h, np.float32(2 * dg), out=h)


def cross_entropy(scores, true):
    """Softmax cross-entropy: the mean over images of -log p[true], and its derivative.

    scores (P, B): of each candidate for each image; true (B,): which one is right.
    """
    images = np.arange(scores.shape[1])
    scores = scores - scores.max(axis=0)
    log_p = scores - np.log(np.exp(scores).sum(axis=0))
    derivative = np.exp(log_p)
    derivative[true, images] -= 1
    return -log_p[true, images].mean(), derivative / len(images)


def step_statistics(losses, g, true):
    """What FF's train_step() returns, from losses (L,), g (L, P, B) and true (B,)."""
    g_true = g[:, true, np.arange(len(true))]
    g_wrong = (g.sum(axis=1) - g_true) / (g.shape[1] - 1)
    means = {"g_pos": g_true.mean(axis=1), "g_neg": g_wrong.mean(axis=1)}
    return {"loss_per_layer": losses} | means


class Way(NamedTuple):
    """One way in which a learner predicts."""

    told: str  # its name in tables
    method: str  # of the learner: images (B, H, W, 3) -> labels (B,)
    prefix: str  # of its accuracies in the history
    full_test: str  # name of its accuracy on all test images in model.npz


class ForwardForward:
    """Layers that each learn, alone, a higher goodness for the true label than for others.

    label_input: "corner", a block of the image, or "everywhere", top-down to all units
    pass_up: what a layer passes up. "labelled": its activity in each pass; "neutral":
        that with a neutral label (0.1 of each), once for all passes
    negatives: the wrong labels to learn from. "uniform": one of the nine; "sampled": one
        in proportion to a softmax of the goodness that predicts, as the paper (section
        4) does with a classifier's; "all": all nine
    threshold: theta; or "halfway", between the goodness of an image's two passes; None
        with all negatives
    temperature: the unit of goodness, in the loss and in the choice of negatives
    objective: "max", a higher goodness for the true label, or "min", a lower one
    layer_rates: the learning rate of each layer, in units of lr
    scored: the layers whose goodness, summed, predicts: "all" of them or the "last"
    """

    name = "FF"
    ways = (Way("FF", "predict", "", "ff_full_test_acc"),)

    def __init__(self, args):
        self.label_input, self.negatives = args.label_input, args.negatives
        self.pass_up, self.whitening = args.pass_up, no_whitening(args)
        self.sign = 1 if args.objective == "max" else -1
        self.threshold, self.temperature = args.threshold, np.float32(args.temperature)
        self.generators = make_generators(args.seed)
        rng = self.generators["initialisation"]
        self.layers = make_layers(rng, args, self.label_input)
        for layer, rate in zip(self.layers, args.layer_rates, strict=False):
            for parameter in layer.parameters():
                parameter.rate = np.float32(rate)
        self.adam = make_adam(args, args.lr)
        # In the corner, layer 0 is left out of a prediction (unless it is alone), as in
        # the paper: most of its units do not see the label.
        corner = self.label_input == "corner" and args.n_layers > 1
        first = args.n_layers - 1 if args.scored == "last" else int(corner)
        self.scored = slice(first, None)
        L = args.n_layers
        self.history = new_history(loss_per_layer=(L,), g_pos=(L,), g_neg=(L,))

    def parameters(self):
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    def weights(self):
        """The weights by their names in model.npz."""
        return stack_weights(self.layers, "ff") | whitening_weights(self)

    def set_weights(self, arrays):
        """Take over the weights of a model.npz."""
        set_stack_weights(self.layers, "ff", arrays)
        set_whitening(self, arrays)

    def inputs(self, images, labels):
        """What layer 0 reads in the passes with `labels` (P, B) or (P, 1)."""
        maps = normalised_maps(images, self.whitening)
        if self.label_input == "everywhere":
            return Maps(maps)
        rows, columns = self.layers[0].connections[0].sees
        corner = np.repeat(maps[:rows, :columns], len(labels), axis=3)
        encode_labels(corner.transpose(3, 4, 0, 1, 2), labels)
        return Maps(maps, corner)

    def forward(self, images, labels):
        """The goodness of each layer in each pass: (L, P, B).

        images uint8 (B, H, W, 3); labels (P, B) or (P, 1), those of each pass. The
        layers keep what train_step() needs to see their activities again.
        """
        P, B = len(labels), len(images)
        neutral = self.pass_up == "neutral"
        x, result = self.inputs(images, labels), []
        for layer, above in zip(self.layers, [*self.layers[1:], None], strict=True):
            # By row of tiles, as the order of a sum must not depend on the threads.
            g = np.zeros((layer.tiles, P, B))
            squares = np.zeros((layer.tiles, 1 if neutral else P, B))
            maps = above and above.new_inputs(layer, P, B)

            def see(h, rows, layer=layer, g=g, squares=squares, maps=maps):
                g[rows.start] = goodness(h)
                if maps:
                    h = layer.neutral_activity(rows) if neutral else h
                    squares[rows.start] = sum_of_squares(h)
                    maps.put(layer, h, rows)

            layer.forward([x], labels, see)
            result.append(g.sum(axis=0) / layer.n_units)
            if maps:
                # The input of the next layer is h / rms(h), so that only the direction
                # of the activity is passed on (section 2), and not its goodness.
                maps.scale = inverse_rms(squares, layer)
            x = maps
        return np.stack(result)

    def loss(self, g, true):
        """The loss of a layer with goodness g (P, B), and its derivative by g.

        true (B,): the pass with the true label. With a threshold, the mean over both
        passes of log(1 + exp(-margin)), where margin is (g - theta) / temperature, with
        the other sign in the negative pass. Else the cross-entropy of the passes'
        goodness. Of two passes it is log(1 + exp(-(g_true - g_wrong) / unit)), which is
        the loss with theta halfway between the two: the one of SymBa
        (arXiv:2303.08418).
        """
        if self.threshold is None or self.threshold == "halfway":
            unit = self.sign * self.temperature * (2 if self.threshold else 1)
            loss, derivative = cross_entropy(g / unit, true)
            return loss, derivative / unit
        sign = self.sign * np.float32([[1], [-1]])
        margin = sign * (g - np.float32(self.threshold)) / self.temperature
        slope = sign * (np.tanh(margin / 2) - 1) / 2 / margin.size / self.temperature
        return np.logaddexp(0, -margin).mean(), slope

    def train_step(self, images, labels):
        """One step of every layer on a batch, uint8 (B, H, W, 3) and labels (B,).

        A layer's input is the activity from before the update of the one below: one
        forward computation serves the whole step, all ten labels of "sampled" too.
        Returns the means over the batch: each layer's loss, and its goodness with the
        true label and with the wrong ones.
        """
        true = np.zeros_like(labels)
        if self.negatives == "uniform":
            wrong = wrong_labels(labels, self.generators["negatives"])
            g = self.forward(images, np.stack([labels, wrong]))
        else:
            g, true = self.forward(images, ALL_LABELS), labels
            if self.negatives == "sampled":
                # By the scores that predict, of all layers together: one wrong label
                # serves all of them, so that each sees what the one below makes of it.
                logits = self.sign * g[self.scored].sum(axis=0) / self.temperature
                rng = self.generators["negatives"]
                wrong = sample_wrong_labels(logits, labels, rng)
                passes, true = np.stack([labels, wrong]), np.zeros_like(labels)
                g = g[:, passes, np.arange(len(labels))]
                for layer in self.layers:
                    layer.pick(passes)
        self.adam.begin_step()
        losses = []
        for layer, g_layer in zip(self.layers, g, strict=True):
            loss, dg = self.loss(g_layer, true)
            losses.append(loss)
            dg /= layer.n_units

            def du(rows, layer=layer, dg=dg):
                h = layer.activity(rows)
                same = h.shape[3] < len(dg)  # in all passes: their derivatives add up
                return goodness_gradient(h, dg.sum(axis=0) if same else dg)[None]

            layer.update(self.adam, du)
        return step_statistics(np.array(losses), g, true)

    def label_goodness(self, images):
        """The goodness of each layer with each label: (L, N_CLASSES, B)."""
        return check_scores(self, self.forward(images, ALL_LABELS))

    def label_scores(self, images):
        """What decides between the labels: goodness summed over the scored layers."""
        return self.sign * self.label_goodness(images)[self.scored].sum(axis=0)

    def predict(self, images):
        """The labels of the highest score (B,)."""
        return self.label_scores(images).argmax(axis=0)


# ------------------------------------------------------- the recurrent network


class Recurrent(ForwardForward):
    """Hinton's network for CIFAR-10 (sections 3.4 and 4), which sees the label from above.

    Each hidden layer is a map of the image's size that reads the maps below and above it
    in the last iteration, each divided by its rms, synchronously with all others:

        y_l = KEPT y_l + (1 - KEPT) relu(W_l n_(l-1) + T_l n_(l+1) + b_l),  n = y / rms(y)

    n_0 is the image. The last layer adds V[label] in place of T n. It starts from one
    bottom-up pass with a neutral label (0.1 of each). A layer learns, alone, from its
    goodness in each iteration; what it reads is a constant there, in layer and in time.

    negatives: "classifier": in proportion to the probabilities of a softmax classifier
        of the bottom-up pass, which is trained beside (the paper's); "uniform" or "all"
    """

    one_pass = "predict_one_pass", "one_pass_", "ff_full_test_one_pass_acc"
    ways = (*ForwardForward.ways, Way("FF one pass", *one_pass))

    def __init__(self, args):
        super().__init__(args)
        flat = sum(layer.n_units for layer in self.layers)
        rate = CLASSIFIER_LR / args.lr
        W, b = np.zeros((flat, N_CLASSES), np.float32), np.zeros(N_CLASSES, np.float32)
        self.W_class = Parameter(W, decays=True, rate=rate)
        self.b_class = Parameter(b, rate=rate)
        for name in "one_pass_train_acc", "one_pass_test_acc":
            self.history[name] = np.empty(0)

    def parameters(self):
        return [*super().parameters(), self.W_class, self.b_class]

    def weights(self):
        W, b = self.W_class.value, self.b_class.value
        return super().weights() | {"ff_W_class": W, "ff_b_class": b}

    def set_weights(self, arrays):
        super().set_weights(arrays)
        self.W_class.value[:] = arrays["ff_W_class"]
        self.b_class.value[:] = arrays["ff_b_class"]

    def begin(self, images, P, slots):
        """The bottom-up pass: the state (y, n) of each layer, and the image's Maps.

        y (T, T, N, P, B): activity in tiles, the same in all P passes as yet
        n (slots, H, W, C, P, B): normalised maps, zero around the edges; in slot 0 here
        """
        B, state = len(images), []
        first = self.layers[0].connections[0]
        x = normalised_maps(images, self.whitening)
        x /= np.sqrt(np.mean(x**2, axis=(0, 1, 2)))
        below = image = Maps(first.pad(x))
        for layer in self.layers:
            shape = *layer.b.value.shape, P, B
            y = reuse(layer.buffers, "y", *shape)
            side = layer.side + 2 * first.padding
            n = reuse(layer.buffers, "n", slots, side, side, layer.channels, P, B)
            squares = np.zeros((layer.tiles, 1, B))

            def see(h, rows, y=y, squares=squares):
                y[rows] = h
                squares[rows.start] = sum_of_squares(h)

            layer.forward([below], None, see)
            self.normalise_state(layer, y, n[0], squares)
            below = Maps(n[0, :, :, :, :1])
            state.append((y, n))
        return state, image

    def normalise_state(self, layer, y, n, squares):
        """Write y / rms(y) into the maps n (H, W, C, P, B); squares (T, P, B) of y."""
        scale = inverse_rms(squares, layer)
        tiles = layer.tiled(inside(n, layer.connections[0].padding))

        def work(rows):
            piece = tiles[rows]
            np.multiply(y[rows].reshape(piece.shape), scale, out=piece)

        layer.in_pieces(work)

    def iterate(self, state, image, labels, n, learns=False):
        """Yield the goodness (L, P, B) after each of n iterations from begin().

        labels (P, B) or (P, 1). If it learns, slot t of the maps is kept for iteration
        t + 1, and with it what the derivative of the goodness of iteration t needs, d
        (n, T, T, N, P, B) of each layer: y where relu has a slope, else 0.
        """
        P, B = state[0][0].shape[3:]
        slots = len(state[0][1])
        for t in range(n):
            before = [Maps(maps[t % slots]) for _, maps in state]
            result, squares = [], []
            for i, layer in enumerate(self.layers):
                inputs = [before[i - 1] if i else image, *before[i + 1 : i + 2]]
                y = state[i][0]
                g, s = np.zeros((2, layer.tiles, P, B))
                d = reuse(layer.buffers, "d", n, *y.shape) if learns else None

                def see(h, rows, t=t, y=y, g=g, s=s, d=d):
                    y_rows = y[rows]
                    if learns:
                        slope = h > 0
                    y_rows *= np.float32(KEPT)
                    h *= np.float32(1 - KEPT)
                    y_rows += h
                    g[rows.start] = goodness(y_rows)
                    s[rows.start] = sum_of_squares(y_rows)
                    if learns:
                        np.multiply(y_rows, slope, out=d[t, rows])

                layer.forward(inputs, labels if layer.V else None, see)
                result.append(g.sum(axis=0) / layer.n_units)
                squares.append(s)
            # Synchronous: nobody reads the new maps before all are computed.
            if t + 1 < n:
                for layer, (y, maps), s in zip(
                    self.layers, state, squares, strict=True
                ):
                    self.normalise_state(layer, y, maps[(t + 1) % slots], s)
            yield np.stack(result)

    def classify(self, state):
        """The features (flat, B) and logits (N_CLASSES, B) of the one-pass classifier."""
        padding = self.layers[0].connections[0].padding
        maps = [inside(n[0, :, :, :, 0], padding) for _, n in state]
        B = maps[0].shape[-1]
        x = np.concatenate([m.reshape(-1, B) for m in maps])
        return x, self.W_class.value.T @ x + self.b_class.value[:, None]

    def train_step(self, images, labels):
        rng, B, n = self.generators["negatives"], len(images), ITERATIONS
        P = N_CLASSES if self.negatives == "all" else 2
        state, image = self.begin(images, P, n)
        x, logits = self.classify(state)
        passes, true = ALL_LABELS, labels
        if self.negatives != "all":
            if self.negatives == "classifier":
                wrong = sample_wrong_labels(logits, labels, rng)
            else:
                wrong = wrong_labels(labels, rng)
            passes, true = np.stack([labels, wrong]), np.zeros_like(labels)
        g = [*self.iterate(state, image, passes, n, learns=True)]
        g = np.stack(g)  # (n, L, P, B)

        self.adam.begin_step()
        _, dlogits = cross_entropy(logits, labels)
        self.adam.update(self.W_class, x @ dlogits.T)
        self.adam.update(self.b_class, dlogits.sum(axis=1))
        losses = np.zeros(g.shape[:2])
        for i, layer in enumerate(self.layers):
            dg = np.zeros((n, P, B))
            for t in range(n):
                losses[t, i], dg[t] = self.loss(g[t, i], true)
            dg *= (1 - KEPT) / n / layer.n_units
            d = reuse(layer.buffers, "d", n, *state[i][0].shape)
            read = [[*map(Maps, maps)] for _, maps in state]
            inputs = [read[i - 1] if i else image, *read[i + 1 : i + 2]]

            def du(rows, d=d, dg=dg):
                return goodness_gradient(d[:, rows], dg[:, None, None, None])

            layer.update(self.adam, du, inputs)
        return step_statistics(losses.mean(axis=0), g.mean(axis=0), true)

    def goodness_by_iteration(self, images, n):
        """The goodness with each label after each of n iterations: (n, L, N_CLASSES, B)."""
        state, image = self.begin(images, N_CLASSES, 2)
        return np.stack([*self.iterate(state, image, ALL_LABELS, n)])

    def label_goodness(self, images):
        """The mean goodness of the iterations that predict: (L, N_CLASSES, B)."""
        g = self.goodness_by_iteration(images, WINDOW[-1])
        return check_scores(self, g[WINDOW[0] - 1 :].mean(axis=0))

    def predict_one_pass(self, images):
        """The classifier's labels (B,), from the bottom-up pass alone."""
        logits = self.classify(self.begin(images, 1, 1)[0])[1]
        return check_scores(self, logits).argmax(axis=0)


# ------------------------------------------------------------------- backprop


class Backprop:
    """The same stack, end to end, under a linear readout and softmax cross-entropy."""

    name = "BP"
    ways = (Way("BP", "predict", "", "bp_full_test_acc"),)

    def __init__(self, args):
        self.generators = make_generators(args.seed)
        rng = self.generators["initialisation"]
        self.layers = make_layers(rng, args)
        self.whitening = no_whitening(args)
        self.adam = make_adam(args, args.bp_lr or args.lr)
        flat = self.layers[-1].n_units
        W = rng.standard_normal((flat, N_CLASSES), np.float32)
        self.W_out = Parameter(W * np.float32(math.sqrt(2 / flat)), decays=True)
        self.b_out = Parameter(np.zeros(N_CLASSES, np.float32))
        self.history = new_history(loss=())

    def parameters(self):
        stack = [parameter for layer in self.layers for parameter in layer.parameters()]
        return [*stack, self.W_out, self.b_out]

    def weights(self):
        """The weights by their names in model.npz."""
        readout = {"bp_W_out": self.W_out.value, "bp_b_out": self.b_out.value}
        return stack_weights(self.layers, "bp") | readout | whitening_weights(self)

    def set_weights(self, arrays):
        """Take over the weights of a model.npz."""
        set_stack_weights(self.layers, "bp", arrays)
        set_whitening(self, arrays)
        self.W_out.value[:] = arrays["bp_W_out"]
        self.b_out.value[:] = arrays["bp_b_out"]

    def forward(self, images):
        """The maps (H, W, C, 1, B) that each layer makes, and logits (N_CLASSES, B)."""
        x, maps = normalised_maps(images, self.whitening), []
        for layer in self.layers:
            h_maps = reuse(layer.buffers, "h", *layer.shape, 1, len(images))

            def see(h, rows, layer=layer, h_maps=h_maps):
                layer.put(h, rows, h_maps)

            layer.forward([Maps(layer.connections[0].pad(x))], None, see)
            maps.append(h_maps)
            x = h_maps
        logits = self.W_out.value.T @ x.reshape(-1, len(images))
        return maps, logits + self.b_out.value[:, None]

    def train_step(self, images, labels):
        """One step on a batch, uint8 (B, H, W, 3) and labels (B,): its cross-entropy."""
        maps, logits = self.forward(images)
        loss, dlogits = cross_entropy(logits, labels)
        self.adam.begin_step()
        dh = (self.W_out.value @ dlogits).reshape(maps[-1].shape)
        self.adam.update(self.W_out, maps[-1].reshape(-1, len(images)) @ dlogits.T)
        self.adam.update(self.b_out, dlogits.sum(axis=1))
        for layer, h_maps in zip(reversed(self.layers), reversed(maps), strict=True):
            dh *= h_maps > 0
            tiles = layer.tiled(dh)

            def du(rows, tiles=tiles):
                t, T, *N, _, B = tiles[rows].shape
                return tiles[rows].reshape(1, t, T, math.prod(N), 1, B)

            if layer is not self.layers[0]:
                dh = layer.input_gradient(du)
            layer.update(self.adam, du)
        return {"loss": loss}

    def predict(self, images):
        return check_scores(self, self.forward(images)[1]).argmax(axis=0)


# ---------------------------------------------------- training and evaluation

EVALUATION_BATCH = 64  # images; their activities with ten labels still fit the caches


def make_learners(args):
    """FF and, with --bp-baseline, BP: equal initial weights, order and augmentation."""
    kind = Recurrent if args.network == "recurrent" else ForwardForward
    return [kind(args), *([Backprop(args)] if args.bp_baseline else [])]


def make_generators(seed):
    """An independent stream of random numbers for each use."""
    uses = "initialisation", "order", "negatives", "augmentation"
    return {use: np.random.default_rng([seed, i]) for i, use in enumerate(uses)}


def make_layers(rng, args, label_input=None):
    """The stack; label_input: where the label enters, or None for a single pass."""
    if args.network == "recurrent":
        return make_recurrent_layers(rng, args, top_down=label_input is not None)
    layers, side, depth = [], SIDE, DEPTH
    for i, field in enumerate(args.fields[: args.n_layers]):
        unlabelled = i == 0 or args.pass_up == "neutral"
        if label_input is None or (label_input == "everywhere" and unlabelled):
            differs = 0, 0
        elif label_input == "corner" and i < 2:
            # Fields of units beyond the block's rows and columns miss it, and these
            # units are again those that the fields of layer 1 miss.
            differs = LABEL_ROWS, LABEL_LEN
        else:
            differs = None
        connection = Connection(rng, side, depth, field, args.channels, differs)
        layers.append(Layer([connection], label_input == "everywhere"))
        side, depth = connection.side, args.channels
    return layers


def make_recurrent_layers(rng, args, top_down):
    """The recurrent network's layers; without what is top-down, BP's stack."""
    L, C, cut = args.n_layers, args.channels, RECURRENT_FIELD // 2

    def connection(depth, differs, name):
        sizes = SIDE, depth, RECURRENT_FIELD, C
        return Connection(rng, *sizes, differs, padding=cut, name=name)

    parts = [
        [connection(C if i else DEPTH, None if i else (0, 0), "W")] for i in range(L)
    ]
    for below in parts[:-1] if top_down else []:
        below.append(connection(C, None, "T"))
    layers = [Layer(part, top_down and part is parts[-1]) for part in parts]
    if top_down:  # the label's weights are those of a layer of ten units
        V = layers[-1].V.value
        V[:] = rng.standard_normal(V.shape, np.float32)
        V *= np.float32(LABEL_GAIN * math.sqrt(2 / N_CLASSES))
    return layers


def stack_weights(layers, prefix):
    """The weights of layers by their names in model.npz."""
    return {
        f"{prefix}_layer{i}_{name}": array
        for i, layer in enumerate(layers)
        for name, array in layer.get_weights().items()
    }


def set_stack_weights(layers, prefix, arrays):
    for i, layer in enumerate(layers):
        names = layer.get_weights()
        layer.set_weights(
            **{name: arrays[f"{prefix}_layer{i}_{name}"] for name in names}
        )


def no_whitening(args):
    """None, or with --whiten a place for the filter, NaN until fit_whitening()."""
    shape = WHITENING_FIELD, WHITENING_FIELD, DEPTH, DEPTH
    return np.full(shape, np.nan, np.float32) if args.whiten else None


def fit_whitening(learner, images):
    """Take the whitening filter, if there is to be one, from the images to train on."""
    if learner.whitening is not None:
        learner.whitening[:] = whitening_filter(images)


def whitening_weights(learner):
    return {} if learner.whitening is None else {"whitening": learner.whitening}


def set_whitening(learner, arrays):
    if learner.whitening is not None:
        learner.whitening[:] = arrays["whitening"]


def make_adam(args, learning_rate):
    steps = args.n_epochs * math.ceil(args.train_subset / args.batch_size)
    total_steps = steps if args.lr_schedule == "linear" else None
    return Adam(learning_rate, total_steps, args.weight_decay)


def new_history(**shapes):
    """What train() adds a row an epoch to: {name in model.npz: (epochs, ...)}.

    shapes: those of what train_step() returns. All have both accuracies (fractions) and
    the seconds of training since its start, without evaluation.
    """
    shapes |= {"train_acc": (), "test_acc": (), "wallclock": ()}
    return {name: np.empty((0, *shape)) for name, shape in shapes.items()}


def augment(images, rng, shift):
    """Images (B, H, W, C), half of them mirrored, shifted by up to `shift` pixels each
    way, the edge repeated."""
    B, around = len(images), (shift, shift)
    padded = np.pad(images, ((0, 0), around, around, (0, 0)), mode="edge")
    crops = sliding_window_view(padded, (SIDE, SIDE), (1, 2))
    places = 2 * shift + 1
    rows, columns, mirrored = rng.integers(0, [[places], [places], [2]], (3, B))
    crops = crops[np.arange(B), rows, columns].transpose(0, 2, 3, 1)
    return np.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)


def in_batches(work, images):
    """work(images) (..., B), for any number of images, a batch at a time."""
    starts = range(0, len(images), EVALUATION_BATCH)
    parts = [work(images[i : i + EVALUATION_BATCH]) for i in starts]
    return np.concatenate(parts, axis=-1)


def predict(learner, images, method="predict"):
    """The labels that the learner's method predicts for any number of uint8 images."""
    return in_batches(getattr(learner, method), images)


def accuracy(learner, images, labels):
    """The share of the images that are predicted right."""
    return float(np.mean(predict(learner, images) == labels))


def class_accuracies(predictions, labels):
    """The share of each class's images that are predicted right: (N_CLASSES,)."""
    right = np.bincount(labels[predictions == labels], minlength=N_CLASSES)
    return right / np.maximum(np.bincount(labels, minlength=N_CLASSES), 1)


def train_epoch(learner, images, labels, args, where):
    """One pass over the images: the means of what train_step() returns, and seconds.

    Raises RunError, naming `where`, when one of them is no longer finite.
    """
    start = time.perf_counter()
    order = learner.generators["order"].permutation(len(images))
    starts = range(0, len(images), args.batch_size)
    means = {}
    for step, i in enumerate(starts):
        batch = order[i : i + args.batch_size]
        x = images[batch]
        if args.augment:
            x = augment(x, learner.generators["augmentation"], args.shift)
        for name, value in learner.train_step(x, labels[batch]).items():
            if not np.isfinite(value).all():
                at = int(np.argmin(np.isfinite(value)))
                layer = f" of layer {at}" if np.ndim(value) else ""
                what = f"{name}{layer} is {np.ravel(value)[at]} at step {step + 1}"
                raise diverged(learner, f"{where}: {what}")
            means[name] = means.get(name, 0) + value * (len(batch) / len(images))
        show_progress(f"{where}, step {step + 1} of {len(starts)}")
    show_progress("")
    # A step shows what the one before it did; nothing comes after the last.
    for parameter in learner.parameters():
        if not np.isfinite(parameter.value).all():
            raise diverged(learner, f"{where}: weights are not finite at its end")
    return means, time.perf_counter() - start


def check_scores(learner, scores):
    """The scores; RunError where one is not finite, as argmax would find a label there."""
    if not np.isfinite(scores).all():
        raise diverged(learner, f"{learner.name}: the score of a label is not finite")
    return scores


def diverged(learner, what):
    """The RunError of a number that is not finite.

    The learning rate is the cause: parse() refuses a weight decay that could be.
    """
    flag = "--lr or --bp-lr" if learner.name == "BP" else "--lr"
    return RunError(
        f"{what}, with learning rate {learner.adam.learning_rate:g}; try a smaller {flag}"
    )


def train(learner, data, args, after_epoch=None, tell=print):
    """Train up to args.n_epochs epochs; tell a row and call after_epoch() after each.

    data: (train_x, train_y, test_x, test_y). Trains on the first args.train_subset
    images; evaluates on the first args.eval_subset of these and of the test images.
    learner.history grows by a row an epoch, see new_history().
    """
    train_x, train_y, test_x, test_y = data
    train_x, train_y = train_x[: args.train_subset], train_y[: args.train_subset]
    fit_whitening(learner, train_x)
    n, history = args.eval_subset, learner.history
    first, began = len(history["wallclock"]), time.perf_counter()
    if first < args.n_epochs:
        tell(epoch_heading(history))
    for epoch in range(first + 1, args.n_epochs + 1):
        where = f"{learner.name} epoch {epoch} of {args.n_epochs}"
        row, seconds = train_epoch(learner, train_x, train_y, args, where)
        for _, method, prefix, _ in learner.ways:
            for name, x, y in ("train", train_x, train_y), ("test", test_x, test_y):
                right = predict(learner, x[:n], method) == y[:n]
                row[f"{prefix}{name}_acc"] = right.mean()
        row["wallclock"] = seconds + (history["wallclock"][-1] if epoch > 1 else 0.0)
        for name, values in history.items():
            history[name] = np.concatenate([values, [row[name]]])
        left = (time.perf_counter() - began) / (epoch - first) * (args.n_epochs - epoch)
        tell(epoch_row(learner.name, history) + cell(left, 0))
        if after_epoch:
            after_epoch()


# How a history is told: its names in short, and the digits behind the point.
SHORT = {"loss_per_layer": "loss", "g_pos": "g+", "g_neg": "g-", "loss": "loss"}


def epoch_columns(history):
    """The columns of a history, layer by layer: (heading, values by epoch, digits)."""
    told = {name: np.transpose(history[name]) for name in SHORT if name in history}
    if "loss" in told:
        yield "loss", told["loss"], 3
    else:
        for i in range(len(told["g_pos"])):
            for name, values in told.items():
                yield f"{SHORT[name]} {i}", values[i], 3
    for prefix, way in ("", "%"), ("one_pass_", "1%"):
        for name in ("train", "test"):
            if f"{prefix}{name}_acc" in history:
                yield name + way, 100 * history[f"{prefix}{name}_acc"], 2
    yield "time s", history["wallclock"], 1


def epoch_heading(history):
    names = [name for name, _, _ in epoch_columns(history)]
    return "   epoch" + "".join(f"{name:>7}" for name in [*names, "ETA s"])


def epoch_row(learner_name, history):
    """The last epoch of a history as one line, but for the time that is left."""
    return f"{learner_name} {len(history['wallclock']):>5}" + "".join(
        cell(values[-1], digits) for _, values, digits in epoch_columns(history)
    )


def cell(value, digits):
    """A column of 7 with a gap: with as many of the digits behind the point as fit."""
    texts = [f"{value:.{n}f}" for n in range(digits, -1, -1)] + [f"{value:.0e}"]
    return next(f"{text:>7}" for text in texts if len(text) < 7)


# ------------------------------------------------ the locally-connected layer
# Axes: T x T tiles, K inputs of a tile, N outputs of a tile, P passes, B images; S = 1
# where the passes share an input, and P where each has its own. Maps are (H, W, C, S, B),
# images last, so that gathering a tile's inputs copies long runs.
#
# Tiles. Positions are taken 2 x 2 at a time (one at a time where the map's side is
# odd). A tile reads the union of its fields, (R+1) x (R+1) x C_in inputs, and one
# matrix product per tile, (T, N, K) @ (T, K, S*B) -> (T, N, S*B), computes all its
# units; weights outside a unit's own field are zero and stay zero. That adds 19 %
# (layer 0) and 44 % (layer 1) of arithmetic with zeros; in return the products are four
# times as large. Gathering all inputs copies 0.07 and 0.15 of the numbers that a field
# for each position would, as neighbouring tiles share what both see.
#
# Pieces. A thread works on a few rows at a time, from gathering their inputs to their
# activity, and in an update again from gathering to Adam, so that what it works on stays
# in the cache. The activity of ten passes is not kept, but computed a second time from
# W x in the update: that costs less than to write it down and read it again.
#
# What the passes share. W x is computed once for all passes with equal inputs, and pass
# p takes relu(scale_p (W x) + b + V[label]), where the scale is 1/rms of the pass. The
# weight gradient, sum_p scale_p du_p x, is one product of x with that sum. This is
# exact, as W (scale_p x) = scale_p (W x). With a label block the inputs are equal, up
# to that scale, but for a corner, the first tiles of the first rows, in layer 0 and,
# through the units there, in layer 1: the corner is computed for each pass, and all
# else once.

ROWS_AT_ONCE = 4  # rows of positions in a piece: long calls, yet cached data
PASSES_AT_ONCE = 2  # in a product: OpenBLAS has its fastest kernels for small ones


class Maps:
    """What a connection reads in all the passes of a batch.

    maps (H, W, C, S, B): S = 1 where the passes share them, else P
    corner (rows, columns, C, P, B): what each pass has there, top left, instead; or None
    scale (P, B): a factor for each pass, or (1, B) for all; or None
    """

    def __init__(self, maps, corner=None, scale=None):
        self.maps, self.corner, self.scale = maps, corner, scale

    def put(self, layer, h, rows):
        """Write a piece h (t, T, N, P, B) of the layer below where it belongs."""
        layer.put(h[:, :, :, : self.maps.shape[3]], rows, self.maps)
        if self.corner is not None:
            layer.put(h, rows, self.corner)

    def pick(self, picked):
        """Those of the passes, an index (..., (P', B), images)."""
        shared, corner, scale = self.maps.shape[3] == 1, self.corner, self.scale
        return Maps(
            self.maps if shared else self.maps[picked],
            None if corner is None else corner[picked],
            scale if scale is None or len(scale) == 1 else scale[picked],
        )


class Connection:
    """W x: the weights between two maps, its own at every position; stride 1.

    in_side, in_depth: an input is (in_side, in_side, in_depth)
    field: side R of the receptive fields; the output's side is in_side - R + 1
    channels: units at each position, which all see the same field
    differs: rows and columns of the input, from the top left, where passes differ;
        None: everywhere
    padding: zeros around the input that maps have to bring; no weights look at them
    name: of the weights
    """

    def __init__(
        self,
        rng,
        in_side,
        in_depth,
        field,
        channels,
        differs=(0, 0),
        padding=0,
        name="W",
    ):
        self.in_side, self.in_depth = in_side, in_depth
        self.field, self.channels = field, channels
        self.padding, self.name = padding, name
        self.padded = in_side + 2 * padding
        self.side = self.padded - field + 1
        self.tile = math.gcd(self.side, 2)  # positions in a tile, each way
        self.tiles = self.side // self.tile  # tiles in the map, each way
        self.window = field + self.tile - 1  # side of a tile's input
        self.shared = differs is not None
        # Tiles of the corner, and rows and columns of the input that they read.
        self.corner = [
            math.ceil(min(d, self.side) / self.tile) for d in differs or (0, 0)
        ]
        self.sees = [(c - 1) * self.tile + self.window if c else 0 for c in self.corner]

        self.buffers, self.inputs = {}, None
        K, N = self.window**2 * in_depth, self.tile**2 * channels
        weights = np.zeros((self.tiles, self.tiles, K, N), np.float32)
        learned = np.zeros(weights.shape, bool)
        # Rows (or columns) of the padded input that are no padding.
        real = np.arange(self.padded) - padding
        real = (0 <= real) & (real < in_side)
        seen = sliding_window_view(real, field)  # by position and place in the field
        fan_in = np.outer(seen.sum(axis=1), seen.sum(axis=1)) * in_depth
        for at, part in self.fields(learned):
            rows, columns = (seen[a] for a in at)
            part[:] = (rows[:, None, :, None] & columns[:, None, :])[..., None, None]
        for (at, part), (_, is_learned) in zip(
            self.fields(weights), self.fields(learned), strict=True
        ):  # He-normal
            part[:] = rng.standard_normal(part.shape, np.float32) * is_learned
            part *= np.sqrt(2 / fan_in[at])[..., None, None, None, None]
        self.n_weights = int(learned.sum())
        self.W = Parameter(weights, decays=True, learned=learned)

    def fields(self, W):
        """For each position in a tile: where it is in a map, and its part of W.

        A part is (T, T, R, R, C_in, channels), by row, column and channel of the field;
        in a tile the columns come first, see gather().
        """
        t, w, r = self.tile, self.window, self.field
        shape = *W.shape[:2], w, w, self.in_depth, t, t, self.channels
        for i, j in np.ndindex(t, t):
            part = W.reshape(shape)[:, :, j : j + r, i : i + r, :, i, j]
            yield np.s_[i::t, j::t], part.swapaxes(2, 3)

    def get_weights(self):
        """(side, side, R*R*C_in, channels), K in order row, column, channel."""
        K = self.field**2 * self.in_depth
        W = np.empty((self.side, self.side, K, self.channels), np.float32)
        for at, part in self.fields(self.W.value):
            W[at] = part.reshape(W[at].shape)
        return W

    def set_weights(self, W):
        for at, part in self.fields(self.W.value):
            part[:] = W[at].reshape(part.shape)

    def pad(self, maps):
        """Maps (in_side, in_side, C, ...) with the zeros around that are asked for."""
        if not self.padding:
            return maps
        padded = reuse(self.buffers, "x", self.padded, self.padded, *maps.shape[2:])
        inside(padded, self.padding)[:] = maps
        return padded

    def read(self, inputs):
        """Take `inputs`, Maps, as what multiply() and product() work on."""
        T, _, _, N = self.W.value.shape
        self.inputs = inputs
        self.Wx = reuse(self.buffers, "Wx", T, T, N, *inputs.maps.shape[3:])
        if inputs.corner is not None:
            shape = *self.corner, N, *inputs.corner.shape[3:]
            self.corner_Wx = reuse(self.buffers, "corner", *shape)

    def pick(self, passes):
        """Go on with those of the passes, (P', B), of each image."""
        picked = ..., passes, np.arange(passes.shape[1])
        if self.inputs.maps.shape[3] > 1:
            self.Wx = self.Wx[picked]
        if self.inputs.corner is not None:
            self.corner_Wx = self.corner_Wx[picked]
        self.inputs = self.inputs.pick(picked)

    def gather(self, maps, rows):
        """The inputs of the tiles in these rows: (H, W, C, S, B) -> (t, T, K, S*B).

        A strip of the maps is copied for each row of tiles, columns first. In it the
        inputs of a tile are one run, and tiles share what both see: the result is a view.
        """
        (_, columns, depth, S, B), w = maps.shape, self.window
        strips = scratch("strips", rows.stop - rows.start, columns, w, depth, S * B)
        for strip, row in zip(strips, range(rows.start, rows.stop)):
            seen = maps[self.tile * row : self.tile * row + w]
            strip.reshape(columns, w, depth, S, B)[:] = seen.swapaxes(0, 1)
        T, K = (columns - w) // self.tile + 1, w * w * depth
        strides = strips.strides[0], self.tile * strips.strides[1], *strips.strides[3:]
        shape = len(strips), T, K, S * B
        return np.ndarray(shape, np.float32, strips, 0, strides)

    def in_corner(self, rows, inputs):
        """How many of a row's tiles are in the corner; a piece is in its rows or not."""
        has_corner = inputs.corner is not None and rows.start < self.corner[0]
        return self.corner[1] if has_corner else 0

    def reads(self, inputs, rows):
        """What each product reads of `inputs`: its tiles, passes and x (t, T, K, S*B).

        The tiles are those of the corner, which end with it, or all that follow it.
        """
        c = self.in_corner(rows, inputs)
        parts = [(np.s_[c:], inputs.maps)]
        if c:
            rows_seen, columns_seen = self.sees
            parts.append((np.s_[:c], inputs.corner[:rows_seen, :columns_seen]))
        for tiles, maps in parts:
            for first in range(0, maps.shape[3], PASSES_AT_ONCE):
                passes = slice(first, first + PASSES_AT_ONCE)
                yield tiles, passes, self.gather(maps[:, :, :, passes], rows)[:, tiles]

    def multiply(self, rows):
        """Compute W x of these rows of tiles, for all passes."""
        W = self.W.value[rows].swapaxes(2, 3)
        for tiles, passes, x in self.reads(self.inputs, rows):
            Wx = self.Wx if tiles.stop is None else self.corner_Wx
            np.matmul(W[:, tiles], x, out=flat(Wx[rows, tiles, :, passes]))

    def product(self, rows):
        """W x of these rows of tiles: (t, T, N, P, B), or S for P where it is shared."""
        product, scale = self.Wx[rows], self.inputs.scale
        if c := self.in_corner(rows, self.inputs):
            shape = *product.shape[:3], *self.corner_Wx.shape[3:]
            whole = scratch("product", *shape)
            whole[:, :c], whole[:, c:] = self.corner_Wx[rows], product[:, c:]
            product = whole
        if scale is not None:
            shape = *product.shape[:3], *scale.shape
            product = np.multiply(product, scale, out=scratch("product", *shape))
        return product

    def weight_gradient(self, rows, read):
        """The gradient of W[rows] (t, T, K, N), in scratch.

        read: pairs, whose products are summed, of Maps that were read and du
        (t, T, N, P, B), the derivative by the pre-activation
        """
        gradient = scratch("gradient", *self.W.value[rows].shape)
        begun = set()
        for inputs, du in read:
            if inputs.scale is not None:
                du = du * inputs.scale
            shared = du
            if inputs.maps.shape[3] < du.shape[3]:
                # A product with ones is 3 times as fast as sum().
                shared = np.ones((1, du.shape[3]), np.float32) @ du
            for tiles, passes, x in self.reads(inputs, rows):
                own = (shared if tiles.stop is None else du)[:, tiles, :, passes]
                part = gradient[:, tiles]
                if tiles.start in begun:
                    more = scratch("more", *part.shape)
                    part += np.matmul(x, transposed(own), out=more)
                else:
                    np.matmul(x, transposed(own), out=part)
                    begun.add(tiles.start)
        return gradient

    def input_gradient(self, du, rows, strips):
        """Sum W du over each row of tiles in its strip of the input, see gather().

        du (t, T, N, 1, B), strips (t, padded, R', C_in, B)
        """
        t, w = self.tile, self.window
        W = self.W.value[rows]
        dx = scratch("dx", *W.shape[:3], du.shape[4])
        np.matmul(W, flat(du), out=dx)
        dx = dx.reshape(*W.shape[:2], w, w, self.in_depth, -1)
        strips[:] = 0
        for j in range(W.shape[1]):
            strips[:, t * j : t * j + w] += dx[:, j]


def inside(maps, padding):
    """View of maps (H, W, ...) without the padding around them."""
    return maps[padding : len(maps) - padding, padding : len(maps) - padding]


def flat(x):
    """View (t, T, N, ..., B) as (t, T, N, ...*B)."""
    return x.reshape(*x.shape[:3], math.prod(x.shape[3:]))


def transposed(du):
    """(t, T, N, ..., B) as (t, T, ...*B, N), in scratch: products like it that way."""
    du = flat(du).swapaxes(2, 3)
    copy = scratch("transposed", *du.shape)
    copy[:] = du
    return copy


class Layer:
    """relu(W x + b + V[label]), with W x the sum of its connections.

    label_weights: every unit has a weight V for each label; else there is no V
    """

    def __init__(self, connections, label_weights=False):
        self.connections = connections
        first = connections[0]
        self.in_side, self.in_depth = first.in_side, first.in_depth
        self.field, self.channels = first.field, first.channels
        self.side, self.tile, self.tiles = first.side, first.tile, first.tiles
        self.shape = self.side, self.side, self.channels
        self.n_units = math.prod(self.shape)
        self.buffers = {}
        T, _, _, N = first.W.value.shape
        self.b = Parameter(np.zeros((T, T, N), np.float32))
        self.V = None
        if label_weights:
            self.V = Parameter(np.zeros((T, T, N, N_CLASSES), np.float32))

    def parameters(self):
        others = [self.b, self.V] if self.V else [self.b]
        return [*(connection.W for connection in self.connections), *others]

    def get_weights(self):
        """W and T, see Connection, b (side, side, channels) and V (N_CLASSES, side,
        side, channels), by these names, as far as there are such."""
        weights = {part.name: part.get_weights() for part in self.connections}
        weights["b"] = self.maps(self.b.value)
        if self.V:
            weights["V"] = np.moveaxis(self.maps(self.V.value), -1, 0)
        return weights

    def set_weights(self, b, V=None, **others):
        """Take over weights of the shapes of get_weights()."""
        for connection in self.connections:
            connection.set_weights(others[connection.name])
        self.b.value[:] = self.tiled(b).reshape(self.b.value.shape)
        if self.V:
            V = self.tiled(np.moveaxis(V, 0, -1))
            self.V.value[:] = V.reshape(self.V.value.shape)

    def n_parameters(self):
        others = self.b.value.size + (self.V.value.size if self.V else 0)
        return others + sum(connection.n_weights for connection in self.connections)

    # Maps and their tiles.

    def tiled(self, maps):
        """View of maps (T1*tile, T2*tile, C, ...) as (T1, T2, tile, tile, C, ...)."""
        (rows, columns, *others), t = maps.shape, self.tile
        return maps.reshape(rows // t, t, columns // t, t, *others).swapaxes(1, 2)

    def maps(self, tiles):
        """Tiles (T, T, N, ...) as new maps (side, side, C, ...)."""
        maps = np.empty((*self.shape, *tiles.shape[3:]), tiles.dtype)
        into = self.tiled(maps)
        into[:] = tiles.reshape(into.shape)
        return maps

    def put(self, h, rows, maps):
        """Write a piece h (t, T, N, S, B) into its rows of tiles of maps (H, W, C, P, B),
        or into as many tiles of them as there are."""
        tiles = self.tiled(maps)[rows]
        t, T = tiles.shape[:2]
        tiles[:] = h[:t, :T].reshape(t, T, *tiles.shape[2:5], *h.shape[3:])

    def new_inputs(self, below, P, B):
        """Maps to be filled with the activity of the layer below in P passes."""
        first = self.connections[0]
        S = 1 if first.shared else P
        maps = reuse(self.buffers, "maps", *below.shape, S, B)
        if not any(first.corner):
            return Maps(maps)
        # Whole tiles of the layer below, though the last may be seen in part.
        sides = [math.ceil(side / below.tile) * below.tile for side in first.sees]
        corner = reuse(self.buffers, "corner", *sides, below.channels, P, B)
        return Maps(maps, corner)

    # Computation.

    def in_pieces(self, work):
        """Call work(rows) for slices that cover the rows of tiles, in all threads."""
        first = max(1, self.connections[0].corner[0])
        step = max(1, ROWS_AT_ONCE // self.tile)
        starts = [0, *range(first, self.tiles, step), self.tiles]
        spans = [slice(*ends) for ends in itertools.pairwise(starts)]
        parallel(lambda i: work(spans[i]), len(spans))

    def forward(self, inputs, labels, see):
        """Compute the activity of all passes and show it to see(h, rows) in pieces.

        inputs: the Maps of each connection, or of the first ones, which alone take part;
            Maps that are the same object as in the last call are not multiplied again
        labels (P, B) or (P, 1): the label of each pass; None: no label, or a neutral one
        h (t, T, N, P, B): the activity of these rows of tiles, in scratch
        """
        self.labels, self.active = labels, self.connections[: len(inputs)]
        new = [
            (connection, maps)
            for connection, maps in zip(self.active, inputs, strict=True)
            if connection.inputs is not maps
        ]
        for connection, maps in new:
            connection.read(maps)
        self.kept = {}

        def work(rows):
            for connection, _ in new:
                connection.multiply(rows)
            see(self.activity(rows), rows)

        self.in_pieces(work)

    def activity(self, rows):
        """A piece of the last forward()'s activity: (t, T, N, P, B), in scratch.

        Where it is the same in all passes, (t, T, N, 1, B).
        """
        if rows.start in self.kept:
            return self.kept[rows.start]
        first, *others = (connection.product(rows) for connection in self.active)
        bias = self.bias(rows, self.labels)
        passes = max(x.shape[3] for x in (bias, first, *others))
        shape = *first.shape[:3], passes, first.shape[4]
        if passes <= 2:
            h = self.kept[rows.start] = reuse(self.buffers, rows.start, *shape)
        else:
            h = scratch("h", *shape)
        np.add(first, bias, out=h)
        for other in others:
            h += other
        return np.clip(h, 0, np.inf, out=h)  # 4 times as fast as np.maximum(h, 0)

    def bias(self, rows, labels):
        """b + V[label] of these rows of tiles, see forward(): (t, T, N, P, B or 1)."""
        b = self.b.value[rows, :, :, None, None]
        if self.V is None:
            return b
        V = self.V.value[rows]
        if labels is None:
            return b + V.mean(axis=3)[..., None, None]
        return b + V[..., labels]  # (P, 1): one label for all images; or (P, B)

    def neutral_activity(self, rows):
        """A piece of the last forward()'s activity, had its label been a neutral one.

        (t, T, N, 1, B), in scratch. All passes must have read the same.
        """
        (connection,) = self.active
        h = connection.product(rows)
        h = np.add(h, self.bias(rows, None), out=scratch("neutral", *h.shape))
        return np.clip(h, 0, np.inf, out=h)

    def pick(self, passes):
        """Go on, of the last forward()'s passes, with those (P', B) of each image.

        That forward had one label for all images in each pass.
        """
        self.labels = self.labels[passes, 0]
        for connection in self.connections:
            connection.pick(passes)

    def update(self, adam, du, inputs=None):
        """An Adam step.

        du(rows): the derivative of the loss by the pre-activation of these rows of tiles
        in each iteration, (n, t, T, N, P, B); n = 1 without recurrence
        inputs: of each connection, the Maps that it read, or a list of those of each
        iteration; None: those of the last forward()
        """
        inputs = inputs or [connection.inputs for connection in self.connections]

        def work(rows):
            d = du(rows)
            total = d[0]
            if len(d) > 1:
                total = d.sum(axis=0, out=scratch("total", *total.shape))
            for connection, maps in zip(self.connections, inputs, strict=True):
                read = [(maps, total)]  # the same in all iterations, or each its own
                if isinstance(maps, list):
                    read = zip(maps, d, strict=True)
                gradient = connection.weight_gradient(rows, read)
                adam.update(connection.W, gradient, rows)
            bias = self.bias_gradient(total)
            adam.update(self.b, bias.sum(axis=3), rows)
            if self.V:
                adam.update(self.V, bias, rows)

        self.in_pieces(work)
        for connection in self.connections:
            connection.inputs = None  # their W x is no longer true
        self.kept = {}

    def bias_gradient(self, du):
        """du (t, T, N, P, B), summed for each label: (t, T, N, N_CLASSES), or 1."""
        t, T, N, P, B = du.shape
        if self.V is None:
            return flat(du) @ np.ones((P * B, 1), np.float32)
        if self.labels.size == P * B:
            return flat(du) @ np.eye(N_CLASSES, dtype=np.float32)[self.labels.ravel()]
        by_pass = du.reshape(t, T, N * P, B) @ np.ones((B, 1), np.float32)
        one_hot = np.eye(N_CLASSES, dtype=np.float32)[self.labels[:, 0]]
        return by_pass.reshape(t, T, N, P) @ one_hot

    def input_gradient(self, du):
        """The derivative by the input, (H, W, C, 1, B), of a single pass; see update()."""
        (connection,) = self.connections
        side, depth = connection.padded, self.in_depth
        t, w, B = self.tile, connection.window, connection.inputs.maps.shape[4]
        strips = reuse(self.buffers, "strips", self.tiles, side, w, depth, B)
        self.in_pieces(
            lambda rows: connection.input_gradient(du(rows)[0], rows, strips[rows])
        )
        dx = np.zeros((side, side, depth, B), np.float32)
        for i, strip in enumerate(strips):
            dx[t * i : t * i + w] += strip.swapaxes(0, 1)
        return inside(dx, connection.padding)[:, :, :, None]


# ----------------------------------------------------------------------- Adam


class Parameter:
    """An array that is learned, and the two moments that Adam keeps of its gradient.

    decays: whether weight decay takes from it
    rate: its learning rate, in units of Adam's
    learned: where it is learned, bool; elsewhere Adam's steps are zero, as the second
        moment is infinite there
    """

    def __init__(self, value, decays=False, learned=None, rate=1.0):
        self.value, self.decays, self.rate = value, decays, np.float32(rate)
        self.m, self.v = np.zeros((2, *value.shape), np.float32)
        if learned is not None:
            self.v[~learned] = np.inf


class Adam:
    """Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1), one slice at a time, in place.

    m and v are kept divided by 1-beta1 and 1-beta2, and the bias corrections are
    folded into two scalars, which leaves ten passes over arrays that fit the cache.

    total_steps: the learning rate falls linearly, to 0 after so many; None: constant
    weight_decay: decoupled (AdamW, arXiv:1711.05101), of weights, not of biases; times
        learning_rate, whatever a parameter's own rate
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
        step *= self.rate * parameter.rate
        if parameter.decays and self.weight_decay:
            value *= self.kept
        value -= step


# -------------------------------------------------------------------- threads

# numpy lets go of the interpreter while it computes, so plain threads are enough.
# Each piece of work writes what no other piece touches: the results do not depend on
# the number of threads.


def count_threads():
    """$OMP_NUM_THREADS, else the cores this process may use, but no more than 8."""
    if hasattr(os, "sched_getaffinity"):
        cores = min(8, len(os.sched_getaffinity(0)))
    else:
        cores = min(8, os.cpu_count() or 1)
    setting = os.environ.get("OMP_NUM_THREADS", "")
    # OpenMP takes a list, a level each.
    if match := re.fullmatch(r"\s*([1-9]\d{0,5})\s*(,.*)?", setting):
        return int(match[1])
    if setting.strip():
        tell_at_import(
            f"OMP_NUM_THREADS={setting!r} is no number of threads: {cores} run"
        )
    return cores


def limit_blas():
    """Keep BLAS on one core, by the OpenBLAS that numpy has loaded."""
    library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    for prefix, suffix in itertools.product(("scipy_", ""), ("64_", "")):
        name = f"{prefix}openblas_set_num_threads{suffix}"
        if hasattr(library, name):
            library[name](1)
            return
    tell_at_import(
        "numpy was imported before ff_cifar_locally_connected, and its BLAS keeps its "
        "threads: slow, and other last digits. Import this module first"
    )


def tell_at_import(line):
    if sys.stderr:
        print(f"ff_cifar_locally_connected: {line}", file=sys.stderr)


def make_pool():
    """The threads beside the one that calls parallel()."""
    global POOL
    POOL = ThreadPoolExecutor(max(1, THREADS - 1))


THREADS = count_threads()
make_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=make_pool)  # a fork has none of the threads
if NUMPY_WAS_THERE:
    limit_blas()


def parallel(work, count):
    """Call work(i) for every i below `count`, on all threads, and wait for the end.

    Raises RunError where threads cannot start.
    """
    indices, lock = iter(range(count)), threading.Lock()

    def share():
        while True:
            with lock:
                i = next(indices, None)
            if i is None:
                return
            work(i)

    try:
        others = [POOL.submit(share) for _ in range(min(THREADS, count) - 1)]
    except RuntimeError as error:
        raise RunError(
            f"{error}: set OMP_NUM_THREADS to less than {THREADS}"
        ) from error
    share()
    for other in others:
        other.result()


def reuse(memo, name, *shape):
    """A float32 array, at first zeros, the same at every call with this memo (a dict).

    Fresh memory costs more in page faults than the arithmetic that fills it.
    """
    if (name, shape) not in memo:
        memo[name, shape] = np.zeros(shape, np.float32)
    return memo[name, shape]


_local = threading.local()


def scratch(name, *shape):
    """reuse() for each thread by itself."""
    return reuse(_local.__dict__, name, *shape)


# ----------------------------------------------------------------------- data

# Two public sources of the same 60,000 images; the digest decides for both.
TORONTO_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/oxcdcd/cifar10"
CIFAR_SHA256 = "80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660"

ARCHIVES = "cifar-10-binary.tar.gz (Toronto's) or cifar10.zip (Kaggle's)"  # by hand

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
    cached or returned unless its SHA-256 is CIFAR_SHA256. Raises NoData where nothing
    is at hand and no server has it, and RunError for all else.
    """
    folder = cache_folder(cache_dir)
    cached = folder / "cifar10.npz"
    tried, at_hand = [], False
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
            if isinstance(source, Path):
                if not source.exists():
                    continue
                at_hand = True
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
            try:
                save_npz(cached, arrays)
                say(f"made {cached} from {source}")
            except RunError as error:
                if not isinstance(source, Path):  # the servers would be asked each time
                    raise
                say(f"{source} will be parsed at every start: {error}")
        return tuple(arrays[name] for name in empty_arrays())
    # Whoever has a file there means the real data, even where it is damaged.
    raise (RunError if at_hand else NoData)(
        f"no CIFAR-10 from {'; '.join(tried)}. Put {ARCHIVES} into {folder}, or use "
        "--dataset synthetic"
    )


def cache_folder(cache_dir=None):
    """`cache_dir`, else $HINTON_CIFAR_CACHE, else ~/.cache/hinton-cifar; or RunError."""
    folder = cache_dir or os.environ.get("HINTON_CIFAR_CACHE")
    try:
        return Path(folder or "~/.cache/hinton-cifar").expanduser()
    except RuntimeError as error:  # a user without a home
        raise RunError(f"{error} Give a folder for the data: --cache-dir") from error


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
        except MemoryError:
            raise
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
            with network_errors():
                response = opener.open(url, timeout=TIMEOUT)
            with response:
                return copy_response(response, file)
        except (urllib.error.URLError, TimeoutError, ValueError) as error:
            raise RunError(f"{url}: {error}") from error
        except (ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            problem = f"{url}: {error or type(error).__name__}"
            if wait is None:
                raise RunError(problem) from error
            say(f"{problem}; trying again in {wait:g} s")
            time.sleep(wait)


@contextlib.contextmanager
def network_errors():
    """Errors that only the network can be the cause of, and not the disk."""
    try:
        yield
    except (urllib.error.URLError, TimeoutError, ssl.SSLError):
        raise
    except OSError as error:  # such as a host that cannot be reached any more
        raise ConnectionError(*error.args) from error


def copy_response(response, file):
    """Copy an HTTP response's body into `file`, checked and with progress shown."""
    total = int(response.headers.get("Content-Length") or 0)
    start = last = time.monotonic()
    done = done_at_last = 0
    while True:
        with network_errors():
            data = response.read1(1 << 16)
        if not data:
            break
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
    """Call write(file): it is whole at `path`, or RunError and `path` as it was.

    Where `path` is a symbolic link, its target is written.
    """
    target = Path(os.path.realpath(path))
    # Any number of hosts and containers may write into one folder: the name is drawn,
    # and "x" refuses one that exists.
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file
        remove_leftovers(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):  # where it could not be made
            temporary.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise RunError(
                f"cannot write {path}: {reason}; make room, or choose another folder"
            ) from error
        raise


TEMPORARY = ".ff_cifar_"  # how the names of temporary files begin


def remove_leftovers(temporary):
    """Remove what killed processes left beside this new file: not written for an hour."""
    now = temporary.stat().st_mtime  # by the clock of the disk, as their times are
    for other in temporary.parent.glob(f"{TEMPORARY}*.tmp"):
        with contextlib.suppress(OSError):  # of another user, or gone by now
            if other.stat().st_mtime < now - 3600:
                other.unlink()


def write_result(path, write):
    """write_whole(), but what cannot be there is kept in the folder for temporary files.

    RunError, which says where it is, as a result may have taken hours.
    """
    try:
        write_whole(path, write)
    except RunError as error:
        name = f"{TEMPORARY.strip('.')}{secrets.token_hex(8)}{path.suffix}"
        try:
            kept = Path(tempfile.gettempdir(), name)
            write_whole(kept, write)
        except (RunError, OSError) as another:
            raise RunError(f"{error}; nor is there another place: {another}") from error
        raise RunError(f"{error}; what was to be written is in {kept}") from error


def save_npz(path, arrays, write=write_whole):
    """Write an uncompressed .npz file by write_whole() or write_result()."""
    write(path, lambda file: np.savez(file, **arrays))


def read_npz(file):
    """The arrays of an uncompressed .npz file; nothing is unpickled."""
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("expected an uncompressed .npz file")
            with archive.open(member) as data:
                # Or a damaged header could ask for all the memory there is.
                np.lib.format.read_magic(data)
                shape, _, dtype = np.lib.format.read_array_header_1_0(data)
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"{member.filename} is shorter than its array")
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
    except MemoryError:
        raise
    except Exception as error:  # zipfile and numpy raise anything on damaged bytes
        reason = error or type(error).__name__
        raise RunError(f"{path} is no sound {what} ({reason})") from error


def live_arrays(learners):
    """All arrays that training changes in place, by name."""
    return {
        f"{learner.name}_{i}_{part}": getattr(parameter, part)
        for learner in learners
        for i, parameter in enumerate(learner.parameters())
        for part in ("value", "m", "v")
    }


def histories(learners):
    """The histories, (E,) or (L, E) each, by their names in model.npz."""
    return {
        f"{learner.name.lower()}_{name}": np.ascontiguousarray(values.T)
        for learner in learners
        for name, values in learner.history.items()
    }


def set_epochs(learner, epochs):
    """Give the history the shape it has after so many epochs, all zeros."""
    for name, values in learner.history.items():
        learner.history[name] = np.zeros((epochs, *values.shape[1:]))


def set_histories(learners, arrays):
    """Take over what histories() gave."""
    for learner in learners:
        for name in learner.history:
            learner.history[name] = arrays[f"{learner.name.lower()}_{name}"].T


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
    arrays = {
        "state": json.dumps(state),
        **live_arrays(learners),
        **histories(learners),
    }
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
        for learner in learners:
            epochs = len(arrays[f"{learner.name.lower()}_wallclock"])
            set_epochs(learner, epochs)
        check_like(arrays, {"state": "", **live, **histories(learners)})
        for name, array in live.items():
            array[...] = arrays[name]
        set_histories(learners, arrays)
        for learner, steps in zip(learners, state["steps"], strict=True):
            learner.adam.steps = int(steps)
        for learner, states in zip(learners, state["generators"], strict=True):
            for name, generator in learner.generators.items():
                generator.bit_generator.state = states[name]
    except (RunError, MemoryError):
        raise
    except Exception as error:  # the state may hold anything
        reason = f"{type(error).__name__} {error}"
        raise RunError(
            f"{path} is no checkpoint of this run ({reason}): {ways_out}"
        ) from error


def model_arrays(args, learners, full_test):
    """The arrays of model.npz: the README lists them.

    full_test: accuracies on all test images, {name in the file: fraction}
    """
    layers = learners[0].layers
    arguments = {name: getattr(args, name) for name in TRAINING_ARGUMENTS}
    theta = math.nan if args.threshold in (None, "halfway") else args.threshold
    arrays = {
        "layer_specs": np.int32([(layer.field, layer.channels) for layer in layers]),
        "threshold": np.float64(theta),
        "seed": np.int64(args.seed),
        "config": json.dumps({"arguments": arguments, "versions": versions()}),
        **histories(learners),
    }
    for learner in learners:
        arrays |= learner.weights()
    return arrays | {name: np.float64(value) for name, value in full_test.items()}


# The arguments that older files do not have, but for the fields, which are those of
# their layers.
OLDER_DEFAULTS = {
    "network": "feedforward",
    "objective": "max",
    "layer_rates": [1.0, 1.0, 1.0, 1.0],
    "pass_up": "labelled",
    "scored": "all",
    "shift": SHIFT,
    "whiten": False,
}


def load_model(path):
    """The learners of a model.npz by name, the arguments of its run, and its arrays.

    RunError if it is damaged, incomplete or of other shapes, or holds what is not
    finite; what is pickled is refused, never loaded.
    """
    arrays = load_npz(path, f"model: make one with {MAKE_MODEL}")
    try:
        config = json.loads(str(arrays["config"]))["arguments"]
        specs = arrays["layer_specs"]
        config = OLDER_DEFAULTS | {"fields": specs[:, 0].tolist()} | config
        args = argparse.Namespace(**{name: config[name] for name in TRAINING_ARGUMENTS})
        if len(specs) != args.n_layers or not all(specs[:, 1] == args.channels):
            raise ValueError("layer_specs and config differ")
        if len(arrays["ff_wallclock"]) != args.n_epochs:
            raise ValueError("the number of epochs and config differ")
        learners = make_learners(args)
        for learner in learners:
            set_epochs(learner, args.n_epochs)
        known = [way.full_test for learner in learners for way in learner.ways]
        full_test = {name: 0.0 for name in known if name in arrays}
        expected = model_arrays(args, learners, full_test)
        check_like(arrays, expected)
        no_theta = ("threshold", None), ("threshold", "halfway")
        for name in ("threshold", "seed", "layer_specs"):
            if not np.array_equal(arrays[name], expected[name], equal_nan=True):
                raise ValueError(f"{name} and config differ")
        for name, array in arrays.items():
            sound = array.dtype.kind != "f" or np.isfinite(array).all()
            if not sound and (name, args.threshold) not in no_theta:
                raise ValueError(f"{name} is not finite")
        set_histories(learners, arrays)
        for learner in learners:
            learner.set_weights(arrays)
    except MemoryError:
        raise
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


class NoData(RunError):
    """No source has CIFAR-10."""


unprinted = []  # errors of lines that could not be printed, for the end of command()


def put(text, stream, end="\n"):
    """print(), but a line that cannot be printed does not cost the run."""
    try:
        if stream:  # None where it was closed before the start
            print(text, end=end, file=stream, flush=True)
    except OSError as error:
        unprinted.append(error)


def show_progress(text):
    """Rewrite the progress line of a terminal ("" clears it); nothing in a pipe."""
    if sys.stderr and sys.stderr.isatty():
        put(f"\r{text:<78.78}", sys.stderr, end="" if text else "\r")


def say(line):
    """Tell the user something about the run that is not a result (to stderr)."""
    show_progress("")
    put(line, sys.stderr)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def __init__(self, description=None, example=None, **options):
        super().__init__(
            description=description,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
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


def by_layer(kind):
    """An argparse type: numbers of a kind with commas, from layer 0 on, as 11,5,5,5."""
    return lambda text: [kind(part) for part in text.split(",")]


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
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError("it is not a regular file")
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent):
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
        choices=("auto", "cifar10", "synthetic"),
        default="auto",
        help="default: auto, which is cifar10 or, where no source has it, synthetic: "
        "made-up gratings, without a network",
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="default: $HINTON_CIFAR_CACHE, else ~/.cache/hinton-cifar",
    )
    return group


def add_default_flags(group):
    """The flags that decide what the others' defaults are."""
    help = "defaults of the other flags: the first experiment, one layer with all ten "
    help += "labels, or the best one known (default: headline)"
    group.add_argument("--recipe", choices=RECIPES, default="headline", help=help)
    help = (
        "recurrent: the paper's, of maps as large as the image (default: feedforward)"
    )
    group.add_argument("--network", choices=NETWORKS, default="feedforward", help=help)


def defaults_of(recipe, network):
    """What --recipe and --network make the defaults; but the threshold's comes last."""
    defaults = NETWORKS[network] | RECIPES[recipe]
    return {name: value for name, value in defaults.items() if name != "threshold"}


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

    def switch(flag, help):
        form = argparse.BooleanOptionalAction
        help += " (default: %(default)s)"
        group.add_argument(flag, action=form, default=False, help=help)

    def choose(flag, *choices_and_help):
        *choices, help = choices_and_help
        help += " (default: %(default)s)"
        group.add_argument(flag, default=choices[0], choices=choices, help=help)

    add("--train-subset", 10_000, subset, "train on the first N images")
    help = "evaluate after each epoch on the first N training and N test images"
    add("--eval-subset", 1000, evaluated, help)
    group = parser.add_argument_group("model and training")
    add_default_flags(group)
    add("--seed", 0, number(int, 0), "seed of weights, order and negatives")
    add("--n-epochs --epochs", 10, count, "passes over the training images")
    add("--n-layers", 2, depth, "locally-connected layers, 1 to 4; recurrent: 2 or 3")
    help = "units at each position of a layer"
    add("--channels", CHANNELS, number(int, 1, 1_000_000), help)
    help = "sides of the layers' receptive fields, from the first on, with commas"
    sides = by_layer(number(int, 1, SIDE))
    add("--fields", ",".join(map(str, RECEPTIVE_FIELDS)), sides, help, "N,...")
    add("--batch-size", 64, count, "images in a step")
    add("--lr", 0.01, positive, "Adam's learning rate")
    help = "constant, or falling linearly to 0"
    choose("--lr-schedule", "constant", "linear", help)
    add("--weight-decay", 0.0, at_least_0, "of weights, decoupled as in AdamW")
    switch("--augment", "mirror images at random and shift them")
    help = "pixels, at most, each way, of --augment"
    add("--shift", SHIFT, number(int, 0, SIDE), help)
    switch("--whiten", "decorrelate neighbouring pixels and colours of the image (ZCA)")
    group = parser.add_argument_group("Forward-Forward")
    help = "the layers' learning rates, from the first on, in units of --lr"
    add("--layer-rates", "1,1,1,1", by_layer(positive), help, "N,...")
    help = "recurrent: the true label's goodness is to be high, or low"
    choose("--objective", "max", "min", help)
    help = "where the label enters: a block of the image, or top-down into all units; "
    help += "recurrent: from the top"
    choose("--label-input", "corner", "everywhere", "top", help)
    help = "what a layer passes up: its activity with each label, or with a neutral "
    help += "one, once for all"
    choose("--pass-up", "labelled", "neutral", help)
    help = "wrong labels: any one, one by softmax of goodness, or all nine; recurrent: "
    help += "one by a classifier, unless it is any one or all"
    choose("--negatives", "uniform", "sampled", "all", "classifier", help)
    help = "theta, a goodness; or halfway: between the two passes of each image; not "
    help += "with --negatives all (default: 2.0; recurrent: halfway)"
    group.add_argument("--threshold", type=threshold, metavar="N|halfway", help=help)
    help = "unit of goodness, in the loss and in the softmax of the negatives"
    add("--temperature", 1.0, positive, help)
    help = "layers whose summed goodness predicts; with the label in the corner, all "
    help += "leaves out the first"
    choose("--scored", "all", "last", help)
    if backprop:
        group = parser.add_argument_group("backprop")
        switch("--bp-baseline", "train the same stack with backprop too")
        help = "learning rate of backprop (default: --lr)"
        group.add_argument("--bp-lr", type=positive, metavar="N", help=help)
    # Set above, Python before 3.13 would say it in the help a second time.
    parser.set_defaults(bp_baseline=False, bp_lr=None)


def parse(parser):
    """The arguments of a parser with the training flags; they must fit together."""
    first = Parser(add_help=False)
    add_default_flags(first)
    first = first.parse_known_args()[0]
    defaults = defaults_of(first.recipe, first.network)
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    recurrent = args.network == "recurrent"
    for wrong, message in (
        (
            args.bp_lr != defaults.get("bp_lr") and not args.bp_baseline,
            "--bp-lr needs --bp-baseline",
        ),
        (
            args.negatives == "all" and args.threshold is not None,
            "--threshold has no meaning with --negatives all: leave it away",
        ),
        (
            recurrent and args.recipe != "headline",
            f"--recipe {args.recipe} is for the feed-forward network",
        ),
        (
            recurrent and args.fields != list(RECEPTIVE_FIELDS),
            "--fields is for the feed-forward network",
        ),
        (
            recurrent and set(args.layer_rates) != {1},
            "--layer-rates is for the feed-forward network",
        ),
        (
            recurrent and args.scored != "all",
            f"--scored {args.scored} is for the feed-forward network",
        ),
        *(
            (
                args.n_layers > len(getattr(args, name)),
                f"--n-layers {args.n_layers} needs as many --{name.replace('_', '-')}",
            )
            for name in ("fields", "layer_rates")
        ),
        (
            sum(args.fields[: args.n_layers]) - args.n_layers >= SIDE,
            f"--fields {args.fields} leave {args.n_layers} layers no position",
        ),
        (
            args.pass_up == "neutral" and args.label_input != "everywhere",
            "--pass-up neutral needs --label-input everywhere",
        ),
        (
            args.shift != defaults.get("shift", SHIFT) and not args.augment,
            "--shift needs --augment",
        ),
        (
            recurrent and args.n_layers not in (2, 3),
            "--network recurrent needs --n-layers 2 or 3",
        ),
        (
            recurrent != (args.label_input == "top"),
            f"--label-input {args.label_input} does not fit --network {args.network}",
        ),
        (
            args.negatives == ("sampled" if recurrent else "classifier"),
            f"--negatives {args.negatives} does not fit --network {args.network}",
        ),
        (
            args.objective == "min" and not recurrent,
            "--objective min needs --network recurrent",
        ),
    ):
        if wrong:
            parser.error(message)
    for flag, rate in ("--lr", args.lr), ("--bp-lr", args.bp_lr):
        if rate and rate * args.weight_decay > 1:
            parser.error(
                f"{flag} {rate:g} x --weight-decay {args.weight_decay:g} is above 1: a "
                "step would turn every weight's sign"
            )
    return with_threshold(args)


def with_threshold(args):
    """The arguments with the network's threshold where one is needed and none given."""
    if args.threshold is None and args.negatives != "all":
        args.threshold = NETWORKS[args.network]["threshold"]
    return args


def training_arguments(recipe="headline", network="feedforward", **changes):
    """The flags' values of a recipe with `changes`, for use without a command line.

    The dataset, which names the data in what is saved, is cifar10.
    """
    parser = Parser()
    add_training_flags(parser)
    parser.set_defaults(**defaults_of(recipe, network))
    args = parser.parse_args([])
    vars(args).update({"dataset": "cifar10"} | changes, recipe=recipe, network=network)
    return with_threshold(args)


# The arguments that decide a training run: what a checkpoint has to agree on.
TRAINING_ARGUMENTS = tuple(
    name for name in vars(training_arguments()) if name not in ("cache_dir", "recipe")
)


def load_data(args):
    """train_x, train_y, test_x, test_y of --dataset; "auto" becomes what it comes to."""
    if args.dataset != "synthetic":
        try:
            data = load_cifar10(args.cache_dir)
            args.dataset = "cifar10"
            return data
        except NoData:
            if args.dataset == "cifar10":
                raise
        args.dataset = "synthetic"
        say(
            f"{TAG}no source has CIFAR-10: made-up images run instead. For the real data, "
            f"put {ARCHIVES} into {cache_folder(args.cache_dir)}"
        )
    return make_synthetic()


TAG = "[synthetic] "


def teller(args):
    """print, but every line about synthetic data says so."""

    def tell(line=""):
        put((TAG if args.dataset == "synthetic" else "") + line, sys.stdout)

    return tell


def tell_data(args, tell):
    """The last line of a script, where its results are not of CIFAR-10."""
    if args.dataset == "synthetic":
        tell("these are not CIFAR-10 results: the images are made up")


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
    learners = make_learners(args)
    tell_setting(args, learners[0].layers, len(train_x), len(test_x), tell)
    if checkpoint and checkpoint.exists():
        load_checkpoint(checkpoint, args, learners)
        tell(f"going on from {checkpoint}")

    def after_epoch():
        if checkpoint:
            save_checkpoint(checkpoint, args, learners)

    for learner in learners:
        train(learner, data, args, after_epoch, tell)
    ways = [(learner, way) for learner in learners for way in learner.ways]
    predictions = {
        way: predict(learner, test_x, way.method) for learner, way in ways if full_test
    }
    tell_results(args, ways, predictions, test_y, tell)
    accuracies = {way.full_test: np.mean(p == test_y) for way, p in predictions.items()}
    return learners, model_arrays(args, learners, accuracies)


def tell_setting(args, layers, n_train, n_test, tell):
    """What runs on what: versions, data, layers."""
    tell(", ".join(f"{name} {version}" for name, version in versions().items()))
    tell(
        f"{args.dataset}: {args.train_subset} of {n_train} training images, "
        f"{n_test} test images, {SIDE}x{SIDE}x{DEPTH} uint8"
    )
    for i, layer in enumerate(layers):
        tell(
            f"layer {i}: {layer.in_side}x{layer.in_side}x{layer.in_depth}, fields "
            f"{layer.field}x{layer.field} -> {layer.side}x{layer.side}x{layer.channels}"
            f", {layer.n_parameters():,} parameters"
        )


def tell_results(args, ways, predictions, test_y, tell):
    """The table of results, and the accuracies by class where all images were tested.

    ways: (learner, Way) each; predictions {Way: labels}, for all test images, or empty
    """
    n_test = len(test_y) if predictions else args.eval_subset
    tell()
    tell(f"{'':12}{'test %':>7}{'error %':>9}{'misses':>9}{'train %':>9}{'time s':>9}")
    for learner, way in ways:
        train, test = (
            learner.history[f"{way.prefix}{name}_acc"][-1] for name in ("train", "test")
        )
        if predictions:
            test = np.mean(predictions[way] == test_y)
        tell(
            f"{way.told:12}{100 * test:7.2f}{100 - 100 * test:9.2f}"
            f"{round((1 - test) * n_test):9}{100 * train:9.2f}"
            f"{learner.history['wallclock'][-1]:9.1f}"
        )
    tell(f"{'chance':12}{10:7.2f}{90:9.2f}{n_test * 9 // 10:9}")
    seen = min(args.eval_subset, args.train_subset)
    tell(f"({n_test} test and {seen} training images; time without evaluation)")
    if predictions:
        tell()
        names = [f"{way.told} %" for way in predictions]
        tell(
            f"{'class':10}"
            + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in names)
        )
        columns = [class_accuracies(p, test_y) for p in predictions.values()]
        for label, *values in zip(CLASSES, *columns, strict=True):
            cells = zip(names, values, strict=True)
            tell(
                f"{label:10}"
                + "".join(f"{100 * v:{max(9, len(name) + 2)}.1f}" for name, v in cells)
            )


def command(main):
    """Run a script's main(): one line and an exit code for what goes wrong."""
    # An overflow ends in a number that is not finite, which is an error by itself.
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    name = Path(sys.argv[0]).name
    # A file that is opened must not get the number of a closed stream: libraries write
    # their complaints to 2.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not None, nor a notebook's
            stream.reconfigure(errors="backslashreplace")  # what it cannot show
    try:
        main()
    except RunError as error:
        say(f"{name}: {error}")
        sys.exit(1)
    except MemoryError:
        say(f"{name}: not enough memory, for the data or with so many --channels")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted; a training with --checkpoint FILE goes on when started again")
        sys.exit(130)
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError as error:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                unprinted.append(error)
        if unprinted:
            say(f"{name}: lines were lost, as they cannot be printed: {unprinted[0]}")
            if sys.exc_info()[1] is None:  # an error, or Ctrl-C, keeps its exit code
                sys.exit(1)


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
    files = [os.path.realpath(path) for path in (args.save, args.checkpoint) if path]
    if len(files) > len(set(files)):
        parser.error("--save and --checkpoint are the same file")

    tell = teller(args)
    _, arrays = run(args, load_data(args), tell, args.full_test, args.checkpoint)
    if args.save:
        save_npz(args.save, arrays, write_result)
        tell()
        tell(f"saved {args.save} ({args.save.stat().st_size / 1e6:.1f} MB)")
    tell_data(args, tell)


if __name__ == "__main__":
    command(main)
