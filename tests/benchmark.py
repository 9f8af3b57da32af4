# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "pillow>=10.1"]
# ///
"""Times plain numpy (tests/plain.py) against the training module, in one run.

    uv run tests/benchmark.py
    uv run --with jax tests/benchmark.py

Both work on the same images in one process; times are medians. "plain" is what one
writes first: im2col, one matmul with the positions as its batch axis, a forward
computation for each pass, Adam with temporaries. Its matrix products are too small for
a BLAS library to share out to threads, so that one BLAS thread is no handicap.

Where JAX is installed, a further column has the same in jitted JAX (tests/jax_peer.py)
on as many threads, without compilation, and first held to what the module computes.
"""

import argparse
import copy
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np
import plain

import ff_cifar_locally_connected as ff

B, EPOCH, EPOCHS, EVALUATED = 64, 10_000, 10, 1000  # the headline's numbers
STEPS, PREDICTIONS = EPOCHS * -(-EPOCH // B), EPOCHS * 2 * EVALUATED + 10_000
ROWS = {  # steps of FF and BP, for each recipe
    "headline": ("FF training step, batch of 64", "BP training step, batch of 64"),
    "one-layer": ("FF step, all ten labels (2)", "BP step on the same stack"),
    "recurrent": ("recurrent FF step (3)",),
}
PREDICTION_ROWS = "FF prediction per image", "BP prediction per image"
RATIOS = "FF step / BP step", "all ten labels / BP, same stack"
HAS_JAX = importlib.util.find_spec("jax") is not None


def seconds(work):
    """The median time of work(), called for half a second after a call to warm up."""
    work()
    taken, began = [], time.perf_counter()
    while not taken or time.perf_counter() - began < 0.5:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return np.median(taken)


def in_turn(works, rounds=5):
    """The median times of {column: work}, in turns, against a drifting clock."""
    taken = [[seconds(work) for work in works.values()] for _ in range(rounds)]
    return dict(zip(works, np.median(taken, axis=0)))


def measure(recipe, batch):
    """Rows of a recipe: {name: {column: seconds}}; batch() has images and labels."""
    args = ff.training_arguments(recipe, bp_baseline=recipe != "recurrent")
    learners, times = ff.make_learners(args), {}
    peers = [None] * len(learners)
    if HAS_JAX and recipe != "recurrent":
        import jax_peer

        peers = jax_peer.make_learners(learners, args)
    others = np.arange(1, 10 if args.negatives == "all" else 2)[:, None]

    def plain_step(learner):
        images, labels = batch()
        negatives = (labels + others) % 10
        is_bp = isinstance(learner, plain.Backprop)
        learner.train_step(images, labels, *[] if is_bp else [negatives])

    def jax_step(learner):
        images, labels = batch()
        learner.train_step(images, np.stack([labels, (labels + 1) % 10]))

    for i, (ours, peer) in enumerate(zip(learners, peers)):
        theirs = plain.twin(ours, ours.adam.learning_rate, np.float32)
        steps = {"plain": partial(plain_step, theirs)}
        steps["ours"] = lambda ours=ours: ours.train_step(*batch())
        predictions = {"plain": theirs.predict, "ours": ours.predict}
        if peer:
            hold_to_ours(peer, ours, [batch(), batch()], ROWS[recipe][i])
            steps["JAX"], predictions["JAX"] = partial(jax_step, peer), peer.scores
        times[ROWS[recipe][i]] = in_turn(steps)
        if recipe == "headline":
            images, _ = batch()
            works = {k: partial(work, images) for k, work in predictions.items()}
            times[PREDICTION_ROWS[i]] = {k: t / B for k, t in in_turn(works).items()}
    return times


def hold_to_ours(peer, ours, batches, what):
    """End the program where JAX does not compute what the module does.

    Both take a step on each of the batches, and score the last. The scores less their
    mean, which decides nothing, may differ by 1 %, sum of absolute values by sum.
    """
    for images, labels in batches:
        rng = copy.deepcopy(ours.generators["negatives"])  # as ours will draw them
        peer.train_step(images, np.stack([labels, ff.wrong_labels(labels, rng)]))
        ours.train_step(images, labels)
    ours = ours.forward(images)[2] if ours.name == "BP" else ours.label_scores(images)
    found, wanted = (x - x.mean(axis=0) for x in (peer.scores(images), ours))
    error = np.abs(found - wanted).sum() / np.abs(wanted).sum()
    if not error <= 0.01:
        sys.exit(f"benchmark.py: {what}: JAX is {error:.1%} off")


def choose_dataset():
    """cifar10, from now on parsed in the cache, or synthetic where no source has it."""
    script = "import ff_cifar_locally_connected as ff; "
    script += "args = ff.training_arguments(dataset='auto'); ff.load_data(args); "
    command = [sys.executable, "-c", script + "print(args.dataset)"]
    return subprocess.check_output(command, cwd=HERE.parent, text=True).strip()


def headline(dataset):
    """The headline command in a process of its own.

    Returns its seconds, those to the first epoch's row, and its peak memory in MB.
    """
    script = HERE.parent / "ff_cifar_locally_connected.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, "--dataset", dataset, "--bp-baseline"]
        command += ["--full-test", "--save", Path(folder, "model.npz")]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        rows = [time.perf_counter() for line in process.stdout if "FF     1" in line]
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit("benchmark.py: the headline command failed")
        unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, KiB here
        return time.perf_counter() - start, rows[0] - start, usage.ru_maxrss / unit


def slowest_epoch(epochs=4):
    """The slowest epoch of BP over its first, on the synthetic images, which it soon
    knows so well that its gradients would be denormal numbers, were they not set to 0."""
    learner = ff.make_learners(ff.training_arguments(bp_baseline=True))[1]
    images, labels, *_ = ff.make_synthetic()
    ends = [time.perf_counter()]
    for _ in range(epochs):
        for i in range(0, EPOCH, B):
            learner.train_step(images[i : i + B], labels[i : i + B])
        ends.append(time.perf_counter())
    return max(np.diff(ends)) / (ends[1] - ends[0])


def main():
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=raw).parse_args()
    for name, version in ff.versions().items():
        print(f"{name}: {version}")
    # First, as a process's peak begins with that of the one it is started from.
    dataset, rng, times = choose_dataset(), np.random.default_rng(0), {}
    whole, first_row, peak = headline(dataset)
    args = ff.training_arguments(dataset=dataset)
    pool, pool_labels = (array[:EPOCH] for array in ff.load_data(args)[:2])

    def batch():  # new images each time, as learners go on learning
        chosen = rng.choice(EPOCH, B, replace=False)
        return pool[chosen], pool_labels[chosen]

    for recipe in ROWS:
        times |= measure(recipe, batch)
    print(f"{'':40}{'plain':>10}{'ours':>10}{'ratio':>8}" + f"{'JAX':>10}" * HAS_JAX)

    def row(name, a, b, more=""):
        print(f"{name:40}{a:10.3f}{b:10.3f}{a / b:7.1f}x{more}")

    for name, t in times.items():
        more = f"{1e3 * t['JAX']:10.3f}" if "JAX" in t else ""
        row(f"{name}, ms", 1e3 * t["plain"], 1e3 * t["ours"], more)
    computed = STEPS * sum(times[name]["plain"] for name in ROWS["headline"])
    computed += PREDICTIONS * sum(times[name]["plain"] for name in PREDICTION_ROWS)
    row(f"headline command (1) on {dataset}, s", computed, whole)
    for name, recipe in zip(RATIOS, ROWS):
        a, b = (times[name] for name in ROWS[recipe])
        print(f"{name:40}" + "".join(f"{a[k] / b[k]:10.2f}" for k in ("plain", "ours")))
    print(f"{'BP, synthetic: slowest epoch / first':50}{slowest_epoch():10.2f}")
    print(f"{'headline command, peak memory, MB':50}{peak:10.0f}")
    print(f"{'  to the row of its first epoch, s':50}{first_row:10.2f}")
    print(
        f"""(1) plain: computed, {STEPS} steps and {PREDICTIONS:,} predictions of each learner
(2) one layer of 8 channels, label weights: the learner of --recipe one-layer
(3) two layers, {ff.ITERATIONS} iterations, true and wrong label"""
    )
    if HAS_JAX:
        print(f"JAX {importlib.metadata.version('jax')}, jitted, {ff.THREADS} threads")


if __name__ == "__main__":
    main()
