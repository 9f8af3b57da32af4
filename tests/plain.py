"""The experiment in the plainest numpy: the truth for the tests, the rival in the benchmark.

Nothing here is shared, skipped, reused or fused. im2col with a contiguous copy, one
matmul with the positions as its batch axis, separate positive and negative passes, a
second forward pass after the update for the next layer's input, Adam with temporaries,
and ten full forward passes to predict. With dtype float64 the tests hold the fast
version against it; with float32 tests/benchmark.py times it. It imports nothing from
the project. Labels are written, and images normalised, here once more.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

MEAN = [0.4914, 0.4822, 0.4465]


def normalise(images, dtype):
    return images.astype(dtype) / 255 - np.array(MEAN, np.float32).astype(dtype)


def with_labels(images, labels):
    """A copy of normalised images (B, 32, 32, 3) with their label blocks."""
    out = images.copy()
    out[:, :3, :10, :] = -1.0
    for image, label in zip(out, labels):
        image[:3, label, :] = 1.0
    return out


def whitening_filter(images):
    """(5, 5, 3, 3): the middle pixel of ZCA whitened 5 x 5 patches of the first 2,000
    images, from the singular values of all patches that do not overlap."""
    x = normalise(images[:2000], np.float64)
    patches = np.array(
        [x[:, i : i + 5, j : j + 5] for i in range(0, 26, 5) for j in range(0, 26, 5)]
    ).reshape(-1, 75)
    n = len(patches)
    _, sizes, directions = np.linalg.svd(patches, full_matrices=False)
    zca = directions.T @ np.diag(1 / np.sqrt(sizes**2 / n + 0.01)) @ directions
    kernel = zca.reshape(75, 5, 5, 3)[:, 2, 2]
    out = patches @ kernel
    kernel *= np.sqrt((patches**2).mean() / (out**2).mean())
    return kernel.reshape(5, 5, 3, 3)


def filtered(x, kernel):
    """Images (B, H, W, 3) under a filter (F, F, 3, 3), edge pixels repeated around."""
    F, (_, H, W, _) = len(kernel), x.shape
    cut = F // 2, F // 2
    x = np.pad(x, ((0, 0), cut, cut, (0, 0)), mode="edge")
    out = 0
    for i, j in np.ndindex(F, F):
        out = out + x[:, i : i + H, j : j + W] @ kernel[i, j]
    return out


def im2col(x, field):
    """(B, H, W, C) -> (positions, B, field * field * C), K in order row, column, channel."""
    windows = sliding_window_view(x, (field, field), axis=(1, 2))
    windows = windows.transpose(1, 2, 0, 4, 5, 3)
    return np.ascontiguousarray(windows).reshape(
        windows.shape[0] * windows.shape[1], len(x), -1
    )


class Layer:
    """Weights W (positions, K, channels) and biases b (positions, channels).

    And, with top-down weights, V (10, positions, channels): one for each label.
    """

    def __init__(self, W, b, field, dtype, V=None):
        self.side, self.field = len(W), field
        self.W = W.reshape(-1, *W.shape[2:]).astype(dtype)
        self.b = b.reshape(len(self.W), -1).astype(dtype)
        self.V = None if V is None else V.reshape(10, *self.b.shape).astype(dtype)

    def parameters(self):
        return [self.W, self.b] if self.V is None else [self.W, self.b, self.V]

    def forward(self, x, labels=None):
        """Activities (positions, B, channels); keeps what the gradients need."""
        self.x, self.columns = x, im2col(x, self.field)
        u = self.columns @ self.W + self.b[:, None]
        if self.V is not None and labels is None:  # 0.1 of each
            u = u + self.V.mean(axis=0)[:, None]
        elif self.V is not None:
            u = u + self.V[labels].transpose(1, 0, 2)
        return np.maximum(u, 0)

    def maps(self, h):
        return h.reshape(self.side, self.side, h.shape[1], -1).transpose(2, 0, 1, 3)

    def normalised(self, h):
        """The next layer's input: maps divided by their root mean square."""
        return self.maps(h) / np.sqrt(goodness(h))[:, None, None, None]

    def weight_gradient(self, du, columns, labels=None):
        """Of each of parameters(), for the columns and labels of a forward()."""
        gradients = [columns.transpose(0, 2, 1) @ du, du.sum(axis=1)]
        if self.V is not None:
            gradients.append(np.zeros_like(self.V))
            for i, label in enumerate(labels):
                gradients[2][label] += du[:, i]
        return gradients

    def input_gradient(self, du):
        """col2im of W du: (positions, B, channels) -> (B, H, W, C)."""
        patches = du @ self.W.transpose(0, 2, 1)
        dx = np.zeros_like(self.x)
        f, channels = self.field, self.x.shape[3]
        for p, patch in enumerate(patches):
            i, j = divmod(p, self.side)
            dx[:, i : i + f, j : j + f] += patch.reshape(-1, f, f, channels)
        return dx


class Adam:
    """Kingma & Ba, algorithm 1, as it is printed there."""

    def __init__(self, shape, dtype, learning_rate):
        self.m, self.v, self.t = np.zeros(shape, dtype), np.zeros(shape, dtype), 0
        self.learning_rate = learning_rate

    def step(self, value, gradient):
        self.t += 1
        self.m = 0.9 * self.m + (1 - 0.9) * gradient
        self.v = 0.999 * self.v + (1 - 0.999) * gradient**2
        m_hat = self.m / (1 - 0.9**self.t)
        v_hat = self.v / (1 - 0.999**self.t)
        value -= self.learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)


def goodness(h):
    return (h**2).mean(axis=(0, 2))


def ff_loss(g, threshold, temperature=1.0):
    """The loss of a layer with goodness g (P, B): the true label's pass, then the others.

    threshold: theta: mean over the 2B samples of log(1 + exp(-+(g - theta) / temperature));
    or "halfway" between the two goodnesses of each image; None: for any number of passes,
    the mean over the images of -log softmax(g / temperature) of the first.
    """
    if threshold is None:
        p = np.exp((np.array(g) - np.max(g, axis=0)) / temperature)
        return -np.log(p[0] / p.sum(axis=0)).mean()
    g_positive, g_negative = g
    if threshold == "halfway":
        threshold = (g_positive + g_negative) / 2
    losses = np.log(1 + np.exp(-(g_positive - threshold) / temperature))
    losses += np.log(1 + np.exp((g_negative - threshold) / temperature))
    return losses.mean() / 2


def ff_loss_slopes(g, threshold, temperature=1.0):
    """The derivatives of ff_loss by each g[p] (B,), by the chain rule.

    Halfway, the loss is the mean of log(1 + exp(-(g_positive - g_negative) / 2T)). With
    all labels it is log(sum_p exp(g_p / T)) - g_0 / T.
    """
    if threshold is None:
        p = np.exp((np.array(g) - np.max(g, axis=0)) / temperature)
        p /= p.sum(axis=0)
        p[0] -= 1
        return list(p / temperature / p.shape[1])
    g_positive, g_negative = g
    n = 2 * len(g_positive) * temperature
    if threshold == "halfway":
        slope = 1 / (1 + np.exp((g_positive - g_negative) / (2 * temperature))) / n
        return -slope, slope
    return (
        -1 / (1 + np.exp((g_positive - threshold) / temperature)) / n,
        1 / (1 + np.exp(-(g_negative - threshold) / temperature)) / n,
    )


class ForwardForward:
    """layers: of this module; the label is in their V, or else in the image's corner.

    learning_rate: one, or that of each layer
    neutral: what goes up is the activity without a label; kernel: see filtered()
    last: the goodness of the last layer alone predicts
    """

    def __init__(
        self,
        layers,
        learning_rate,
        dtype,
        threshold=2.0,
        temperature=1.0,
        neutral=False,
        kernel=None,
        last=False,
    ):
        self.layers, self.dtype = layers, dtype
        self.neutral, self.kernel, self.last = neutral, kernel, last
        self.loss_settings = threshold, temperature
        self.top_down = layers[0].V is not None
        rates = np.broadcast_to(learning_rate, len(layers))
        self.adams = [
            [Adam(p.shape, dtype, rate) for p in layer.parameters()]
            for layer, rate in zip(self.layers, rates, strict=True)
        ]

    def normalise(self, images):
        images = normalise(images, self.dtype)
        return images if self.kernel is None else filtered(images, self.kernel)

    def with_labels(self, images, labels):
        return images if self.top_down else with_labels(images, labels)

    def passed_up(self, layer, x, h):
        """What the next layer reads where this one reads x and has activity h."""
        return layer.normalised(layer.forward(x) if self.neutral else h)

    def train_step(self, images, labels, negatives, refresh=True):
        """negatives: the wrong labels of each further pass, (B,) each.

        refresh: the next layer's input comes from a forward after the update
        """
        images = self.normalise(images)
        passes = [labels, *negatives]
        inputs = [self.with_labels(images, y) for y in passes]
        statistics = []
        for layer, adams in zip(self.layers, self.adams, strict=True):
            activities, columns = [], []
            for x, y in zip(inputs, passes, strict=True):
                activities.append(layer.forward(x, y))
                columns.append(layer.columns)
            g = [goodness(h) for h in activities]
            slopes = ff_loss_slopes(g, *self.loss_settings)
            total = [0] * len(adams)
            for h, slope, x, y in zip(activities, slopes, columns, passes, strict=True):
                du = slope[None, :, None] * 2 * h / (h.shape[0] * h.shape[2])
                gradients = layer.weight_gradient(du, x, y)
                total = [a + b for a, b in zip(total, gradients, strict=True)]
            pairs = zip(inputs, activities, strict=True)
            above = None if refresh else [self.passed_up(layer, *xh) for xh in pairs]
            for adam, p, gradient in zip(adams, layer.parameters(), total, strict=True):
                adam.step(p, gradient)
            loss = ff_loss(g, *self.loss_settings)
            statistics += [loss, g[0].mean(), np.mean(g[1:])]
            if refresh:
                pairs = zip(inputs, passes, strict=True)
                pairs = [(x, layer.forward(x, y)) for x, y in pairs]
                above = [self.passed_up(layer, *xh) for xh in pairs]
            inputs = above
        return np.array(statistics)

    def label_goodness(self, images):
        images = self.normalise(images)
        scores = np.empty((len(self.layers), 10, len(images)), self.dtype)
        for label in range(10):
            labels = [label] * len(images)
            x = self.with_labels(images, labels)
            for i, layer in enumerate(self.layers):
                h = layer.forward(x, labels)
                scores[i, label] = goodness(h)
                x = self.passed_up(layer, x, h)
        return scores

    def predict(self, images):
        scores = self.label_goodness(images)
        if self.last:
            return scores[-1].argmax(axis=0)
        if len(scores) > 1 and not self.top_down:
            scores = scores[1:]
        return scores.sum(axis=0).argmax(axis=0)


class Backprop:
    """The layers, of this module, under a readout W_out (flat, 10), b_out (10,)."""

    def __init__(self, layers, W_out, b_out, learning_rate, dtype):
        self.layers = layers
        self.W_out, self.b_out, self.dtype = (
            W_out.astype(dtype),
            b_out.astype(dtype),
            dtype,
        )
        self.adams = [Adam(p.shape, dtype, learning_rate) for p in self.parameters()]

    def parameters(self):
        stack = [p for layer in self.layers for p in layer.parameters()]
        return [*stack, self.W_out, self.b_out]

    def forward(self, images):
        x, activities = normalise(images, self.dtype), []
        for layer in self.layers:
            activities.append(layer.forward(x))
            x = layer.maps(activities[-1])
        flat = np.ascontiguousarray(x).reshape(len(x), -1)
        return activities, flat, flat @ self.W_out + self.b_out

    def loss(self, images, labels):
        logits = self.forward(images)[2]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return -np.log(p[np.arange(len(labels)), labels]).mean()

    def gradients(self, images, labels):
        activities, flat, logits = self.forward(images)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        dlogits = (p - np.eye(10, dtype=self.dtype)[labels]) / len(labels)
        gradients = [flat.T @ dlogits, dlogits.sum(axis=0)]
        side, B = self.layers[-1].side, len(labels)
        dx = (dlogits @ self.W_out.T).reshape(B, side, side, -1)
        for layer, h in zip(reversed(self.layers), reversed(activities)):
            dh = dx.transpose(1, 2, 0, 3).reshape(h.shape)
            du = np.where(h > 0, dh, 0)
            gradients[:0] = layer.weight_gradient(du, layer.columns)
            if layer is not self.layers[0]:
                dx = layer.input_gradient(du)
        return gradients

    def train_step(self, images, labels):
        for adam, p, g in zip(
            self.adams, self.parameters(), self.gradients(images, labels)
        ):
            adam.step(p, g)

    def predict(self, images):
        return self.forward(images)[2].argmax(axis=1)


class RecurrentLayer:
    """One map of the recurrent network, all arrays by position as in Layer.

    W, T (positions, K, channels), T None in the last layer; b (positions, channels);
    V (10, positions, channels) in the last layer, else None. Where a field is cut by the
    edge, its inputs are zeros.
    """

    def __init__(self, W, b, dtype, T=None, V=None):
        self.side, self.b = len(W), b.reshape(len(W) ** 2, -1).astype(dtype)
        self.W = W.reshape(len(self.b), *W.shape[2:]).astype(dtype)
        self.T = None if T is None else T.reshape(self.W.shape[0], -1, T.shape[3])
        self.T = None if T is None else self.T.astype(dtype)
        self.V = None if V is None else V.reshape(10, *self.b.shape).astype(dtype)

    def parameters(self):
        return [p for p in (self.W, self.T, self.b, self.V) if p is not None]

    def pre_activation(self, below, above, label):
        """u from columns (positions, B, K); label (10, B): how much of each label."""
        u = below @ self.W + self.b[:, None]
        if self.T is not None and above is not None:
            u = u + above @ self.T
        if self.V is not None:
            u = u + np.einsum("lb,lpc->pbc", label, self.V)
        return u

    def gradients(self, du, below, above, label):
        found = [below.transpose(0, 2, 1) @ du]
        if self.T is not None:
            found.append(above.transpose(0, 2, 1) @ du)
        found.append(du.sum(axis=1))
        if self.V is not None:
            found.append(np.einsum("lb,pbc->lpc", label, du))
        return found


class Recurrent:
    """The recurrent network: every pass, iteration and layer by itself, nothing shared."""

    def __init__(self, layers, W_class, b_class, rates, dtype, sign, *loss_settings):
        self.layers, self.dtype, self.sign = layers, dtype, sign
        self.W_class, self.b_class = W_class.astype(dtype), b_class.astype(dtype)
        threshold, temperature = loss_settings
        if isinstance(threshold, float):  # "min": -g is to be above -threshold
            threshold *= sign
        self.loss_settings = threshold, temperature
        self.adams = [
            [Adam(p.shape, dtype, rates[0]) for p in layer.parameters()]
            for layer in layers
        ]
        classifier = self.W_class, self.b_class
        self.class_adams = [Adam(p.shape, dtype, rates[1]) for p in classifier]

    def columns(self, maps):
        padded = np.pad(maps, ((0, 0), (5, 5), (5, 5), (0, 0)))
        return im2col(padded, 11)

    def normalised(self, y):
        """Maps (B, side, side, channels) of activities (positions, B, channels)."""
        side = int(len(y) ** 0.5)
        maps = y.reshape(side, side, *y.shape[1:]).transpose(2, 0, 1, 3)
        return maps / np.sqrt(goodness(y))[:, None, None, None]

    def begin(self, images):
        """Activities and normalised maps of the bottom-up pass; the image's columns."""
        x = normalise(images, self.dtype)
        x = x / np.sqrt((x**2).mean(axis=(1, 2, 3), keepdims=True))
        neutral = np.full((10, len(images)), 0.1, self.dtype)
        image, y, n = self.columns(x), [], []
        below = image
        for layer in self.layers:
            y.append(np.maximum(layer.pre_activation(below, None, neutral), 0))
            n.append(self.normalised(y[-1]))
            below = self.columns(n[-1])
        return y, n, image

    def iterate(self, images, labels, iterations):
        """For each iteration and layer: old y, new y, slope, columns below and above."""
        y, n, image = self.begin(images)
        label = np.eye(10, dtype=self.dtype)[:, labels]
        record = []
        for _ in range(iterations):
            seen = [image, *(self.columns(maps) for maps in n), None]
            row = []
            for i, layer in enumerate(self.layers):
                below = seen[i]
                above = seen[i + 2] if i + 1 < len(self.layers) else None
                u = layer.pre_activation(below, above, label)
                new = 0.3 * y[i] + 0.7 * np.maximum(u, 0)
                row.append((y[i], new, u > 0, below, above))
            y = [new for _, new, *_ in row]
            n = [self.normalised(new) for new in y]
            record.append(row)
        return record, label

    def logits(self, images):
        _, n, _ = self.begin(images)
        x = np.concatenate([maps.reshape(len(images), -1) for maps in n], axis=1)
        return x, x @ self.W_class + self.b_class

    def train_step(self, images, labels, negatives, iterations):
        x, logits = self.logits(images)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        dlogits = (p - np.eye(10, dtype=self.dtype)[labels]) / len(labels)
        runs = [self.iterate(images, one, iterations) for one in (labels, *negatives)]
        statistics = []
        for i, (layer, adams) in enumerate(zip(self.layers, self.adams, strict=True)):
            total, told = [0] * len(adams), []
            for t in range(iterations):
                g = [goodness(record[t][i][1]) for record, _ in runs]
                signed = [self.sign * one for one in g]
                slopes = ff_loss_slopes(signed, *self.loss_settings)
                told.append(
                    [ff_loss(signed, *self.loss_settings), g[0].mean(), np.mean(g[1:])]
                )
                for (record, label), slope in zip(runs, slopes, strict=True):
                    _, y, on, below, above = record[t][i]
                    factor = self.sign * slope / iterations * 2 * 0.7 / y[:, 0].size
                    du = factor[None, :, None] * y * on
                    found = layer.gradients(du, below, above, label)
                    total = [a + b for a, b in zip(total, found, strict=True)]
            for adam, p, gradient in zip(adams, layer.parameters(), total, strict=True):
                adam.step(p, gradient)
            statistics.append(np.mean(told, axis=0))
        self.class_adams[0].step(self.W_class, x.T @ dlogits)
        self.class_adams[1].step(self.b_class, dlogits.sum(axis=0))
        return np.array(statistics)

    def goodness_by_iteration(self, images, iterations):
        """(iterations, L, 10, B)"""
        g = np.empty((iterations, len(self.layers), 10, len(images)), self.dtype)
        for label in range(10):
            record, _ = self.iterate(images, [label] * len(images), iterations)
            for t, row in enumerate(record):
                for i, (_, y, *_) in enumerate(row):
                    g[t, i, label] = goodness(y)
        return g

    def predict(self, images):
        g = self.goodness_by_iteration(images, 10)[3:6]
        return (self.sign * g.sum(axis=(0, 1))).argmax(axis=0)

    def predict_one_pass(self, images):
        return self.logits(images)[1].argmax(axis=1)
