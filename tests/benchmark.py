# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "pillow>=10.1"]
# ///
"""Times plain numpy (tests/plain.py) against the training module, in one run.

    uv run tests/benchmark.py
    uv run --with jax tests/benchmark.py

Both work on the same images (CIFAR-10 where it is at hand, else synthetic ones) in one
process; times are medians. "plain" is what one writes first: im2col, one matmul with
the positions as its batch axis, separate positive and negative passes, a second forward
pass for the next layer's input, Adam with temporaries, ten forward passes to predict.
Its matrix products are too small for a BLAS library to share out to threads, so that
one BLAS thread is no handicap.

Where JAX is installed, a further column has the same steps and predictions in jitted
JAX (tests/jax_peer.py) on as many threads, in the fastest of three forms, and without
compilation. It is first held to what the module computes, see hold_to_ours().
"""

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

import ff_cifar_locally_connected as ff  # before numpy: it sets the threads of BLAS

# isort: split
import numpy as np
import plain

B, EPOCH, EPOCHS, EVALUATED = 64, 10_000, 10, 1000  # the headline's numbers

# The rows that JAX has too.
STEPS = "FF training step, batch of 64", "BP training step, batch of 64"
PREDICTIONS = "FF prediction per image", "BP prediction per image"
ONE_LAYER_STEPS = "FF step, all ten labels (2)", "BP step on the same stack"


def seconds(work, times):
    """The median time of work(), called `times` times after one call to warm up."""
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def in_turn(works, rounds):
    """Medians of several works, each timed in `rounds` turns, against a drifting clock.

    works: (work, times in a turn) each
    """
    taken = [[seconds(*work) for work in works] for _ in range(rounds)]
    return np.median(taken, axis=0)


def large_matmul_rate():
    """GFLOP/s of a 4096 x 4096 float32 product, a band of rows on each thread."""
    n = 4096
    a, b = np.ones((2, n, n), np.float32)
    c = np.empty_like(a)
    bands = np.array_split(np.arange(n), ff.THREADS)
    bands = [slice(band[0], band[-1] + 1) for band in bands]

    def work():
        ff.parallel(lambda i: np.matmul(a[bands[i]], b, out=c[bands[i]]), len(bands))

    return 2 * n**3 / seconds(work, 3) / 1e9


def multiplications(layers):
    """Weights that a forward pass of one image multiplies: in all, and in the corner."""
    everything = [
        layer.side**2 * layer.field**2 * layer.in_depth * 8 for layer in layers
    ]
    corner = ff.LABEL_ROWS * ff.LABEL_LEN * 8
    corner = [corner * layer.field**2 * layer.in_depth for layer in layers]
    return sum(everything), sum(corner)


def other_settings(pool, pool_labels, rng):
    """Rows of the other learners' steps: (name, plain seconds, ours), ... each.

    All ten labels and BP on the stack of --recipe one-layer, and the recurrent network.
    The last item is the arithmetic of the recurrent step, in GFLOP: no zeros, the
    image's product once a batch.
    """

    def batch():
        chosen = rng.choice(EPOCH, B, replace=False)
        return pool[chosen], pool_labels[chosen]

    def wrong(labels, count):
        return list((labels + np.arange(1, count + 1)[:, None]) % 10)

    args = ff.training_arguments("one-layer", bp_baseline=True)
    ours, our_bp = ff.make_learners(args)
    theirs = plain.ForwardForward(
        plain_layers(ours), args.lr, np.float32, None, args.temperature
    )
    readout = our_bp.W_out.value, our_bp.b_out.value
    their_bp = plain.Backprop(plain_layers(our_bp), *readout, args.bp_lr, np.float32)
    args = ff.training_arguments(network="recurrent")
    (recurrent,) = ff.make_learners(args)
    layers = [
        plain.RecurrentLayer(dtype=np.float32, **layer.get_weights())
        for layer in recurrent.layers
    ]
    classifier = recurrent.W_class.value, recurrent.b_class.value
    rates, loss = (args.lr, ff.CLASSIFIER_LR), (args.threshold, args.temperature)
    plain_recurrent = plain.Recurrent(layers, *classifier, rates, np.float32, 1, *loss)

    def their_step(learner, count, *more):
        images, labels = batch()
        learner.train_step(images, labels, wrong(labels, count), *more)

    ff_ours, bp_ours, ff_plain, bp_plain = in_turn(
        [
            (lambda: ours.train_step(*batch()), 40),
            (lambda: our_bp.train_step(*batch()), 40),
            (lambda: their_step(theirs, 9), 1),
            (lambda: their_bp.train_step(*batch()), 5),
        ],
        rounds=3,
    )
    r_ours = seconds(lambda: recurrent.train_step(*batch()), 10)
    r_plain = seconds(lambda: their_step(plain_recurrent, 1, ff.ITERATIONS), 1)
    weights = recurrent.layers[0].connections[0].n_weights  # as many in each connection
    each_pass = 2 * 2 * ff.ITERATIONS * 2 * weights  # T and W, 2 passes, both products
    return (
        (ONE_LAYER_STEPS[0], ff_plain, ff_ours),
        (ONE_LAYER_STEPS[1], bp_plain, bp_ours),
        ("recurrent FF step (3)", r_plain, r_ours),
        2 * B * (each_pass + 3 * weights) / 1e9,
    )


def hold_to_ours(peer, ours, batches, what):
    """End the program where JAX does not compute what the module does, on `batches`.

    Both take a step on each, and score the last. The losses, the scores (less their
    mean, which decides nothing) and the ways that the weights went may differ by 1 %,
    sum of absolute values by sum: where a gradient is only rounding errors, Adam's
    first steps are as long as elsewhere.
    """

    def vector(learner):
        return np.concatenate([np.ravel(array) for array in learner.weights().values()])

    start = vector(ours)
    losses = []
    for images, labels in batches:
        rng = copy.deepcopy(ours.generators["negatives"])
        wrong = ff.wrong_labels(labels, rng)  # as ours will draw them
        loss, *_ = ours.train_step(images, labels).values()
        losses.append([peer.train_step(images, np.stack([labels, wrong])), loss.sum()])
    is_bp = isinstance(ours, ff.Backprop)
    scores = ours.forward(images)[1] if is_bp else ours.label_scores(images)
    scores = np.stack([peer.scores(images), scores])
    for quantity, (found, wanted) in (
        ("losses", np.transpose(losses)),
        ("scores", scores - scores.mean(axis=1, keepdims=True)),
        ("weights", (vector(peer) - start, vector(ours) - start)),
    ):
        error = np.abs(found - wanted).sum() / np.abs(wanted).sum()
        if not error <= 0.01:
            sys.exit(f"benchmark.py: {what}: JAX's {quantity} are {error:.1%} off ours")


def jax_times(pool, pool_labels, rng):
    """Seconds of each form of jitted JAX, held to ours: {name of row: {form: seconds}}."""
    import jax_peer

    def batch():
        chosen = rng.choice(EPOCH, B, replace=False)
        return pool[chosen], pool_labels[chosen]

    def step(peer):
        images, labels = batch()
        peer.train_step(images, np.stack([labels, (labels + 1) % 10]))

    images, _ = batch()
    rows = []
    for recipe, steps, predictions in (
        ("headline", STEPS, PREDICTIONS),
        ("one-layer", ONE_LAYER_STEPS, ()),
    ):
        args = ff.training_arguments(recipe, bp_baseline=True)
        for product in jax_peer.PRODUCTS:
            form = product.__name__
            learners = ff.make_learners(args)
            # At zero, other weights have no gradient but what rounding leaves.
            if V := learners[0].layers[0].V:
                V.value[:] = rng.standard_normal(V.value.shape)
            peers = jax_peer.make_learners(learners, args, product)
            for name, ours, peer in zip(steps, learners, peers, strict=True):
                hold_to_ours(peer, ours, [batch(), batch()], f"{name}, {form}")
                rows.append((name, form, partial(step, peer), 1))
            for name, peer in zip(predictions, peers):
                rows.append((name, form, partial(peer.scores, images), B))
    # The slow ones once in each turn.
    works = [(work, 5 if form == "gathered_by_row" else 1) for _, form, work, _ in rows]
    times = {}
    for (name, form, _, count), t in zip(rows, in_turn(works, rounds=3), strict=True):
        times.setdefault(name, {})[form] = t / count
    return times


def plain_layers(learner):
    return [
        plain.Layer(field=layer.field, dtype=np.float32, **layer.get_weights())
        for layer in learner.layers
    ]


def choose_dataset():
    """cifar10 where no network is needed for it, else synthetic."""
    folder = os.environ.get("HINTON_CIFAR_CACHE") or "~/.cache/hinton-cifar"
    names = "cifar10.npz", "cifar-10-binary.tar.gz", "cifar10.zip"
    found = any((Path(folder).expanduser() / name).exists() for name in names)
    return "cifar10" if found else "synthetic"


def headline(dataset):
    """The headline command in a process of its own.

    Returns its seconds, those to the first epoch's row, and its peak memory in MB.
    """
    script = HERE.parent / "ff_cifar_locally_connected.py"
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--bp-baseline", "--full-test", "--dataset", dataset]
        save = ["--save", str(Path(folder) / "model.npz")]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(script), *flags, *save],
            stdout=subprocess.PIPE,
            text=True,
        )
        rows = [
            time.perf_counter() for line in process.stdout if line.startswith("FF ")
        ]
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit("benchmark.py: the headline command failed")
        unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, KiB here
        whole, first = time.perf_counter() - start, rows[0] - start
        return whole, first, usage.ru_maxrss / unit


def main():
    for name, version in ff.versions().items():
        print(f"{name}: {version}")
    rng = np.random.default_rng(0)
    dataset = choose_dataset()
    # First, as a process's peak begins with that of the one it is started from.
    whole, first_row, peak = headline(dataset)
    import_numpy = seconds(
        lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=True), 5
    )
    args = ff.training_arguments(dataset=dataset, cache_dir=None, bp_baseline=True)
    pool, pool_labels = (array[:EPOCH] for array in ff.load_data(args)[:2])
    pool_negatives = (pool_labels + 1) % 10
    images = pool[:B]

    def step(learner, batch):
        if learner is theirs:
            wrong = pool_negatives[batch]
            learner.train_step(pool[batch], pool_labels[batch], [wrong])
        else:
            learner.train_step(pool[batch], pool_labels[batch])

    def any_step(learner):  # of new images each time, as learners go on learning
        return lambda: step(learner, rng.choice(EPOCH, B, replace=False))

    ours, our_bp = ff.make_learners(args)

    theirs = plain.ForwardForward(plain_layers(ours), 0.01, np.float32)
    readout = our_bp.W_out.value, our_bp.b_out.value
    their_bp = plain.Backprop(plain_layers(our_bp), *readout, 0.01, np.float32)

    rate = large_matmul_rate()

    def measure(forward_forward, backprop, steps, predictions):
        """Seconds of a step of FF and BP, and of a prediction per image of each."""
        return in_turn(
            [
                (any_step(forward_forward), steps),
                (any_step(backprop), steps),
                (lambda: forward_forward.predict(images), predictions),
                (lambda: backprop.predict(images), predictions),
            ],
            rounds=5,
        ) / [1, 1, B, B]

    def epoch(*learners):
        order = rng.permutation(EPOCH)
        start = time.perf_counter()
        for learner in learners:
            for i in range(0, EPOCH, B):
                step(learner, order[i : i + B])
        return time.perf_counter() - start

    ff_ours, bp_ours, ff_predict, bp_predict = measure(ours, our_bp, 40, 10)
    epoch_ours = epoch(ours, our_bp)
    ff_plain, bp_plain, ff_predict_plain, bp_predict_plain = measure(
        theirs, their_bp, 5, 1
    )
    epoch_plain = epoch(theirs, their_bp)
    predicted = EPOCHS * 2 * EVALUATED + 10_000
    whole_plain = EPOCHS * epoch_plain + predicted * (
        ff_predict_plain + bp_predict_plain
    )

    *others, recurrent_work = other_settings(pool, pool_labels, rng)

    in_jax = {}
    if importlib.util.find_spec("jax"):  # last, as it starts threads of its own
        in_jax = jax_times(pool, pool_labels, rng)

    def jax_cell(name):
        return f"{1e3 * min(in_jax[name].values()):10.3f}" if name in in_jax else ""

    heading = f"{'':40}{'plain':>10}{'ours':>10}{'ratio':>8}"
    print(heading + (f"{'JAX (7)':>10}" if in_jax else ""))
    for name, unit, factor, a, b in (
        (STEPS[0], "ms", 1e3, ff_plain, ff_ours),
        (STEPS[1], "ms", 1e3, bp_plain, bp_ours),
        (PREDICTIONS[0], "ms", 1e3, ff_predict_plain, ff_predict),
        (PREDICTIONS[1], "ms", 1e3, bp_predict_plain, bp_predict),
        ("epoch of 10,000 images, FF and BP", "s", 1, epoch_plain, epoch_ours),
        (f"headline command (1) on {dataset}", "s", 1, whole_plain, whole),
    ):
        a, b = a * factor, b * factor
        print(
            f"{name + ', ' + unit:40}{a:10.3f}{b:10.3f}{a / b:7.1f}x" + jax_cell(name)
        )
    for name, a, b in others:
        a, b = 1e3 * a, 1e3 * b
        print(f"{name + ', ms':40}{a:10.3f}{b:10.3f}{a / b:7.1f}x" + jax_cell(name))
    print(
        f"{'FF step / BP step':40}{ff_plain / bp_plain:10.2f}{ff_ours / bp_ours:10.2f}"
    )
    (_, *all_labels), (_, *same_stack), (_, *recurrent) = others
    a, b = np.divide(all_labels, same_stack)
    print(f"{'all ten labels / BP, same stack':40}{a:10.2f}{b:10.2f}")
    print(f"{'headline command, peak memory, MB':40}{'':10}{peak:10.0f}")
    print(f"{'  to the row of its first epoch, s':40}{'':10}{first_row:10.2f}")
    print(f"{'  of that, python that imports numpy, s':40}{'':10}{import_numpy:10.2f}")

    everything, corner = multiplications(ours.layers)
    # Two operations, forward and weight gradient, positive and negative pass.
    algorithm = 2 * 2 * 2 * B * everything / 1e9
    once = 2 * 2 * B * (everything + corner) / 1e9
    print(f"{'large float32 matmul, GFLOP/s':40}{'':10}{rate:10.0f}")
    counts = (
        ("FF step, both passes counted (4)", algorithm, ff_plain, ff_ours),
        ("FF step, shared arithmetic once (5)", once, ff_plain, ff_ours),
        ("recurrent FF step (6)", recurrent_work, *recurrent),
    )
    for name, work, a, b in counts:
        a, b = work / a, work / b
        print(f"{name + ', GFLOP/s':40}{a:10.0f}{b:10.0f}{100 * b / rate:7.0f}%")
    print(
        f"""(1) plain: computed, {EPOCHS} epochs and {predicted:,} predictions of each learner
(2) one layer of 8 channels, label weights: the learner of --recipe one-layer
(3) two layers, {ff.ITERATIONS} iterations, true and wrong label
(4) {algorithm:.3f} GFLOP: forward and weight gradient of two passes; no zeros
(5) {once:.3f} GFLOP: what the passes share counted once; the last column is of the matmul
(6) {recurrent_work:.3f} GFLOP: no zeros, the image's product once a batch"""
    )
    if in_jax:
        version = importlib.metadata.version("jax")
        print(f"(7) JAX {version}, jitted, {ff.THREADS} threads; the best form, in ms:")
        for form in in_jax[STEPS[0]]:
            times = [f"{1e3 * forms[form]:10.3f}" for forms in in_jax.values()]
            print(f"    {form:18}" + "".join(times))


if __name__ == "__main__":
    main()
