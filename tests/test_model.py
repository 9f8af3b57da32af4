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
        values = [parameter.value.copy() for parameter in layer.parameters()]
        for parameter in layer.parameters():
            parameter.value[...] = self.gradients[id(parameter)]
        gradients = layer.get_weights()
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.value[...] = value
        return list(gradients.values())


def make_layer(shape, seed=0, differs=(0, 0), label_weights=False):
    rng = np.random.default_rng(seed)
    layer = ff.Layer([ff.Connection(rng, *shape, differs)], label_weights)
    for parameter in layer.parameters()[1:]:
        parameter.value[...] = 0.1 * rng.standard_normal(parameter.value.shape)
    return layer, rng


def images_last(x):
    """(P, B, H, W, C) -> (H, W, C, P, B), as the layers have maps."""
    return np.ascontiguousarray(x.transpose(2, 3, 4, 0, 1)).astype(np.float32)


def forward(layer, inputs, labels=None):
    """Activities (positions, P, B, channels), as the plain model has them."""
    P = 1 if labels is None else len(labels)
    maps = np.full((*layer.shape, P, inputs.maps.shape[4]), np.nan, np.float32)
    layer.forward([inputs], labels, lambda h, rows: layer.put(h, rows, maps))
    return maps.transpose(0, 1, 3, 4, 2).reshape(-1, *maps.shape[3:], layer.channels)


def as_pieces(positions, layer):
    """du(rows) for Layer.update(), of one iteration, from (positions, P, B, channels)."""
    P, B = positions.shape[1:3]
    maps = positions.reshape(layer.side, layer.side, P, B, layer.channels)
    tiles = layer.tiled(np.ascontiguousarray(maps.transpose(0, 1, 4, 2, 3)))
    tiles = tiles.reshape(layer.tiles, layer.tiles, -1, P, B).astype(np.float32)
    return lambda rows: tiles[None, rows].copy()


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


def plain_layer(layer):
    """The same layer in plain float64."""
    return plain.Layer(field=layer.field, dtype=np.float64, **layer.get_weights())


def make_learners(**changes):
    """FF and BP as the command line makes them."""
    return ff.make_learners(ff.training_arguments(bp_baseline=True, **changes))


def make_ff(**changes):
    return make_learners(**changes)[0]


# ------------------------------------------------------------------ the layer


def test_plain_layer_agrees_with_loops_over_single_numbers():
    layer, rng = make_layer((7, 2, 3, 2))
    x = rng.standard_normal((2, 7, 7, 2))
    oracle = plain_layer(layer)
    h = oracle.maps(oracle.forward(x))
    wanted = loops_forward(x, **layer.get_weights(), field=3)
    np.testing.assert_allclose(h, wanted, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("B", [1, 5])
def test_layer_forward_and_all_gradients_agree_with_float64(shape, B):
    layer, rng = make_layer(shape)
    oracle = plain_layer(layer)
    x = rng.standard_normal((B, shape[0], shape[0], shape[1]), np.float32)
    h = forward(layer, ff.Maps(images_last(x[None])))[:, 0]
    expected = oracle.forward(x.astype(np.float64))
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-5)

    du = rng.standard_normal(expected.shape)
    keep = Keep()
    dx = layer.input_gradient(as_pieces(du[:, None], layer))
    layer.update(keep, as_pieces(du[:, None], layer))
    gradients = oracle.weight_gradient(du, oracle.columns)
    for found, wanted in zip(keep.of(layer), gradients, strict=True):
        found = found.reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    dx = dx[:, :, :, 0].transpose(3, 0, 1, 2)
    wanted = oracle.input_gradient(du)
    np.testing.assert_allclose(dx, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("differs", [(0, 0), (3, 10), (1, 2), (99, 99), None])
@pytest.mark.parametrize("P", [2, 4])
@pytest.mark.parametrize("label_weights", [False, True])
@pytest.mark.parametrize("picked", [False, True])
def test_passes_with_inputs_in_common_agree_with_separate_passes(
    shape, differs, P, label_weights, picked
):
    side, depth = shape[:2]
    layer, rng = make_layer(shape, 0, differs, label_weights)
    oracle = plain_layer(layer)
    B = 3
    x = np.empty((P, B, side, side, depth), np.float32)
    x[:] = rng.standard_normal(x.shape[1:])
    corner = x if differs is None else x[:, :, : differs[0], : differs[1]]
    corner[:] = rng.standard_normal(corner.shape)
    scale = rng.uniform(0.5, 2, (P, B)).astype(np.float32)
    if differs is None:
        inputs = ff.Maps(images_last(x), None, scale)
    else:
        inputs = ff.Maps(images_last(x[:1]), images_last(x), scale)
    labels = rng.integers(0, 10, (P, B))
    if picked:  # there has to be a pass with one label for all
        labels = rng.permutation(10)[:P, None]
    h = forward(layer, inputs, labels)
    for p in range(P):
        expected = oracle.forward(
            x[p].astype(float) * scale[p, :, None, None, None],
            np.broadcast_to(labels[p], B),
        )
        np.testing.assert_allclose(h[:, p], expected, rtol=1e-5, atol=1e-5)
    if picked:
        passes, images = rng.integers(0, P, (2, B)), np.arange(B)
        layer.pick(passes)
        labels = labels[passes, 0]
        x, scale, P = x[passes, images], scale[passes, images], 2

    du = rng.standard_normal((h.shape[0], P, *h.shape[2:]))
    keep = Keep()
    layer.update(keep, as_pieces(du, layer))
    gradients = [0] * len(layer.parameters())
    for p in range(P):
        x_p = x[p].astype(float) * scale[p, :, None, None, None]
        label = np.broadcast_to(labels[p], B)
        expected = oracle.forward(x_p, label)
        of_pass = oracle.weight_gradient(du[:, p], oracle.columns, label)
        gradients = [a + b for a, b in zip(gradients, of_pass, strict=True)]
    for found, wanted in zip(keep.of(layer), gradients, strict=True):
        found = found.reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_weights_survive_the_way_into_tiles_and_back():
    for shape in SHAPES:
        layer, rng = make_layer(shape, label_weights=True)
        weights = layer.get_weights()
        weights = {name: rng.standard_normal(w.shape) for name, w in weights.items()}
        layer.set_weights(**weights)
        for name, found in layer.get_weights().items():
            np.testing.assert_array_equal(found, weights[name].astype(np.float32))


def test_weights_outside_the_fields_stay_zero_through_training():
    learner = make_ff()
    rng = np.random.default_rng(3)
    W = [layer.connections[0].W for layer in learner.layers]
    outside = [np.isinf(parameter.v) for parameter in W]
    shares = [o.mean() for o in outside]
    np.testing.assert_allclose(shares, [1 - 121 / 144, 1 - 25 / 36])
    for _ in range(3):
        learner.train_step(random_images(rng, 16), rng.integers(0, 10, 16))
    for parameter, o in zip(W, outside, strict=True):
        assert not parameter.value[o].any()
        assert parameter.value[~o].all()


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
        W, b = layer.get_weights().values()
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


def test_whitening_filter_and_what_it_makes_agree_with_float64():
    # Neighbours and colours that are correlated, as in photographs.
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((200, 34, 34, 3))
    x = noise[:, :-2, :-2] + noise[:, 1:-1, 2:] + noise[:, 2:, 1:-1]
    x += x[..., :1]
    images = np.uint8(np.clip(120 + 25 * x, 0, 255))
    kernel = ff.whitening_filter(images)
    np.testing.assert_allclose(kernel, plain.whitening_filter(images), atol=1e-4)

    pixels = plain.normalise(images[:5], np.float64)
    wanted = plain.filtered(pixels, kernel.astype(float))
    maps = ff.normalised_maps(images[:5], kernel)[:, :, :, 0]
    np.testing.assert_allclose(maps.transpose(3, 0, 1, 2), wanted, atol=1e-5)

    def correlations(x):  # of a pixel's colours, and of its right neighbour's
        pairs = np.concatenate([x[:, :, :-1], x[:, :, 1:]], axis=3).reshape(-1, 6)
        return np.abs(np.corrcoef(pairs.T) - np.eye(6)).max()

    assert correlations(pixels) > 0.5
    assert correlations(wanted) < correlations(pixels) / 2


def count_negatives(draw, draws):
    """How often each label (column) is drawn by draw(labels) for each true one (row)."""
    counts = np.zeros((10, 10))
    rng = np.random.default_rng(0)
    for _ in range(draws // 100):
        labels = rng.integers(0, 10, 100).astype(np.uint8)
        np.add.at(counts, (labels, draw(labels)), 1)
    return counts


def chi_squared(counts, expected):
    return ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum()


def test_uniform_negatives_are_never_true_and_uniform_over_the_other_nine():
    rng = np.random.default_rng(1)
    counts = count_negatives(lambda labels: ff.wrong_labels(labels, rng), 100_000)
    assert not counts.diagonal().any()
    expected = (1 - np.eye(10)) * counts.sum(axis=1, keepdims=True) / 9
    # With 80 degrees of freedom it is above 150 with probability 4e-6.
    assert chi_squared(counts, expected) < 150


@pytest.mark.parametrize("label_input", ["corner", "everywhere"])
def test_sampled_negatives_are_never_true_and_follow_the_goodness(label_input):
    rng = np.random.default_rng(2)
    images, labels = random_images(rng, 40), rng.integers(0, 10, 40)
    flags = {"label_input": label_input, "temperature": 0.05}
    learner = make_ff(negatives="sampled", **flags)
    for _ in range(3):
        learner.train_step(images, labels)
    scores = learner.label_goodness(images)[learner.scored].sum(axis=0)
    same = np.repeat(scores[:, :1], 100, axis=1)
    counts = count_negatives(
        lambda labels: ff.sample_wrong_labels(same / 0.05, labels, rng), 2000
    )
    assert not counts.diagonal().any()
    expected = np.exp(scores[:, 0] / 0.05) * (1 - np.eye(10))
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.ptp(expected[~np.eye(10, dtype=bool)]) > 0.05, "not a uniform case"
    assert chi_squared(counts, expected * counts.sum(axis=1, keepdims=True)) < 150


# ------------------------------------------------------------------------- FF


def randomise_label_weights(learner, rng):
    """At zero, as training begins, all passes are equal and nothing but V learns."""
    for layer in learner.layers:
        if layer.V:
            layer.V.value[:] = 0.1 * rng.standard_normal(layer.V.value.shape)


def negatives_of(learner, images, labels):
    """The wrong labels (P-1, B) that the next train_step will choose."""
    if learner.negatives == "all":
        return (labels + np.arange(1, 10)[:, None]) % 10
    generator = learner.generators["negatives"].bit_generator
    state = generator.state
    if learner.negatives == "uniform":
        negatives = ff.wrong_labels(labels, learner.generators["negatives"])
    else:
        logits = learner.label_scores(images) / learner.temperature
        rng = learner.generators["negatives"]
        negatives = ff.sample_wrong_labels(logits, labels, rng)
    generator.state = state
    return negatives[None]


def assert_steps_agree(learner, oracle, rng, batches):
    """Statistics and weights step by step, then goodness and predictions."""
    for B in batches:
        images = random_images(rng, B)
        labels = rng.integers(0, 10, B).astype(np.uint8)
        wrong = negatives_of(learner, images, labels)
        found = learner.train_step(images, labels)
        wanted = oracle.train_step(images, labels, wrong, refresh=False)
        found = [found[name] for name in ("loss_per_layer", "g_pos", "g_neg")]
        np.testing.assert_allclose(np.transpose(found).ravel(), wanted, rtol=2e-4)
        for layer, truth in zip(learner.layers, oracle.layers, strict=True):
            weights = layer.get_weights().values()
            weights = zip(weights, truth.parameters(), strict=True)
            for found, wanted in weights:
                # Adam's first steps have the size of the learning rate whatever the
                # gradient: where that is tiny, rounding decides. Most agree far better.
                error = np.abs(found.reshape(wanted.shape) - wanted)
                # More so where the gradients of two or ten passes nearly cancel.
                bounds = {"halfway": (1e-3, 5e-6), None: (2e-3, 5e-6)}
                most, mean = bounds.get(learner.threshold, (2e-4, 1e-6))
                assert error.max() < most
                assert error.mean() < mean
    images = random_images(rng, 9)
    found, wanted = learner.label_goodness(images), oracle.label_goodness(images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_array_equal(learner.predict(images), oracle.predict(images))


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("label_input", ["corner", "everywhere"])
@pytest.mark.parametrize(
    ("negatives", "threshold", "temperature"),
    [
        ("uniform", 2.0, 1.0),
        ("sampled", 0.5, 0.3),
        ("sampled", "halfway", 0.1),
        ("all", None, 0.1),
    ],
)
def test_ff_steps_and_predictions_agree_with_the_plain_model(
    n_layers, B, label_input, negatives, threshold, temperature
):
    loss = {"threshold": threshold, "temperature": temperature}
    flags = {"label_input": label_input, "negatives": negatives, **loss}
    learner = make_ff(n_layers=n_layers, lr=1e-3, **flags)
    rng = np.random.default_rng(5)
    randomise_label_weights(learner, rng)
    layers = [plain_layer(layer) for layer in learner.layers]
    oracle = plain.ForwardForward(layers, 1e-3, np.float64, **loss)
    assert_steps_agree(learner, oracle, rng, [B] * 3)


@pytest.mark.parametrize("n_layers", [2, 3])
@pytest.mark.parametrize("negatives", ["uniform", "sampled", "all"])
def test_steps_like_those_of_the_best_recipe_agree_with_the_plain_model(
    n_layers, negatives
):
    loss = {"threshold": None if negatives == "all" else "halfway"}
    loss["temperature"] = 0.1
    flags = {"label_input": "everywhere", "pass_up": "neutral", "negatives": negatives}
    flags |= {"n_layers": n_layers, "fields": [6, 4, 3], "whiten": True}
    rates = [1, 0.5, 0.25][:n_layers]
    learner = make_ff(lr=1e-3, layer_rates=rates, scored="last", **flags, **loss)
    rng = np.random.default_rng(7)
    learner.whitening[:] = rng.standard_normal(learner.whitening.shape) / 8
    randomise_label_weights(learner, rng)
    layers = [plain_layer(layer) for layer in learner.layers]
    oracle = plain.ForwardForward(
        layers,
        1e-3 * np.array(rates),
        np.float64,
        neutral=True,
        kernel=learner.whitening.astype(float),
        last=True,
        **loss,
    )
    assert_steps_agree(learner, oracle, rng, (7, 4, 7))


@pytest.mark.parametrize("label_input", ["corner", "everywhere"])
@pytest.mark.parametrize(
    "loss", [(2.0, 1.0), (0.5, 0.3), ("halfway", 0.1), (None, 0.1)]
)
def test_ff_gradient_agrees_with_central_differences(label_input, loss):
    threshold, temperature = loss
    learner = make_ff(
        label_input=label_input,
        threshold=threshold,
        temperature=temperature,
        negatives="uniform" if threshold else "all",
    )
    rng = np.random.default_rng(6)
    B = 6
    images = random_images(rng, B)
    labels = rng.integers(0, 10, B).astype(np.uint8)
    randomise_label_weights(learner, rng)
    negatives = negatives_of(learner, images, labels)
    oracles = [plain_layer(layer) for layer in learner.layers]
    learner.adam = Keep()
    learner.train_step(images, labels)

    passes = [labels, *negatives]
    inputs = [plain.normalise(images, np.float64)] * len(passes)
    if label_input == "corner":
        inputs = [plain.with_labels(inputs[0], y) for y in passes]
    for layer, oracle in zip(learner.layers, oracles, strict=True):

        def activities(oracle=oracle, inputs=inputs):
            pairs = zip(inputs, passes, strict=True)
            return [oracle.forward(x, y) for x, y in pairs]

        def loss_now(activities=activities):
            return plain.ff_loss([plain.goodness(h) for h in activities()], *loss)

        for p, gradient in zip(
            oracle.parameters(), learner.adam.of(layer), strict=True
        ):
            direction = rng.standard_normal(p.shape)
            e = 1e-6
            p += e * direction
            above = loss_now()
            p -= 2 * e * direction
            change = above - loss_now()
            p += e * direction
            slope = (gradient.reshape(p.shape) * direction).sum()
            np.testing.assert_allclose(change / (2 * e), slope, rtol=1e-4, atol=1e-8)
        inputs = [oracle.normalised(h) for h in activities()]


def test_training_and_prediction_use_the_same_goodness():
    learner = make_ff()
    rng = np.random.default_rng(8)
    images, labels = random_images(rng, 5), rng.integers(0, 10, 5)
    scores = learner.label_goodness(images)
    negatives = (labels + 3) % 10
    g = learner.forward(images, np.stack([labels, negatives]))
    maps = plain.with_labels(plain.normalise(images, np.float64), labels)
    for i, layer in enumerate(learner.layers):
        np.testing.assert_allclose(g[i, 0], scores[i, labels, np.arange(5)], rtol=1e-5)
        np.testing.assert_allclose(
            g[i, 1], scores[i, negatives, np.arange(5)], rtol=1e-5
        )
        oracle = plain_layer(layer)
        h = oracle.forward(maps)
        np.testing.assert_allclose(g[i, 0], (h**2).mean(axis=(0, 2)), rtol=1e-4)
        maps = oracle.normalised(h)


def test_prediction_leaves_layer_0_out_unless_it_is_alone_or_sees_the_label():
    rng = np.random.default_rng(9)
    images = random_images(rng, 20)
    for n_layers in (1, 2, 3):
        learner = make_ff(n_layers=n_layers)
        scores = learner.label_goodness(images)
        used = scores if n_layers == 1 else scores[1:]
        wanted = used.sum(axis=0).argmax(axis=0)
        np.testing.assert_array_equal(learner.predict(images), wanted)
        learner = make_ff(n_layers=n_layers, label_input="everywhere")
        learner.train_step(images, np.arange(20) % 10)
        wanted = learner.label_goodness(images).sum(axis=0).argmax(axis=0)
        np.testing.assert_array_equal(learner.predict(images), wanted)


# ------------------------------------------------------------------------- BP


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_bp_gradient_of_every_parameter_agrees_with_float64_and_differences(n_layers):
    learner = make_learners(n_layers=n_layers)[1]
    rng = np.random.default_rng(1)
    B = 6
    images, labels = random_images(rng, B), rng.integers(0, 10, B)
    W_out, b_out = learner.W_out.value, learner.b_out.value
    layers = [plain_layer(layer) for layer in learner.layers]
    oracle = plain.Backprop(layers, W_out, b_out, 0.01, np.float64)
    wanted = oracle.gradients(images, labels)
    keep = learner.adam = Keep()
    loss = learner.train_step(images, labels)
    np.testing.assert_allclose(loss["loss"], oracle.loss(images, labels), rtol=1e-5)

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
    learner = make_learners(n_layers=n_layers, lr=1e-3)[1]
    layers = [plain_layer(layer) for layer in learner.layers]
    oracle = plain.Backprop(
        layers,
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
        found = learner.train_step(images, labels)["loss"]
        np.testing.assert_allclose(found, loss, rtol=1e-3)
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


def test_weight_decay_shrinks_weights_but_neither_biases_nor_zero_rates():
    adam = ff.Adam(0.1, total_steps=2, weight_decay=0.5)
    weights = ff.Parameter(np.ones(3, np.float32), decays=True)
    biases = ff.Parameter(np.ones(3, np.float32))
    rates = []
    for _ in range(2):
        adam.begin_step()
        adam.update(weights, np.zeros(3, np.float32))
        adam.update(biases, np.zeros(3, np.float32))
        rates.append(float(weights.value[0]))
    np.testing.assert_allclose(rates, [0.95, 0.95 * 0.975], rtol=1e-6)
    np.testing.assert_array_equal(biases.value, 1)


def test_linear_schedule_takes_equal_cuts_down_to_the_last_step():
    adam = ff.Adam(1.0, total_steps=4)
    parameter, steps = ff.Parameter(np.zeros(1, np.float32)), []
    for _ in range(4):
        before = float(parameter.value[0])
        adam.begin_step()
        adam.update(parameter, np.ones(1, np.float32))
        steps.append(before - float(parameter.value[0]))
    np.testing.assert_allclose(steps, [1, 0.75, 0.5, 0.25], rtol=1e-4)


@pytest.mark.parametrize("shift", [0, 2, 4])
def test_augmentation_mirrors_and_shifts_at_random(shift):
    rng = np.random.default_rng(0)
    image = random_images(rng, 1)[0]
    around = shift, shift
    padded = np.pad(image, (around, around, (0, 0)), mode="edge")
    variants, places = {}, 2 * shift + 1
    for i, j in np.ndindex(places, places):
        crop = padded[i : i + 32, j : j + 32]
        variants[crop.tobytes()] = i, j, 0
        variants[crop[:, ::-1].tobytes()] = i, j, 1
    n = 40 * 2 * places**2
    images = ff.augment(np.repeat(image[None], n, axis=0), rng, shift)
    assert images.dtype == np.uint8
    seen = [variants[x.tobytes()] for x in images]
    assert len(set(seen)) == 2 * places**2
    counts = [seen.count(variant) for variant in set(seen)]
    assert min(counts) > 15  # of 40 expected, with a deviation of 6
