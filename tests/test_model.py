"""The fast model against the plain one in float64, and against central differences."""

import re
from collections import Counter

import numpy as np
import plain
import pytest

import ff_cifar_locally_connected as ff


def change(monkeypatch, what):
    """Make a user's change in the module, and the same in the plain model."""
    put = monkeypatch.setattr
    if what == "tanh":
        put(ff, "activation", lambda u: np.tanh(u, out=u))
        put(ff, "activation_slope", lambda h: 1 - h**2)
        put(plain, "activation", np.tanh)
    if what == "mean(h^4)":

        def gradient(h, dg):
            assert np.shape(dg) in ((), h.shape[3:])
            return 4 * h**3 * np.float32(dg)

        put(ff, "goodness", lambda h: (h**4).sum(axis=(0, 1, 2)))
        put(ff, "goodness_gradient", gradient)
        put(plain, "goodness", lambda h: (h**4).mean(axis=(0, 2)))


class Reveal:
    """Stands where Adam does: leaves the gradient where the weight was."""

    def begin_step(self):
        pass

    def update(self, parameter, gradient, part=...):
        learned = np.isfinite(parameter.v[part])
        parameter.value[part] = np.where(learned, gradient, 0)


def weights_of(learner):
    """As a plain learner has them: by name, for each layer and for a readout."""
    weights = [plain.weight_maps(layer) for layer in learner.layers]
    readout = {name[0]: part.value.copy() for name, part in learner.readout.items()}
    return [*weights, readout] if readout else weights


def gradients_of(learner, images, labels):
    """What a training step returns, and its gradients as weights_of() has weights."""
    before, learner.adam = learner.weights(), Reveal()
    returned = learner.train_step(images, labels)
    gradients = weights_of(learner)
    learner.set_weights(before)
    return returned, gradients


def assert_gradients_agree(found, wanted, kinks=0.0):
    """kinks: the share that may be further off, as a unit that is rounded across zero
    changes its gradient by a jump (in FF alone it does not: the gradient is zero, too)"""
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            error = np.abs(ours[name].reshape(gradient.shape) - gradient)
            error /= np.abs(gradient).max()
            assert np.mean(error > 1e-4) <= kinks, name
            assert error.max() < 1e-2, name


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


def random_images(rng, *shape):
    return rng.integers(0, 256, (*shape, 32, 32, 3), dtype=np.uint8)


def random_batch(rng, B):
    return random_images(rng, B), rng.integers(0, 10, B).astype(np.uint8)


def randomise(layers, rng):
    """Biases and label weights, which begin at zero, where all passes are equal."""
    for layer in layers:
        for parameter in (layer.b, layer.V):
            if parameter:
                parameter.value[:] = 0.1 * rng.standard_normal(parameter.value.shape)


def make_learners(recipe="headline", **changes):
    """FF and BP as the command line makes them."""
    return ff.make_learners(ff.training_arguments(recipe, bp_baseline=True, **changes))


def make_ff(*recipe, **changes):
    return make_learners(*recipe, **changes)[0]


# ------------------------------------------------------------------ the layer


def test_the_plain_layer_agrees_with_loops_over_single_numbers():
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((5, 5, 18, 2)), rng.standard_normal((5, 5, 2))
    layer, x = plain.Layer(3, float, W=W, b=b), rng.standard_normal((2, 7, 7, 2))
    h = layer.maps(layer.forward(*layer.inputs(x, None)))
    for n, i, j, c in np.ndindex(*h.shape):
        total = b[i, j, c]
        for k, value in enumerate(x[n, i : i + 3, j : j + 3].ravel()):
            total += value * W[i, j, k, c]
        np.testing.assert_allclose(h[n, i, j, c], max(total, 0), rtol=1e-12)


def test_he_normal_weights_zero_biases_and_parameter_counts():
    learner = make_ff(n_layers=3)
    sides, counts = (22, 18, 14), (1_409_408, 520_992, 14 * 14 * 8 * (5 * 5 * 8 + 1))
    for layer, side, count in zip(learner.layers, sides, counts, strict=True):
        assert layer.shape == (side, side, 8)
        W, b = plain.weight_maps(layer).values()
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


def test_whitening_filter_and_what_it_makes_agree_with_float64(monkeypatch):
    # Neighbours and colours that are correlated, as in photographs.
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((200, 34, 34, 3))
    x = noise[:, :-2, :-2] + noise[:, 1:-1, 2:] + noise[:, 2:, 1:-1]
    x += x[..., :1]
    images = np.uint8(np.clip(120 + 25 * x, 0, 255))
    monkeypatch.setattr(ff, "WHITENING_IMAGES", 150)  # of them alone
    kernel = ff.whitening_filter(images)
    np.testing.assert_allclose(kernel, plain.whitening_filter(images[:150]), atol=1e-4)
    wanted = plain.whitened(images[:5], kernel, np.float64)
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


@pytest.mark.parametrize("sampled", [0, 1])
def test_wrong_labels_are_never_true_and_uniform_or_follow_the_softmax(sampled):
    rng = np.random.default_rng(1)
    labels = np.tile(np.arange(10, dtype=np.uint8), 10_000)
    logits = sampled * rng.standard_normal((10, 10))  # (label, image)
    wrong = ff.wrong_labels(labels, rng, *[np.tile(logits, 10_000)] * sampled)
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


def assert_statistics_agree(returned, oracle, images, labels, noted, own=None):
    """Those of a training step, by the same step of the oracle; own: see true_first()."""
    passes, own = true_first(noted["labels"], labels, own)
    wanted = oracle.train_step(images if own is None else own, labels, passes[1:])
    found = [returned[name] for name in ("loss_per_layer", "g_pos", "g_neg")]
    np.testing.assert_allclose(np.transpose(found), wanted, rtol=2e-4)


def assert_weights_agree(learner, oracle):
    """After training, through which weights outside the fields stay zero."""
    for W in (part.W for layer in learner.layers for part in layer.connections):
        assert not W.value[np.isinf(W.v)].any()
    for arrays, adam in zip(weights_of(learner), oracle.adams, strict=True):
        for name, w in adam.weights.items():
            # Adam's first steps have the size of the learning rate whatever the
            # gradient: where that is tiny, rounding decides. Most agree far better.
            error = np.abs(arrays[name].reshape(w.shape) - w)
            assert error.max() < 2e-3, name
            assert error.mean() < 5e-6, name


def assert_a_step_agrees(learner, oracle, B, rng, monkeypatch, kinks=0.0):
    """All of one step but Adam, with images that the passes share, and with their own.

    Returns the images, the passes' own ones, and what note_passes() noted.
    """
    wanted, noted = [{} for _ in oracle.adams], note_passes(learner)
    for adam, kept in zip(oracle.adams, wanted, strict=True):
        adam.step = kept.update  # the gradients, where Adam would have used them
    (images, labels), P = random_batch(rng, B), 10 if learner.negatives == "all" else 2
    all_own = random_images(rng, P, B)
    returned, found = gradients_of(learner, images, labels)
    assert_statistics_agree(returned, oracle, images, labels, noted)
    assert_gradients_agree(found, wanted, kinks)
    monkeypatch.setattr(ff, "pass_images", lambda *_: all_own)
    returned, found = gradients_of(learner, images, labels)
    assert_statistics_agree(returned, oracle, images, labels, noted, all_own)
    layers = len(learner.layers)  # a readout sees the images of one pass
    assert_gradients_agree(found[:layers], wanted[:layers], kinks)
    return images, all_own, noted


def stack(*fields, channels=8):
    return {"n_layers": len(fields), "fields": fields, "channels": channels}


STACKS = [  # and images
    (stack(11), 7),
    (stack(11, 5, 5), 7),
    (stack(6, 4, 3, channels=3), 5),  # odd maps
    (stack(4, 9, 1, 6, channels=5), 1),
    (stack(30, 2), 3),  # maps with as many rows as see the label, or fewer
]
CASES = [(loss, 7) for loss in LOSSES]
CASES += [(flags | loss, B) for flags, B in STACKS for loss in (LOSSES[2], LOSSES[4])]


@pytest.mark.parametrize("flags, B", CASES)
@pytest.mark.parametrize("label_input", ["corner", "everywhere"])
def test_a_step_of_learning_agrees_with_the_plain_model(
    flags, B, label_input, monkeypatch
):
    learner, rng = make_ff(label_input=label_input, **flags), np.random.default_rng(5)
    randomise(learner.layers, rng)
    oracle = plain.twin(learner, 1e-3)
    images, _, noted = assert_a_step_agrees(learner, oracle, B, rng, monkeypatch)
    if learner.negatives == "sampled":
        logits = oracle.scores(images) / float(learner.temperature)
        np.testing.assert_allclose(noted["logits"], logits, rtol=1e-4)


@pytest.mark.parametrize("flags, B", [*STACKS, ({"recipe": "recurrent"}, 5)])
def test_a_step_of_backprop_agrees_with_the_plain_model(flags, B):
    learner, rng = make_learners(**flags)[1], np.random.default_rng(5)
    randomise(learner.layers, rng)
    batch = random_batch(rng, B)
    returned, found = gradients_of(learner, *batch)
    loss, wanted = plain.twin(learner, 1e-3).gradients(*batch)
    np.testing.assert_allclose(returned["loss"], loss, rtol=1e-5)
    assert_gradients_agree(found, wanted, kinks=1e-3)


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
    flags = {"lr": 1e-3, "lr_schedule": "constant", "columns": 1, **flags}
    (learner, bp), rng = make_learners(recipe, **flags), np.random.default_rng(7)
    if recipe == "best":
        learner.whitening = rng.standard_normal((5, 5, 3, 3), np.float32) / 8
        bp.whitening = learner.whitening
    randomise(learner.layers, rng)
    oracle, bp_oracle = plain.twin(learner, 1e-3), plain.twin(bp, 1e-3)
    rates = flags.get("layer_rates", [1, 0.2]) if recipe == "best" else []
    for adam, rate in zip(oracle.adams, rates):
        adam.learning_rate *= rate
    noted = note_passes(learner)
    for B in 7, 7, 4:  # in the same memory, and in other
        batch = random_batch(rng, B)
        returned = learner.train_step(*batch)
        assert_statistics_agree(returned, oracle, *batch, noted)
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


CORNER, EVERYWHERE = ({"label_input": place} for place in ("corner", "everywhere"))
CASES = [("nothing", place | loss) for place in (CORNER, EVERYWHERE) for loss in LOSSES]
for what in "tanh", "mean(h^4)":
    CASES += [(what, CORNER | LOSSES[2]), (what, EVERYWHERE | LOSSES[4])]


@pytest.mark.parametrize("what, flags", CASES)
def test_ff_gradients_agree_with_central_differences(what, flags, monkeypatch):
    change(monkeypatch, what)
    learner, rng = make_ff(**flags), np.random.default_rng(6)
    randomise(learner.layers, rng)
    oracle, noted = plain.twin(learner, 1e-3), note_passes(learner)
    images, labels = random_batch(rng, 6)
    _, found = gradients_of(learner, images, labels)
    passes, _ = true_first(noted["labels"], labels)
    x = [oracle.labelled(images, y) for y in passes]
    for gradients, layer in zip(found, oracle.layers, strict=True):
        inputs = [layer.inputs(*pair) for pair in zip(x, passes)]  # constants

        def loss_now():
            g = [plain.goodness(layer.forward(*one)) for one in inputs]  # noqa: B023
            return oracle.loss(np.array(g))[0]

        assert_differences_agree(gradients, layer.weights, loss_now, rng, 1e-6)
        x = [layer.passed_up(layer.forward(*one), *one) for one in inputs]


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
        stacks.append(weights_of(learner))
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
        is_frozen = any(f"layer{i}" in name for i in (frozen, frozen + 2))  # columns
        assert np.array_equal(w, before[name]) == is_frozen, name


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
        return learner.weights()["ff_layer1_W"]

    usual = layer_1_after_a_step()
    where = ff.ForwardForward if hasattr(ff.ForwardForward, place) else ff
    monkeypatch.setattr(where, place, PLACES[place])
    # The recurrent network's maps go up and down, as move() makes them.
    no_part = (recipe, place) == ("recurrent", "passed_up")
    assert np.array_equal(layer_1_after_a_step(), usual) == no_part


# ------------------------------------------------------------------------- BP


@pytest.mark.parametrize("what, n_layers", [("nothing", 2), ("tanh", 1), ("tanh", 3)])
def test_bp_gradients_agree_with_central_differences(what, n_layers, monkeypatch):
    change(monkeypatch, what)
    learner, rng = make_learners(n_layers=n_layers)[1], np.random.default_rng(1)
    randomise(learner.layers, rng)
    oracle, (images, labels) = plain.twin(learner, 1e-3), random_batch(rng, 6)

    def loss_now():
        return plain.cross_entropy(oracle.forward(images)[2], labels)[0]

    returned, found = gradients_of(learner, images, labels)
    np.testing.assert_allclose(returned["loss"], loss_now(), rtol=1e-5)
    for gradients, adam in zip(found, oracle.adams, strict=True):
        e = 1e-8  # so small that hardly a unit crosses zero
        assert_differences_agree(gradients, adam.weights, loss_now, rng, e)


# -------------------------------------------------------------------- columns


def alone(learner, column, recipe, **flags):
    """A learner of one column, with the weights of this one of another learner's two."""
    one = make_learners(recipe, columns=1, **flags)[learner.name == "BP"]
    L, weights, of, first = one.n_layers, one.weights(), learner.weights(), column == 0
    for name in weights:
        at = re.sub(r"\d", lambda i: str(int(i[0]) + L * column), name)
        weights[name] = np.split(of[at], 2)[column] if "W_out" in name else of[at]
        weights[name] = weights[name] * (first or "b_out" not in name)
    one.set_weights(weights | {"whitening": learner.whitening})
    return one


@pytest.mark.parametrize("recipe", ["headline", "one-layer", "best"])
def test_columns_of_ff_are_nets_of_their_own_whose_scores_are_averaged(recipe):
    flags = {"recipe": recipe, "lr_schedule": "constant"}
    learner, rng = make_ff(columns=2, **flags), np.random.default_rng(12)
    learner.whitening = rng.standard_normal((5, 5, 3, 3), np.float32) / 8
    pair = [alone(learner, column, **flags) for column in range(2)]
    batch, images = random_batch(rng, 5), random_images(rng, 6)
    for _ in range(3):
        returned, *parts = (one.train_step(*batch) for one in (learner, *pair))
    for name, value in returned.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        np.testing.assert_allclose(value, mean, rtol=1e-6)
    for column, one in enumerate(pair):
        np.testing.assert_equal(
            alone(learner, column, **flags).weights(), one.weights()
        )
    first, second = (one.label_scores(images) for one in pair)
    wanted = (first + second) / 2
    np.testing.assert_allclose(learner.label_scores(images), wanted, rtol=1e-6)
    assert np.abs(first - second).max() > 0.01 * wanted.max()


def test_columns_of_bp_learn_under_one_readout():
    learner, rng = make_learners(columns=2)[1], np.random.default_rng(13)
    randomise(learner.layers, rng)
    pair = [plain.twin(alone(learner, column, "headline"), 1e-3) for column in (0, 1)]
    images, labels = random_batch(rng, 6)

    def logits_now():
        return pair[0].forward(images)[2] + pair[1].forward(images)[2]

    def loss_now():
        return plain.cross_entropy(logits_now(), labels)[0]

    assert np.array_equal(learner.predict(images), logits_now().argmax(axis=1))
    returned, (*layers, readout) = gradients_of(learner, images, labels)
    np.testing.assert_allclose(returned["loss"], loss_now(), rtol=1e-5)
    for column, oracle in enumerate(pair):
        mine = {"W": np.split(readout["W"], 2)[column], "b": readout["b"]}
        gradients = [*layers[2 * column :][:2], mine]
        for found, adam in zip(gradients, oracle.adams, strict=True):
            assert_differences_agree(found, adam.weights, loss_now, rng, 1e-8)


# ----------------------------------------------------------------------- Adam


def test_adam_agrees_with_its_algorithm_as_printed():
    rng = np.random.default_rng(0)
    shape = 6, 7
    parameter = ff.Parameter(rng.standard_normal(shape, np.float32))
    value = parameter.value.astype(float)
    adam, oracle = ff.Adam(0.01), plain.Adam({"value": value}, 0.01)
    for step in range(300):
        gradient = rng.standard_normal(shape, np.float32) * 10.0 ** (step % 5 - 4)
        oracle.step({"value": gradient.astype(float)})
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


def test_a_training_that_goes_on_or_starts_again_follows_the_schedule_of_now():
    data = random_batch(np.random.default_rng(0), 40) * 2
    settings = {"n_layers": 1, "lr_schedule": "linear", "eval_subset": 8}
    settings |= {"n_epochs": 2, "batch_size": 8, "train_subset": 50_000}  # 40 there are
    args = ff.training_arguments(**settings)
    learner = ff.make_learners(args)[0]
    rates, losses, train_step = [], [], learner.train_step

    def noting(*batch):
        returned = train_step(*batch)
        rates.append(learner.adam.shrink)
        losses.append(returned["loss_per_layer"])
        return returned

    learner.train_step = noting
    learner.adam.weight_decay = 1.0  # shrink is 1 - learning rate
    ff.train(learner, data, args)
    for row, wanted in zip(learner.history, np.reshape(losses, (2, 5)), strict=True):
        np.testing.assert_allclose(row["loss_per_layer"], [wanted.mean()])
    args.n_epochs, args.batch_size = 5, 20
    learner.adam.steps += 3  # of an epoch that was interrupted
    ff.train(learner, data, args)
    steps = np.array([*range(10), *range(4, 10)])
    expected = 0.01 * (1 - steps / 10)
    np.testing.assert_allclose(1 - np.array(rates), expected, rtol=1e-3)


def test_images_that_are_not_uint8_and_settings_that_do_not_exist_are_refused():
    images = random_images(np.random.default_rng(0), 2)
    with pytest.raises(TypeError, match="uint8"):
        make_ff().predict(images / 255)
    with pytest.raises(TypeError, match="no such setting: learning_rate, n_epoch"):
        ff.training_arguments("one-layer", learning_rate=1.0, n_epoch=2)
    for name, value in ("lr_schedule", "cosine"), ("train_subset", 60_000):
        with pytest.raises(ff.UsageError, match=f"--{name.replace('_', '-')}"):
            ff.training_arguments(**{name: value})
    assert ff.training_arguments(fields="11,5").fields == [11, 5]


def test_probabilities_too_small_to_matter_leave_no_denormal_derivative():
    scores = np.float32([[50, 50, 0], [0, 0, 0], [-40, 24, 0]])
    loss, derivative = ff.cross_entropy(scores, np.array([0, 1, 1]))
    p = 1 / 3, np.exp(-26.0)
    wanted = [[0, 1, p[0]], [0, -1, p[0] - 1], [0, p[1], p[0]]]
    np.testing.assert_allclose(derivative, np.divide(wanted, 3), rtol=1e-6)
    assert loss == pytest.approx((50 + np.log(3)) / 3)
