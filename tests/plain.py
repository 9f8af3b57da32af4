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


def im2col(x, field):
    """(B, H, W, C) -> (positions, B, field * field * C), K in order row, column, channel."""
    windows = sliding_window_view(x, (field, field), axis=(1, 2))
    windows = windows.transpose(1, 2, 0, 4, 5, 3)
    return np.ascontiguousarray(windows).reshape(
        windows.shape[0] * windows.shape[1], len(x), -1
    )


class Layer:
    """Weights W (positions, K, channels) and biases b (positions, channels)."""

    def __init__(self, W, b, field, dtype):
        self.side, self.field = len(W), field
        self.W = W.reshape(-1, *W.shape[2:]).astype(dtype)
        self.b = b.reshape(len(self.W), -1).astype(dtype)

    def forward(self, x):
        """Activities (positions, B, channels); keeps what the gradients need."""
        self.x, self.columns = x, im2col(x, self.field)
        return np.maximum(self.columns @ self.W + self.b[:, None], 0)

    def maps(self, h):
        return h.reshape(self.side, self.side, h.shape[1], -1).transpose(2, 0, 1, 3)

    def weight_gradient(self, du):
        return self.columns.transpose(0, 2, 1) @ du, du.sum(axis=1)

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


def ff_loss(g_positive, g_negative, threshold):
    """Mean over the 2B samples of log(1 + exp(-+(g - threshold)))."""
    losses = np.log(1 + np.exp(-(g_positive - threshold)))
    losses += np.log(1 + np.exp(g_negative - threshold))
    return losses.mean() / 2


class ForwardForward:
    """weights: a (W, b, field) for each layer, W (side, side, K, channels)."""

    def __init__(self, weights, threshold, learning_rate, dtype):
        self.layers = [Layer(*layer, dtype) for layer in weights]
        self.threshold, self.dtype = threshold, dtype
        self.adams = [
            [Adam(p.shape, dtype, learning_rate) for p in (layer.W, layer.b)]
            for layer in self.layers
        ]

    def gradient(self, layer, x, sign):
        """Gradient of W and b for the loss of one pass, and the pass's goodness."""
        h = layer.forward(x)
        g = goodness(h)
        dloss_dg = -sign / (1 + np.exp(sign * (g - self.threshold))) / (2 * len(x))
        du = dloss_dg[None, :, None] * 2 * h / (h.shape[0] * h.shape[2])
        return layer.weight_gradient(du), g

    def train_step(self, images, labels, negatives, refresh=True):
        """refresh: the next layer's input comes from a forward after the update."""
        images = normalise(images, self.dtype)
        positive, negative = with_labels(images, labels), with_labels(images, negatives)
        statistics = []
        for layer, adams in zip(self.layers, self.adams):
            (dW, db), g_positive = self.gradient(layer, positive, 1)
            before = (
                [(layer.forward(x)) for x in (positive, negative)]
                if not refresh
                else None
            )
            (dW2, db2), g_negative = self.gradient(layer, negative, -1)
            adams[0].step(layer.W, dW + dW2)
            adams[1].step(layer.b, db + db2)
            loss = ff_loss(g_positive, g_negative, self.threshold)
            statistics += [loss, g_positive.mean(), g_negative.mean()]
            after = (
                [layer.forward(x) for x in (positive, negative)] if refresh else before
            )
            positive, negative = (
                layer.maps(h) / np.sqrt(goodness(h))[:, None, None, None] for h in after
            )
        return np.array(statistics)

    def label_goodness(self, images):
        images = normalise(images, self.dtype)
        scores = np.empty((len(self.layers), 10, len(images)), self.dtype)
        for label in range(10):
            x = with_labels(images, [label] * len(images))
            for i, layer in enumerate(self.layers):
                h = layer.forward(x)
                scores[i, label] = g = goodness(h)
                x = layer.maps(h) / np.sqrt(g)[:, None, None, None]
        return scores

    def predict(self, images):
        scores = self.label_goodness(images)
        return (scores[1:] if len(scores) > 1 else scores).sum(axis=0).argmax(axis=0)


class Backprop:
    """The stack of `weights` under a readout W_out (flat, 10), b_out (10,)."""

    def __init__(self, weights, W_out, b_out, learning_rate, dtype):
        self.layers = [Layer(*layer, dtype) for layer in weights]
        self.W_out, self.b_out, self.dtype = (
            W_out.astype(dtype),
            b_out.astype(dtype),
            dtype,
        )
        self.adams = [Adam(p.shape, dtype, learning_rate) for p in self.parameters()]

    def parameters(self):
        stack = [p for layer in self.layers for p in (layer.W, layer.b)]
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
            gradients[:0] = layer.weight_gradient(du)
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
