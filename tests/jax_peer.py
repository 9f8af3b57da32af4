"""The learners in jitted JAX: a column of tests/benchmark.py, where JAX is installed.

As JAX's users write them: jax.grad of a batch's loss and Adam on whole arrays, in one
jitted step that takes over the buffers of its state; all passes are one batch. Maps
are (H, W, C, B): on a CPU, XLA gathers and multiplies faster with the images last.
"""

import os
from functools import partial

import ff_cifar_locally_connected as ff

os.environ["PJRT_NPROC"] = str(ff.THREADS)  # XLA's threads, read when it starts

import jax
import jax.numpy as jnp
from jax import lax

jax.config.update("jax_platforms", "cpu")


def layer(W, b, x):
    """The pre-activations (side, side, N, B) of maps x, with W (side, side, K, N).

    One row of positions after the other, and again for the gradient, so that patches
    stay in the cache: several times as fast as all at once, or JAX's local convolution.
    """
    side = len(W)
    fields = jnp.arange(side)[:, None] + jnp.arange(len(x) - side + 1)

    @jax.checkpoint
    def row_of_products(row):
        rows, W = row  # the rows of x that these positions see, and W (side, K, N)
        patches = x[rows[:, None], fields[:, None]]  # (side, field, field, C, B)
        return jnp.einsum("jkb,jkn->jnb", patches.reshape(*W.shape[:2], -1), W)

    return lax.map(row_of_products, (fields, W)) + b[..., None]


class Learner:
    """Adam on the gradient of loss(weights, images, labels).

    weights: a list of arrays for each layer, and for the readout
    images: uint8 (B, H, W, 3); labels (2, B): the true ones, and wrong ones for FF
    scores(weights, images): goodness or logits (10, B)
    """

    def __init__(self, weights, learning_rate, loss, scores):
        zeros = [jax.tree.map(jnp.zeros_like, weights) for _ in "mv"]
        self.state = jax.tree.map(jnp.array, weights), *zeros, jnp.float32(0)
        self.jitted_scores = jax.jit(scores)

        @partial(jax.jit, donate_argnums=0)
        def step(state, images, labels):
            weights, m, v, t = state
            value, gradients = jax.value_and_grad(loss)(weights, images, labels)
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, v, gradients)
            a, b = learning_rate / (1 - 0.9 ** (t + 1)), 1 - 0.999 ** (t + 1)
            weights = jax.tree.map(
                lambda w, m, v: w - a * m / (jnp.sqrt(v / b) + 1e-8), weights, m, v
            )
            return (weights, m, v, t + 1), value

        self.step = step

    def train_step(self, images, labels):
        self.state, loss = jax.block_until_ready(self.step(self.state, images, labels))
        return loss

    def scores(self, images):
        return jax.block_until_ready(self.jitted_scores(self.state[0], images))


def normalised_maps(images):
    return jnp.moveaxis(images / jnp.float32(255) - ff.CIFAR_MEAN, 0, -1)


def goodness(h):
    return (h**2).mean(axis=(0, 1, 2))


def block_goodness(weights, images, labels):
    """Of each layer in each pass, with the label in the image's corner: (L, P, B)."""
    x, g = jnp.tile(normalised_maps(images), len(labels)), []
    block = 2 * jax.nn.one_hot(labels.ravel(), ff.N_CLASSES, axis=0) - 1
    x = x.at[: ff.LABEL_ROWS, : ff.LABEL_LEN].set(block[:, None])
    for W, b in weights:
        h = jax.nn.relu(layer(W, b, x))
        g.append(goodness(h))
        x = lax.stop_gradient(h / jnp.sqrt(g[-1]))
    return jnp.stack(g).reshape(-1, *labels.shape)


def block_scores(weights, images):
    labels = jnp.repeat(ff.ALL_LABELS, len(images), axis=1)
    return block_goodness(weights, images, labels)[1:].sum(axis=0)


def block_loss(threshold, weights, images, labels):
    """The sum of the layers' losses: each has a gradient in its own layer only."""
    above = block_goodness(weights, images, labels) - threshold
    return jax.nn.softplus(above * jnp.array([[-1], [1]])).mean(axis=(1, 2)).sum()


def label_scores(weights, images):
    """The goodness of one layer with label weights."""
    ((W, b, V),) = weights
    u = layer(W, b, normalised_maps(images))  # the same for all labels
    return jnp.stack([goodness(jax.nn.relu(u + v[..., None])) for v in V])


def bp_scores(weights, images):
    """The logits of the stack under a linear readout."""
    *layers, (W_out, b_out) = weights
    x = normalised_maps(images)
    for W, b in layers:
        x = jax.nn.relu(layer(W, b, x))
    return W_out.T @ x.reshape(-1, len(images)) + b_out[:, None]


def cross_entropy(scores, temperature, weights, images, labels):
    log_p = jax.nn.log_softmax(scores(weights, images) / temperature, axis=0)
    return -log_p[labels[0], jnp.arange(len(images))].mean()


def make_learners(learners, args):
    """The same as ff.make_learners(args) has made, from their weights: FF and BP."""
    stack, bp_stack = (
        [[v.reshape(s) for v, s in layer.views().values()] for layer in learner.layers]
        for learner in learners
    )
    bp_stack.append([one.value for one in learners[1].readout.values()])
    loss, scores = partial(block_loss, args.threshold), block_scores
    if args.negatives == "all":
        scores = label_scores
        loss = partial(cross_entropy, scores, args.temperature)
    bp_loss = partial(cross_entropy, bp_scores, 1)
    forward = Learner(stack, args.lr, loss, scores)
    return forward, Learner(bp_stack, args.bp_lr or args.lr, bp_loss, bp_scores)
