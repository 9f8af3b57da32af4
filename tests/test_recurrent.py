"""The recurrent network against the plain one in float64, and central differences."""

import numpy as np
import plain
import pytest
from test_model import Keep, random_images

import ff_cifar_locally_connected as ff

LOSSES = [("halfway", 0.05), (1.0, 1.0), (None, 0.1)]


def make_recurrent(n_layers=2, loss=("halfway", 0.05), **changes):
    threshold, temperature = loss
    if threshold is None:
        changes["negatives"] = "all"
    args = ff.training_arguments(
        network="recurrent",
        n_layers=n_layers,
        threshold=threshold,
        temperature=temperature,
        **changes,
    )
    learner, *_ = ff.make_learners(args)
    rng = np.random.default_rng(3)
    for parameter in (*(layer.b for layer in learner.layers), learner.b_class):
        parameter.value[:] = 0.1 * rng.standard_normal(parameter.value.shape)
    shape = learner.W_class.value.shape
    learner.W_class.value[:] = 0.05 * rng.standard_normal(shape)
    return learner


def plain_recurrent(learner, loss, lr=0.003):
    layers = [
        plain.RecurrentLayer(dtype=np.float64, **layer.get_weights())
        for layer in learner.layers
    ]
    classifier = learner.W_class.value, learner.b_class.value
    rates = lr, ff.CLASSIFIER_LR
    return plain.Recurrent(layers, *classifier, rates, np.float64, learner.sign, *loss)


def negatives_of(learner, images, labels):
    """The wrong labels that the next train_step will choose, (P-1, B)."""
    if learner.negatives == "all":
        return (labels + np.arange(1, 10)[:, None]) % 10
    rng = learner.generators["negatives"]
    before = rng.bit_generator.state
    if learner.negatives == "uniform":
        wrong = ff.wrong_labels(labels, rng)
    else:
        logits = learner.classify(learner.begin(images, 1, 1)[0])[1]
        wrong = ff.sample_wrong_labels(logits, labels, rng)
    rng.bit_generator.state = before
    return wrong[None]


def test_the_network_reads_whitened_images_where_they_are_asked_for():
    images = random_images(np.random.default_rng(0), 3)
    whitened, usual = make_recurrent(whiten=True), make_recurrent()
    whitened.whitening[:] = 0
    whitened.whitening[2, 2] = np.eye(3)  # which leaves the image as it is
    logits = [one.classify(one.begin(images, 1, 1)[0])[1] for one in (whitened, usual)]
    np.testing.assert_allclose(*logits, rtol=1e-5)
    whitened.whitening[2, 3] = np.eye(3)
    changed = whitened.classify(whitened.begin(images, 1, 1)[0])[1]
    assert np.abs(changed - logits[1]).max() > 1e-3


def test_maps_are_as_large_as_the_image_and_parameters_count_what_fields_see():
    for n_layers in (2, 3):
        learner = make_recurrent(n_layers)
        between, image = 933_156, 322 * 322 * 3 * 3
        assert image == between  # also from 3 colours to 3 channels
        units = 32 * 32 * 3
        counts = [layer.n_parameters() for layer in learner.layers]
        inner = 2 * between + units
        assert counts == [inner] * (n_layers - 1) + [between + units + 10 * units]
        for layer in learner.layers:
            weights = layer.get_weights()
            for name in weights.keys() & {"W", "T"}:
                assert weights[name].shape == (32, 32, 363, 3)
                assert np.count_nonzero(weights[name]) == between
                seen = weights[name][0, 0].reshape(11, 11, 3, 3)
                assert not seen[:5].any() and not seen[:, :5].any()
                assert seen[5:, 5:].all()
                # He: the variance is 2 over the inputs that there are.
                inside, cut = weights[name][5:27, 5:27], seen[5:, 5:]
                np.testing.assert_allclose(inside.std(), np.sqrt(2 / 363), rtol=0.01)
                np.testing.assert_allclose(cut.std(), np.sqrt(2 / 108), rtol=0.15)
        label_weights = learner.layers[-1].get_weights()["V"]
        wanted = ff.LABEL_GAIN * np.sqrt(2 / 10)
        np.testing.assert_allclose(label_weights.std(), wanted, rtol=0.02)


@pytest.mark.parametrize("n_layers", [2, 3])
@pytest.mark.parametrize("B", [1, 5])
@pytest.mark.parametrize("objective", ["max", "min"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_learning_agrees_with_the_plain_network(
    n_layers, B, objective, loss, monkeypatch
):
    monkeypatch.setattr(ff, "ITERATIONS", 3)  # as many as maps can tell of each other
    learner = make_recurrent(n_layers, loss, objective=objective)
    oracle = plain_recurrent(learner, loss)
    rng = np.random.default_rng(5)
    images = random_images(rng, B)
    labels = rng.integers(0, 10, B).astype(np.uint8)
    wrong = negatives_of(learner, images, labels)
    keep = learner.adam = Keep()
    for layers in oracle.adams:
        for adam in layers:
            adam.step = lambda value, gradient, adam=adam: vars(adam).update(g=gradient)
    found = learner.train_step(images, labels)
    wanted = oracle.train_step(images, labels, wrong, ff.ITERATIONS)
    found = [found[name] for name in ("loss_per_layer", "g_pos", "g_neg")]
    np.testing.assert_allclose(np.transpose(found), wanted, rtol=1e-4)
    for layer, adams in zip(learner.layers, oracle.adams, strict=True):
        gradients = dict(zip(layer.get_weights(), keep.of(layer), strict=True))
        order = [name for name in "WTbV" if name in gradients]
        for name, adam in zip(order, adams, strict=True):
            gradient = gradients[name].reshape(adam.g.shape)
            largest = np.abs(adam.g).max()
            np.testing.assert_allclose(gradient, adam.g, atol=1e-4 * largest)


@pytest.mark.parametrize("n_layers", [2, 3])
@pytest.mark.parametrize("objective", ["max", "min"])
def test_a_whole_prediction_agrees_with_the_plain_network(n_layers, objective):
    loss = "halfway", 0.05
    learner = make_recurrent(n_layers, objective=objective)
    rng = np.random.default_rng(6)
    images = random_images(rng, 5)
    labels = rng.integers(0, 10, 5).astype(np.uint8)
    for _ in range(3):
        learner.train_step(images, labels)
    oracle = plain_recurrent(learner, loss)
    found = learner.goodness_by_iteration(images, 10)
    wanted = oracle.goodness_by_iteration(images, 10)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_array_equal(learner.predict(images), oracle.predict(images))
    one_pass = learner.predict_one_pass(images)
    np.testing.assert_array_equal(one_pass, oracle.predict_one_pass(images))
    scores = learner.label_scores(images)
    sign = 1 if objective == "max" else -1
    window = wanted[3:6].mean(axis=0).sum(axis=0)
    np.testing.assert_allclose(scores, sign * window, rtol=1e-4)


@pytest.mark.parametrize("objective", ["max", "min"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_central_differences_with_all_inputs_held(
    objective, loss, monkeypatch
):
    n = 2
    monkeypatch.setattr(ff, "ITERATIONS", n)
    learner = make_recurrent(2, loss, objective=objective)
    oracle = plain_recurrent(learner, loss)
    rng = np.random.default_rng(7)
    images, B = random_images(rng, 4), 4
    labels = rng.integers(0, 10, B).astype(np.uint8)
    passes = [labels, *negatives_of(learner, images, labels)]
    runs = [oracle.iterate(images, one, n) for one in passes]
    keep = learner.adam = Keep()
    learner.train_step(images, labels)
    for i, (layer, truth) in enumerate(zip(learner.layers, oracle.layers, strict=True)):

        def loss_now(i=i, truth=truth):
            total = 0
            for t in range(n):
                g = []
                for record, label in runs:
                    old, _, _, below, above = record[t][i]
                    u = truth.pre_activation(below, above, label)
                    y = 0.3 * old + 0.7 * np.maximum(u, 0)
                    g.append(oracle.sign * plain.goodness(y))
                total += plain.ff_loss(g, *oracle.loss_settings) / n
            return total

        gradients = dict(zip(layer.get_weights(), keep.of(layer), strict=True))
        order = [name for name in "WTbV" if name in gradients]
        for name, p in zip(order, truth.parameters(), strict=True):
            direction = rng.standard_normal(p.shape)
            e = 1e-7  # so small that hardly a unit crosses zero
            p += e * direction
            above = loss_now()
            p -= 2 * e * direction
            change = above - loss_now()
            p += e * direction
            slope = (gradients[name].reshape(p.shape) * direction).sum()
            np.testing.assert_allclose(change / (2 * e), slope, rtol=1e-3, atol=1e-7)


def test_the_classifier_learns_from_the_bottom_up_pass_at_its_own_rate():
    loss = "halfway", 0.05
    learner = make_recurrent()
    oracle = plain_recurrent(learner, loss)
    rng = np.random.default_rng(8)
    images = random_images(rng, 6)
    labels = rng.integers(0, 10, 6).astype(np.uint8)
    wrong = negatives_of(learner, images, labels)
    learner.train_step(images, labels)
    oracle.train_step(images, labels, wrong, 1)
    # Adam's first step has the size of the rate wherever there is a gradient.
    for ours, theirs in (
        (learner.W_class.value, oracle.W_class),
        (learner.b_class.value, oracle.b_class),
    ):
        error = np.abs(ours - theirs)
        assert error.mean() < 1e-7
        assert error.max() < ff.CLASSIFIER_LR


def test_negatives_follow_the_classifiers_probabilities():
    learner = make_recurrent()
    rng = np.random.default_rng(9)
    logits = learner.classify(learner.begin(random_images(rng, 1), 1, 1)[0])[1]
    labels = np.full(6000, 4, np.uint8)
    wrong = ff.sample_wrong_labels(np.repeat(logits, 6000, axis=1), labels, rng)
    counts = np.bincount(wrong, minlength=10)
    expected = np.exp(logits[:, 0] - logits[:, 0].max())
    expected[4] = 0
    expected *= 6000 / expected.sum()
    assert counts[4] == 0
    chi_squared = ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    assert chi_squared < 35  # 8 degrees of freedom: p = 3e-5
