"""Forward-Forward in the plainest numpy: truth of the tests, rival in the benchmark.

First the headline's Forward-Forward, whole; then backprop, what the other recipes add,
and the recurrent network. Nothing is shared, skipped, reused or fused. With float64 the
tests hold the fast version against it, with float32 tests/benchmark.py times it. It
imports nothing from the project.

Axes: B images, positions of a map row by row, K inputs of a receptive field in the order
row, column, channel. Images are (B, 32, 32, 3), activities (positions, B, channels).
"""

from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

MEAN = [0.4914, 0.4822, 0.4465]  # of the training set, per channel


def normalise(images, dtype):
    """uint8 images as a network sees them."""
    return images.astype(dtype) / 255 - np.array(MEAN, np.float32).astype(dtype)


def with_labels(images, labels):
    """A copy of normalised images with the block of each one's label in its corner."""
    out = images.copy()
    out[:, :3, :10, :] = -1.0
    for image, label in zip(out, labels):
        image[:3, label, :] = 1.0
    return out


def im2col(x, field):
    """The inputs of each position: maps (B, H, W, C) -> (positions, B, K)."""
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

    def __init__(self, field, dtype, **maps):
        self.field, self.side, self.weights = field, len(maps["W"]), {}
        for name, w in maps.items():
            self.weights[name] = w.reshape(-1, *w.shape[2:]).astype(dtype)

    def inputs(self, x, labels):
        """What it reads of maps x, here whatever the labels: [(positions, B, K)]."""
        return [im2col(x, self.field)]

    def forward(self, columns):
        """The activity (positions, B, channels)."""
        return activation(columns @ self.weights["W"] + self.weights["b"][:, None])

    def gradients(self, du, columns):
        """Of the weights by their names; du: that of the pre-activation."""
        return {"W": columns.transpose(0, 2, 1) @ du, "b": du.sum(axis=1)}

    def maps(self, h):
        """(positions, B, channels) -> (B, side, side, channels)."""
        return h.reshape(self.side, self.side, h.shape[1], -1).transpose(2, 0, 1, 3)

    def passed_up(self, h, *inputs):
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
    """Kingma & Ba, algorithm 1, as it is printed there, for weights by their names."""

    def __init__(self, weights, learning_rate):
        self.weights, self.learning_rate, self.t = weights, learning_rate, 0
        self.m = {name: np.zeros_like(w) for name, w in weights.items()}
        self.v = {name: np.zeros_like(w) for name, w in weights.items()}

    def step(self, gradients):
        self.t += 1
        for name, gradient in gradients.items():
            self.m[name] = 0.9 * self.m[name] + (1 - 0.9) * gradient
            self.v[name] = 0.999 * self.v[name] + (1 - 0.999) * gradient**2
            m_hat = self.m[name] / (1 - 0.9**self.t)
            v_hat = self.v[name] / (1 - 0.999**self.t)
            self.weights[name] -= self.learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)


class ForwardForward:
    """Layers that learn one by one, with the label in the corner of the image.

    loss: of goodness (P, B) in P passes, the first with the true label: logistic_loss
    """

    def __init__(self, layers, learning_rate, dtype, loss=logistic_loss):
        self.layers, self.loss = layers, loss
        self.normalise = partial(normalise, dtype=dtype)
        self.adams = [Adam(layer.weights, learning_rate) for layer in layers]

    def labelled(self, images, labels):
        """What the first layer reads of uint8 images: (B, 32, 32, 3)."""
        return with_labels(self.normalise(images), labels)

    def train_step(self, images, labels, negatives):
        """One step of every layer, uint8 images (B, 32, 32, 3) and their labels (B,).

        negatives: the wrong labels of each negative pass: here of one, for each image
            one of the other nine at random, [(labels + rng.integers(1, 10, B)) % 10]
        images: or those of each pass, (P, B, 32, 32, 3)
        Returns each layer's loss and mean goodness, positive and negative: (L, 3).
        """
        passes = [labels, *negatives]
        images = [images] * len(passes) if images.ndim == 4 else images
        x = [self.labelled(*pair) for pair in zip(images, passes, strict=True)]
        statistics = []
        for layer, adam in zip(self.layers, self.adams):
            inputs = [layer.inputs(*pair) for pair in zip(x, passes)]
            h = [layer.forward(*one) for one in inputs]
            g = np.array([goodness(one) for one in h])
            loss, slopes = self.loss(g)
            total = dict.fromkeys(layer.weights, 0)
            for p in range(len(passes)):
                # By the chain rule, with mean(h^2) and relu, which has no slope at 0.
                # No gradient crosses to the layer below.
                du = slopes[p][:, None] * (2 * h[p] / h[p][:, 0].size)
                for name, gradient in layer.gradients(du, *inputs[p]).items():
                    total[name] = total[name] + gradient
            x = [layer.passed_up(one, *its) for one, its in zip(h, inputs)]
            adam.step(total)
            statistics.append([loss, g[0].mean(), g[1:].mean()])
        return np.array(statistics)

    def goodness(self, images, labels):
        """Of each layer in one pass: (L, B)."""
        x, g = self.labelled(images, labels), []
        for layer in self.layers:
            inputs = layer.inputs(x, labels)
            h = layer.forward(*inputs)
            g.append(goodness(h))
            x = layer.passed_up(h, *inputs)
        return np.array(g)

    def label_goodness(self, images):
        """Of each layer with each of the ten labels: (L, 10, B)."""
        passes = [np.full(len(images), label) for label in range(10)]
        return np.stack([self.goodness(images, labels) for labels in passes], axis=1)

    def scores(self, images):
        """What decides between the labels, (10, B): the first layer only if alone."""
        g = self.label_goodness(images)
        return g[0] if len(g) == 1 else g[1:].sum(axis=0)

    def predict(self, images):
        """The label (B,) of the highest score."""
        return self.scores(images).argmax(axis=0)


# ------------------------------------------------------------------- backprop


def cross_entropy(logits, labels):
    """Of softmax(logits (B, N)), the mean over images, and its derivative."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(labels)), labels]).mean()
    return loss, (p - np.eye(logits.shape[1], dtype=p.dtype)[labels]) / len(labels)


def input_gradient(layer, du, side):
    """Of maps (B, side, side, C): W du, where each position has read (col2im)."""
    patches = du @ layer.weights["W"].transpose(0, 2, 1)
    f, B, whole = layer.field, du.shape[1], layer.side + layer.field - 1
    patches = patches.reshape(len(du), B, f, f, -1)
    dx = np.zeros((B, whole, whole, patches.shape[4]), du.dtype)
    for p, patch in enumerate(patches):
        i, j = divmod(p, layer.side)
        dx[:, i : i + f, j : j + f] += patch
    inside = slice((whole - side) // 2, (whole + side) // 2)  # without padding
    return dx[:, inside, inside]


class Backprop:
    """Layers under a readout W (flat, 10), b (10,)."""

    def __init__(self, layers, W, b, learning_rate, dtype):
        self.layers, self.normalise = layers, partial(normalise, dtype=dtype)
        self.readout = {"W": W.astype(dtype), "b": b.astype(dtype)}
        weights = [*(layer.weights for layer in layers), self.readout]
        self.adams = [Adam(one, learning_rate) for one in weights]

    def forward(self, images):
        """Each layer's inputs and activity, and the readout's: features and logits."""
        x, made = self.normalise(images), []
        for layer in self.layers:
            (columns,) = layer.inputs(x, None)
            made.append((columns, layer.forward(columns)))
            x = layer.maps(made[-1][1])
        flat = np.ascontiguousarray(x).reshape(len(x), -1)
        return made, flat, flat @ self.readout["W"] + self.readout["b"]

    def gradients(self, images, labels):
        """The loss, and those of each layer and of the readout."""
        made, flat, logits = self.forward(images)
        loss, dlogits = cross_entropy(logits, labels)
        gradients = [{"W": flat.T @ dlogits, "b": dlogits.sum(axis=0)}]
        side = self.layers[-1].side
        dx = (dlogits @ self.readout["W"].T).reshape(len(images), side, side, -1)
        for i in reversed(range(len(made))):
            layer, (columns, h) = self.layers[i], made[i]
            dh = dx.transpose(1, 2, 0, 3).reshape(h.shape)
            du = np.where(h > 0, dh, 0)
            gradients.insert(0, layer.gradients(du, columns))
            if i > 0:
                dx = input_gradient(layer, du, self.layers[i - 1].side)
        return loss, gradients

    def train_step(self, images, labels):
        loss, gradients = self.gradients(images, labels)
        for adam, found in zip(self.adams, gradients):
            adam.step(found)
        return loss

    def predict(self, images):
        return self.forward(images)[2].argmax(axis=1)


# -------------------------------------------- what the other recipes of FF add


def softmax_loss(g, temperature=1.0):
    """The mean over images of -log softmax(g / temperature) of the first of any number
    of passes, g (P, B), and its derivative."""
    first = np.zeros(g.shape[1], int)
    loss, slopes = cross_entropy(g.T / temperature, first)
    return loss, slopes.T / temperature


class WiderLayer(Layer):
    """A layer with zeros around the maps that it reads, or with more to read: the label,
    by V (positions, 10, channels), or the map above, by T (positions, K, channels)."""

    padding = 0

    def columns(self, x):
        around = self.padding, self.padding
        return im2col(np.pad(x, ((0, 0), around, around, (0, 0))), self.field)

    def inputs(self, x, labels):
        more = [one_hot(labels, x.dtype)] if "V" in self.weights else []
        return [self.columns(x), *more]

    def names(self):
        """Of what weighs the inputs, in their order."""
        return [name for name in self.weights if name != "b"]

    def forward(self, *inputs):
        """Of all inputs, or of the first ones."""
        products = (x @ self.weights[n] for n, x in zip(self.names(), inputs))
        return activation(sum(products) + self.weights["b"][:, None])

    def gradients(self, du, *inputs):
        pairs = zip(self.names(), inputs, strict=True)
        gradients = {name: x.transpose(0, 2, 1) @ du for name, x in pairs}
        return gradients | {"b": du.sum(axis=1)}


def one_hot(labels, dtype):
    """The same at all positions: (1, B, 10)."""
    return np.eye(10, dtype=dtype)[labels][None]


class LabelLayer(WiderLayer):
    """It passes up what it makes of a neutral label, 0.1 of each."""

    def passed_up(self, h, columns, label):
        return super().passed_up(self.forward(columns, np.full_like(label, 0.1)))


class LabelWeights(ForwardForward):
    """LabelLayers, of which the last alone predicts."""

    def labelled(self, images, labels):
        return self.normalise(images)

    def scores(self, images):
        return self.label_goodness(images)[-1]


def whitening_filter(images):
    """(5, 5, 3, 3): the middle pixel of ZCA whitened 5 x 5 patches of the first 2,000
    images, from the singular values of all patches that do not overlap."""
    x = normalise(images[:2000], np.float64)
    places = [(i, j) for i in range(0, 26, 5) for j in range(0, 26, 5)]
    patches = np.concatenate([x[:, i : i + 5, j : j + 5] for i, j in places])
    patches = patches.reshape(-1, 75)
    _, sizes, directions = np.linalg.svd(patches, full_matrices=False)
    scales = 1 / np.sqrt(sizes**2 / len(patches) + 0.01)
    kernel = (directions.T * scales @ directions)[:, 36:39]
    kernel *= np.sqrt((patches**2).mean() / ((patches @ kernel) ** 2).mean())
    return kernel.reshape(5, 5, 3, 3)


def whitened(images, kernel, dtype):
    """normalise(images) under such a filter, edge pixels repeated around."""
    x = np.pad(normalise(images, dtype), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    places = np.ndindex(5, 5)
    return sum(x[:, i : i + 32, j : j + 32] @ kernel[i, j] for i, j in places)


# ------------------------------------------------------- the recurrent network


class Recurrent(ForwardForward):
    """Every pass, iteration and layer of the recurrent network by itself.

    layers: padded WiderLayers with T and, at the top, one with V
    W, b: (flat, 10) and (10,), of the classifier of the bottom-up pass
    sign: -1 where goodness is to be low; loss: of sign * goodness
    """

    iterations = 5  # of a training step

    def __init__(self, layers, W, b, learning_rate, dtype, sign, loss):
        super().__init__(layers, learning_rate, dtype, loss)
        self.sign, self.readout = sign, {"W": W.astype(dtype), "b": b.astype(dtype)}
        self.adams.append(Adam(self.readout, 3e-4))

    def begin(self, images):
        """The image's columns, and the activity of each layer in a bottom-up pass."""
        x = self.normalise(images)
        x = x / np.sqrt((x**2).mean(axis=(1, 2, 3), keepdims=True))
        below = image = self.layers[0].columns(x)
        y, neutral = [], np.full((1, 1, 10), 0.1, x.dtype)
        for layer in self.layers:  # there is nothing above them yet
            y.append(layer.forward(below, *[neutral] * ("V" in layer.weights)))
            below = layer.columns(layer.passed_up(y[-1]))
        return image, y

    def iterate(self, images, labels, n):
        """Of each of n iterations, for each layer: old activity, relu, new activity, and
        inputs."""
        image, y = self.begin(images)
        record = []
        for _ in range(n):
            maps = [layer.passed_up(one) for layer, one in zip(self.layers, y)]
            seen = [image, *map(self.layers[0].columns, maps)]
            above = [*seen[2:], one_hot(labels, image.dtype)]
            row = []
            for layer, old, *inputs in zip(self.layers, y, seen, above):
                h = layer.forward(*inputs)
                row.append((old, h, 0.3 * old + 0.7 * h, inputs))
            y = [new for _, _, new, _ in row]
            record.append(row)
        return record

    def classify(self, images):
        """The features and logits (B, 10) of the bottom-up pass."""
        pairs = zip(self.layers, self.begin(images)[1])
        maps = [layer.passed_up(y).reshape(len(images), -1) for layer, y in pairs]
        x = np.concatenate(maps, axis=1)
        return x, x @ self.readout["W"] + self.readout["b"]

    def train_step(self, images, labels, negatives):
        """As that of ForwardForward, with means over the iterations."""
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
                g = np.array([goodness(run[t][i][2]) for run in runs])
                loss, slopes = self.loss(self.sign * g)
                told.append([loss, g[0].mean(), g[1:].mean()])
                for run, slope in zip(runs, slopes):
                    _, h, y, inputs = run[t][i]
                    du = self.sign * slope[:, None] * 2 * 0.7 * y * (h > 0) / units
                    for name, gradient in layer.gradients(du, *inputs).items():
                        total[name] = total[name] + gradient
            self.adams[i].step(total)
            statistics.append(np.mean(told, axis=0))
        self.adams[-1].step({"W": x.T @ dlogits, "b": dlogits.sum(axis=0)})
        return np.array(statistics)

    def goodness_by_iteration(self, images, labels, n):
        """With these labels: (n, L, B)."""
        record = self.iterate(images, labels, n)
        return np.array([[goodness(y) for _, _, y, _ in row] for row in record])

    def goodness(self, images, labels):
        """The mean of iterations 4 to 6, of each layer: (L, B)."""
        return self.goodness_by_iteration(images, labels, 6)[3:].mean(axis=0)

    def scores(self, images):
        return self.sign * self.label_goodness(images).sum(axis=0)


# -------------------------------------------------- from the training module


def weight_maps(layer):
    """The weights of one of the module's layers, by name: maps (side, side, ...)."""
    maps = {n: v.copy().reshape(shape) for n, (v, shape) in layer.views().items()}
    if layer.V:
        maps["V"] = np.moveaxis(maps["V"], 0, 2)
    return maps


def twin(learner, learning_rate, dtype=np.float64):
    """A plain learner with the weights and the settings of one of the module's."""
    layers = []
    for layer in learner.layers:
        padding = layer.connections[0].padding
        kind = WiderLayer if padding else LabelLayer if layer.V else Layer
        layers.append(kind(layer.field, dtype, **weight_maps(layer)))
        layers[-1].padding = padding
    readout = [parameter.value for parameter in learner.readout.values()]
    if learner.name == "BP":
        result = Backprop(layers, *readout, learning_rate, dtype)
    else:
        sign = learner.sign  # for low goodness, -g is to be above -theta
        logistic = partial(logistic_loss, theta=sign * learner.threshold)
        loss = softmax_loss if learner.softmax else logistic
        loss = partial(loss, temperature=float(learner.temperature))
        if readout:
            result = Recurrent(layers, *readout, learning_rate, dtype, sign, loss)
        else:
            kind = LabelWeights if learner.everywhere else ForwardForward
            result = kind(layers, learning_rate, dtype, loss)
    if learner.whitening is not None:
        result.normalise = partial(whitened, kernel=learner.whitening, dtype=dtype)
    return result
