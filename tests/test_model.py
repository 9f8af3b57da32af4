# ruff: noqa: B023  what is defined under @layer.in_pieces runs at once
"""The fast model against the plain one in float64, and against central differences."""

from collections import Counter

import numpy as np
import plain
import pytest

import ff_cifar_locally_connected as ff

# (in_side, in_depth, field, channels): headline layers, odd maps, even fields, others.
SHAPES = [(32, 3, 11, 8), (22, 8, 5, 8), (14, 3, 4, 8)]
SHAPES += [(13, 2, 4, 3), (9, 5, 9, 4), (12, 1, 1, 5)]


def change(monkeypatch, what):
    """Make a user's change in the module, and the same in the plain model."""
    put = monkeypatch.setattr
    if what == "tanh":
        put(ff, "activation", lambda u: np.tanh(u, out=u))
        put(ff, "activation_slope", lambda h: 1 - h**2)
        put(plain, "activation", np.tanh)
    if what == "mean(h^4)":
        put(ff, "goodness", lambda h: (h**4).sum(axis=(0, 1, 2)))
        put(ff, "goodness_gradient", lambda h, dg: 4 * h**3 * np.float32(dg))
        put(plain, "goodness", lambda h: (h**4).mean(axis=(0, 2)))


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
        """The layer's gradients as get_weights() has weights."""
        values = [parameter.value.copy() for parameter in layer.parameters()]
        for parameter in layer.parameters():
            parameter.value[...] = self.gradients[id(parameter)]
        gradients = layer.get_weights()
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.value[...] = value
        return gradients


def keep_gradients(oracle):
    """The same for a plain learner: its gradients are in what is returned, by layer."""
    kept = [{} for _ in oracle.adams]
    for adams, gradients in zip(oracle.adams, kept, strict=True):
        for name, adam in adams.items():
            adam.step = lambda _, g, name=name, into=gradients: into.update({name: g})
    return kept


def assert_gradients_agree(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        ours, largest = found[name].reshape(gradient.shape), np.abs(gradient).max()
        np.testing.assert_allclose(ours, gradient, atol=1e-4 * largest, err_msg=name)


def assert_differences_agree(gradients, weights, loss, rng, e):
    """Hold gradients to central differences of loss(), in a direction for each array.

    weights: of a plain model; loss() depends on them. e: the length of a step
    """
    for name, w in weights.items():
        gradient = gradients[name].reshape(w.shape)
        direction = rng.standard_normal(w.shape)
        w += e * direction
        above = loss()
        w -= 2 * e * direction
        slope = (above - loss()) / (2 * e)
        w += e * direction
        # As large as the gradient's norm, or smaller where it happens to be across.
        error = abs(slope - (gradient * direction).sum())
        assert error < 1e-3 * np.linalg.norm(gradient), name


def images_last(x):
    """(P, B, H, W, C) -> (H, W, C, P, B), as the layers have maps."""
    return np.ascontiguousarray(x.transpose(2, 3, 4, 0, 1)).astype(np.float32)


def forward(layer, x, labels=None):
    """The activity (positions, P, B, channels), as the plain model has it."""
    P = 1 if labels is None else len(labels)
    maps = np.full((*layer.shape, P, x.maps.shape[4]), np.nan, np.float32)

    @layer.in_pieces
    def _(rows):
        layer.multiply([x], rows)
        layer.put(layer.activity([x], labels, rows), rows, maps)

    return maps.transpose(0, 1, 3, 4, 2).reshape(-1, *maps.shape[3:], layer.channels)


def maps_of(h, layer):
    """(positions, P, B, channels) -> (H, W, C, P, B)."""
    maps = h.reshape(layer.side, layer.side, *h.shape[1:])
    return np.ascontiguousarray(maps.transpose(0, 1, 4, 2, 3)).astype(np.float32)


def gradients(layer, x, labels, du):
    """By name, from the derivative by the pre-activation (positions, P, B, channels)."""
    keep, du = Keep(), maps_of(du, layer)

    @layer.in_pieces
    def _(rows):
        layer.update(keep, [x], labels, layer.piece(du, rows)[None], rows)

    return keep.of(layer)


def random_images(rng, *shape):
    return rng.integers(0, 256, (*shape, 32, 32, 3), dtype=np.uint8)


def random_batch(rng, B):
    return random_images(rng, B), rng.integers(0, 10, B).astype(np.uint8)


def make_layer(shape, rng, **options):
    layer = ff.Layer([ff.Connection(rng, *shape)], **options)
    randomise([layer], rng)
    return layer


def randomise(layers, rng):
    """Biases and label weights, which begin at zero, where all passes are equal."""
    for layer in layers:
        for parameter in (layer.b, layer.V):
            if parameter:
                parameter.value[:] = 0.1 * rng.standard_normal(parameter.value.shape)


def plain_layer(layer):
    kind = plain.LabelLayer if layer.V else plain.Layer
    return kind(layer.field, np.float64, **layer.get_weights())


def make_learners(recipe="headline", **changes):
    """FF and BP as the command line makes them."""
    return ff.make_learners(ff.training_arguments(recipe, bp_baseline=True, **changes))


def make_ff(*recipe, **changes):
    return make_learners(*recipe, **changes)[0]


# ------------------------------------------------------------------ the layer


def test_plain_layer_agrees_with_loops_over_single_numbers():
    rng = np.random.default_rng(0)
    layer = make_layer((7, 2, 3, 2), rng)
    x, W, b = rng.standard_normal((2, 7, 7, 2)), *layer.get_weights().values()
    oracle = plain_layer(layer)
    h = oracle.maps(oracle.forward(oracle.columns(x)))
    for n, i, j, c in np.ndindex(*h.shape):
        total = b[i, j, c]
        for k, value in enumerate(x[n, i : i + 3, j : j + 3].ravel()):
            total += value * W[i, j, k, c]
        np.testing.assert_allclose(h[n, i, j, c], max(total, 0), rtol=1e-12)


def assert_passes_agree(layer, inputs, x, labels, rng):
    """Activities and gradients of the passes x (P, B, H, W, C), one by one in float64."""
    oracle, (P, B), total = plain_layer(layer), x.shape[:2], {}
    h = forward(layer, inputs, labels)
    du = rng.standard_normal(h.shape)
    tops = [None] if labels is None else np.broadcast_to(labels, (P, B))
    for p, top in enumerate(tops):
        columns = oracle.columns(x[p].astype(float))
        wanted = oracle.forward(columns, top)
        np.testing.assert_allclose(h[:, p], wanted, rtol=1e-5, atol=1e-5)
        for name, gradient in oracle.gradients(du[:, p], columns, top).items():
            total[name] = total.get(name, 0) + gradient
    assert_gradients_agree(gradients(layer, inputs, labels, du), total)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("B", [1, 5])
def test_layer_forward_and_all_gradients_agree_with_float64(shape, B):
    rng = np.random.default_rng(0)
    layer = make_layer(shape, rng)
    x = rng.standard_normal((1, B, shape[0], shape[0], shape[1]), np.float32)
    assert_passes_agree(layer, ff.Maps(images_last(x)), x, None, rng)
    du = rng.standard_normal((layer.side**2, B, layer.channels))
    dx = layer.input_gradient(maps_of(du[:, None], layer))[:, :, :, 0]
    wanted = plain.input_gradient(plain_layer(layer), du)
    np.testing.assert_allclose(dx.transpose(3, 0, 1, 2), wanted, rtol=1e-4, atol=1e-4)


CASES = [(shape, n, None) for shape in SHAPES[:4] for n in (0, 1, 3, 99, None)]
CASES += [(shape, differ, "weights") for shape, differ, _ in CASES]
CASES += [((32, 3, R, 8), differ, "block") for R in (11, 4) for differ in (0, 3, None)]


@pytest.mark.parametrize("shape, differ, label", CASES)
@pytest.mark.parametrize("P", [2, 4])
def test_passes_with_inputs_in_common_agree_with_separate_passes(
    shape, differ, label, P
):
    """differ: in how many rows, from the first, the passes do; None: in all."""
    side, depth, B = shape[0], shape[1], 3
    rng = np.random.default_rng(0)
    layer = make_layer(shape, rng, label=label, differ=differ or 3)
    x = np.empty((P, B, side, side, depth), np.float32)
    x[:] = rng.standard_normal(x.shape[1:])
    own = x[:, :, :differ]
    own[:] = rng.standard_normal(own.shape)
    scale = rng.uniform(0.5, 2, (P, B)).astype(np.float32)
    if label == "block":
        x[:, :, :3, :10] = 0
    maps = images_last(x if differ is None else x[:1])
    inputs = ff.Maps(maps, images_last(x) if differ else None, scale)
    x *= scale[..., None, None, None]
    for labels in rng.integers(0, 10, (P, B)), rng.permutation(10)[:P, None]:
        if label == "block":
            each = np.broadcast_to(labels, (P, B))
            x = np.array([plain.with_labels(*pair) for pair in zip(x, each)])
        assert_passes_agree(layer, inputs, x, labels, rng)


def test_weights_survive_the_way_into_tiles_and_back():
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        layer = make_layer(shape, rng, label="weights")
        weights = layer.get_weights()
        weights = {name: rng.standard_normal(w.shape) for name, w in weights.items()}
        layer.set_weights(**weights)
        for name, found in layer.get_weights().items():
            np.testing.assert_array_equal(found, weights[name].astype(np.float32))


def test_weights_outside_the_fields_stay_zero_through_training():
    learner = make_ff(weight_decay=0.1)
    rng = np.random.default_rng(3)
    W = [layer.connections[0].W for layer in learner.layers]
    outside = [np.isinf(parameter.v) for parameter in W]
    shares = [o.mean() for o in outside]
    np.testing.assert_allclose(shares, [1 - 121 / 144, 1 - 25 / 36])
    for _ in range(3):
        learner.train_step(*random_batch(rng, 16))
    for parameter, o in zip(W, outside, strict=True):
        assert not parameter.value[o].any()
        assert parameter.value[~o].all()


def test_he_normal_weights_zero_biases_and_parameter_counts():
    learner = make_ff(n_layers=3)
    sides, counts = (22, 18, 14), (1_409_408, 520_992, 14 * 14 * 8 * (5 * 5 * 8 + 1))
    for layer, side, count in zip(learner.layers, sides, counts, strict=True):
        assert layer.shape == (side, side, 8)
        W, b = layer.get_weights().values()
        assert W.size + b.size == count
        assert sum(np.isfinite(one.v).sum() for one in layer.parameters()) == count
        np.testing.assert_allclose(W.std(), np.sqrt(2 / W.shape[2]), rtol=0.01)
        assert abs(W.mean()) < 5e-4
        assert not b.any()


# ---------------------------------------------------------- labels and images


def test_label_block_is_three_rows_of_minus_one_with_the_labels_column_at_one():
    images, labels = random_images(np.random.default_rng(0), 10), np.arange(10)
    pixels = ff.normalise(images)
    np.testing.assert_allclose(pixels, plain.normalise(images, float), atol=1e-6)
    coded = ff.encode_labels(pixels.copy(), labels)
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


@pytest.mark.parametrize("shift", [0, 2, 4])
def test_augmentation_mirrors_and_shifts_at_random(shift):
    rng = np.random.default_rng(0)
    image = random_images(rng)
    padded = np.pad(image, [(shift, shift)] * 2 + [(0, 0)], mode="edge")
    variants, places = set(), 2 * shift + 1
    for i, j in np.ndindex(places, places):
        crop = padded[i : i + 32, j : j + 32]
        variants |= {crop.tobytes(), crop[:, ::-1].tobytes()}
    images = ff.augment(np.repeat(image[None], 40 * len(variants), axis=0), rng, shift)
    assert images.dtype == np.uint8
    counts = Counter(x.tobytes() for x in images)
    assert counts.keys() == variants
    assert min(counts.values()) > 15  # of 40 expected, with a deviation of 6


@pytest.mark.parametrize("module, sampled", [(ff, 0), (plain, 0), (ff, 1)])
def test_wrong_labels_are_never_true_and_uniform_or_follow_the_softmax(module, sampled):
    rng = np.random.default_rng(1)
    labels = np.tile(np.arange(10, dtype=np.uint8), 10_000)
    logits = sampled * rng.standard_normal((10, 10))  # (label, image)
    wrong = module.wrong_labels(labels, rng, *[np.tile(logits, 10_000)] * sampled)
    counts = np.zeros((10, 10))
    np.add.at(counts, (labels, wrong), 1)
    assert not counts.diagonal().any()
    expected = np.exp(logits.T) * (1 - np.eye(10))
    expected *= counts.sum(axis=1, keepdims=True) / expected.sum(axis=1, keepdims=True)
    # With 80 degrees of freedom it is above 150 with probability 4e-6.
    assert ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum() < 150


# ------------------------------------------------------------------------- FF

LOSSES = [
    {"negatives": "uniform"},
    {"negatives": "uniform", "loss": "softmax", "temperature": 0.1},
    {"negatives": "sampled", "threshold": 0.5, "temperature": 0.3},
    {"negatives": "sampled", "loss": "softmax", "temperature": 0.1},
    {"negatives": "all", "loss": "softmax", "temperature": 0.1},
]


def note_passes(learner):
    """A dict that has, after a training step, what passes() was asked and has told."""
    noted, passes = {}, learner.passes

    def noting(labels, logits):
        told = passes(labels, logits)
        noted.update(logits=logits, labels=told[0])
        return told

    learner.passes = noting
    return noted


def true_first(passes, labels, own=None):
    """The labels of the passes (P, B), and images of their own, the true label first."""
    P = len(passes)
    first = labels if P == 10 else np.zeros_like(labels)
    order, B = (first + np.arange(P)[:, None]) % P, np.arange(len(labels))
    passes = np.broadcast_to(passes, order.shape)[order, B]
    np.testing.assert_array_equal(passes[0], labels)
    return passes, None if own is None else own[order, B]


def assert_steps_agree(learner, oracle, batch, noted, own=None):
    """A training step of both, by what it returns; own: see true_first()."""
    images, labels = batch
    found = learner.train_step(images, labels)
    passes, own = true_first(noted["labels"], labels, own)
    wanted = oracle.train_step(images if own is None else own, labels, passes[1:])
    found = [found[name] for name in ("loss_per_layer", "g_pos", "g_neg")]
    np.testing.assert_allclose(np.transpose(found), wanted, rtol=2e-4)


def assert_weights_agree(learner, oracle):
    """After training, of the layers and of a readout."""
    arrays = [layer.get_weights() for layer in learner.layers]
    readout = (parameter.value for parameter in learner.readout.values())
    arrays.append(dict(zip("Wb", readout)))
    for found, wanted in zip(arrays, oracle.weights()):
        for name, w in wanted.items():
            # Adam's first steps have the size of the learning rate whatever the
            # gradient: where that is tiny, rounding decides. Most agree far better.
            error = np.abs(found[name].reshape(w.shape) - w)
            assert error.max() < 2e-3, name
            assert error.mean() < 5e-6, name


def assert_a_step_agrees(learner, oracle, B, rng, monkeypatch):
    """All of one step but Adam, with images that the passes share, and with their own.

    Returns the images, the passes' own ones, and what note_passes() noted.
    """
    wanted, noted = keep_gradients(oracle), note_passes(learner)
    batch, P = random_batch(rng, B), 10 if learner.negatives == "all" else 2
    all_own = random_images(rng, P, B)
    for own in None, all_own:
        if own is not None:
            monkeypatch.setattr(ff, "pass_images", lambda images, labels: own)
        keep = learner.adam = Keep()
        assert_steps_agree(learner, oracle, batch, noted, own)
        for layer, gradients in zip(learner.layers, wanted):
            assert_gradients_agree(keep.of(layer), gradients)
    return batch[0], all_own, noted


@pytest.mark.parametrize("fields", [[11], [11, 5], [11, 5, 5], [6, 4, 3]])
@pytest.mark.parametrize("label_input", ["corner", "everywhere"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_learning_agrees_with_the_plain_model(
    fields, label_input, loss, monkeypatch
):
    flags = {"n_layers": len(fields), "fields": fields, "label_input": label_input}
    learner, rng = make_ff(**flags, **loss), np.random.default_rng(5)
    randomise(learner.layers, rng)
    oracle = plain.twin(learner, 1e-3)
    images, _, noted = assert_a_step_agrees(learner, oracle, 7, rng, monkeypatch)
    if learner.negatives == "sampled":
        logits = oracle.scores(images) / float(learner.temperature)
        np.testing.assert_allclose(noted["logits"], logits, rtol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("headline", {}),
        ("headline", {"n_layers": 3, "negatives": "sampled"}),
        ("one-layer", {}),
        ("best", {}),
        ("best", {"n_layers": 3, "fields": [6, 4, 3], "layer_rates": [1, 0.5, 0.25]}),
    ],
)
def test_training_and_predictions_agree_with_the_plain_model(recipe, flags):
    flags = {"lr": 1e-3, "lr_schedule": "constant", **flags}
    (learner, bp), rng = make_learners(recipe, **flags), np.random.default_rng(7)
    if recipe == "best":
        learner.whitening = rng.standard_normal((5, 5, 3, 3), np.float32) / 8
        bp.whitening = learner.whitening
    randomise(learner.layers, rng)
    rates = flags.get("layer_rates", [1, 0.2] if recipe == "best" else 1)
    oracle, noted = plain.twin(learner, 1e-3 * np.array(rates)), note_passes(learner)
    bp_oracle = plain.twin(bp, 1e-3)
    for B in 7, 4, 7:
        batch = random_batch(rng, B)
        assert_steps_agree(learner, oracle, batch, noted)
        wanted = bp_oracle.train_step(*batch)
        np.testing.assert_allclose(bp.train_step(*batch)["loss"], wanted, rtol=1e-3)
    images = random_images(rng, 9)
    for one, truth in (learner, oracle), (bp, bp_oracle):
        assert_weights_agree(one, truth)
        np.testing.assert_array_equal(one.predict(images), truth.predict(images))
    found, wanted = learner.label_goodness(images), oracle.label_goodness(images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    scores = learner.label_scores(images)
    np.testing.assert_allclose(scores, oracle.scores(images), rtol=1e-4)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("label_input", ["corner", "everywhere"])
@pytest.mark.parametrize("P", [2, 3])
def test_passes_may_have_images_of_their_own(n_layers, label_input, P):
    learner = make_ff(n_layers=n_layers, label_input=label_input)
    rng = np.random.default_rng(8)
    randomise(learner.layers, rng)
    oracle = plain.twin(learner, 1e-3)
    own, labels = random_images(rng, P, 4), rng.integers(0, 10, (P, 4))
    wanted = np.stack([oracle.goodness(*pair) for pair in zip(own, labels)], axis=1)
    np.testing.assert_allclose(learner.forward(own, labels)[0], wanted, rtol=1e-4)
    own[:] = own[0]
    shared = learner.forward(own[0], labels)[0]
    np.testing.assert_allclose(learner.forward(own, labels)[0], shared, rtol=1e-5)


@pytest.mark.parametrize("what", ["nothing", "tanh", "mean(h^4)"])
@pytest.mark.parametrize("label_input", ["corner", "everywhere"])
@pytest.mark.parametrize("loss", LOSSES[1:])
def test_ff_gradients_agree_with_central_differences(
    what, label_input, loss, monkeypatch
):
    change(monkeypatch, what)
    learner, rng = make_ff(label_input=label_input, **loss), np.random.default_rng(6)
    randomise(learner.layers, rng)
    oracle, noted = plain.twin(learner, 1e-3), note_passes(learner)
    images, labels = random_batch(rng, 6)
    keep = learner.adam = Keep()
    learner.train_step(images, labels)
    passes, _ = true_first(noted["labels"], labels)
    inputs = [oracle.labelled(images, y) for y in passes]
    for layer, truth in zip(learner.layers, oracle.layers, strict=True):
        columns = [truth.columns(x) for x in inputs]  # constants

        def loss_now():
            pairs = zip(columns, passes, strict=True)
            g = [plain.goodness(truth.forward(*pair)) for pair in pairs]
            return oracle.loss(np.array(g))[0]

        assert_differences_agree(keep.of(layer), truth.weights, loss_now, rng, 1e-6)
        pairs = zip(columns, passes, strict=True)
        inputs = [oracle.passed_up(truth, x, truth.forward(x, y)) for x, y in pairs]


@pytest.mark.parametrize(
    "flags", [{}, {"label_input": "everywhere", "negatives": "all", "loss": "softmax"}]
)
def test_no_gradient_crosses_a_layer(flags):
    """The layers above one do not change a bit of it."""
    stacks = []
    for n_layers in (1, 2, 3):
        learner, rng = make_ff(n_layers=n_layers, **flags), np.random.default_rng(9)
        for _ in range(3):
            learner.train_step(*random_batch(rng, 8))
        stacks.append([layer.get_weights() for layer in learner.layers])
    np.testing.assert_equal(stacks[0], stacks[2][:1])
    np.testing.assert_equal(stacks[1], stacks[2][:2])


@pytest.mark.parametrize("recipe", ["headline", "best", "recurrent"])
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_layer_rate_of_zero_freezes_the_layer_while_the_others_learn(recipe, frozen):
    rates = [float(i != frozen) for i in range(2)]
    learner = make_ff(recipe, layer_rates=rates, weight_decay=0.1)
    rng = np.random.default_rng(10)
    randomise(learner.layers, rng)
    before = {name: w.copy() for name, w in learner.weights().items()}
    for _ in range(2):
        learner.train_step(*random_batch(rng, 4))
    for name, w in learner.weights().items():
        assert np.array_equal(w, before[name]) == (f"layer{frozen}" in name), name


PLACES = {
    "loss": lambda self, g, true: (7.0, np.zeros_like(g)),
    "wrong_labels": lambda labels, *_: (labels + 1) % 10,
    "pass_images": lambda images, labels: np.stack([images, images[::-1]]),
    "passed_up": lambda self, layer, x, h, rows: h**2,
}


@pytest.mark.parametrize("recipe", ["headline", "recurrent"])
@pytest.mark.parametrize("place", PLACES)
def test_what_takes_a_place_of_change_has_its_effect_in_a_step(
    recipe, place, monkeypatch
):
    def layer_1_after_a_step():
        learner = make_ff(recipe, negatives="uniform")
        learner.train_step(*random_batch(np.random.default_rng(11), 4))
        return learner.layers[1].get_weights()["W"]

    usual = layer_1_after_a_step()
    where = ff.ForwardForward if hasattr(ff.ForwardForward, place) else ff
    monkeypatch.setattr(where, place, PLACES[place])
    # The recurrent network's maps go up and down, as move() makes them.
    no_part = (recipe, place) == ("recurrent", "passed_up")
    assert np.array_equal(layer_1_after_a_step(), usual) == no_part


# ------------------------------------------------------------------------- BP


@pytest.mark.parametrize("what", ["nothing", "tanh"])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_bp_gradients_agree_with_central_differences(what, n_layers, monkeypatch):
    change(monkeypatch, what)
    learner, rng = make_learners(n_layers=n_layers)[1], np.random.default_rng(1)
    randomise(learner.layers, rng)
    oracle, (images, labels) = plain.twin(learner, 1e-3), random_batch(rng, 6)
    keep = learner.adam = Keep()

    def loss_now():
        return plain.cross_entropy(oracle.forward(images)[2], labels)[0]

    loss = learner.train_step(images, labels)["loss"]
    np.testing.assert_allclose(loss, loss_now(), rtol=1e-5)
    found = [keep.of(layer) for layer in learner.layers]
    readout = zip("Wb", learner.readout.values(), strict=True)
    found.append({name: keep.gradients[id(one)] for name, one in readout})
    for gradients, weights in zip(found, oracle.weights(), strict=True):
        e = 1e-8  # so small that hardly a unit crosses zero
        assert_differences_agree(gradients, weights, loss_now, rng, e)


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


def test_linear_schedule_takes_equal_cuts_and_weight_decay_no_biases():
    adam = ff.Adam(0.1, weight_decay=0.5)
    adam.total_steps = 4
    weights = ff.Parameter(np.ones(1, np.float32), decays=True)
    biases = ff.Parameter(np.ones(1, np.float32))
    for rate in 0.1, 0.075, 0.05, 0.025:
        weight, bias = weights.value.copy(), biases.value.copy()
        adam.begin_step()
        adam.update(weights, np.zeros(1, np.float32))
        adam.update(biases, np.ones(1, np.float32))
        np.testing.assert_allclose(weights.value, weight * (1 - rate * 0.5), rtol=1e-6)
        np.testing.assert_allclose(bias - biases.value, rate, rtol=1e-4)
    with pytest.raises(ff.RunError, match="is left after 4 planned steps"):
        adam.begin_step()


def test_a_training_that_goes_on_or_starts_again_follows_the_schedule_of_now(
    monkeypatch,
):
    rng = np.random.default_rng(0)
    data = (random_images(rng, 40), rng.integers(0, 10, 40).astype(np.uint8)) * 2
    settings = {"n_layers": 1, "lr_schedule": "linear", "eval_subset": 8}
    settings |= {"n_epochs": 2, "batch_size": 8, "train_subset": 50_000}  # 40 there are
    args = ff.training_arguments(**settings)
    learner, rates = ff.make_learners(args)[0], []
    begin_step = ff.Adam.begin_step

    def noting(adam):
        begin_step(adam)
        rates.append(adam.shrink)

    monkeypatch.setattr(ff.Adam, "begin_step", noting)
    learner.adam.weight_decay = 1.0  # shrink is 1 - learning rate
    ff.train(learner, data, args)
    args.n_epochs, args.batch_size = 5, 20
    learner.adam.steps += 3  # of an epoch that was interrupted
    ff.train(learner, data, args)
    expected = [1 - i / 10 for i in range(10)] + [1 - i / 10 for i in range(4, 10)]
    np.testing.assert_allclose(
        1 - np.array(rates), 0.01 * np.array(expected), rtol=1e-3
    )


def test_images_that_are_not_uint8_and_settings_that_do_not_exist_are_refused():
    learner, rng = make_ff(), np.random.default_rng(0)
    with pytest.raises(TypeError, match="uint8"):
        learner.predict(random_images(rng, 2) / 255)
    with pytest.raises(TypeError, match="no such setting: learning_rate, n_epoch"):
        ff.training_arguments("one-layer", learning_rate=1.0, n_epoch=2)
    for wrong in (
        {"lr_schedule": "cosine"},
        {"objective": "maximise"},
        {"lr": -0.01},
        {"train_subset": 60_000},
    ):
        flag = f"--{next(iter(wrong)).replace('_', '-')}"
        with pytest.raises(ff.UsageError, match=flag):
            ff.training_arguments(**wrong)
    assert ff.training_arguments(fields="11,5").fields == [11, 5]


def test_a_model_that_lacks_its_whitening_or_has_other_shapes_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    data = (random_images(rng, 8), rng.integers(0, 10, 8).astype(np.uint8)) * 2
    settings = {"n_epochs": 1, "train_subset": 8, "eval_subset": 8, "bp_baseline": True}
    _, arrays = ff.run(ff.training_arguments("best", **settings), data)
    whole, broken = tmp_path / "whole.npz", tmp_path / "broken.npz"
    np.savez(whole, **arrays)
    assert ff.load_model(whole)[0]["BP"].whitening is not None
    for change in ("whitening", None), ("bp_b_out", (1,)), ("ff_layer0_b", (2, 2, 2)):
        name, shape = change
        others = {key: array for key, array in arrays.items() if key != name}
        others |= {} if shape is None else {name: np.zeros(shape, np.float32)}
        np.savez(broken, **others)
        with pytest.raises(ff.RunError, match="broken.npz is no sound model"):
            ff.load_model(broken)


def test_the_activity_with_other_labels_is_not_that_which_was_kept():
    layer, rng = make_ff(label_input="everywhere").layers[0], np.random.default_rng(0)
    layer.V.value[:] = rng.standard_normal(layer.V.value.shape)
    x = ff.Maps(ff.normalised_maps(random_images(rng, 3)))
    one, other = np.zeros((1, 3), int), np.ones((1, 3), int)
    rows = slice(0, 1)
    layer.multiply([x], rows)
    first = layer.activity([x], one, rows).copy()
    second = layer.activity([x], other, rows).copy()
    assert (first != second).any()
    layer.multiply([x], rows)
    np.testing.assert_array_equal(layer.activity([x], other, rows), second)
