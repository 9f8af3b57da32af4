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


def plain_recurrent(learner):
    oracle = plain.twin(learner, 0.003)
    oracle.iterations = ff.ITERATIONS
    return oracle


def test_maps_are_as_large_as_the_image_and_parameters_count_what_fields_see():
    learner = model.make_ff("recurrent", n_layers=3)
    between, units = 322 * 322 * 3 * 3, 32 * 32 * 3  # also from 3 colours
    for layer, top in zip(learner.layers, (False, False, True), strict=True):
        count = sum(np.isfinite(one.v).sum() for one in layer.parameters())
        assert count == (between + 11 * units if top else 2 * between + units)
        weights = layer.get_weights()
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


@pytest.mark.parametrize("n_layers, objective", [(2, "min"), (3, "max")])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_learning_agrees_with_the_plain_network(
    n_layers, objective, loss, monkeypatch
):
    monkeypatch.setattr(ff, "ITERATIONS", 3)  # as many as maps can tell of each other
    learner = make_recurrent(n_layers=n_layers, objective=objective, **loss)
    rng = np.random.default_rng(5)
    learner.whitening = rng.standard_normal((5, 5, 3, 3), np.float32) / 8
    oracle = plain_recurrent(learner)
    _, own, noted = model.assert_a_step_agrees(learner, oracle, 3, rng, monkeypatch)
    if learner.negatives == "sampled":
        _, logits = oracle.classify(own[0])
        np.testing.assert_allclose(noted["logits"], logits.T, atol=1e-4)


@pytest.mark.parametrize("n_layers, objective", [(2, "max"), (3, "min")])
def test_training_and_predictions_agree_with_the_plain_network(n_layers, objective):
    learner = make_recurrent(n_layers=n_layers, objective=objective)
    oracle, noted = plain_recurrent(learner), model.note_passes(learner)
    rng = np.random.default_rng(6)
    batch, images = model.random_batch(rng, 3), model.random_images(rng, 3)
    model.assert_steps_agree(learner, oracle, batch, noted)
    model.assert_weights_agree(learner, oracle)
    oracle = plain_recurrent(learner)
    found = learner.goodness_by_iteration(images, 6)
    wanted = oracle.goodness_by_iteration(images, 6)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    scores = oracle.scores(images)
    np.testing.assert_allclose(learner.label_scores(images), scores, rtol=1e-4)
    np.testing.assert_array_equal(learner.predict(images), scores.argmax(axis=0))
    one_pass = oracle.classify(images)[1].argmax(axis=1)
    np.testing.assert_array_equal(learner.predict_one_pass(images), one_pass)


@pytest.mark.parametrize("P", [2, 3])
def test_passes_may_have_images_of_their_own(P):
    learner, rng = make_recurrent(), np.random.default_rng(9)
    oracle, own = plain_recurrent(learner), model.random_images(rng, P, 4)

    def goodness(images, labels):
        state, image = learner.begin(images, P, 2)
        return np.stack([*learner.iterate(state, image, labels, 3)])

    labels = rng.integers(0, 10, (P, 4))
    found = goodness(own, labels)
    for p in range(P):
        record = oracle.iterate(own[p], labels[p], 3)
        wanted = [[plain.goodness(y) for _, _, y, *_ in row] for row in record]
        np.testing.assert_allclose(found[:, :, p], wanted, rtol=1e-4)
    own[:] = own[0]
    shared = goodness(own[0], labels)
    np.testing.assert_allclose(goodness(own, labels), shared, rtol=1e-5)


@pytest.mark.parametrize(
    "what, objective",
    [("nothing", "max"), ("nothing", "min"), ("tanh", "min"), ("mean(h^4)", "max")],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_central_differences_with_all_inputs_held(
    what, objective, loss, monkeypatch
):
    model.change(monkeypatch, what)
    n = 2
    monkeypatch.setattr(ff, "ITERATIONS", n)
    learner = make_recurrent(objective=objective, **loss)
    oracle, noted = plain_recurrent(learner), model.note_passes(learner)
    rng = np.random.default_rng(7)
    images, labels = model.random_batch(rng, 4)
    keep = learner.adam = model.Keep()
    learner.train_step(images, labels)
    passes, _ = model.true_first(noted["labels"], labels)
    runs = [oracle.iterate(images, one, n) for one in passes]
    for i, (layer, truth) in enumerate(zip(learner.layers, oracle.layers, strict=True)):

        def loss_now(i=i, truth=truth):
            losses = []
            for t in range(n):
                rows = [record[t][i] for record in runs]
                y = (0.3 * old + 0.7 * truth.forward(*x) for old, _, _, *x in rows)
                g = np.array([plain.goodness(one) for one in y])
                losses.append(oracle.loss(oracle.sign * g)[0])
            return np.mean(losses)

        e = 1e-7  # so small that hardly a unit crosses zero
        gradients = keep.of(layer)
        model.assert_differences_agree(gradients, truth.weights, loss_now, rng, e)
