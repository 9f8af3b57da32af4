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

The table, in about two minutes, has the second step of each learner as its code runs,
and FF's headline in another order too; with --steps, it is the price of as many steps
as FF and BP need to be equally good. Some of it:

    price for an image, 10^9          batch       FF       BP          FF/BP
    headline                             64    6.046    5.957    0.981-1.015
    one layer, ten labels                64    5.044    3.660    1.378-1.459
    recurrent network                    64   44.633    8.089    5.186-5.518
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
import numpy as np
import plain
from matplotlib.figure import Figure

import visualize_ff_cifar_locally_connected as viz

# -------------------------------------------------------------------- the price
# An operation on arrays counts as a program of single words: it reads its operands one
# after the other, each whole and word by word, and then pushes the words of its results.
#
# A block is words that are always read and made together, in one order. It stays
# together on the stack, the first word lowest. Under D other words, the first of n lies
# at depth D + n; when it moves to the top, the next lies at D + n, and so do all. At the
# last read words leave instead: their depths are D + n, D + n - 1, ..., D + 1.

WORDS = 4, 1  # bytes


class Program(NamedTuple):
    """What was recorded."""

    operations: list  # (blocks made, blocks read), blocks being numbers, each made once
    sizes: list  # of each block, in words
    starts: list  # the first operation of each step, and how many there are in all
    rounds: list  # the first operation of each round over the pieces of a layer


def bytes_price(n):
    """The sum of ceil(sqrt(d)) over the bytes at depth d = 1 to n: int64, exact."""
    n = np.asarray(n, np.int64)
    m = np.ceil(np.sqrt(n)).astype(np.int64)  # sqrt rounds rightly, so below 2**52
    return m * (6 * n - 2 * m**2 + 3 * m - 1) // 6


def words_price(above, n, word):
    """The price of n words of `word` bytes, each of them once, under `above` words."""
    return bytes_price(word * (above + n)) - bytes_price(word * above)


def cost(program, stay=False):
    """The price of the second step of a program, for each size of words in WORDS.

    The first leaves the stack as it is, and those behind are readers for whom values
    stay. What nobody will read leaves the stack, unless all stay.
    """
    operations, sizes, (_, start, end, *_), _ = program
    reads_left = Counter(block for _, read in operations for block in read)
    # The stack: at each time of use, the words of the block that was last used then.
    stack = np.zeros(reads_left.total() + len(sizes), np.int64)
    now, last_use, reads = 0, {}, []

    def push(block):
        nonlocal now
        if reads_left[block] or stay:
            stack[now], last_use[block] = sizes[block], now
            now += 1

    for i, (made, read) in enumerate(operations[:end]):
        for block in read:
            used = last_use.pop(block)
            reads_left[block] -= 1
            if i >= start:
                above = stack[used + 1 : now].sum()
                reads.append((above, sizes[block], reads_left[block] or stay))
            stack[used] = 0
            push(block)
        for block in made:
            push(block)
    above, n, stays = np.array(reads, np.int64).reshape(-1, 3).T
    found = []
    for word in WORDS:
        lowest = words_price(above + n - 1, 1, word)
        found.append(np.where(stays, n * lowest, words_price(above, n, word)).sum())
    return found


def prices(program):
    """cost(), where dead values leave the stack, and where they stay."""
    return np.array(cost(program) + cost(program, stay=True))


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
# - To choose words by other arrays, in a[i], reads all of a; to write to them reads and
#   writes all of it.
# - What is written is a new value: the one that was there is gone.
# - A word is a number of an array, whatever its type. Scalars and arrays that choose are
#   left out.


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
    """A result that the recorder sees, if it is an array."""
    is_array = isinstance(result, np.ndarray) and result.ndim
    return result.view(Recorded) if is_array else result


class Recorded(np.ndarray):
    """An array that tells a recorder what is read of it and written to it."""

    recorder = None

    def __array_ufunc__(self, ufunc, method, *inputs, out=(None,), **options):
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        return recorded(function)(*inputs, out=out[0], **options)

    def __getitem__(self, key):
        result = unseen(self)[unseen(key)]
        if np.ndim(result) and root(result) is not root(self):  # chosen words
            self.recorder.note(self, result)
        return seen(result)

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
        result, out = function(*unseen(args), **unseen(options)), options.get("out")
        note, is_product = Recorded.recorder.note, function is np.matmul
        if function is np.stack and not options:
            for array, part in zip(args[0], result):
                note(array, part)
        elif out is not None:
            note(args, result, is_product)
        elif not any(root(array) is root(result) for array in arrays_in(args)):
            note(args, result, is_product)  # which is no view
        return seen(result) if out is None else out

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


class Recorder:
    """Notes the operations on Recorded arrays, as (keys written, keys read).

    A key stands for words: (buffer, offset, length of runs, axes), see axes(), the same
    for arrays of the same words. A buffer is the number of a piece of memory that is not
    a view of another.
    """

    def __init__(self):
        self.operations, self.starts, self.rounds = [], [], []
        self.sizes = []  # of each buffer, in words
        self.buffers = {}  # by address, as long as they live: a weak reference, number

    def keys(self, value):
        return [*map(self.key, arrays_in(value))]

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

    def begin_step(self, images):
        """The images, seen: they have just come in, and what follows is a new step."""
        self.starts.append(len(self.operations))
        self.note((), images)
        return seen(images)

    def note(self, operands, result, is_product=False):
        """Note, after the first begin_step(), that operands were read and a result written:
        arrays, nested or not; is_product: of stacks of matrices."""
        operands, result = arrays_in(operands), arrays_in(result)
        if not self.starts or not (operands or result):
            return
        stack = result[0].shape[:-2] if is_product else ()
        if is_product:
            operands = [np.broadcast_to(a, stack + a.shape[-2:]) for a in operands]
        elif any(map(overlaps_itself, operands)):
            operands = [np.broadcast_to(a, result[0].shape) for a in operands]
        self.split(result, operands, len(stack))

    def split(self, result, operands, depth):
        """Note one operation for each index of the first axes, `depth` of them or more."""
        if depth > 0 or any(map(overlaps_itself, operands)):
            for i in range(len(result[0])):
                self.split([a[i] for a in result], [a[i] for a in operands], depth - 1)
        else:
            self.operations.append((self.keys(result), self.keys(operands)))

    def program(self):
        """The Program that was noted. What is written makes its blocks anew.

        Two words of a buffer are in one block if no operation took only one of them.
        """
        keys = {}
        for key in itertools.chain(*itertools.chain(*self.operations)):
            keys.setdefault(key[0], {})[key] = None
        places, words = {}, []
        for buffer, its_keys in keys.items():
            parts, its_words = split_buffer(self.sizes[buffer], its_keys)
            places |= {key: (len(words) + p).tolist() for key, p in parts.items()}
            words += its_words
        operations, sizes, block = [], [], {}  # the block that is at each place

        def of(keys):
            return dict.fromkeys(place for key in keys for place in places[key])

        def make(made):
            for place in made:
                block[place] = len(sizes)
                sizes.append(words[place])
            return [block[place] for place in made]

        for written, read in self.operations:
            # A constant, or what the first step finds, comes in where it is first read.
            new = [place for place in of(read) if place not in block]
            operations.append((make(new), []))
            read = [block[place] for place in of(read)]
            operations.append((make(of(written)), read))
        starts = [*(2 * i for i in self.starts), len(operations)]
        return Program(operations, sizes, starts, [2 * i for i in self.rounds])


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
        unit = math.gcd(unit, offset, run, *(stride for stride, _ in outer))
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
    recorder, in_pieces = Recorder(), ff.Layer.in_pieces

    def in_marked_pieces(layer, work):
        recorder.rounds.append(len(recorder.operations))
        in_pieces(layer, work)

    with (
        patch.object(Recorded, "recorder", recorder),
        patch.object(ff, "np", RecordedNumpy()),
        patch.object(plain, "np", RecordedNumpy()),
        patch.object(ff, "THREADS", 1),
        patch.object(ff, "_local", threading.local()),
        patch.object(ff.Layer, "in_pieces", in_marked_pieces),
    ):
        yield recorder


# -------------------------------------------------------------------- the table

STEPS = 3  # the first starts up, the second is priced, the third needs what stays
BATCHES = 1, 8, 64, 256
ROWS = {  # what is compared: the name of its row
    "headline": "headline",
    "one-layer": "one layer, ten labels",
    "textbook": "textbook order of loops",
    "recurrent": "recurrent network",
}


def train(name, row, batch, work="train_step"):
    """FF or BP after STEPS steps, or calls of another method `work` on images.

    It is the learner of the training module, or of plain.py, if "textbook". Images are
    noise, as what is read does not depend on pixels.
    """
    textbook, rng = row == "textbook", np.random.default_rng(0)
    recipe = "headline" if textbook else row
    args = ff.training_arguments(recipe, bp_baseline=True)
    learner = ff.make_learners(args)[name == "BP"]
    if textbook:
        learner = plain.twin(learner, args.lr, np.float32)
    for _ in range(STEPS):
        images = rng.integers(0, 256, (batch, *ff.IMAGE_SHAPE), np.uint8)
        labels = rng.integers(0, 10, batch, np.uint8)
        others = [labels] if work == "train_step" else []
        if others and textbook and name == "FF":
            others.append([ff.wrong_labels(labels, rng)])
        if Recorded.recorder:
            images = Recorded.recorder.begin_step(images)
        getattr(learner, work)(images, *others)
    return learner


def record(*arguments):
    """The Program of train(*arguments)."""
    with recording() as recorder:
        train(*arguments)
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
        _, *cuts = (i for i in program.rounds if start <= i < end)
        parts = [range(*span) for span in itertools.pairwise([start, *cuts, end])]
        half = len(parts) // 2
        for part in itertools.chain(*zip(parts[:half], parts[half:], strict=True)):
            for i in part:
                put(i)
    return program._replace(operations=[*order.values()])


def make_table():
    """{name of a row: for each of BATCHES, or the first, FF's and BP's prices() (2, 4)}.

    They are those for an image.
    """
    table = {}

    def enter(name, batch, *programs):
        ff.show_progress(f"{name}, batch {batch}")
        found = np.array([*map(prices, programs)]) / batch
        table.setdefault(name, []).append(found)

    for (row, name), batch in itertools.product(ROWS.items(), BATCHES):
        FF, BP = (record(who, row, batch) for who in ("FF", "BP"))
        enter(name, batch, FF, BP)
        if row == "headline":
            enter(f"{name}, layer by layer", batch, layer_by_layer(FF), BP)
    for row, name in ROWS.items():
        FF, BP = (record(who, row, BATCHES[0], "predict") for who in ("FF", "BP"))
        enter(f"to predict: {name}", BATCHES[0], FF, BP)
    FF = record("FF", "recurrent", BATCHES[0], "predict_one_pass")
    enter("to predict: in one pass", BATCHES[0], FF, BP)
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
    for name, rows in table.items():
        for batch, found in zip(BATCHES, rows):
            FF, BP = found[:, 0] / 1e9
            print(f"{name:34}{batch:5}{FF:9.3f}{BP:9.3f}{spread(found):>15}")
    print(LEGEND)


# ------------------------------------------------------------------- the figure


def plot_table(table):
    """FF / BP by the size of the batch; the headline in both orders on its own scale."""
    looks = (
        {"color": "black", "marker": "o"},
        {"color": viz.GREEN, "marker": "s", "ls": "--", "markerfacecolor": "white"},
        *viz.LAYER_LOOKS[:3],
    )
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    figure.suptitle("What a training step pays to fetch its operands")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    x = np.arange(len(BATCHES))
    names = [name for name, rows in table.items() if len(rows) == len(x)]
    for axes, shown in (left, [names[0], *names[2:]]), (right, names[:2]):
        axes.axhline(1, **viz.REFERENCE, label="as dear as BP")
        for name in shown:
            look = looks[names.index(name)]
            ratios = np.array([FF / BP for FF, BP in table[name]])
            axes.plot(x, ratios[:, 0], label=name, **look)
            low, high = ratios.min(axis=1), ratios.max(axis=1)
            axes.vlines(x, low, high, color=look["color"], linewidth=5, alpha=0.4)
        axes.set_xticks(x, BATCHES)
        axes.set(xlabel="images in a batch")
        axes.grid(False, axis="x")
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter("{x:g}")
    left.set(ylabel="price of FF / price of BP", title="on a scale of doublings")
    handles, words = left.get_legend_handles_labels()
    left.legend(handles[::-1], words[::-1], loc="upper left")
    right.set_title("the headline, in two orders of the same work")
    right.legend()
    figure.supxlabel(
        "Price (ByteDMD): of each byte that is read, the square root of how many bytes "
        "were used since it was used last; for words of 4 bytes\nand without dead values. "
        "Bars: from the least to the most, also with words of 1 byte and with dead "
        "values. FF's recurrent network\nhas top-down weights, BP's has none.",
        fontsize=10.5,
    )
    return figure


# ------------------------------------------------- steps to a common accuracy

HELD_OUT = 2000  # images, the first that are not trained on
WANTED = 0.5  # of them, predicted right
EVERY = 20  # steps
SEEDS = 3


def steps_until_right(learner, args, images, labels):
    """Steps of training until the share WANTED of the HELD_OUT images is predicted right.

    Raises RunError where that takes more than the steps of args.n_epochs.
    """
    n, B, random = args.train_subset, args.batch_size, learner.generators
    held_out = slice(n, n + HELD_OUT)
    learner.adam.total_steps = args.n_epochs * math.ceil(n / B)  # a linear schedule
    for step in itertools.count(1):
        batch = random["order"].choice(n, B, replace=False)
        x = ff.augment(images[batch], random["augmentation"], args.augment)
        learner.train_step(x, labels[batch])
        if step % EVERY == 0:
            right = ff.accuracy(learner, images[held_out], labels[held_out])
            where = f"{learner.name}, seed {args.seed}, step {step}"
            ff.show_progress(f"{where}: {100 * right:.1f} %")
            if right >= WANTED:
                return step


def compare_steps(args):
    """Print what FF and BP pay to come to a common accuracy, with --recipe one-layer."""
    images, labels, *_ = ff.load_data(args)
    steps, B = {"FF": [], "BP": []}, args.batch_size
    for args.seed in range(SEEDS):
        for learner in ff.make_learners(args):
            found = steps_until_right(learner, args, images, labels)
            steps[learner.name].append(found)
    ff.show_progress("")
    found = np.array([prices(record(name, "one-layer", B)) for name in steps])
    ff.tell(
        f"--recipe one-layer: steps of {B} images until {WANTED:.0%} of {HELD_OUT:,} "
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
    help = "instead of the table: the price of --recipe one-layer until half is right"
    what.add_argument("--steps", action="store_true", help=help)
    args = parser.parse_args()
    if args.steps:
        changes = {"dataset": "auto", "train_subset": 45_000, "batch_size": 64}
        compare_steps(ff.training_arguments("one-layer", bp_baseline=True, **changes))
        return
    table = make_table()
    print_table(table)
    if args.plot:
        figures = {args.plot.stem: partial(plot_table, table)}
        viz.write_figures(figures, args.plot.parent)


if __name__ == "__main__":
    ff.command(main)
