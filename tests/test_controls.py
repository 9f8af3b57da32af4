"""The controls: what they learn and what they measure, against plain numpy."""

import sys

import controls
import numpy as np
import plain
import pytest
import small
from PIL import Image

import ff_cifar_locally_connected as ff

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, *ff.IMAGE_SHAPE), np.uint8)
LABELS = np.arange(6, dtype=np.uint8)
ARGS = ff.training_arguments(fields=[23, 5], channels=2, bp_baseline=True, lr=0.001)


def test_the_command_prints_the_mean_of_its_seeds_and_draws_its_figure(
    monkeypatch, capsys, tmp_path
):
    data, path = small.make_arrays(40, 30), tmp_path / "share.png"
    monkeypatch.setattr(ff, "load_data", lambda args: data)
    settings, found = {"lr_schedule": "linear", "bp_lr": 0.003}, []
    for seed, seeds in enumerate((1, 2)):
        args = ff.training_arguments(**settings, seed=seed)
        learner = controls.SoftmaxRegression(args)
        ff.train(learner, data, args)
        found.append(100 * ff.accuracy(learner, *data[2:]))
        monkeypatch.setattr(sys, "argv", ["", "pixels", "--seeds", str(seeds)])
        controls.main()
        sd = f" ± {np.std(found, ddof=1):.2f}" if seeds > 1 else ""
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"pixels: {np.mean(found):.2f}{sd} % (n = {seeds})"
    monkeypatch.setattr(sys, "argv", ["", "--seeds", "1", "--plot", str(path)])
    controls.main()
    assert capsys.readouterr().out.endswith(f"wrote {path}\n")
    with Image.open(path) as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(10**6)) > 100


def test_softmax_regression_learns_from_the_pixels_by_its_cross_entropy():
    learner = controls.SoftmaxRegression(ARGS)
    loss = learner.train_step(IMAGES, LABELS)["loss"]
    x = plain.normalise(IMAGES, float).reshape(6, -1)
    gradient = x.T @ (0.1 - np.eye(10)[LABELS]) / 6  # all ten are as likely at first
    steps = -0.001 * gradient / (np.abs(gradient) + 1e-8)  # Adam's first
    np.testing.assert_allclose(learner.readout["W_out"].value, steps, rtol=1e-3)
    assert loss == pytest.approx(np.log(10))


def test_of_a_random_stack_the_readout_alone_learns():
    learner = controls.RandomStack(ARGS)
    before = learner.weights()
    learner.train_step(IMAGES, LABELS)
    learns = {n for n, w in learner.weights().items() if (w != before[n]).any()}
    assert learns == {"bp_W_out", "bp_b_out"}


def test_the_units_that_see_the_label_are_those_of_30_positions():
    learner = controls.SeeingUnits(ARGS)
    layer = plain.twin(learner, 0.001, float).layers[0]
    x = plain.with_labels(plain.normalise(IMAGES, float), LABELS)
    energy = layer.forward(plain.im2col(x, 23)).reshape(10, 10, 6, 2) ** 2
    share = energy[:3].sum() / energy.sum()
    assert controls.label_share(learner, IMAGES, LABELS) == pytest.approx(share, 1e-5)

    W, losses = learner.weights()["ff_layer0_W"], []
    for step in range(3):
        found = learner.train_step(IMAGES, LABELS)
        losses.append(found["loss_per_layer"][0])
        if step == 0:
            assert found["g_pos"][0] == pytest.approx(energy[:3].mean(), 1e-5)
    changed = (W != learner.weights()["ff_layer0_W"]).any(axis=(2, 3))
    assert changed[:3].all() and not changed[3:].any()
    assert losses == sorted(losses)[::-1]
