"""Forward-Forward in the plainest numpy: truth of the tests, rival in the benchmark.

It begins with all that the headline needs; below stands what the other recipes add, and
backprop. Nothing is shared, skipped, reused or fused: every pass is computed by itself,
ten of them to predict. With dtype float64 the tests hold the fast version against it;
with float32 tests/benchmark.py times it. It imports nothing from the project.

Axes: B images, positions of a map row by row, K inputs of a receptive field in the order
row, column, channel. Images are (B, 32, 32, 3), activities (positions, B, channels).
"""

from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

MEAN = [0.4914, 0.4822, 0.4465]  # of the training set, per channel


def normalise(images, dtype, kernel=None):
    """uint8 images as a network sees them; kernel: what whitens them, see filtered()."""
    x = images.astype(dtype) / 255 - np.array(MEAN, np.float32).astype(dtype)
    return x if kernel is None else filtered(x, kernel)


def with_labels(images, labels):
    """A copy of normalised images with the block of each one's label in its corner."""
    out = images.copy()
    out[:, :3, :10, :] = -1.0
    for image, label in zip(out, labels):
        image[:3, label, :] = 1.0
    return out


def wrong_labels(labels, rng):
    """For each label one of the other nine."""
    return (labels + rng.integers(1, 10, len(labels))) % 10


def im2col(x, field):
    """The inputs of each position: (B, H, W, C) -> (positions, B, K)."""
    windows = sliding_window_view(x, (field, field), axis=(1, 2))
    windows = windows.transpose(1, 2, 0, 4, 5, 3)
    return np.ascontiguousarray(windows).reshape(len(windows) ** 2, len(x), -1)


def activation(u):
    return np.maximum(u, 0)


def goodness(h):
    """Of a layer with activity h, for each image: (B,)."""
    return (h**2).mean(axis=(0, 2))


class Layer:
    """relu(W x + b), with weights of its own at every position.

    weights: W (positions, K, channels) and b (positions, channels), from maps (side,
    side, ...) of them
    """

    def __init__(self, field, dtype, W, **others):
        self.field, self.side, self.weights = field, len(W), {}
        for name, w in {"W": W, **others}.items():
            self.weights[name] = w.reshape(self.side**2, *w.shape[2:]).astype(dtype)

    def columns(self, x):
        return im2col(x, self.field)

    def forward(self, columns, top=None):
        """Activities; top: what layers with further inputs read, see LabelLayer."""
        return activation(columns @ self.weights["W"] + self.weights["b"][:, None])

    def gradients(self, du, columns, top=None):
        """Of the weights by their names, from those by the pre-activation."""
        return {"W": columns.transpose(0, 2, 1) @ du, "b": du.sum(axis=1)}

    def maps(self, h):
        return h.reshape(self.side, self.side, h.shape[1], -1).transpose(2, 0, 1, 3)

    def normalised(self, h):
        """What the next layer reads: maps, divided by their root mean square."""
        rms = np.sqrt((h**2).mean(axis=(0, 2)))
        return self.maps(h) / rms[:, None, None, None]


def logistic_loss(g, theta=2.0, temperature=1.0):
    """Of a layer with goodness g (2, B) in the positive and the negative pass: the mean
    of -log p, with p = 1 / (1 + exp(-+(g - theta) / temperature)); its derivative."""
    positive, negative = (g[0] - theta) / temperature, (g[1] - theta) / temperature
    losses = np.log(1 + np.exp(-positive)), np.log(1 + np.exp(negative))
    slopes = -1 / (1 + np.exp(positive)), 1 / (1 + np.exp(-negative))
    return np.mean(losses), np.array(slopes) / (g.size * temperature)


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


def make_adams(weights, learning_rates, dtype):
    """One for each array, where weights are dicts, each with its rate, or one for all."""
    rates = np.broadcast_to(learning_rates, len(weights)).tolist()
    return [
        {name: Adam(w.shape, dtype, rate) for name, w in arrays.items()}
        for arrays, rate in zip(weights, rates, strict=True)
    ]


class ForwardForward:
    """Layers that learn one by one, with the label in the corner of the image.

    learning_rate: one, or that of each layer
    loss: logistic_loss() or another one of goodness (P, B), with the true label first
    """

    kernel = None  # see normalise()

    def __init__(self, layers, learning_rate, dtype, loss=logistic_loss):
        self.layers, self.dtype, self.loss = layers, dtype, loss
        self.adams = make_adams(self.weights(), learning_rate, dtype)

    def weights(self):
        return [layer.weights for layer in self.layers]

    def labelled(self, images, labels):
        """What layer 0 reads."""
        return with_labels(normalise(images, self.dtype, self.kernel), labels)

    def passed_up(self, layer, columns, h):
        """What the next layer reads where this one, of these columns, makes h."""
        return layer.normalised(h)

    def train_step(self, images, labels, negatives):
        """One step of every layer, uint8 images (B, 32, 32, 3) and their labels (B,).

        negatives: the wrong labels (B,) of each negative pass
        images: or those of each pass, (P, B, 32, 32, 3), the positive one first
        Returns each layer's loss and mean goodness, positive and negative: (L, 3).
        """
        passes = [labels, *negatives]
        images = [images] * len(passes) if images.ndim == 4 else images
        inputs = [self.labelled(*pair) for pair in zip(images, passes, strict=True)]
        statistics = []
        for layer, adams in zip(self.layers, self.adams, strict=True):
            columns = [layer.columns(x) for x in inputs]
            h = [layer.forward(*pair) for pair in zip(columns, passes)]
            g = np.array([goodness(one) for one in h])
            loss, slopes = self.loss(g)
            total = dict.fromkeys(adams, 0)
            for p, top in enumerate(passes):
                # By the chain rule, with mean(h^2) and relu, which has no slope at 0.
                # No gradient crosses to the layer below.
                du = slopes[p][:, None] * (2 * h[p] / h[p][:, 0].size)
                for name, gradient in layer.gradients(du, columns[p], top).items():
                    total[name] = total[name] + gradient
            inputs = [self.passed_up(layer, *pair) for pair in zip(columns, h)]
            for name, adam in adams.items():
                adam.step(layer.weights[name], total[name])
            statistics.append([loss, g[0].mean(), g[1:].mean()])
        return np.array(statistics)

    def goodness(self, images, labels):
        """Of each layer in one pass: (L, B)."""
        x, g = self.labelled(images, labels), []
        for layer in self.layers:
            columns = layer.columns(x)
            h = layer.forward(columns, labels)
            g.append(goodness(h))
            x = self.passed_up(layer, columns, h)
        return np.array(g)

    def label_goodness(self, images):
        """Of each layer with each of the ten labels: (L, 10, B)."""
        passes = [np.full(len(images), label) for label in range(10)]
        return np.stack([self.goodness(images, labels) for labels in passes], axis=1)

    def scores(self, images):
        """What decides between the labels: the first layer only where it is alone."""
        g = self.label_goodness(images)
        return g[0] if len(g) == 1 else g[1:].sum(axis=0)

    def predict(self, images):
        return self.scores(images).argmax(axis=0)


# -------------------------------------------- what the other recipes of FF add


def softmax_loss(g, temperature=1.0):
    """The mean over images of -log softmax(g / temperature) of the first of any number
    of passes, g (P, B), and its derivative."""
    p = np.exp((g - g.max(axis=0)) / temperature)
    p /= p.sum(axis=0)
    slopes = p.copy()
    slopes[0] -= 1
    return -np.log(p[0]).mean(), slopes / (temperature * p.shape[1])


class LabelLayer(Layer):
    """A layer whose units have a weight for each label too, V (10, positions, channels)."""

    def __init__(self, field, dtype, V, **others):
        super().__init__(field, dtype, **others)
        self.weights["V"] = V.reshape(10, self.side**2, -1).astype(dtype)

    def forward(self, columns, top=None):
        """top: labels (B,); or None, a neutral one: 0.1 of each."""
        V = self.weights["V"]
        v = V.mean(axis=0)[:, None] if top is None else V[top].transpose(1, 0, 2)
        u = columns @ self.weights["W"] + self.weights["b"][:, None]
        return activation(u + v)

    def gradients(self, du, columns, top=None):
        dV = np.zeros_like(self.weights["V"])
        for i, label in enumerate(top):
            dV[label] += du[:, i]
        return {**super().gradients(du, columns), "V": dV}


class LabelWeights(ForwardForward):
    """LabelLayers: with a neutral label they pass up, and the last alone predicts."""

    def labelled(self, images, labels):
        return normalise(images, self.dtype, self.kernel)

    def passed_up(self, layer, columns, h):
        return layer.normalised(layer.forward(columns))

    def scores(self, images):
        return self.label_goodness(images)[-1]


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


# ------------------------------------------------------------------- backprop


class Backprop:
    """Layers under a readout W (flat, 10), b (10,)."""

    kernel = None  # see normalise()

    def __init__(self, layers, W, b, learning_rate, dtype):
        self.layers, self.dtype = layers, dtype
        self.readout = {"W": W.astype(dtype), "b": b.astype(dtype)}
        self.adams = make_adams(self.weights(), learning_rate, dtype)

    def weights(self):
        return [*(layer.weights for layer in self.layers), self.readout]

    def forward(self, images):
        """Each layer's columns and activities; the features and logits of the readout."""
        x, made = normalise(images, self.dtype, self.kernel), []
        for layer in self.layers:
            columns = layer.columns(x)
            made.append((columns, layer.forward(columns)))
            x = layer.maps(made[-1][1])
        flat = np.ascontiguousarray(x).reshape(len(x), -1)
        return made, flat, flat @ self.readout["W"] + self.readout["b"]

    def gradients(self, images, labels):
        """The loss, and the gradients as weights() has the weights."""
        made, flat, logits = self.forward(images)
        loss, dlogits = cross_entropy(logits, labels)
        gradients = [{"W": flat.T @ dlogits, "b": dlogits.sum(axis=0)}]
        side = self.layers[-1].side
        dx = (dlogits @ self.readout["W"].T).reshape(len(images), side, side, -1)
        for layer, (columns, h) in zip(reversed(self.layers), reversed(made)):
            dh = dx.transpose(1, 2, 0, 3).reshape(h.shape)
            du = np.where(h > 0, dh, 0)
            gradients.insert(0, layer.gradients(du, columns))
            if layer is not self.layers[0]:
                dx = input_gradient(layer, du)
        return loss, gradients

    def train_step(self, images, labels):
        loss, gradients = self.gradients(images, labels)
        for adams, weights, found in zip(self.adams, self.weights(), gradients):
            for name, adam in adams.items():
                adam.step(weights[name], found[name])
        return loss

    def predict(self, images):
        return self.forward(images)[2].argmax(axis=1)


def cross_entropy(logits, labels):
    """Of softmax(logits (B, 10)), the mean over images, and its derivative."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(labels)), labels]).mean()
    return loss, (p - np.eye(10, dtype=p.dtype)[labels]) / len(labels)


def input_gradient(layer, du):
    """col2im of W du: (positions, B, channels) -> (B, H, W, C)."""
    patches = du @ layer.weights["W"].transpose(0, 2, 1)
    f, side, B = layer.field, layer.side, du.shape[1]
    patches = patches.reshape(len(du), B, f, f, -1)
    dx = np.zeros((B, side + f - 1, side + f - 1, patches.shape[4]), du.dtype)
    for p, patch in enumerate(patches):
        i, j = divmod(p, side)
        dx[:, i : i + f, j : j + f] += patch
    return dx


# ------------------------------------------------------- the recurrent network


class TopDownLayer(Layer):
    """A layer that also reads the map above it, by weights T (positions, K, channels)."""

    def forward(self, columns, top=None):
        """top: columns of the map above; None before there is one."""
        u = columns @ self.weights["W"] + self.weights["b"][:, None]
        return activation(u if top is None else u + top @ self.weights["T"])

    def gradients(self, du, columns, top=None):
        dT = top.transpose(0, 2, 1) @ du
        return {**super().gradients(du, columns), "T": dT}


class Recurrent:
    """Every pass, iteration and layer of the recurrent network by itself.

    layers: TopDownLayers and, at the top, a LabelLayer; where a field is cut by the edge,
        its inputs are zeros
    W, b: (flat, 10) and (10,), of the classifier of the bottom-up pass
    learning_rate: of the layers; sign: -1 where goodness is to be low
    loss: of sign * goodness
    """

    kernel = None  # see normalise()
    iterations = 5  # of a training step

    def __init__(self, layers, W, b, learning_rate, dtype, sign, loss):
        self.layers, self.dtype, self.sign, self.loss = layers, dtype, sign, loss
        self.readout = {"W": W.astype(dtype), "b": b.astype(dtype)}
        rates = [learning_rate] * len(layers) + [3e-4]
        self.adams = make_adams(self.weights(), rates, dtype)

    def weights(self):
        return [*(layer.weights for layer in self.layers), self.readout]

    def columns(self, maps):
        return im2col(np.pad(maps, ((0, 0), (5, 5), (5, 5), (0, 0))), 11)

    def begin(self, images):
        """Activities y and normalised maps n of the bottom-up pass; the image's columns."""
        x = normalise(images, self.dtype, self.kernel)
        x = x / np.sqrt((x**2).mean(axis=(1, 2, 3), keepdims=True))
        image, y, n = self.columns(x), [], []
        below = image
        for layer in self.layers:
            y.append(layer.forward(below))  # nothing above, or a neutral label
            n.append(layer.normalised(y[-1]))
            below = self.columns(n[-1])
        return y, n, image

    def iterate(self, images, labels, iterations):
        """For each iteration and layer: old y, relu, new y, columns below, and top."""
        y, n, image = self.begin(images)
        record = []
        for _ in range(iterations):
            seen, row = [image, *(self.columns(maps) for maps in n)], []
            tops = [*seen[2:], labels]
            for layer, old, below, top in zip(self.layers, y, seen, tops):
                h = layer.forward(below, top)
                row.append((old, h, 0.3 * old + 0.7 * h, below, top))
            y = [new for _, _, new, *_ in row]
            n = [layer.normalised(new) for layer, new in zip(self.layers, y)]
            record.append(row)
        return record

    def classify(self, images):
        """The features and logits (B, 10) of the bottom-up pass."""
        _, n, _ = self.begin(images)
        x = np.concatenate([maps.reshape(len(images), -1) for maps in n], axis=1)
        return x, x @ self.readout["W"] + self.readout["b"]

    def train_step(self, images, labels, negatives):
        """See ForwardForward.train_step()."""
        passes = [labels, *negatives]
        images = [images] * len(passes) if images.ndim == 4 else images
        x, logits = self.classify(images[0])
        _, dlogits = cross_entropy(logits, labels)
        runs = [self.iterate(*pair, self.iterations) for pair in zip(images, passes)]
        statistics = []
        for i, layer in enumerate(self.layers):
            total, told = dict.fromkeys(layer.weights, 0), []
            units = self.iterations * layer.weights["b"].size
            for t in range(self.iterations):
                g = np.array([goodness(record[t][i][2]) for record in runs])
                loss, slopes = self.loss(self.sign * g)
                told.append([loss, g[0].mean(), g[1:].mean()])
                for record, slope in zip(runs, slopes):
                    _, h, y, below, top = record[t][i]
                    du = self.sign * slope[:, None] * 2 * 0.7 * y * (h > 0) / units
                    for name, one in layer.gradients(du, below, top).items():
                        total[name] = total[name] + one
            for name, adam in self.adams[i].items():
                adam.step(layer.weights[name], total[name])
            statistics.append(np.mean(told, axis=0))
        self.adams[-1]["W"].step(self.readout["W"], x.T @ dlogits)
        self.adams[-1]["b"].step(self.readout["b"], dlogits.sum(axis=0))
        return np.array(statistics)

    def goodness_by_iteration(self, images, iterations):
        """With each of the ten labels: (iterations, L, 10, B)."""
        g = []
        for label in range(10):
            record = self.iterate(images, np.full(len(images), label), iterations)
            g.append([[goodness(y) for _, _, y, *_ in row] for row in record])
        return np.stack(g, axis=2)

    def scores(self, images):
        g = self.goodness_by_iteration(images, 6)[3:]
        return self.sign * g.mean(axis=0).sum(axis=0)

    def predict(self, images):
        return self.scores(images).argmax(axis=0)


# -------------------------------------------------- from the training module


def twin(learner, learning_rate, dtype=np.float64):
    """A plain learner with the weights and the settings of one of the module's."""
    recurrent, layers = "W_class" in learner.readout, []
    for layer in learner.layers:
        kind = LabelLayer if layer.V else TopDownLayer if recurrent else Layer
        layers.append(kind(layer.field, dtype, **layer.get_weights()))
    readout = [parameter.value for parameter in learner.readout.values()]
    if learner.name == "BP":
        result = Backprop(layers, *readout, learning_rate, dtype)
    else:
        T, sign = float(learner.temperature), learner.sign
        # For low goodness, -g is to be above -theta.
        loss = partial(logistic_loss, theta=sign * learner.threshold, temperature=T)
        if learner.softmax:
            loss = partial(softmax_loss, temperature=T)
        if recurrent:
            result = Recurrent(layers, *readout, learning_rate, dtype, sign, loss)
        else:
            kind = LabelWeights if learner.everywhere else ForwardForward
            result = kind(layers, learning_rate, dtype, loss)
    result.kernel = learner.whitening
    return result
