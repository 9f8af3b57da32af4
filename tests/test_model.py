"""The fast model against the plain one in float64, and against central differences."""

import numpy as np
import plain
import pytest

import ff_cifar_locally_connected as ff

# (in_side, in_depth, field, channels): headline layers, odd maps, even fields, others.
SHAPES = [
    (32, 3, 11, 8),
    (22, 8, 5, 8),
    (14, 3, 4, 8),
    (13, 2, 4, 3),
    (9, 5, 9, 4),
    (12, 1, 1, 5),
]


class Keep:
    """Stands where Adam does and keeps the gradients instead of using them."""

    def __init__(self):
        self.gradients = {}

    def begin_step(self):
        pass

    def update(self, parameter, gradient, part=...):
        whole = self.gradients.setdefault(id(parameter), np.zeros_like(parameter.value))
        whole[part] = gradient

    def of(self, layer):
        """The layer's gradients, position by position, as get_weights() has weights."""
        W, b = layer.W.value.copy(), layer.b.value.copy()
        for parameter in (layer.W, layer.b):
            parameter.value[...] = self.gradients[id(parameter)]
        gradients = layer.get_weights()
        layer.W.value[...], layer.b.value[...] = W, b
        return gradients


def make_layer(shape, seed=0, **flags):
    rng = np.random.default_rng(seed)
    layer = ff.LocallyConnected(rng, *shape, **flags)
    layer.b.value[...] = 0.1 * rng.standard_normal(layer.b.value.shape)
    return layer, rng


def as_positions(h, layer):
    """Tiles (T, T, P, B, N) -> (positions, P, B, channels), as the plain model has."""
    maps = layer.maps("test", h)
    return maps.transpose(2, 3, 0, 1, 4).reshape(-1, *maps.shape[:2], layer.channels)


def as_tiles(positions, layer):
    """The inverse of as_positions."""
    P, B = positions.shape[1:3]
    shape = layer.side, layer.side, P, B, layer.channels
    maps = positions.reshape(shape).transpose(2, 3, 0, 1, 4)
    return np.ascontiguousarray(
        layer.tiled(maps).reshape(layer.tiles, layer.tiles, P, B, -1)
    ).astype(np.float32)


def loops_forward(x, W, b, field):
    """relu(W x + b), one number at a time."""
    side = len(W)
    h = np.zeros((len(x), side, side, b.shape[2]))
    for n, i, j, c in np.ndindex(*h.shape):
        total = b[i, j, c]
        patch = x[n, i : i + field, j : j + field]
        for k, value in enumerate(patch.ravel()):
            total += value * W[i, j, k, c]
        h[n, i, j, c] = max(total, 0)
    return h


def random_images(rng, B):
    return rng.integers(0, 256, (B, 32, 32, 3), dtype=np.uint8)


def plain_layers(learner):
    return [(*layer.get_weights(), layer.field) for layer in learner.layers]


def make_ff(n_layers=2, seed=0, lr=0.01, theta=2.0):
    rng = np.random.default_rng(seed)
    return ff.ForwardForward(n_layers, lr, theta, rng, np.random.default_rng(seed + 1))


# ------------------------------------------------------------------ the layer


def test_plain_layer_agrees_with_loops_over_single_numbers():
    layer, rng = make_layer((7, 2, 3, 2))
    x = rng.standard_normal((2, 7, 7, 2))
    W, b = layer.get_weights()
    oracle = plain.Layer(W, b, 3, np.float64)
    h = oracle.maps(oracle.forward(x))
    np.testing.assert_allclose(h, loops_forward(x, W, b, 3), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("B", [1, 5])
def test_layer_forward_and_all_gradients_agree_with_float64(shape, B):
    layer, rng = make_layer(shape)
    oracle = plain.Layer(*layer.get_weights(), layer.field, np.float64)
    x = rng.standard_normal((B, shape[0], shape[0], shape[1]), np.float32)
    h = as_positions(layer.forward(x), layer)[:, 0]
    expected = oracle.forward(x.astype(np.float64))
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-5)

    du = rng.standard_normal(expected.shape)
    keep = Keep()
    dx = layer.backward(as_tiles(du[:, None], layer), keep, input_gradient=True)
    for found, wanted in zip(keep.of(layer), oracle.weight_gradient(du), strict=True):
        found = found.reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    wanted = oracle.input_gradient(du)
    np.testing.assert_allclose(dx, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("differs", [(3, 10), (1, 2), (99, 99)])
@pytest.mark.parametrize("P", [2, 4])
def test_passes_that_differ_in_a_corner_agree_with_separate_passes(shape, differs, P):
    side, depth = shape[:2]
    layer, rng = make_layer(shape, differs=differs)
    oracle = plain.Layer(*layer.get_weights(), layer.field, np.float64)
    B = 3
    x = np.empty((P, B, side, side, depth), np.float32)
    x[:] = rng.standard_normal(x.shape[1:])
    corner = x[:, :, : differs[0], : differs[1]]
    corner[:] = rng.standard_normal(corner.shape)
    scale = rng.uniform(0.5, 2, (P, B)).astype(np.float32)
    others = x[1:, :, : layer.sees[0], : layer.sees[1]]
    h = as_positions(layer.forward(x[0], others, scale), layer)

    factor = rng.standard_normal((P, B)).astype(np.float32)
    du = rng.standard_normal(h.shape)
    keep = Keep()
    layer.backward(as_tiles(du, layer), keep, factor)
    dW, db = 0, 0
    for p in range(P):
        expected = oracle.forward(x[p].astype(float) * scale[p][:, None, None, None])
        np.testing.assert_allclose(h[:, p], expected, rtol=1e-5, atol=1e-5)
        d = oracle.weight_gradient(du[:, p] * factor[p][None, :, None])
        dW, db = dW + d[0], db + d[1]
    found = keep.of(layer)
    np.testing.assert_allclose(found[0].reshape(dW.shape), dW, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1].reshape(db.shape), db, rtol=1e-4, atol=1e-4)


def test_weights_survive_the_way_into_tiles_and_back():
    for shape in SHAPES:
        layer, rng = make_layer(shape)
        W, b = layer.get_weights()
        W, b = rng.standard_normal(W.shape), rng.standard_normal(b.shape)
        layer.set_weights(W, b)
        for found, wanted in zip(layer.get_weights(), (W, b), strict=True):
            np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_weights_outside_the_fields_stay_zero_through_training():
    learner = make_ff()
    rng = np.random.default_rng(3)
    outside = [np.isinf(layer.W.v) for layer in learner.layers]
    shares = [o.mean() for o in outside]
    np.testing.assert_allclose(shares, [1 - 121 / 144, 1 - 25 / 36])
    for _ in range(3):
        learner.train_step(random_images(rng, 16), rng.integers(0, 10, 16))
    for layer, o in zip(learner.layers, outside, strict=True):
        assert not layer.W.value[o].any()
        assert layer.W.value[~o].all()


def test_he_normal_weights_zero_biases_and_parameter_counts():
    learner = make_ff(n_layers=3)
    assert [layer.n_parameters() for layer in learner.layers] == [
        1_409_408,
        520_992,
        14 * 14 * 8 * (5 * 5 * 8 + 1),
    ]
    sides = [(layer.side, layer.channels) for layer in learner.layers]
    assert sides == [(22, 8), (18, 8), (14, 8)]
    for layer in learner.layers:
        W, b = layer.get_weights()
        assert W.size + b.size == layer.n_parameters()
        np.testing.assert_allclose(W.std(), np.sqrt(2 / W.shape[2]), rtol=0.01)
        assert abs(W.mean()) < 5e-4
        assert not b.any()


# --------------------------------------------------------------------- labels


def test_label_block_is_three_rows_of_minus_one_with_the_labels_column_at_one():
    rng = np.random.default_rng(0)
    images, labels = random_images(rng, 10), np.arange(10)
    pixels = ff.normalise(images)
    plain_pixels = plain.normalise(images, np.float64)
    np.testing.assert_allclose(pixels, plain_pixels, atol=1e-6)
    coded = ff.encode_labels(pixels.copy(), labels)
    np.testing.assert_allclose(
        coded, plain.with_labels(plain_pixels, labels), atol=1e-6
    )
    for label in labels:
        block = coded[label, :3, :10]
        assert (block[:, label] == 1).all()
        assert (np.delete(block, label, axis=1) == -1).all()
        np.testing.assert_array_equal(coded[label, 3:], pixels[label, 3:])
        np.testing.assert_array_equal(coded[label, :, 10:], pixels[label, :, 10:])


class Recorded(ff.ForwardForward):
    """Forward-Forward that keeps the labels of its passes instead of computing."""

    def forward(self, images, labels):
        self.passes = labels.copy()
        return []


def test_negative_labels_are_never_true_and_uniform_over_the_other_nine():
    rng = np.random.default_rng(0)
    learner = Recorded(1, 0.01, 2.0, rng, np.random.default_rng(1))
    counts = np.zeros((10, 10))
    for _ in range(200):
        labels = rng.integers(0, 10, 1000).astype(np.uint8)
        learner.train_step(np.empty((1000, 0)), labels)
        positive, negative = learner.passes
        np.testing.assert_array_equal(positive, labels)
        np.add.at(counts, (labels, negative), 1)
    assert not counts.diagonal().any()
    others = counts[~np.eye(10, dtype=bool)]
    expected = counts.sum() / 90
    # Chi-squared with 80 degrees of freedom: above 150 with probability 4e-6.
    assert ((others - expected) ** 2 / expected).sum() < 150


# ------------------------------------------------------------------------- FF


def negatives_of(learner, labels):
    """The wrong labels that the next train_step will draw."""
    rng = np.random.default_rng()
    rng.bit_generator.state = learner.negatives_rng.bit_generator.state
    return (labels + rng.integers(1, 10, len(labels), np.uint8)) % 10


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("B", [1, 7])
def test_ff_steps_and_predictions_agree_with_the_plain_model(n_layers, B):
    learner = make_ff(n_layers, lr=1e-3)
    oracle = plain.ForwardForward(plain_layers(learner), 2.0, 1e-3, np.float64)
    rng = np.random.default_rng(5)
    for _ in range(3):
        images = random_images(rng, B)
        labels = rng.integers(0, 10, B).astype(np.uint8)
        negatives = negatives_of(learner, labels)
        found = learner.train_step(images, labels)
        wanted = oracle.train_step(images, labels, negatives, refresh=False)
        np.testing.assert_allclose(found, wanted, rtol=2e-4)
        for layer, truth in zip(learner.layers, oracle.layers, strict=True):
            W, b = layer.get_weights()
            # Adam's first steps have the size of the learning rate whatever the
            # gradient: where that is tiny, rounding decides. Most agree far better.
            error = np.abs(W.reshape(truth.W.shape) - truth.W)
            assert error.max() < 2e-4
            assert error.mean() < 1e-7
            assert np.abs(b.reshape(truth.b.shape) - truth.b).max() < 2e-4
    images = random_images(rng, 9)
    found, wanted = learner.label_goodness(images), oracle.label_goodness(images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_array_equal(learner.predict(images), oracle.predict(images))


def test_ff_gradient_agrees_with_the_plain_gradient_and_central_differences():
    learner = make_ff()
    rng = np.random.default_rng(6)
    B = 6
    images = random_images(rng, B)
    labels = rng.integers(0, 10, B).astype(np.uint8)
    negatives = negatives_of(learner, labels)
    weights = plain_layers(learner)
    learner.adam = Keep()
    learner.train_step(images, labels)

    x = plain.normalise(images, np.float64)
    inputs = [plain.with_labels(x, labels), plain.with_labels(x, negatives)]
    for layer, (W, b, field) in zip(learner.layers, weights, strict=True):
        dW, db = learner.adam.of(layer)

        def loss(W, b, inputs=inputs, field=field):
            oracle = plain.Layer(W, b, field, np.float64)
            g = [plain.goodness(oracle.forward(x)) for x in inputs]
            return plain.ff_loss(*g, 2.0)

        W, b = W.astype(float), b.astype(float)
        for _ in range(3):
            vW, vb = rng.standard_normal(W.shape), rng.standard_normal(b.shape)
            e = 1e-5
            change = loss(W + e * vW, b + e * vb) - loss(W - e * vW, b - e * vb)
            slope = (dW * vW).sum() + (db * vb).sum()
            np.testing.assert_allclose(change / (2 * e), slope, rtol=1e-4, atol=1e-7)

        oracle = plain.Layer(W, b, field, np.float64)
        activities = [oracle.forward(x) for x in inputs]
        inputs = [
            oracle.maps(h) / np.sqrt(plain.goodness(h))[:, None, None, None]
            for h in activities
        ]


def test_training_and_prediction_use_the_same_goodness():
    learner = make_ff()
    rng = np.random.default_rng(8)
    images, labels = random_images(rng, 5), rng.integers(0, 10, 5)
    scores = learner.label_goodness(images)
    negatives = (labels + 3) % 10
    passes = learner.forward(images, np.stack([labels, negatives]))
    for i, (_, h, g) in enumerate(passes):
        maps = h.transpose(2, 3, 0, 1, 4).reshape(2, 5, -1)
        np.testing.assert_allclose(g, (maps**2).mean(axis=2), rtol=1e-5)
        np.testing.assert_allclose(g[0], scores[i, labels, np.arange(5)], rtol=1e-5)
        np.testing.assert_allclose(g[1], scores[i, negatives, np.arange(5)], rtol=1e-5)


def test_prediction_leaves_layer_0_out_unless_it_is_the_only_one():
    rng = np.random.default_rng(9)
    images = random_images(rng, 20)
    for n_layers in (1, 2, 3):
        learner = make_ff(n_layers)
        scores = learner.label_goodness(images)
        used = scores if n_layers == 1 else scores[1:]
        wanted = used.sum(axis=0).argmax(axis=0)
        np.testing.assert_array_equal(learner.predict(images), wanted)


# ------------------------------------------------------------------------- BP


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_bp_gradient_of_every_parameter_agrees_with_float64_and_differences(n_layers):
    learner = ff.Backprop(n_layers, 0.01, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    B = 6
    images, labels = random_images(rng, B), rng.integers(0, 10, B)
    W_out, b_out = learner.W_out.value, learner.b_out.value
    oracle = plain.Backprop(plain_layers(learner), W_out, b_out, 0.01, np.float64)
    wanted = oracle.gradients(images, labels)
    keep = learner.adam = Keep()
    loss = learner.train_step(images, labels)
    np.testing.assert_allclose(loss, oracle.loss(images, labels), rtol=1e-5)

    found = [g for layer in learner.layers for g in keep.of(layer)]
    found += [keep.gradients[id(p)] for p in (learner.W_out, learner.b_out)]
    for f, w, parameter in zip(found, wanted, oracle.parameters(), strict=True):
        largest = np.abs(w).max()
        np.testing.assert_allclose(f.reshape(w.shape), w, atol=1e-5 * largest)
        direction = rng.standard_normal(w.shape)
        e = 1e-8  # so small that hardly a unit crosses zero
        parameter += e * direction
        above = oracle.loss(images, labels)
        parameter -= 2 * e * direction
        change = above - oracle.loss(images, labels)
        parameter += e * direction
        slope = (f.reshape(w.shape) * direction).sum()
        np.testing.assert_allclose(change / (2 * e), slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_bp_steps_and_predictions_agree_with_the_plain_model(n_layers):
    learner = ff.Backprop(n_layers, 1e-3, np.random.default_rng(0))
    oracle = plain.Backprop(
        plain_layers(learner),
        learner.W_out.value,
        learner.b_out.value,
        1e-3,
        np.float64,
    )
    rng = np.random.default_rng(1)
    for B in (7, 3, 7):
        images, labels = random_images(rng, B), rng.integers(0, 10, B)
        loss = oracle.loss(images, labels)
        oracle.train_step(images, labels)
        np.testing.assert_allclose(learner.train_step(images, labels), loss, rtol=1e-3)
    error = np.abs(learner.W_out.value - oracle.W_out)
    assert error.mean() < 1e-6
    images = random_images(rng, 20)
    np.testing.assert_array_equal(learner.predict(images), oracle.predict(images))


# ----------------------------------------------------------------------- Adam


def test_adam_agrees_with_its_algorithm_as_printed():
    rng = np.random.default_rng(0)
    shape = 6, 7
    parameter = ff.Parameter(rng.standard_normal(shape, np.float32))
    value = parameter.value.astype(float)
    adam, oracle = ff.Adam(0.01), plain.Adam(shape, np.float64, 0.01)
    for step in range(300):
        gradient = rng.standard_normal(shape, np.float32) * 10.0 ** (step % 5 - 4)
        oracle.step(value, gradient.astype(float))
        adam.begin_step()
        for part in (slice(0, 4), slice(4, 6)):
            adam.update(parameter, gradient[part].copy(), part)
        np.testing.assert_allclose(parameter.value, value, rtol=1e-5, atol=2e-6)


def test_adam_keeps_no_denormal_numbers_for_units_that_died():
    parameter = ff.Parameter(np.ones(4, np.float32))
    adam = ff.Adam(0.01)
    for step in range(3000):
        adam.begin_step()
        adam.update(parameter, np.full(4, step < 10, np.float32))
        size = np.abs(parameter.m)
        assert not ((size > 0) & (size < np.finfo(np.float32).tiny)).any()
    assert not parameter.m.any()
    assert np.isfinite(parameter.value).all()
