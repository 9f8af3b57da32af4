"""The recurrent network against the plain one in float64, and central differences."""

import numpy as np
import plain
import pytest
import test_model as model

import ff_cifar_locally_connected as ff

LOSSES = [
    {"negatives": "sampled"},
    {"negatives": "uniform", "loss": "threshold", "threshold": 1, "temperature": 1},
    {"negatives": "all"},
]


def make_recurrent(**changes):
    learner, rng = model.make_ff("recurrent", **changes), np.random.default_rng(3)
    model.randomise(learner.layers, rng)
    for parameter in learner.readout.values():
        parameter.value[:] = 0.05 * rng.standard_normal(parameter.value.shape)
    return learner


def test_maps_are_as_large_as_the_image_and_parameters_count_what_fields_see():
    learner = model.make_ff("recurrent", n_layers=3)
    between, units = 322 * 322 * 3 * 3, 32 * 32 * 3  # also from 3 colours
    for layer, top in zip(learner.layers, (False, False, True), strict=True):
        count = sum(np.isfinite(one.v).sum() for one in layer.parameters())
        assert count == (between + 11 * units if top else 2 * between + units)
        weights = plain.weight_maps(layer)
        for name in "W" if top else "WT":
            assert weights[name].shape == (32, 32, 363, 3)
            assert np.count_nonzero(weights[name]) == between
            seen = weights[name][0, 0].reshape(11, 11, 3, 3)
            assert not seen[:5].any() and not seen[:, :5].any()
            assert seen[5:, 5:].all()
            # He: the variance is 2 over the inputs that there are.
            inside, cut = weights[name][5:27, 5:27], seen[5:, 5:]
            np.testing.assert_allclose(inside.std(), np.sqrt(2 / 363), rtol=0.01)
            np.testing.assert_allclose(cut.std(), np.sqrt(2 / 108), rtol=0.15)
    wanted = ff.LABEL_GAIN * np.sqrt(2 / 10)
    np.testing.assert_allclose(weights["V"].std(), wanted, rtol=0.02)


@pytest.fixture
def small(monkeypatch):
    """Small fields, and as many iterations as maps take to tell of each other."""
    monkeypatch.setattr(ff, "RECURRENT_FIELD", 5)
    monkeypatch.setattr(ff, "ITERATIONS", 3)
    monkeypatch.setattr(plain.Recurrent, "iterations", 3)


@pytest.mark.parametrize("n_layers, objective", [(2, "min"), (3, "max")])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_learning_agrees_with_the_plain_network(
    n_layers, objective, loss, small, monkeypatch
):
    learner = make_recurrent(n_layers=n_layers, objective=objective, **loss)
    rng = np.random.default_rng(5)
    learner.whitening = rng.standard_normal((5, 5, 3, 3), np.float32) / 8
    oracle = plain.twin(learner, 0.003)
    step = learner, oracle, 3, rng, monkeypatch
    _, own, noted = model.assert_a_step_agrees(*step, kinks=1e-3)
    if learner.negatives == "sampled":
        _, logits = oracle.classify(own[0])
        np.testing.assert_allclose(noted["logits"], logits.T, atol=1e-4)


@pytest.mark.parametrize("n_layers, objective, field", [(2, "max", 11), (3, "min", 5)])
def test_training_and_predictions_agree_with_the_plain_network(
    n_layers, objective, field, monkeypatch
):
    monkeypatch.setattr(ff, "RECURRENT_FIELD", field)
    learner = make_recurrent(n_layers=n_layers, objective=objective)
    oracle, noted = plain.twin(learner, 0.003), model.note_passes(learner)
    rng = np.random.default_rng(6)
    batch, images = model.random_batch(rng, 3), model.random_images(rng, 3)
    returned = learner.train_step(*batch)
    model.assert_statistics_agree(returned, oracle, *batch, noted)
    model.assert_weights_agree(learner, oracle)
    oracle = plain.twin(learner, 0.003)
    found, labels = learner.goodness_by_iteration(images, 6), np.arange(10)[:, None]
    wanted = [oracle.goodness_by_iteration(images, y.repeat(3), 6) for y in labels]
    np.testing.assert_allclose(found, np.stack(wanted, axis=2), rtol=1e-4)
    scores = oracle.scores(images)
    np.testing.assert_allclose(learner.label_scores(images), scores, rtol=1e-4)
    np.testing.assert_array_equal(learner.predict(images), scores.argmax(axis=0))
    one_pass = oracle.classify(images)[1].argmax(axis=1)
    np.testing.assert_array_equal(learner.predict_one_pass(images), one_pass)


@pytest.mark.parametrize(
    "what, objective, loss",
    [
        ("nothing", "max", LOSSES[0]),
        ("nothing", "min", LOSSES[2]),
        ("tanh", "min", LOSSES[1]),
        ("mean(h^4)", "max", LOSSES[1]),
    ],
)
def test_gradients_agree_with_central_differences_with_all_inputs_held(
    what, objective, loss, small, monkeypatch
):
    model.change(monkeypatch, what)
    learner = make_recurrent(objective=objective, **loss)
    oracle, noted = plain.twin(learner, 0.003), model.note_passes(learner)
    images, labels = model.random_batch(np.random.default_rng(7), 4)
    _, found = model.gradients_of(learner, images, labels)
    passes, _ = model.true_first(noted["labels"], labels)
    runs = [oracle.iterate(images, one, ff.ITERATIONS) for one in passes]
    for i, layer in enumerate(oracle.layers):

        def loss_now(i=i, layer=layer):
            losses = []
            for t in range(ff.ITERATIONS):
                rows = [run[t][i] for run in runs]
                y = (0.3 * old + 0.7 * layer.forward(*x) for old, _, _, x in rows)
                g = np.array([plain.goodness(one) for one in y])
                losses.append(oracle.loss(oracle.sign * g)[0])
            return np.mean(losses)

        rng, e = np.random.default_rng(8), 1e-7  # so small that hardly a unit crosses 0
        model.assert_differences_agree(found[i], layer.weights, loss_now, rng, e)
