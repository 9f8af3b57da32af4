# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "matplotlib>=3.8.4", "pillow>=10.1"]
# ///
"""What a training step pays to fetch its operands: Forward-Forward against backprop.

    uv run tests/data_movement.py --plot viz/data_movement.png

The price is ByteDMD's (data movement distance on bytes). All values live on one stack,
the most recently used on top, and to read a byte at depth d costs ceil(sqrt(d)): about
the length of the wire to it, were the memory laid out in the plane around the
processor. Writes and arithmetic are free. There is no cache size to choose: what was
used a short while ago is cheap, and what waited for long is dear.

The table has the second step of each learner as its code runs, and FF's headline in
another order too; in about two minutes. With --steps, it is the price of as many steps
as FF and BP need to be equally good. Some of the table:

    price for an image, 10^9          batch       FF       BP          FF/BP
    headline                             64    6.046    5.957    0.983-1.015
    headline, layer by layer             64    5.795    5.957    0.968-0.973
    one layer, ten labels                64    5.044    3.660    1.378-1.458
    recurrent network                    64   44.633    8.089    5.185-5.518
"""

import itertools
import math
import sys
import threading
import weakref
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import ff_cifar_locally_connected as ff  # before numpy: it sets the threads of BLAS

# isort: split
import matplotlib.style
import numpy as np
import plain
from matplotlib.figure import Figure

import visualize_ff_cifar_locally_connected as viz

# -------------------------------------------------------------------- the price


class Stack:
    """The values that are alive, the most recently used on top.

    A Fenwick tree over the times of use holds at each time the words of the value that
    was last used then: how many words lie above a value is a sum over later times, which
    it gives in O(log n) for n uses in all.

    operations: (values made, values read) each; every value is made once
    size: {value: words}; one word for all others
    evict: a value leaves at its last read, and an unused one at once; else all stay
    results: the values that stay alive
    """

    def __init__(self, operations, size, evict, results=()):
        self.size, self.evict = size, evict
        self.reads_left = Counter(v for _, read in operations for v in read)
        uses = self.reads_left.total() + sum(len(made) for made, _ in operations)
        self.reads_left.update(results)  # by a reader who never comes
        self.tree = [0] * (uses + 1)
        self.time, self.words, self.last_use = 0, 0, {}

    def _add(self, time, words):
        self.words += words
        while time < len(self.tree):
            self.tree[time] += words
            time += time & -time

    def push(self, value):
        """Put a value on top, if anybody will read it."""
        if self.reads_left[value] or not self.evict:
            self.time += 1
            self.last_use[value] = self.time
            self._add(self.time, self.size.get(value, 1))

    def above(self, value):
        """How many words lie above a value."""
        time, below = self.last_use[value], 0
        while time:
            below += self.tree[time]
            time -= time & -time
        return self.words - below

    def use(self, value):
        """Read a value: it moves to the top, or leaves, and then this is True."""
        self._add(self.last_use.pop(value), -self.size.get(value, 1))
        self.reads_left[value] -= 1
        self.push(value)
        return value not in self.last_use


def bytes_price(n):
    """The sum of ceil(sqrt(d)) over the bytes at depth d = 1 to n: int64, exact."""
    n = np.asarray(n, np.int64)
    m = np.ceil(np.sqrt(n)).astype(np.int64)  # sqrt rounds rightly, so below 2**52
    return m * (6 * n - 2 * m**2 + 3 * m - 1) // 6


def words_price(above, n, word=1):
    """The price of n words of `word` bytes, each of them once, under `above` words."""
    return bytes_price(word * (above + n)) - bytes_price(word * above)


def cost(arguments, operations, results, word=1, evict=True):
    """The price of a program whose values are words of `word` bytes.

    arguments: lists of hashable values that are there at the start, the first list on
        top, and of each list the last value
    operations: (values made, values read) in order. All operands are priced before any
        moves; then they move to the top in order, or leave, and then what is made is
        pushed.
    results: the values that stay alive to the end
    evict: dead values leave the stack; else every value stays
    """
    values = [value for argument in reversed(arguments) for value in argument]
    operations = [(values, []), *operations]
    stack, depths = Stack(operations, {}, evict, results), []
    for made, operands in operations:
        depths += [stack.above(value) for value in operands]
        for value in operands:
            stack.use(value)
        for value in made:
            stack.push(value)
    return int(words_price(np.array(depths, np.int64), 1, word).sum())


# Blocks. An operation on arrays is taken as a program of single words that reads its
# operands one after the other, each whole and word by word in order, and then pushes the
# words of its results in order.
#
# A block whose words are always read and made together, in one order, stays together on
# the stack, the first word lowest. Under D other words, the first of n lies at depth
# D + n. When it is read and moves to the top, the next lies at D + n, and so do all. At
# the last read words leave instead: their depths are D + n, D + n - 1, ..., D + 1.


def cost_blocks(operations, sizes, words=(1,), evict=True, part=slice(None)):
    """The price of a part of a program of blocks, for each size of words, in bytes.

    As cost() of its single words. operations: (blocks made, blocks read); sizes: words
    of each block; part: the operations that are priced. Those before leave the stack as
    it is, and those behind are readers for whom values stay.
    """
    stack, reads = Stack(operations, sizes, evict), []
    priced = range(len(operations))[part]
    for i, (made, operands) in enumerate(operations[: priced.stop]):
        for block in operands:
            if i < priced.start:
                stack.use(block)
            else:
                reads.append((stack.above(block), sizes[block], stack.use(block)))
        for block in made:
            stack.push(block)
    above, size, last = np.array(reads, np.int64).reshape(-1, 3).T
    found = []
    for word in words:
        lowest = words_price(above + size - 1, 1, word)
        price = np.where(last, words_price(above, size, word), size * lowest)
        found.append(int(price.sum()))
    return found


# ----------------------------------------------------------------- the recorder
# The training code runs as it is, in one thread, on arrays that tell the recorder what
# numpy reads and writes of them, whatever function asks for it:
#
# - A matrix product of stacks is one operation for each matrix, and reads both factors
#   once. That BLAS may read them again, or copy them first, is left out.
# - Any other operation on arrays is one operation, and reads each array once, also one
#   that it names twice; of a broadcast array each word once. Where an array overlaps
#   itself (the windows of im2col), it is one operation for each index of the first axes,
#   as many as it takes until no part overlaps itself.
# - np.stack is one operation for each array that it joins.
# - To choose words of an array by other arrays, in a[i], reads all of it; to write to
#   chosen words reads and writes all of it.
# - What is written is a new value: the one that was there is gone.
# - A word is a number of an array, whatever its type. Left out are scalars and the arrays
#   that choose.


def root(array):
    """The array that owns the memory that `array` is a view of."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def axes(array):
    """(stride, length), in words, of axes that move, the longest stride first, and the
    length of the runs that they repeat."""
    steps = zip(array.strides, array.shape)
    run, outer = 1, []
    for stride, n in sorted((s // array.itemsize, n) for s, n in steps if s and n > 1):
        assert stride > 0, "a reversed array"
        if stride == run and not outer:
            run *= n
        else:
            outer.insert(0, (stride, n))
    return outer, run


def overlaps_itself(array):
    """Whether a word is seen at two indices, broadcast axes aside."""
    outer, reach = axes(array)
    for stride, n in reversed(outer):
        if stride < reach:
            return True
        reach += stride * (n - 1)
    return False


def arrays_in(value):
    """All arrays in nested lists and tuples, but for those of a single number or none."""
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in arrays_in(item)]
    is_array = isinstance(value, np.ndarray) and value.ndim and value.size
    return [value.view(np.ndarray)] if is_array else []


def unseen(value):
    """The same without a recorder, also in lists, tuples and dicts."""
    if isinstance(value, Recorded):
        return value.view(np.ndarray)
    if isinstance(value, (list, tuple)):
        return type(value)(map(unseen, value))
    if isinstance(value, dict):
        return {key: unseen(item) for key, item in value.items()}
    return value


def seen(result):
    """A result as an array that the recorder sees, if it is an array."""
    is_array = isinstance(result, np.ndarray) and result.ndim
    return result.view(Recorded) if is_array else result


class Recorded(np.ndarray):
    """An array that tells a recorder what is read of it and written to it."""

    recorder = None

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if out is not None:
            options["out"] = unseen(out)
        result = getattr(ufunc, method)(*unseen(inputs), **options)
        self.recorder.note(inputs, result, product=ufunc is np.matmul)
        return seen(result) if out is None else out[0]

    def __getitem__(self, key):
        result = unseen(self)[unseen(key)]
        return self.recorder.copied(self, result) if np.ndim(result) else result

    def __setitem__(self, key, value):
        target = unseen(self)[unseen(key)]
        unseen(self)[unseen(key)] = unseen(value)
        if np.ndim(target) and root(target) is not root(self):  # chosen words
            self.recorder.note([value, self], self)
        # After a[key] += b, Python writes a[key] to its own place.
        elif self.recorder.keys(value) != self.recorder.keys(target):
            self.recorder.note(value, target)


def recorded(function):
    """A function of numpy, or a method of arrays, that tells the recorder."""

    def call(*args, **options):
        result = function(*unseen(args), **unseen(options))
        if options.get("out") is not None:  # written in place, so never a view
            Recorded.recorder.note(args, result)
            return options["out"]
        if function is not np.stack or options:
            return Recorded.recorder.copied(args, result)
        for array, part in zip(args[0], result):
            Recorded.recorder.note(array, part)
        return seen(result)

    return call


for _name in "reshape", "astype", "copy", "ravel", "argmax":
    setattr(Recorded, _name, recorded(getattr(np.ndarray, _name)))


class RecordedNumpy:
    """numpy for the recorded modules: its functions, and what they make of nothing."""

    class float32(np.float32):  # a type of numbers, and a function that converts
        def __new__(cls, value):
            return recorded(np.float32)(value)

    def empty(self, *args):
        return np.empty(*args).view(Recorded)

    def zeros_like(self, array):
        return self.zeros(array.shape, array.dtype)

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, (type, np.ufunc)) or not callable(found):
            return found
        return recorded(found)


class Program(NamedTuple):
    """What was recorded, as cost_blocks() takes it."""

    operations: list  # (values made, values read), values being numbers
    sizes: dict  # of each value, in words
    starts: list  # the first operation of each step, and how many there are in all
    pieces: list  # the first operation of each round over the pieces of a layer


class Recorder:
    """Notes the operations on Recorded arrays as (keys written, keys read).

    A key stands for words: (buffer, offset, length of runs, axes), see axes(), the same
    for arrays of the same words. A buffer is the number of a piece of memory that is not
    a view of another.
    """

    def __init__(self):
        self.operations, self.starts, self.pieces, self.on = [], [], [], False
        self.sizes = []  # of each buffer, in words
        self.buffers = {}  # by address, as long as they live: a weak reference, number

    def key(self, array):
        """That of an array. A buffer that was freed is another when it comes back."""
        owner = root(array)
        start, here = (a.__array_interface__["data"][0] for a in (owner, array))
        if start not in self.buffers:
            gone = weakref.ref(owner, lambda _: self.buffers.pop(start))
            self.buffers[start] = gone, len(self.sizes)
            self.sizes.append(owner.size)
        outer, run = axes(array)
        return self.buffers[start][1], (here - start) // array.itemsize, run, *outer

    def keys(self, value):
        return [*map(self.key, arrays_in(value))]

    def copied(self, operands, result):
        """Note that operands were read for a result, unless it is a view of one."""
        if not any(root(array) is root(result) for array in arrays_in(operands)):
            self.note(operands, result)
        return seen(result)

    def note(self, operands, result, product=False):
        """Note that operands were read, and a result written: arrays, nested or not.

        product: of stacks of matrices
        """
        operands, result = arrays_in(operands), arrays_in(result)
        if not self.on or not (operands or result):
            return
        stack = result[0].shape[:-2] if product else ()
        if product:
            operands = [np.broadcast_to(a, stack + a.shape[-2:]) for a in operands]
        elif any(map(overlaps_itself, operands)):
            operands = [np.broadcast_to(a, result[0].shape) for a in operands]

        def split(result, operands, depth):  # along the first axes, `depth` or more
            if depth > 0 or any(map(overlaps_itself, operands)):
                for i in range(len(result[0])):
                    split([a[i] for a in result], [a[i] for a in operands], depth - 1)
            else:
                keys = self.keys(result), [*dict.fromkeys(self.keys(operands))]
                self.operations.append(keys)

        split(result, operands, len(stack))

    def begin_step(self, images):
        """The images, seen: they have just come in, and what follows is a new step."""
        self.on = True
        self.starts.append(len(self.operations))
        return self.copied((), images)

    def in_pieces(self, in_pieces, work):
        """A layer's in_pieces(work); and mark where it begins."""
        self.pieces.append(len(self.operations))
        in_pieces(work)

    def program(self):
        """The Program that was noted, each value one of a block.

        Two words of a buffer are in one block if no operation took only one of them.
        """
        keys = {}
        for key in itertools.chain(*itertools.chain(*self.operations)):
            keys.setdefault(key[0], {})[key] = None
        blocks, words = {}, []
        for buffer, its_keys in keys.items():
            parts, its_words = split_buffer(self.sizes[buffer], its_keys)
            blocks |= {key: (len(words) + p).tolist() for key, p in parts.items()}
            words += its_words
        operations, sizes, value, moved = [], {}, {}, []

        def of(keys):
            return dict.fromkeys(block for key in keys for block in blocks[key])

        def make(made):
            for block in made:
                value[block] = len(sizes)
                sizes[value[block]] = words[block]
            return [value[block] for block in made]

        for written, read in self.operations:
            moved.append(len(operations))
            # A constant, or what the first step finds: it comes in here.
            if new := [block for block in of(read) if block not in value]:
                operations.append((make(new), []))
            read = [value[block] for block in of(read)]
            operations.append((make(of(written)), read))
        starts = [*(moved[i] for i in self.starts), len(operations)]
        return Program(operations, sizes, starts, [moved[i] for i in self.pieces])


def words_at(key, unit):
    """The numbers of a buffer's words that a key stands for, in units of so many words."""
    _, offset, run, *outer = key
    words = np.array(offset // unit)
    for stride, n in outer:
        words = words[..., None] + stride // unit * np.arange(n)
    return (words[..., None] + np.arange(run // unit)).ravel()


def split_buffer(size, keys):
    """The largest blocks of a buffer of which every key takes some, each of them whole.

    Returns {key: numbers of its blocks}, sizes, in the order of their first words.
    """
    unit = size  # no key tears so many words apart
    for _, offset, run, *outer in keys:
        strides = [stride for stride, _ in outer]
        unit = math.gcd(unit, offset, run, *strides)
    # Two words are in one block if the same keys take them: if random numbers, one for
    # each key, have the same sum, by chance once in 2**64.
    rng, sums = np.random.default_rng(0), np.zeros(size // unit, np.uint64)
    for key in keys:
        sums[words_at(key, unit)] += rng.integers(2**64, dtype=np.uint64)
    _, first, block, sizes = np.unique(sums, True, True, True)
    order = np.argsort(first)
    block = np.argsort(order)[block]
    parts = {key: np.unique(block[words_at(key, unit)]) for key in keys}
    return parts, (unit * sizes[order]).tolist()


@contextmanager
def recording():
    """A Recorder of what the training module and tests/plain.py do in this context.

    Arrays that are made in it are recorded: learners must be, too.
    """
    recorder = Recorder()
    with (
        patch.object(Recorded, "recorder", recorder),
        patch.object(ff, "np", RecordedNumpy()),
        patch.object(plain, "np", RecordedNumpy()),
        patch.object(ff, "THREADS", 1),
        patch.object(ff, "_local", threading.local()),
    ):
        yield recorder
    recorder.on = False


# -------------------------------------------------------------------- the table

STEPS = 3  # the first starts up, the second is priced, the third needs what stays
BATCHES = 1, 8, 64, 256
ROWS = {  # what is compared: the name of its row
    "headline": "headline",
    "one-layer": "one layer, ten labels",
    "textbook": "textbook order of loops",
    "recurrent": "recurrent network",
}
WORDS = 4, 1  # bytes


def make_learner(name, row):
    """FF or BP: of plain.py, if "textbook"; else of the training module."""
    recipe = "headline" if row == "textbook" else row
    args = ff.training_arguments(recipe, bp_baseline=True)
    ours = ff.make_learners(args)[name == "BP"]
    if row != "textbook":
        return ours
    layers = [
        plain.Layer(field=layer.field, dtype=np.float32, **layer.get_weights())
        for layer in ours.layers
    ]
    if name == "FF":
        return plain.ForwardForward(layers, args.lr, np.float32)
    readout = [parameter.value for parameter in ours.readout.values()]
    return plain.Backprop(layers, *readout, args.lr, np.float32)


def train(name, row, batch, work="train_step", recorder=None):
    """A learner after STEPS steps, or calls of another method `work` on images.

    They are noise, as what is read does not depend on pixels.
    """
    learner, rng = make_learner(name, row), np.random.default_rng(0)
    if recorder and (name, row) == ("FF", "headline"):
        for layer in learner.layers:
            layer.in_pieces = partial(recorder.in_pieces, layer.in_pieces)
    for _ in range(STEPS):
        images = rng.integers(0, 256, (batch, *ff.IMAGE_SHAPE), np.uint8)
        labels = rng.integers(0, 10, batch, np.uint8)
        others = [labels] if work == "train_step" else []
        if others and isinstance(learner, plain.ForwardForward):
            others.append([ff.wrong_labels(labels, rng)])
        images = recorder.begin_step(images) if recorder else images
        getattr(learner, work)(images, *others)
    return learner


def record(*arguments):
    """The Program of train(*arguments)."""
    with recording() as recorder:
        train(*arguments, recorder=recorder)
        return recorder.program()


def layer_by_layer(program):
    """A program of FF in another order: a layer is updated before the next is touched.

    The operations are the same, and each reads the same values: a layer's gradient needs
    its own goodness only, and its input from before the update of the layer below is
    kept. What an operation needs comes before it, also where that comes later otherwise.
    """
    operations, order = program.operations, {}
    made_by = {v: i for i, (made, _) in enumerate(operations) for v in made}

    def put(i):
        if i not in order:
            for value in operations[i][1]:
                put(made_by[value])
            order[i] = operations[i]

    for start, end in itertools.pairwise(program.starts):
        # Every layer goes forward, in pieces, and then every layer is updated.
        _, *cuts = (i for i in program.pieces if start <= i < end)
        parts = [range(*span) for span in itertools.pairwise([start, *cuts, end])]
        half = len(parts) // 2
        for part in itertools.chain(*zip(parts[:half], parts[half:], strict=True)):
            for i in part:
                put(i)
    return program._replace(operations=[*order.values()])


def prices(program):
    """The price of the second step for WORDS: dead values leave the stack, or stay."""
    operations, sizes, starts, _ = program
    second = slice(*starts[1:3])
    leave, stay = (
        cost_blocks(operations, sizes, WORDS, evict, second) for evict in (True, False)
    )
    return np.array(leave + stay)


def make_table():
    """{(name of a row, batch): prices() for an image, of FF and of BP (2, 4)}."""
    table = {}

    def enter(name, batch, *programs):
        ff.show_progress(f"{name}, batch {batch}")
        table[name, batch] = np.array([*map(prices, programs)]) / batch

    for (row, name), batch in itertools.product(ROWS.items(), BATCHES):
        programs = [record(who, row, batch) for who in ("FF", "BP")]
        enter(name, batch, *programs)
        if row == "headline":
            programs[0] = layer_by_layer(programs[0])
            enter(f"{name}, layer by layer", batch, *programs)
    for row, name in ROWS.items():
        programs = [record(who, row, 1, "predict") for who in ("FF", "BP")]
        enter(f"to predict: {name}", 1, *programs)
    programs[0] = record("FF", "recurrent", 1, "predict_one_pass")
    enter("to predict: in one pass", 1, *programs)
    ff.show_progress("")
    return table


def spread(found, times=1.0):
    """FF / BP of prices (2, 4), the lowest and the highest, times a number."""
    ratios = times * found[0] / found[1]
    return f"{ratios.min():.3f}-{ratios.max():.3f}"


LEGEND = """
prices of the second step of training, for words of 4 bytes; dead values leave the stack
FF/BP: lowest and highest for words of 4 and 1 bytes, and where dead values stay
layer by layer: each layer is updated before the next is touched, the same operations
textbook: tests/plain.py; recurrent: BP has the same stack without top-down weights"""


def print_table(table):
    print(f"{'price for an image, 10^9':34}{'batch':>5}{'FF':>9}{'BP':>9}{'FF/BP':>15}")
    for name in dict.fromkeys(name for name, _ in table):
        for batch in (batch for row, batch in table if row == name):
            found = table[name, batch]
            FF, BP = found[:, 0] / 1e9
            print(f"{name:34}{batch:5}{FF:9.3f}{BP:9.3f}{spread(found):>15}")
    print(LEGEND)


# ------------------------------------------------------------------- the figure

LOOKS = (  # of the rows of the table
    {"color": "black", "marker": "o"},
    {"color": viz.GREEN, "marker": "s", "ls": "--", "markerfacecolor": "white"},
    *viz.LAYER_LOOKS[:3],
)


def plot_table(table):
    """FF / BP by the size of the batch; the first two rows on a scale of their own too."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    figure.suptitle("What a training step pays to fetch its operands")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    names, x = [name for name, n in table if n == BATCHES[-1]], np.arange(len(BATCHES))
    for axes, shown in (left, names), (right, names[:2]):
        axes.axhline(1, **viz.REFERENCE, label="as dear as BP")
        for name, look in zip(shown, LOOKS):
            found = np.stack([table[name, batch] for batch in BATCHES])
            ratios = found[:, 0] / found[:, 1]
            axes.plot(x, ratios[:, 0], label=name, **look)
            low, high = ratios.min(axis=1), ratios.max(axis=1)
            axes.vlines(x, low, high, color=look["color"], linewidth=5, alpha=0.4)
        axes.set_xticks(x, BATCHES)
        axes.set(xlabel="images in a batch")
        axes.grid(False, axis="x")
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter("{x:g}")
    left.set(ylabel="price of FF / price of BP", title="all, on a scale of doublings")
    handles, words = left.get_legend_handles_labels()
    left.legend(handles[::-1], words[::-1], loc="upper left")
    right.set_title("the headline alone")
    figure.supxlabel(
        "Price (ByteDMD): of each byte that is read, the square root of how many bytes "
        "were used since it was used last; for words of 4 bytes\nand without dead values. "
        "Bars: from the least to the most, also with words of 1 byte and with dead "
        "values. FF's recurrent network\nhas top-down weights, BP's has none.",
        fontsize=10.5,
    )
    return figure


# ------------------------------------------------- steps to a common accuracy

TRAINED = 45_000  # of the 50,000 training images; the others are held out
HELD_OUT = 2000  # of these, the first, are predicted
EVERY = 20  # steps
WANTED = 0.5  # of them, predicted right
SEEDS = 3
BATCH = 64


def steps_until(wanted, learner, args, images, labels, *held_out):
    """Steps of training until it predicts a fraction `wanted` of held-out images right.

    Raises RunError if it never does.
    """
    where, random = f"{learner.name}, seed {args.seed}", learner.generators
    for step in range(1, args.n_epochs * len(images) // BATCH + 1):
        batch = random["order"].choice(len(images), BATCH, replace=False)
        x = ff.augment(images[batch], random["augmentation"], args.augment)
        learner.train_step(x, labels[batch])
        if step % EVERY == 0:
            found = ff.accuracy(learner, *held_out)
            ff.show_progress(f"{where}, step {step}: {100 * found:.1f} %")
            if found >= wanted:
                return step
    raise ff.RunError(f"{where}: not {100 * wanted:g} % right in {step} steps")


def compare_steps(args):
    """Print what FF and BP pay to come to a common accuracy, with --recipe one-layer."""
    images, labels, *_ = ff.load_data(args)
    held_out = slice(TRAINED, TRAINED + HELD_OUT)
    data = images[:TRAINED], labels[:TRAINED], images[held_out], labels[held_out]
    steps = {"FF": [], "BP": []}
    for args.seed in range(SEEDS):
        for learner in ff.make_learners(args):
            steps[learner.name].append(steps_until(WANTED, learner, args, *data))
    ff.show_progress("")
    found = np.array([prices(record(name, "one-layer", BATCH)) for name in steps])
    ff.tell(
        f"--recipe one-layer: steps of {BATCH} images until {WANTED:.0%} of {HELD_OUT:,} "
        f"held-out images are predicted right, tested every {EVERY} steps;"
    )
    ff.tell(f"mean ± sd of {SEEDS} seeds; times the price of a step, 10^9")
    for (name, counts), price in zip(steps.items(), found[:, 0] / 1e9):
        mean, sd = np.mean(counts), np.std(counts, ddof=1)
        product = f"x {price:.1f} = {mean * price:,.0f}"
        ff.tell(f"{name:5} {mean:.0f} ± {sd:.0f} steps {counts} {product}")
    fewer = np.mean(steps["FF"]) / np.mean(steps["BP"])
    ff.tell(f"FF/BP {fewer:.3f} x {spread(found)} = {spread(found, fewer)}")


def main():
    parser = ff.Parser(
        "Price the data movement of Forward-Forward and backprop (ByteDMD).",
        "data_movement.py --plot viz/data_movement.png",
    )
    what = parser.add_mutually_exclusive_group()
    help = "draw the table's FF/BP into this PNG file"
    what.add_argument("--plot", type=ff.destination, metavar="FILE", help=help)
    help = "instead of the table: train FF and BP with --recipe one-layer until they "
    help += "predict half of the images right, and price the steps that this takes"
    what.add_argument("--steps", action="store_true", help=help)
    args = parser.parse_args()
    if args.steps:
        changes = {"dataset": "auto", "train_subset": TRAINED, "batch_size": BATCH}
        compare_steps(ff.training_arguments("one-layer", bp_baseline=True, **changes))
        return
    table = make_table()
    print_table(table)
    if args.plot:
        with matplotlib.style.context(["default", viz.STYLE]):
            draw = partial(plot_table(table).savefig, format="png")
            ff.write_whole(args.plot, draw)
        ff.tell(f"wrote {args.plot}")


if __name__ == "__main__":
    ff.command(main)
