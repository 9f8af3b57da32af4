"""The price of data movement: known values, a naive list, and reads that do not leak."""

import math
import random
import re
import sys

import data_movement
import numpy as np
import plain
import pytest
from data_movement import Recorded, cost, cost_blocks, record
from PIL import Image

import ff_cifar_locally_connected as ff

# --------------------------------------------------- the truth: a list of bytes


def naive_cost(arguments, operations, results, word=1, evict=True):
    """The rule, word for word: a list of bytes, the last of them on top."""

    def alive(value, i):
        """Whether a value is read after operation i, or stays."""
        later = [operands for _, operands in operations[i + 1 :]]
        return not evict or value in results or any(value in ops for ops in later)

    stack, total = [], 0
    for argument in arguments[::-1]:
        for value in argument:
            if alive(value, -1):
                stack += [(value, k) for k in range(word)]
    for i, (made, operands) in enumerate(operations):
        for value in operands:
            for k in range(word):
                depth = len(stack) - stack.index((value, k))
                root = math.isqrt(depth)
                total += root + (root * root < depth)
        for value in operands:
            stack = [byte for byte in stack if byte[0] != value]
            stack += [(value, k) for k in range(word)]
        stack = [byte for byte in stack if alive(byte[0], i)]
        for value in made:
            if alive(value, i):
                stack += [(value, k) for k in range(word)]
    return total


def random_program(rng, arguments=True):
    """arguments, operations, results."""
    names = iter(range(10**6))
    arguments = [
        [next(names) for _ in range(rng.randint(0, 4))]
        for _ in range(rng.randint(1, 4) if arguments else 0)
    ]
    known = [value for argument in arguments for value in argument]
    operations = []
    for _ in range(rng.randint(0, 25)):
        operands = rng.choices(known, k=rng.randint(0, 4)) if known else []
        made = [next(names) for _ in range(rng.randint(0, 2))]
        operations.append((made, operands))
        known += made
    return arguments, operations, rng.sample(known, rng.randint(0, len(known)) // 3)


# -------------------------------------------------------------------- the price


def matrix_product(n, columns):
    """n x n by n x columns, in the order i, j, k; a sum starts from its first product."""
    A = [[("A", i, k) for k in range(n)] for i in range(n)]
    B = [[("B", k, j) for j in range(columns)] for k in range(n)]
    operations, results = [], []
    for i, j in np.ndindex(n, columns):
        total = None
        for k in range(n):
            product, before, total = ("product", i, j, k), total, ("sum", i, j, k)
            operations.append(([product], [A[i][k], B[k][j]]))
            if before is None:
                total = product
            else:
                operations.append(([total], [before, product]))
        results.append(total)
    A, B = ([value for row in matrix for value in row] for matrix in (A, B))
    return [A, B], operations, results


SUM_OF_3 = [["a"], ["b"], ["c"]], [("s", "ab"), ("t", "sc")], ["t"]
SUM_OF_2_PRODUCTS = (
    [["a0", "a1"], ["b0", "b1"]],
    [("p", ["a0", "b0"]), ("q", ["a1", "b1"]), ("r", ["p", "q"])],
    ["r"],
)


@pytest.mark.parametrize(
    "program, word, expected",
    [
        (([["a"], ["b"]], [("s", "ab")], ["s"]), 1, 3),
        (SUM_OF_3, 1, 6),
        (SUM_OF_3, 2, 14),
        (SUM_OF_2_PRODUCTS, 1, 11),
        (SUM_OF_2_PRODUCTS, 4, 74),
        (matrix_product(4, 1), 1, 157),
        (matrix_product(2, 2), 1, 57),
        (matrix_product(4, 4), 1, 720),
    ],
)
def test_known_programs_have_their_known_price(program, word, expected):
    assert cost(*program, word=word) == expected
    assert naive_cost(*program, word=word) == expected


@pytest.mark.parametrize("seed", range(60))
def test_the_price_is_that_of_a_naive_list_of_bytes(seed):
    rng = random.Random(seed)
    program = random_program(rng)
    for word in (1, rng.randint(2, 8)):
        for evict in (True, False):
            expected = naive_cost(*program, word, evict)
            assert cost(*program, word, evict) == expected


def test_the_price_of_bytes_is_the_sum_of_rounded_up_roots():
    total, k = 0, 0
    for n in range(1, 3000):
        k += k * k < n
        total += k
        assert data_movement.bytes_price(n) == total
    for k in (10**4, 10**5):  # a perfect square and its neighbours, far down
        below, at, above = data_movement.bytes_price([k * k - 1, k * k, k * k + 1])
        assert (at - below, above - at) == (k, k + 1)


def in_words(operations, sizes):
    """A program of blocks as the program of single words that it stands for."""
    single = []
    for made, operands in operations:
        single += [([], [(b, i)]) for b in operands for i in range(sizes[b])]
        single += [([(b, i)], []) for b in made for i in range(sizes[b])]
    return [], single, []


@pytest.mark.parametrize("seed", range(60))
def test_blocks_cost_what_their_single_words_cost(seed):
    rng = random.Random(seed)
    _, operations, _ = random_program(rng, arguments=False)
    sizes = {block: rng.choice([1, 2, 3, 7, 20]) for block in range(200)}
    words, middle = in_words(operations, sizes), rng.randint(0, len(operations))
    for evict in (True, False):
        expected = [cost(*words, word, evict) for word in (1, 4)]
        assert cost_blocks(operations, sizes, (1, 4), evict) == expected
        parts = [
            cost_blocks(operations, sizes, (1, 4), evict, part)
            for part in (slice(middle), slice(middle, None))
        ]
        assert np.sum(parts, axis=0).tolist() == expected


# ----------------------------------------------------------------- the recorder


def noted(work, *shapes):
    """What work(*arrays) does: (words written, words read) of each operation."""
    with data_movement.recording() as recorder:
        arrays = [np.ones(shape, np.float32).view(Recorded) for shape in shapes]
        recorder.on = True
        work(*arrays)
        recorder.on = False
    return [
        tuple(sum(len(data_movement.words_at(key, 1)) for key in keys) for keys in both)
        for both in recorder.operations
    ]


def add_to_a_part(a, b):
    a[1:3] += b


@pytest.mark.parametrize(
    "work, shapes, expected",
    [
        (lambda a, b: a + b, [(2, 3), (2, 3)], [(6, 12)]),
        (lambda a, b: a * b, [(2, 3), 3], [(6, 9)]),  # broadcast: each word once
        (lambda a: a * a, [(2, 3)], [(6, 6)]),  # named twice: read once
        (lambda a: np.square(a, out=a), [5], [(5, 5)]),
        (lambda a: np.sqrt(a[::2]), [(4, 3)], [(6, 6)]),
        (lambda a: a.mean(axis=1), [(4, 3)], [(4, 12), (4, 4)]),
        (lambda a: a.sum(), [(4, 3)], [(0, 12)]),
        (lambda a, b: a.sum(axis=0, out=b), [(4, 3), 3], [(3, 12)]),
        (lambda a: plain.np.clip(a, 0, np.inf, out=a), [5], [(5, 5)]),
        (lambda a: plain.np.float32(np.exp(a, dtype=float)), [5], [(5, 5)] * 2),
        (lambda a: plain.np.einsum("ij,ij->i", a, a), [(4, 3)], [(4, 12)]),
        (lambda a, b: plain.np.where(a > 0, b, 0), [3, 3], [(3, 3), (3, 6)]),
        (lambda a, b: plain.np.stack([a, b]), [3, 3], [(3, 3), (3, 3)]),
        (lambda a, b: plain.np.array([a, b]), [3, 3], [(6, 6)]),
        (lambda a, b: a.__iadd__(b), [3, 3], [(3, 6)]),
        (add_to_a_part, [(4, 3), (2, 3)], [(6, 12)]),
        (lambda a, b: a.__setitem__([0, 2], b), [(4, 3), (2, 3)], [(12, 18)]),
        (lambda a: a[[0, 2]], [(4, 3)], [(6, 12)]),
        (lambda a: a[:, 1:].T.reshape(4, 2), [(4, 3)], [(8, 8)]),
        (lambda a: a.reshape(3, 4).swapaxes(0, 1)[1:], [(4, 3)], []),  # views
        (lambda a: a.astype(np.float64), [(4, 3)], [(12, 12)]),
        (lambda a, b: a @ b, [(2, 3), (3, 4)], [(8, 18)]),
        (lambda a, b: a @ b, [(5, 2, 3), (5, 3, 4)], [(8, 18)] * 5),
        (lambda a, b: a @ b, [(5, 2, 3), (3, 4)], [(8, 18)] * 5),
        (lambda a: plain.np.ones((1, 2)) @ a, [(5, 2, 4)], [(2, 0)] + [(4, 10)] * 5),
        (lambda a: plain.im2col(a, 2), [(7, 4, 4, 3)], [(84, 84)] * 9),
        (lambda a: plain.np.zeros(3) + a, [3], [(3, 0), (3, 6)]),
        (lambda a: plain.np.empty((2, 3)), [3], []),
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
    _, _, (sums, _), (threes, nothing), (_, factors) = program.operations
    assert [program.sizes[value] for value in (*sums, *threes)] == [2, 4, 4]
    assert nothing == [] and factors == [sums[0], *threes]


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
            both = [(p.value, p.m) for p in learner.parameters()]
            return [array.tobytes() for pair in both for array in pair]
        weights = [layer.weights for layer in learner.layers]
        return [array.tobytes() for some in weights for array in some.values()]

    expected = bits(data_movement.train(name, row, 3))
    with data_movement.recording() as recorder:
        learner = data_movement.train(name, row, 3, recorder=recorder)
        assert bits(learner) == expected
    assert len(recorder.operations) > 100
    assert bits(data_movement.train(name, row, 3)) == expected


def words_read(program, part):
    """Words read by a part of the operations."""
    read = [value for _, values in program.operations[part] for value in values]
    return sum(program.sizes[value] for value in read)


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
    # Its derivative: exp, of the true ones 1 less, and put back; divided by B.
    expected += N * B + (N * B + B) + (N * B + B) + N * B
    # By h, W_out and b_out; the slope of ReLU, and times it.
    expected += (N + N * B) + (B + N * B) + N * B + B + 2 * B
    # By b, a product with ones and the sum over no labels; by W, gathered once more.
    expected += 2 * B + 1 + K * B + B + (K * B + B)
    # Adam: m *= c, m += g, v *= c, g * g, v += it, sqrt, + epsilon, m / it, * rate, w -= it
    expected += (1 + 2 + 1 + 1 + 2 + 1 + 1 + 2 + 1 + 2) * (K + 1 + N + N)
    program = record("BP", "headline", B)
    assert words_read(program, slice(*program.starts[1:3])) == expected


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
    _, above, update, update_above = (i for i in program.pieces if start < i < end)
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
    for name in ff.RECIPES.keys() - {"recurrent"}:
        monkeypatch.setitem(ff.RECIPES, name, ff.RECIPES[name] + " --fields 30,2")
    path = tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", ["data_movement.py", "--plot", str(path)])
    data_movement.main()
    lines = capsys.readouterr().out.splitlines()
    number = r"(\d+\.\d{3})"
    pattern = rf"(\D+?) +(\d+) +{number} +{number} +{number}-{number}"
    rows = [found.groups() for line in lines if (found := re.fullmatch(pattern, line))]
    assert len(rows) == 5 * 2 + 5
    for _, _, *numbers in rows:
        FF, BP, low, high = map(float, numbers)
        assert 0.99 * low <= FF / BP <= 1.01 * high
    assert lines[-1] == f"wrote {path}"
    with Image.open(path) as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(10**6)) > 100


@pytest.fixture
def easy(monkeypatch):
    """Data of a few images, of a colour for each label, and a small layer."""
    flags = ff.RECIPES["one-layer"] + " --fields 29"
    monkeypatch.setitem(ff.RECIPES, "one-layer", flags)
    for name, value in ("TRAINED", 64), ("HELD_OUT", 30), ("EVERY", 4), ("BATCH", 16):
        monkeypatch.setattr(data_movement, name, value)
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(100) % 10).astype(np.uint8)
    colours = rng.integers(0, 256, (10, 1, 1, 3), np.uint8)
    images = np.tile(colours[labels], (1, 32, 32, 1))
    monkeypatch.setattr(ff, "make_synthetic", lambda: (images, labels, None, None))
    changes = {"train_subset": 64, "batch_size": 16, "bp_baseline": True}
    return ff.training_arguments("one-layer", dataset="synthetic", **changes)


def test_steps_are_counted_until_half_is_right_and_priced(easy, capsys):
    data_movement.compare_steps(easy)
    *_, FF, BP, both = capsys.readouterr().out.splitlines()
    found = {}
    for name, line in ("FF", FF), ("BP", BP):
        pattern = r"(\d+) ± (\d+) steps \[(.*)\] x ([\d.]+) = "
        mean, sd, counts, price = re.search(pattern, line).groups()
        counts = [int(count) for count in counts.split(", ")]
        assert len(counts) == 3 and all(count % 4 == 0 for count in counts)
        assert (float(mean), float(sd)) == pytest.approx(
            (np.mean(counts), np.std(counts, ddof=1)), abs=0.5
        )
        expected = data_movement.prices(record(name, "one-layer", 16))[0] / 1e9
        assert float(price) == pytest.approx(expected, abs=0.05)
        found[name] = np.mean(counts)
    assert f"{found['FF'] / found['BP']:.3f} x" in both


def test_a_learner_that_never_gets_there_is_one_line(easy):
    easy.n_epochs = 1
    learner, images = ff.make_learners(easy)[0], np.zeros((64, 32, 32, 3), np.uint8)
    data = images, np.arange(64) % 10, images, np.arange(64) % 10
    with pytest.raises(ff.RunError, match="FF, seed 0: not 90 % right in 4 steps"):
        data_movement.steps_until(0.9, learner, easy, *data)
