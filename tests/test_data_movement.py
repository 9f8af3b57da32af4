"""The price of data movement: known values, a naive list, and reads that do not leak."""

import math
import random

import data_movement
import pytest
from data_movement import cost, cost_blocks

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
