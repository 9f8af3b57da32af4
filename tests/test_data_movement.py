"""The price of data movement: known values, a naive list, and reads that do not leak."""

import math
import random
import re
import sys
from collections import Counter

import data_movement
import numpy as np
import plain
import pytest
from data_movement import Program, Recorded, cost, record
from PIL import Image

import ff_cifar_locally_connected as ff

# -------------------------------------------------------------------- the price


def naive_cost(operations, word=1, stay=False, part=slice(None)):
    """The rule, word for word: a list of bytes, the last of them on top.

    operations: (values made, values read), values being words of `word` bytes. All that
    an operation reads is priced before any of it moves.
    """
    stack, depths = [], []
    reads_left = Counter(value for _, read in operations for value in read)
    for made, read in operations:
        places = [stack.index((value, k)) for value in read for k in range(word)]
        depths.append([len(stack) - place for place in places])
        reads_left.subtract(read)
        for value in read:
            stack = [byte for byte in stack if byte[0] != value]
            stack += [(value, k) for k in range(word)]
        stack += [(value, k) for value in made for k in range(word)]
        stack = [byte for byte in stack if stay or reads_left[byte[0]]]
    return sum(math.isqrt(d - 1) + 1 for some in depths[part] for d in some)


# What is there at the start, its first argument on top; the operations; what stays.
SUM_OF_2 = [("ba", ""), ("s", "ab"), ("", "s")]
SUM_OF_3 = [("cba", ""), ("s", "ab"), ("t", "sc"), ("", "t")]
SUM_OF_PRODUCTS = [("cdab", ""), ("p", "ac"), ("q", "bd"), ("r", "pq"), ("", "r")]


@pytest.mark.parametrize(
    "operations, word, expected",
    [
        (SUM_OF_2, 1, 3),
        (SUM_OF_3, 1, 6),
        (SUM_OF_3, 2, 14),
        (SUM_OF_PRODUCTS, 1, 11),
        (SUM_OF_PRODUCTS, 4, 74),
    ],
)
def test_the_naive_list_gives_known_programs_their_known_price(
    operations, word, expected
):
    assert naive_cost(operations, word, part=slice(-1)) == expected


def random_program(rng):
    """Operations that read blocks made before, of random sizes, and three steps."""
    blocks, operations = [], []
    for _ in range(rng.randint(3, 20)):
        read = rng.choices(blocks, k=rng.randint(0, 4)) if blocks else []
        made = [len(blocks) + i for i in range(rng.randint(0, 3))]
        operations.append((made, read))
        blocks += made
    sizes = [rng.choice([1, 1, 2, 3, 7]) for _ in blocks]
    cuts = sorted(rng.choices(range(len(operations) + 1), k=2))
    return Program(operations, sizes, [0, *cuts, len(operations)], [])


@pytest.mark.parametrize("seed", range(40))
def test_the_price_of_the_second_step_is_that_of_a_naive_list_of_bytes(seed):
    program = random_program(random.Random(seed))
    words, starts = [], []  # a program of single words
    for made, read in program.operations:
        starts.append(len(words))
        words += [([], [(b, i)]) for b in read for i in range(program.sizes[b])]
        words += [([(b, i)], []) for b in made for i in range(program.sizes[b])]
    start, end = ([*starts, len(words)][i] for i in program.starts[1:3])
    for stay in (False, True):
        expected = [naive_cost(words, n, stay, slice(start, end)) for n in (4, 1)]
        assert cost(program, stay) == expected


def test_the_price_of_bytes_goes_up_at_perfect_squares_also_far_down():
    for k in (10**4, 10**5):
        below, at, above = data_movement.bytes_price([k * k - 1, k * k, k * k + 1])
        assert (at - below, above - at) == (k, k + 1)


# ----------------------------------------------------------------- the recorder


def noted(work, *shapes):
    """What work(*arrays) does: (words written, words read) of each operation."""
    with data_movement.recording() as recorder:
        arrays = [np.ones(shape, np.float32).view(Recorded) for shape in shapes]
        recorder.starts.append(0)
        work(*arrays)

    def count(keys):
        words = data_movement.words_at
        return len({(key[0], word) for key in keys for word in words(key, 1).tolist()})

    return [(count(made), count(read)) for made, read in recorder.operations]


def add_to_a_part(a, b):
    a[1:3] += b


@pytest.mark.parametrize(
    "work, shapes, expected",
    [
        (lambda a, b: a + b, [(2, 3), (2, 3)], [(6, 12)]),
        (lambda a, b: a * b, [(2, 3), 3], [(6, 9)]),  # broadcast: each word once
        (lambda a: a * a, [(2, 3)], [(6, 6)]),  # named twice: read once
        (lambda a: np.sqrt(a[::2]), [(4, 3)], [(6, 6)]),
        (lambda a: a.mean(axis=1), [(4, 3)], [(4, 12), (4, 4)]),
        (lambda a, b: a.sum(axis=0, out=b), [(4, 3), 3], [(3, 12)]),
        (lambda a: plain.np.clip(a, 0, np.inf, out=a), [5], [(5, 5)]),
        (lambda a: plain.np.float32(np.exp(a, dtype=float)), [5], [(5, 5)] * 2),
        (lambda a, b: plain.np.stack([a, b]), [3, 3], [(3, 3), (3, 3)]),
        (lambda a, b: plain.np.array([a, b]), [3, 3], [(6, 6)]),
        (add_to_a_part, [(4, 3), (2, 3)], [(6, 12)]),
        (lambda a, b: a.__setitem__([0, 2], b), [(4, 3), (2, 3)], [(12, 18)]),
        (lambda a: a[[0, 2]], [(4, 3)], [(6, 12)]),
        (lambda a: a[:, 1:].T.reshape(4, 2), [(4, 3)], [(8, 8)]),
        (lambda a: a.reshape(3, 4).swapaxes(0, 1)[1:], [(4, 3)], []),  # views
        (lambda a, b: a @ b, [(5, 2, 3), (5, 3, 4)], [(8, 18)] * 5),
        (lambda a, b: a @ b, [(5, 2, 3), (3, 4)], [(8, 18)] * 5),
        (lambda a: plain.np.ones((1, 2)) @ a, [(5, 2, 4)], [(2, 0)] + [(4, 10)] * 5),
        (lambda a: plain.im2col(a, 2), [(7, 4, 4, 3)], [(84, 84)] * 9),
        (lambda a: plain.np.zeros(3) + a, [3], [(3, 0), (3, 6)]),
    ],
)
def test_each_operation_reads_and_writes_what_it_says(work, shapes, expected):
    assert noted(work, *shapes) == expected


def test_what_is_written_is_a_new_value_and_the_old_one_leaves():
    with data_movement.recording() as recorder:
        a = np.ones(6).view(Recorded)
        recorder.begin_step(np.ones(1))
        a += 1
        a[2:] = 3
        a *= 2
    program = recorder.program()
    operations = [both for both in program.operations if any(both)]
    image, (found, _), (sums, added), (threes, nothing), (_, factors) = operations
    assert [program.sizes[block] for block in (*sums, *threes)] == [2, 4, 4]
    assert (added, nothing, factors) == (found, [], [sums[0], *threes])
    assert program.sizes[image[0][0]] == 1 and program.starts == [0, 8]


@pytest.fixture
def shrunken(monkeypatch):
    """The recipes, of small fields and channels; the recurrent one of few iterations."""
    for name, flags in ff.RECIPES.items():
        fields = "" if name == "recurrent" else "--fields 17,3"
        monkeypatch.setitem(ff.RECIPES, name, f"{flags} {fields} --channels 2")
    monkeypatch.setattr(ff, "RECURRENT_FIELD", 3)
    monkeypatch.setattr(ff, "ITERATIONS", 2)
    monkeypatch.setattr(ff, "WINDOW", (1, 2))


@pytest.mark.parametrize("row", data_movement.ROWS)
@pytest.mark.parametrize("name", ["FF", "BP"])
def test_a_recorded_training_ends_with_the_same_bits(shrunken, name, row):
    def bits(learner):
        if row != "textbook":
            return [array.tobytes() for array in learner.arrays().values()]
        weights = [layer.weights for layer in learner.layers]
        return [array.tobytes() for some in weights for array in some.values()]

    expected = bits(data_movement.train(name, row, 3))
    with data_movement.recording() as recorder:
        learner = data_movement.train(name, row, 3)
        assert bits(learner) == expected
    assert len(recorder.operations) > 100
    assert bits(data_movement.train(name, row, 3)) == expected


def test_a_step_of_a_small_net_reads_as_many_words_as_a_hand_counts(monkeypatch):
    """BP with a single unit, which sees the whole image: K inputs, N logits, B images."""
    flags = "--fields 32 --n-layers 1 --channels 1"
    monkeypatch.setitem(ff.RECIPES, "headline", flags)
    B, K, N = 5, 32 * 32 * 3, 10
    # Images come last, as float, without the mean of each colour, and are gathered.
    expected = K * B + K * B + (K * B + 3) + K * B
    # W x, + b, ReLU, put into a map; W_out h, + b_out.
    expected += (K + K * B) + (B + 1) + B + B + (N + B) + (N * B + N)
    # Scores: their maximum, minus it, exp, sum, log, minus it; of the true ones the mean.
    expected += 3 * N * B + (N * B + B) + B + (N * B + B) + (N * B + B)
    # Its derivative: exp, which are tiny, and 0 there; of the true ones 1 less, and put
    # back; divided by B.
    expected += N * B + N * B + N * B + (N * B + B) + (N * B + B) + N * B
    # By h, W_out and b_out; the slope of ReLU, and times it.
    expected += (N + N * B) + (B + N * B) + N * B + B + 2 * B
    # By b, a product with ones and the sum over no labels; by W, gathered once more.
    expected += 2 * B + 1 + K * B + B + (K * B + B)
    # Adam: m *= c, m += g, v *= c, g * g, v += it, sqrt, + epsilon, m / it, * rate, w -= it
    expected += (1 + 2 + 1 + 1 + 2 + 1 + 1 + 2 + 1 + 2) * (K + 1 + N + N)
    operations, sizes, starts, _ = record("BP", "headline", B)
    read = [block for _, blocks in operations[slice(*starts[1:3])] for block in blocks]
    assert sum(sizes[block] for block in read) == expected


def test_layer_by_layer_is_another_order_of_the_same_operations(shrunken):
    program = record("FF", "headline", 5)
    other = data_movement.layer_by_layer(program)
    assert sorted(map(repr, other.operations)) == sorted(map(repr, program.operations))
    known = set()
    for made, read in other.operations:
        assert known.issuperset(read)
        known.update(made)
    # Forward, forward, update, update: the middle ones change places, but for the loss.
    start, end = program.starts[1:3]
    _, above, update, update_above = (i for i in program.rounds if start < i < end)
    place = {id(operation): i for i, operation in enumerate(other.operations)}
    forward, updated = (
        [place[id(operation)] for operation in program.operations[slice(*part)]]
        for part in ((above, update), (update, update_above))
    )
    assert start < np.quantile(updated, 0.99) < np.median(forward) < end


# -------------------------------------------------------------------- the table


@pytest.mark.filterwarnings("ignore")  # plain.py divides by the rms of few units
def test_the_command_prints_its_table_and_draws_it(
    shrunken, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(data_movement, "BATCHES", (1, 2))
    monkeypatch.delitem(data_movement.ROWS, "recurrent")
    for name in ff.RECIPES.keys() - {"recurrent"}:
        monkeypatch.setitem(ff.RECIPES, name, ff.RECIPES[name] + " --fields 30,2")
    path = tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", ["data_movement.py", "--plot", str(path)])
    data_movement.main()
    lines = capsys.readouterr().out.splitlines()
    number = r"(\d+\.\d{3})"
    pattern = rf"(\D+?) +(\d+) +{number} +{number} +{number}-{number}"
    rows = [found.groups() for line in lines if (found := re.fullmatch(pattern, line))]
    assert len(rows) == 4 * 2 + 4
    for _, _, *numbers in rows:
        FF, BP, low, high = map(float, numbers)
        assert 0.99 * low <= FF / BP <= 1.01 * high
    assert lines[-1] == f"wrote {path}"
    with Image.open(path) as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(10**6)) > 100


def test_steps_are_counted_until_half_is_right_and_priced(monkeypatch, capsys):
    """Of a small layer, on a few images, of a colour for each label."""
    flags = ff.RECIPES["one-layer"] + " --fields 29"
    monkeypatch.setitem(ff.RECIPES, "one-layer", flags)
    monkeypatch.setattr(data_movement, "HELD_OUT", 30)
    monkeypatch.setattr(data_movement, "EVERY", 4)
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(100) % 10).astype(np.uint8)
    colours = rng.integers(0, 256, (10, 1, 1, 3), np.uint8)
    images = np.tile(colours[labels], (1, 32, 32, 1))
    monkeypatch.setattr(ff, "make_synthetic", lambda: (images, labels, None, None))
    changes = {"train_subset": 64, "batch_size": 16, "bp_baseline": True}
    args = ff.training_arguments("one-layer", dataset="synthetic", **changes)
    data_movement.compare_steps(args)
    *_, FF, BP, both = capsys.readouterr().out.splitlines()
    means = []
    for name, line in ("FF", FF), ("BP", BP):
        mean, counts, price = re.search(r"(\d+) .*\[(.*)\] x (\S+) = ", line).groups()
        counts = [int(count) for count in counts.split(", ")]
        assert len(counts) == 3 and all(count % 4 == 0 for count in counts)
        assert float(mean) == pytest.approx(np.mean(counts), abs=0.5)
        expected = data_movement.prices(record(name, "one-layer", 16))[0] / 1e9
        assert float(price) == pytest.approx(expected, abs=0.05)
        means.append(np.mean(counts))
    assert f"{means[0] / means[1]:.3f} x" in both
