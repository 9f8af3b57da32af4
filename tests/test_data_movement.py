"""The price of data movement: known values, a naive list, and reads that do not leak."""

import itertools
import json
import math
import random
import re
import sys
from collections import Counter

import data_movement
import numpy as np
import plain
import pytest
from data_movement import Recorded, block_reads, cost, cost_blocks, record

import ff_cifar_locally_connected as ff
import visualize_ff_cifar_locally_connected as viz

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
    for i, (result, operands) in enumerate(operations):
        for value in operands:
            for k in range(word):
                depth = len(stack) - stack.index((value, k))
                root = math.isqrt(depth)
                total += root + (root * root < depth)
        for value in operands:
            stack = [byte for byte in stack if byte[0] != value]
            stack += [(value, k) for k in range(word)]
        stack = [byte for byte in stack if alive(byte[0], i)]
        if result is not None and alive(result, i):
            stack += [(result, k) for k in range(word)]
    return total


def random_program(rng, blocks=False):
    """arguments, operations, results; of blocks: with several results, or none."""
    names = iter(range(10**6))
    arguments = [
        [next(names) for _ in range(rng.randint(0, 4))]
        for _ in range(rng.randint(1, 4))
    ]
    known = [value for argument in arguments for value in argument]
    operations = []
    for _ in range(rng.randint(0, 25)):
        operands = rng.choices(known, k=rng.randint(0, 4)) if known else []
        made = [next(names) for _ in range(rng.randint(0, 2))]
        if not blocks:
            made = made[0] if made else None
        operations.append((made, operands))
        known += made if blocks else [] if made is None else [made]
    return arguments, operations, rng.sample(known, rng.randint(0, len(known)) // 3)


# -------------------------------------------------------------------- the price


def dot(x, y, name):
    """The operations of a dot product whose sum starts from its first product."""
    operations, total = [], None
    for k, pair in enumerate(zip(x, y)):
        operations.append(((name, "product", k), pair))
        if k:
            total = total or (name, "product", 0)
            operations.append(((name, "sum", k), (total, (name, "product", k))))
            total = name, "sum", k
    return operations, total


def matrix_product(n, columns):
    """n x n by n x columns, in the order i, j, k."""
    A = [[("A", i, k) for k in range(n)] for i in range(n)]
    B = [[("B", k, j) for j in range(columns)] for k in range(n)]
    operations, results = [], []
    for i in range(n):
        for j in range(columns):
            more, total = dot(A[i], [row[j] for row in B], ("C", i, j))
            operations += more
            results.append(total)
    arguments = [[value for row in matrix for value in row] for matrix in (A, B)]
    return arguments, operations, results


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


def test_a_read_takes_logarithmic_time():
    n = 20_000  # as a list, some 10**9 moves
    operations = [(None, [v]) for v in range(n)] * 2
    everything_at_the_bottom = 2 * n * (math.isqrt(n - 1) + 1)
    assert cost([range(n)], operations, range(n)) == everything_at_the_bottom


# ----------------------------------------------------------------------- blocks


def in_words(arguments, operations, results, sizes):
    """A program of blocks as the program of single words that it stands for."""

    def words(block):
        return [(block, i) for i in range(sizes[block])]

    single = []
    for made, operands in operations:
        single += [(None, [word]) for block in operands for word in words(block)]
        single += [(word, []) for block in made for word in words(block)]
    arguments = [
        [word for block in argument for word in words(block)] for argument in arguments
    ]
    return arguments, single, [word for block in results for word in words(block)]


@pytest.mark.parametrize("seed", range(60))
def test_blocks_cost_what_their_single_words_cost(seed):
    rng = random.Random(seed)
    program = random_program(rng, blocks=True)
    sizes = {block: rng.choice([1, 2, 3, 7, 20]) for block in range(200)}
    words = in_words(*program, sizes)
    for evict in (True, False):
        for word in (1, 4):
            expected = cost(*words, word, evict)
            assert cost_blocks(*program, sizes, word, evict) == expected
        small = {block: min(n, 3) for block, n in sizes.items()}
        expected = naive_cost(*in_words(*program, small), 1, evict)
        assert cost_blocks(*program, small, 1, evict) == expected


def test_large_programs_of_large_blocks_are_priced_in_no_time():
    rng = random.Random(0)
    n = 400
    sizes = {block: rng.randint(10, 300_000) for block in range(n)}
    operations = [([], rng.choices(range(n), k=2)) for _ in range(20_000)]
    assert cost_blocks([range(n)], operations, range(n), sizes, word=4) > 0


def test_the_price_of_a_part_is_that_part_of_the_whole_price():
    rng = random.Random(1)
    arguments, operations, results = random_program(rng, blocks=True)
    sizes = {block: rng.randint(1, 9) for block in range(200)}
    n = len(operations)
    assert n > 5

    def reads(first, end):
        rows = block_reads(arguments, operations, results, sizes, True, first, end)
        return rows.T.tolist()

    assert reads(0, 3) + reads(3, n - 1) + reads(n - 1, None) == reads(0, None)


@pytest.mark.parametrize("seed", range(20))
def test_a_buffer_is_split_into_the_largest_blocks_that_no_array_tears(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, 3) * [1, 1, 4])
    array = np.zeros(shape)
    arrays = {}
    for _ in range(rng.integers(1, 6)):
        part = array
        for axis, n in enumerate(shape):
            unit = 4 if axis == 2 else 1
            low, high = sorted(rng.integers(0, n // unit + 1, 2))
            part = np.moveaxis(part, axis, 0)[low * unit : (high + 1) * unit]
            part = np.moveaxis(part, 0, axis)
        part = part.transpose(rng.permutation(3))
        if part.size:
            start = part.__array_interface__["data"][0]
            offset = (start - array.__array_interface__["data"][0]) // 8
            strides = [stride // 8 for stride in part.strides]
            key = data_movement.Place(0, offset, part.shape, strides).key()
            numbers = np.arange(array.size).reshape(shape)
            taken = np.lib.stride_tricks.as_strided(
                numbers.ravel()[offset:], part.shape, part.strides
            )
            arrays[key] = set(taken.ravel().tolist())
    parts, sizes = data_movement.split_buffer(array.size, arrays)
    # Words are in one block where the same arrays take them.
    blocks = {}
    for word in range(array.size):
        signature = frozenset(key for key in arrays if word in arrays[key])
        blocks.setdefault(signature, []).append(word)
    assert sorted(sizes) == sorted(map(len, blocks.values()))
    for key, words in arrays.items():
        expected = [len(some) for by, some in blocks.items() if key in by]
        assert [sizes[i] for i in parts[key]] == expected
        assert sum(expected) == len(words)


# ----------------------------------------------------------------- the recorder


def noted(work, *shapes):
    """What work(*arrays) does: (words written, words read) of each operation."""
    with data_movement.recording() as recorder:
        arrays = [np.ones(shape, np.float32).view(Recorded) for shape in shapes]
        recorder.on = True
        work(*arrays)
        recorder.on = False

    def words(keys):
        sizes = [recorder.sizes[key[0]] for key in keys]
        return sum(len(np.arange(n)[at(k)]) for n, k in zip(sizes, keys))

    at = data_movement.words_at
    return [(words(written), words(read)) for written, read, _ in recorder.operations]


def add_in_place(a, b):
    a += b


def add_to_a_part(a, b):
    a[1:3] += b


def set_rows(a, b):
    a[[0, 2]] = b


@pytest.mark.parametrize(
    "work, shapes, expected",
    [
        (lambda a, b: a + b, [(2, 3), (2, 3)], [(6, 12)]),
        (lambda a, b: a * b, [(2, 3), 3], [(6, 9)]),  # broadcast: each word once
        (lambda a: a * a, [(2, 3)], [(6, 6)]),  # named twice: read once
        (lambda a: 2 * a + 1, [5], [(5, 5), (5, 5)]),
        (lambda a: np.square(a, out=a), [5], [(5, 5)]),
        (lambda a: np.sqrt(a[::2]), [(4, 3)], [(6, 6)]),
        (lambda a: a.sum(axis=0), [(4, 3)], [(3, 12)]),
        (lambda a: a.mean(axis=1), [(4, 3)], [(4, 12), (4, 4)]),
        (lambda a: a.sum(), [(4, 3)], [(0, 12)]),
        (lambda a, b: a.sum(axis=0, out=b), [(4, 3), 3], [(3, 12)]),
        (lambda a: np.clip(a, 0, np.inf, out=a), [5], [(5, 5)]),
        (lambda a: plain.np.float32(np.exp(a, dtype=float)), [5], [(5, 5)] * 2),
        (lambda a: np.einsum("ij,ij->i", a, a), [(4, 3)], [(4, 12)]),
        (lambda a, b: np.where(a > 0, b, 0), [3, 3], [(3, 3), (3, 6)]),
        (lambda a, b: np.stack([a, b]), [3, 3], [(3, 3), (3, 3)]),
        (lambda a, b: np.concatenate([a, b]), [(2, 3), (1, 3)], [(6, 6), (3, 3)]),
        (add_in_place, [3, 3], [(3, 6)]),
        (add_to_a_part, [(4, 3), (2, 3)], [(6, 12)]),
        (set_rows, [(4, 3), (2, 3)], [(6, 6)]),
        (lambda a: a[[0, 2]], [(4, 3)], [(6, 6)]),
        (lambda a: a[:, 1:].T.reshape(4, 2), [(4, 3)], [(8, 8)]),
        (lambda a: a.reshape(3, 4).swapaxes(0, 1)[1:], [(4, 3)], []),  # views
        (lambda a: a.astype(np.float64), [(4, 3)], [(12, 12)]),
        (lambda a, b: a @ b, [(2, 3), (3, 4)], [(8, 18)]),
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
        a, b = np.ones((2, 6)).view(Recorded)
        a, b = a.copy(), b.copy()
        recorder.begin_step(b)
        a += b
        a[2:] = 3
        a *= 2
    program, _ = recorder.programs()
    two, four = 0, 1  # pieces of a
    sizes = [program.sizes[value] for made, _ in program.operations for value in made]
    assert sizes == [6, 2, 4, 2, 4, 4, 2, 4]
    made, read = zip(*program.operations)
    b, first, sums, threes, products = made
    assert read == ([], [], [*first, *b], [], [sums[two], threes[0]])
    assert len(products) == 2 and sums[four] not in [
        v for values in read for v in values
    ]


@pytest.fixture
def shrunken(monkeypatch):
    """Layers of 16x16x2 and 14x14x2 units, and the recurrent network's of small fields;
    it has few iterations."""
    monkeypatch.setattr(ff, "RECEPTIVE_FIELDS", [17, 3])
    monkeypatch.setattr(ff, "CHANNELS", 2)
    monkeypatch.setattr(ff, "RECURRENT_FIELD", 3)
    monkeypatch.setattr(ff, "ITERATIONS", 3)
    monkeypatch.setattr(ff, "WINDOW", (2, 3))


CASES = list(itertools.product(["FF", "BP"], data_movement.SETTINGS))


def train(name, settings, steps=2):
    """The learner after some steps; recorded, if in recording()."""
    rng = np.random.default_rng(5)
    learner = data_movement.make_learner(name, settings)
    for _ in range(steps):
        images, *labels = data_movement.random_batch(rng, 3)
        if isinstance(ff.np, data_movement.RecordedNumpy):
            images = images.view(Recorded)
            Recorded.recorder.begin_step(images)
        data_movement.work_on(learner, images, *labels)
    return learner


@pytest.mark.parametrize("name, settings", CASES)
def test_a_recorded_training_ends_with_the_same_bits(shrunken, name, settings):
    def bits(learner):
        parameters = learner.parameters() if settings != "textbook" else []
        arrays = [parameter.value for parameter in parameters]
        arrays += [parameter.m for parameter in parameters]
        if settings == "textbook":
            arrays = [array for layer in learner.layers for array in layer.parameters()]
        return [array.tobytes() for array in arrays]

    expected = bits(train(name, settings))
    with data_movement.recording():
        assert bits(train(name, settings)) == expected
    assert bits(train(name, settings)) == expected


def second_step(program):
    """(made, read, who) of the operations of the second step."""
    steps = slice(*program.starts[1:3])
    return zip(*zip(*program.operations[steps]), program.who[steps])


def words_read(program, by=lambda names, layer, kind: kind):
    """Words read in the second step, by kind or otherwise."""
    count = Counter()
    for _, read, (names, layer) in second_step(program):
        for value in read:
            count[by(names, layer, program.kinds[value])] += program.sizes[value]
    return count


B = 5


@pytest.mark.parametrize("name", ["FF", "BP"])
@pytest.mark.parametrize("settings", ["headline", "one-layer", "recurrent"])
def test_parameters_and_moments_are_read_as_often_as_the_code_says(
    shrunken, name, settings
):
    """Adam reads a value once, each of its moments 3 times, and the gradient 7 times."""
    learner = data_movement.make_learner(name, settings)
    size = sum(parameter.value.size for parameter in learner.parameters())
    if (name, settings) == ("FF", "recurrent"):
        batch, expected = 1, size + recurrent_weights(learner, ff.ITERATIONS)
        # An image has two labels; the classifier sees it once.
        expected += 2 * ff.ITERATIONS * learner.layers[1].b.value.size
        expected += learner.W_class.value.size + learner.b_class.value.size
    else:
        batch, expected = B, size
        for i, layer in enumerate(learner.layers):
            W, b, *V = (parameter.value.size for parameter in layer.parameters())
            # With all ten labels the activity is computed twice.
            if name == "FF" and settings == "one-layer":
                expected += W + 2 * b + 2 * sum(V)
            elif name == "FF":
                expected += W + b
            else:  # layer 0 needs no gradient of its input
                expected += (2 if i else 1) * W + b
    if name == "BP":
        expected += 2 * learner.W_out.value.size + learner.b_out.value.size
    program, without = record(name, settings, batch)
    count = words_read(program)
    assert count["weights"] == expected
    assert count["Adam's moments"] == 6 * size
    of_adam = words_read(program, lambda names, layer, kind: (names[0], kind))
    assert of_adam["Adam.update", "gradients"] == 7 * size
    count = words_read(without)
    assert count["weights"] == expected - size
    assert count["Adam's moments"] == 0


def recurrent_weights(learner, n, products=1):
    """Words of weights that a forward computation with n iterations reads, but for those
    of labels; products: of a connection with all passes."""
    (W0, T0), (W1,) = (
        [connection.W.value.size for connection in layer.connections]
        for layer in learner.layers
    )
    first, last = learner.layers
    # In the bottom-up pass W, b, and all of V for its mean; the image's product is kept.
    words = W0 + W1 + first.b.value.size + last.b.value.size + last.V.value.size
    return words + n * (products * (T0 + W1) + first.b.value.size + last.b.value.size)


def test_a_recurrent_prediction_reads_the_weights_for_two_labels_at_a_time(shrunken):
    learner, n = data_movement.make_learner("FF", "recurrent"), ff.WINDOW[-1]
    program, _ = record("FF", "recurrent", 1, "predict")
    expected = recurrent_weights(learner, n, products=5)
    expected += n * learner.layers[1].V.value.size
    assert words_read(program)["weights"] == expected


@pytest.mark.parametrize("name, settings", CASES)
def test_gathered_inputs_are_made_and_read_as_often_as_the_code_says(
    shrunken, name, settings
):
    learner = data_movement.make_learner(name, settings)
    program, _ = record(name, settings, B)
    if settings == "textbook":  # two passes, and a third product with the new weights
        times = 6 if name == "FF" else 2
        K = [layer.W.shape[1] * layer.side**2 for layer in learner.layers]
        expected, made = times * sum(K) * B, (4 if name == "FF" else 1) * sum(K) * B
    else:  # a product in the forward pass, and one for the gradient
        expected = made = 0
        for i, layer in enumerate(learner.layers):
            for connection in layer.connections:
                times = 2
                if (name, settings) == ("FF", "recurrent") and not connection.shared:
                    times *= 2 * ff.ITERATIONS  # each of two passes
                    times += i  # and the bottom-up pass
                T, _, K, _ = connection.W.value.shape
                rows, columns = connection.corner
                corner = rows * columns
                expected += times * K * B * (T * T - corner + 2 * corner)
                strip = connection.window * connection.in_depth * B
                made += times * T * connection.padded * strip
                made += times * rows * connection.sees[1] * strip * 2
    assert words_read(program)["gathered inputs"] == expected
    of_kind = Counter()
    for written, _, _ in second_step(program):
        for value in written:
            of_kind[program.kinds[value]] += program.sizes[value]
    assert of_kind["gathered inputs"] == made


def test_activities_are_read_as_often_as_the_code_says(shrunken):
    program, _ = record("FF", "headline", B)
    units = []
    for layer in data_movement.make_learner("FF", "headline").layers:
        T, N = layer.tiles, layer.b.value.shape[2]
        # In layer 0, below its corner, the passes share their activity.
        own = T * layer.connections[0].corner[0] if not units else T * T
        units.append((2 * own + (T * T - own)) * N * B)
    count = words_read(program, lambda names, layer, kind: (names[0], layer, kind))
    for layer, n in enumerate(units):

        def read(function, kind="activities", layer=layer):
            return count[function, layer, kind]

        # W x + b and its ReLU, kept for the update.
        assert read("Layer.activity") == 2 * n
        # For the goodness; in layer 0 for the rms too, which layer 1 needs.
        assert read("sum_of_squares") == (2 * n if layer == 0 else n)
        assert read("goodness_gradient") == n
    program, _ = record("BP", "headline", B)
    count = words_read(program, lambda names, layer, kind: (names[0], layer, kind))
    for layer, one in enumerate(data_movement.make_learner("BP", "headline").layers):
        n = one.n_units * B
        assert count["Layer.activity", layer, "activities"] == 2 * n
        assert count["Layer.put", layer, "activities"] == n
        assert count["Backprop.train_step", layer, "activities"] == n  # ReLU's slope
        assert count["Backprop.train_step", layer, "gradients"] == 2 * n


def pieces(tiles):
    """How many pieces there are: of one row of tiles the first, of two the others."""
    return 1 + math.ceil((tiles - 1) / 2)


def test_states_are_read_as_often_as_the_code_says(shrunken):
    """Of the recurrent network, in the bottom-up pass and in n iterations."""
    learner = data_movement.make_learner("FF", "recurrent")
    program, _ = record("FF", "recurrent", B)
    count = words_read(program, lambda names, layer, kind: (names[0], layer, kind))
    n, P, units = ff.ITERATIONS, 2, learner.layers[0].n_units
    once, U = units * B, units * P * B  # the bottom-up pass serves all passes
    expected = 0
    for i, layer in enumerate(learner.layers):
        T, window, padded = layer.tiles, layer.connections[0].window, 32 + 2
        strips = T * window * padded * layer.channels * B  # that a gathering reads
        reads = {
            # First product + bias, and the ReLU. Then: in layer 0 the image's product,
            # T n, the sum and the ReLU; above, W n, the label's weights and the ReLU.
            "Layer.activity": 2 * once + n * (3 * U + (i == 0) * once),
            # h is put down; and is where its slope is, is made part of y, and y is kept.
            "see": once + n * 7 * U,
            "sum_of_squares": once + n * 2 * U,
            "goodness_gradient": n * U,
            # Each layer reads the other's maps in a product, and for its gradient.
            "Connection.gather": 2 * n * P * strips + (i == 1) * strips,
        }
        if i == 1:  # the mean of the labels' weights and its sum with the bias
            reads["Layer.activity"] += units
            reads["Layer.bias"] = n * U + 2 * units  # and the weights of each label
        for function, words in reads.items():
            assert count[function, i, "activities"] == words, function
        expected += sum(reads.values())
        # Normalised for each iteration; a sum of squares for that, and for the goodness.
        expected += n * U + pieces(T) * B + (n - 1 + n) * pieces(T) * P * B
        # For the classifier: out of the padding, joined, multiplied, for its gradient.
        expected += 4 * once
    expected += 10 * B * 4  # logits: their bias; in the sample, in the loss twice
    assert words_read(program)["activities"] == expected


def test_gradients_are_read_as_often_as_the_code_says(shrunken):
    """A product with ones reads all of du where passes share the input."""
    program, _ = record("FF", "headline", B)
    count = words_read(program, lambda names, layer, kind: (names[0], layer, kind))
    for i, layer in enumerate(data_movement.make_learner("FF", "headline").layers):
        (rows, columns), T = layer.connections[0].corner, layer.tiles
        tile = layer.b.value.shape[2] * B  # words of a tile in a pass
        corner = 2 * rows * columns * tile
        rest = (T * T - rows * columns) * tile
        # In layer 0 both passes are the same below the corner's rows, and not scaled.
        whole = (T if i else rows) * T
        du = 2 * whole * tile + (T * T - whole) * tile
        assert count["transposed", i, "gradients"] == corner + rest
        # The copies that these are, the sum of passes, with a product of two ones for
        # each unit, and in layer 1 the scaling.
        expected = corner + rest + 2 * whole * tile + 2 * whole * tile // B
        expected += du if i else 0
        assert count["Connection.weight_gradient", i, "gradients"] == expected
        ones = (T * T + whole) * B
        assert count["Layer.bias_gradient", i, "gradients"] == du + ones
    program, _ = record("FF", "one-layer", B)
    count = words_read(program, lambda names, layer, kind: (names[0], kind))
    (layer,) = data_movement.make_learner("FF", "one-layer").layers
    units, tiles = layer.n_units, layer.tiles**2
    assert count["transposed", "gradients"] == units * B
    expected = 10 * units * (B + 1) + units * B
    assert count["Connection.weight_gradient", "gradients"] == expected
    # Sums over images by pass, as products with ones; these, times each pass's label.
    expected = 10 * units * B + tiles * B + 10 * units + tiles * 100
    expected += pieces(layer.tiles) * 100  # of the unit matrix the labels' rows
    assert count["Layer.bias_gradient", "gradients"] == expected


@pytest.mark.parametrize("work", ["train_step", "predict"])
@pytest.mark.parametrize("name, settings", CASES)
def test_nothing_comes_from_nowhere_or_goes_nowhere(shrunken, name, settings, work):
    """A write that nobody saw would leave a read of what is not there, a read that
    nobody saw a value that nobody reads."""
    program, without = record(name, settings, B, work)
    read = {value for _, values in program.operations for value in values}
    made = Counter()
    for values, operands, (names, _) in second_step(program):
        for value in values:
            if value not in read:
                made["never read", program.kinds[value]] += program.sizes[value]
            if not operands and program.kinds[value] == "others" and names:
                made["from nowhere"] += program.sizes[value]
    passes = 10 if settings == "one-layer" or work == "predict" else 2
    if name == "FF":
        # Gathered for the corner and not needed elsewhere, or the other way round; the
        # input that the last layer of plain.py makes for one that is not there, or the
        # recurrent network's sums of squares for it; and the pixels under the label block.
        made.pop(("never read", "gathered inputs"), None)
        units = 14 * 14 * 2 * passes * B if settings == "textbook" else 0
        units = 2 * pieces(16) * passes * B if settings == "recurrent" else units
        assert made.pop(("never read", "activities"), 0) == units
        assert made.pop(("never read", "images"), 0) <= (90 + 9) * passes * B + 300
    if work == "train_step":
        unread = 0
        if name == "FF" and settings in ("headline", "one row"):
            # du summed over passes also in both layers' corner, where it is not needed.
            unread = 2 * (2 * 5) * 8 * B
        if name == "BP" and settings == "recurrent":  # by the zeros around the maps
            unread = (34**2 - 32**2) * 3 * B
        # Slopes of the loss, statistics, labels: few words.
        assert unread <= made.pop(("never read", "gradients"), 0) <= unread + 100 * B
    # Sums that begin as zeros.
    assert made.pop(("never read", "others"), 0) <= 150 * passes * B
    assert made.pop("from nowhere", 0) <= 250 * passes * B
    assert not made
    if work == "predict":
        assert program.operations == without.operations


def test_blocks_of_a_real_step_cost_what_its_single_words_cost(monkeypatch):
    monkeypatch.setattr(ff, "SIDE", 10)
    monkeypatch.setattr(ff, "RECEPTIVE_FIELDS", [3, 3])
    monkeypatch.setattr(ff, "CHANNELS", 1)
    monkeypatch.setattr(data_movement, "STEPS", 2)
    monkeypatch.setattr(ff, "RECURRENT_FIELD", 3)
    monkeypatch.setattr(ff, "ITERATIONS", 2)
    monkeypatch.setitem(ff.NETWORKS["recurrent"], "channels", 1)
    for name, settings, evict in (
        ("FF", "headline", True),
        ("BP", "headline", False),
        ("FF", "recurrent", True),
    ):
        program, _ = record(name, settings, 1)
        sizes = dict(enumerate(program.sizes))
        words = in_words([], program.operations, [], sizes)
        expected = cost(*words, word=4, evict=evict)
        blocks = cost_blocks([], program.operations, [], sizes, 4, evict)
        assert blocks == expected > 0


def test_layer_by_layer_is_another_order_of_the_same_operations(shrunken):
    program, _ = record("FF", "headline", B)
    other = data_movement.layer_by_layer(program)

    def key(operation):
        return repr(operation)

    assert sorted(other.operations, key=key) == sorted(program.operations, key=key)
    assert other.operations != program.operations
    known = set()
    for made, read in other.operations:
        assert known.issuperset(read)
        known.update(made)
    functions = [
        (layer, "Adam.update" in names, "Connection.multiply" in names)
        for _, _, (names, layer) in second_step(other)
    ]
    last_update = max(i for i, f in enumerate(functions) if f == (0, True, False))
    first_touched = functions.index((1, False, True))
    assert last_update < first_touched
    assert words_read(other) == words_read(program)


# -------------------------------------------------------------------- the table


def test_the_command_prints_the_table_and_writes_its_numbers(
    shrunken, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(ff, "RECEPTIVE_FIELDS", [29, 3])
    monkeypatch.setattr(data_movement, "BATCHES", (1, 2))
    nothing = [sys.executable, "-c", "pass"]
    monkeypatch.setattr(data_movement, "training_process", lambda name, steps: nothing)
    path = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["data_movement.py", "--out", str(path)])
    with np.errstate(all="ignore"):  # plain.py's rms of layers so small may be zero
        data_movement.main()
    out = capsys.readouterr().out
    saved = json.loads(path.read_text())
    monkeypatch.setattr(viz, "STACKED_BATCHES", (1, 2))
    assert viz.read_movement(path).batches == [1, 2]
    rows = saved["rows"]
    assert len(rows) == 2 * 12 + 11
    for row in rows:
        (line,) = [
            line
            for line in out[: out.index("\ntotal:")].splitlines()
            if line.startswith(f"{row['learner']} {row['settings']}")
            and (row["order"] in line)
            and f"{data_movement.total(row) / 1e9:.3f}" in line.split()
            and f"{data_movement.total(row, evict=False) / 1e9:.3f}" in line.split()
        ][:1]
        assert str(row["batch"]) in line.split()
        assert len(row["variants"]) == 8
        for variant in row["variants"]:
            assert variant["total"] == pytest.approx(sum(variant["kinds"].values()))
            assert 0 < variant["total"] < math.inf
        one_byte = data_movement.total(row, word=1)
        assert 4 * one_byte < data_movement.total(row) < 8 * one_byte
        assert data_movement.total(row) < data_movement.total(row, evict=False)
        without = data_movement.total(row, optimiser=False)
        assert (without < data_movement.total(row)) == (row["work"] == "train_step")


@pytest.fixture
def easy(monkeypatch):
    """Data of a few images, of a colour for each label, and a small layer."""
    monkeypatch.setattr(ff, "RECEPTIVE_FIELDS", [29])
    monkeypatch.setattr(data_movement, "TRAINED", 60)
    monkeypatch.setattr(data_movement, "HELD_OUT", 30)
    monkeypatch.setattr(data_movement, "EVERY", 4)  # an epoch
    monkeypatch.setattr(data_movement, "BATCH", 16)
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(100) % 10).astype(np.uint8)
    colours = rng.integers(0, 256, (10, 1, 1, 3), np.uint8)
    images = np.tile(colours[labels], (1, 32, 32, 1))
    monkeypatch.setattr(ff, "make_synthetic", lambda: (images, labels, None, None))
    return images, labels


def test_steps_are_counted_until_held_out_images_are_predicted_right(easy):
    images, labels = easy
    data = images[:60], labels[:60], images[60:90], labels[60:90]
    args = ff.training_arguments("one-layer", train_subset=60, batch_size=16)
    args.bp_baseline, args.n_epochs = True, 5
    for wanted in 0.5, 1.0:
        for learner, twin in zip(ff.make_learners(args), ff.make_learners(args)):
            found = data_movement.steps_until(wanted, learner, args, *data)
            epochs, right = 0, 0.0
            while right < wanted:
                ff.train_epoch(twin, *data[:2], args, "")
                right = ff.accuracy(twin, *data[2:])
                epochs += 1
            assert found == 4 * epochs
    args.n_epochs = 1
    with pytest.raises(ff.RunError, match="FF, seed 0: not 100 % right in 4 steps"):
        data_movement.steps_until(1.0, ff.make_learners(args)[0], args, *data)


def test_steps_are_priced_by_those_that_the_table_prices(easy, monkeypatch, capsys):
    monkeypatch.setattr(data_movement, "WANTED", 0.9)
    flags = ["--steps", "--dataset", "synthetic"]
    monkeypatch.setattr(sys, "argv", ["data_movement.py", *flags])
    data_movement.main()
    *lines, by_seed, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith("[synthetic] ") for line in lines)
    assert "not CIFAR-10" in last
    steps = {}
    for name in "FF", "BP":
        counts = re.search(rf"{name} \[(\d+), (\d+), (\d+)\]", by_seed).groups()
        steps[name] = [int(count) for count in counts]
        assert all(count % 4 == 0 for count in steps[name])
    rows = {}
    for name in "FF", "BP":
        programs = record(name, "one-layer", 16)
        rows[name] = data_movement.make_row(
            name, "one-layer", "train_step", 16, programs
        )
        (line,) = [line for line in lines if f"] {name} " in line]
        mean, price = np.mean(steps[name]), 16 * data_movement.total(rows[name]) / 1e9
        sd = np.std(steps[name], ddof=1)
        numbers = [f"{mean:.0f}", "±", f"{sd:.0f}"]
        numbers += [f"{price:.1f}", f"{mean * price:,.0f}"]
        assert line.split()[2:] == numbers
    shares = [
        data_movement.total(rows["FF"], word, evict)
        / data_movement.total(rows["BP"], word, evict)
        for word in (1, 4)
        for evict in (True, False)
    ]
    fewer = np.mean(steps["FF"]) / np.mean(steps["BP"])
    (line,) = [line for line in lines if "FF/BP" in line]
    assert line.split()[2:] == [f"{fewer:.3f}"] + [
        f"{times * min(shares):.3f}-{times * max(shares):.3f}" for times in (1, fewer)
    ]


@pytest.mark.parametrize(
    "flags", [["--steps", "--out", "a.json"], ["--dataset", "synthetic"]]
)
def test_flags_that_do_not_fit_together_are_one_line(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", ["data_movement.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        data_movement.main()
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--steps" in err


def test_cache_misses_are_those_of_a_step_or_left_out(monkeypatch, tmp_path):
    """perf is a script that counts 100 for each step, and 7 to start."""
    perf = tmp_path / "perf"
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(
        data_movement, "training_process", lambda name, steps: [str(steps)]
    )
    for line, expected in (
        ("$((100 * $5 + 7)),,cache-misses:u,1,100.00,,", 100),
        ("<not supported>,,cache-misses:u,0,100.00,,", None),
        ("Access is limited", None),
    ):
        perf.write_text(f'#!/bin/sh\necho "{line}" >&2\n')
        perf.chmod(0o700)
        assert data_movement.cache_misses("FF") == expected
    perf.write_text("#!/bin/sh\nexit 1\n")
    assert data_movement.cache_misses("FF") is None
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert data_movement.cache_misses("FF") is None
