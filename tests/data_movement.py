# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.2", "pillow>=10.1"]
# ///
"""What a training step pays to fetch its operands: Forward-Forward against backprop.

    uv run tests/data_movement.py

The price is ByteDMD's (data movement distance on bytes). All values live on one stack,
the most recently used on top, and to read a byte at depth d costs ceil(sqrt(d)): about
the length of the wire to it, were the memory laid out in the plane around the
processor. Writes and arithmetic are free. There is no cache size to choose: what was
used a short while ago is cheap, and what waited for long is dear.

With --steps, it is the price of as many steps as FF and BP need to be equally good. Else,
the table, in about two minutes, has the second step of each learner as its code runs,
and also in other orders. Some of it, in 10^9 per image, for batches of 1, 64 and 256:

    FF headline                            296.369    6.022    3.138
    FF headline, one layer after the other 290.677    5.784    2.956
    BP headline                            298.664    6.004    3.173
    FF one-layer                           194.085    4.715    3.559
    BP one-layer                           193.364    3.693    1.759
    FF recurrent                           785.351   43.861   55.438
    BP recurrent                           320.290    8.204    6.471
"""

import itertools
import json
import math
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import ff_cifar_locally_connected as ff  # before numpy: it sets the threads of BLAS

# isort: split
import numpy as np
import plain

# -------------------------------------------------------------------- the price


class Stack:
    """The values that are alive, the most recently used on top.

    A Fenwick tree over the times of use holds at each time the words of the value that
    was last used then: how many words lie above a value is a sum over later times, which
    it gives in O(log n) for n uses in all.

    arguments: lists of values, those that are there at the start: the first list on
        top, and of each list the last value
    operations: (values made, values read) each; every value is made once
    results: the values that stay alive
    size: {value: words}; one word for all others
    evict: a value leaves at its last read, and an unused one at once; else all stay
    """

    def __init__(self, arguments, operations, results, size, evict):
        self.size, self.evict = size, evict
        self.reads_left = Counter(v for _, read in operations for v in read)
        uses = self.reads_left.total() + sum(len(made) for made, _ in operations)
        uses += sum(len(argument) for argument in arguments)
        self.reads_left.update(results)  # by a reader who never comes
        self.tree = [0] * (uses + 1)
        self.time, self.words, self.last_use = 0, 0, {}
        for argument in reversed(arguments):
            for value in argument:
                self.push(value)

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

    arguments: lists of hashable values, see Stack
    operations: (result, operands) in order; the result may be None. All operands are
        priced before any moves; then they move to the top in order, or leave, and then
        the result is pushed.
    results: the values that stay alive to the end
    evict: dead values leave the stack; else every value stays
    """
    operations = [
        ([] if made is None else [made], operands) for made, operands in operations
    ]
    stack, depths = Stack(arguments, operations, results, {}, evict), []
    for made, operands in operations:
        depths += [stack.above(value) for value in operands]
        for value in operands:
            stack.use(value)
        for value in made:
            stack.push(value)
    return int(words_price(np.array(depths, np.int64), 1, word).sum())


# Blocks. An operation on arrays is taken as a program of single words that reads its
# operands one after the other, each whole and word by word in order, and then pushes the
# words of its results in order:
#
#     (None, [word]) for each block that it reads, for each word
#     (word, [])     for each block that it makes, for each word
#
# A block whose words are always read and made together, in one order, stays together on
# the stack, the first word lowest. Under D other words, the first of n lies at depth
# D + n. When it is read and moves to the top, the next lies at D + n, and so do all. At
# the last read words leave instead: their depths are D + n, D + n - 1, ..., D + 1.


def block_reads(arguments, operations, results, sizes, evict=True, first=0, end=None):
    """Every read of a block, in order: arrays block, above, size, last.

    As for cost(), but operations are (blocks made, blocks read), and sizes gives the
    words of each block, an integer. Only of operations [first:end], but those before
    have left the stack as it is, and those behind are readers for whom values stay.
    """
    stack = Stack(arguments, operations, results, sizes, evict)
    reads = []
    for i, (made, operands) in enumerate(operations[:end]):
        for block in operands:
            if i < first:
                stack.use(block)
                continue
            above = stack.above(block)
            reads.append((block, above, sizes[block], stack.use(block)))
        for block in made:
            stack.push(block)
    return np.array(reads, np.int64).reshape(-1, 4).T


def block_prices(above, size, last, word=1):
    """The price of each read of a block, see block_reads()."""
    lowest = words_price(above + size - 1, 1, word)
    return np.where(last, words_price(above, size, word), size * lowest)


def cost_blocks(arguments, operations, results, sizes, word=1, evict=True):
    """The price of a program of blocks: that of cost() on its single words."""
    _, *reads = block_reads(arguments, operations, results, sizes, evict)
    return int(block_prices(*reads, word).sum())


# ----------------------------------------------------------------- the recorder
# The training code runs as it is, in one thread, on arrays that tell the recorder what
# numpy reads and writes of them. What it notes is taken as it is computed:
#
# - A matrix product of stacks is one operation for each matrix, and reads both factors
#   once. BLAS must read them at least once; that it may read them again, or copy them
#   into an order of its own first, is left out.
# - Any other operation on arrays is one operation, and reads each array once, also one
#   that it names twice; of a broadcast array each word once. Where an array overlaps
#   itself (the windows of im2col), it is one operation for each index of the first axes,
#   as many as it takes until no part overlaps itself.
# - What is written is a new value: the one that was there is gone.
# - A word is a number of an array, whatever its type.
#
# Left out are scalars and index arrays.


class Place:
    """Where an array lies: in a buffer, memory that is not a view of other memory.

    buffer: its number; offset, strides: in words; shape
    picked: the words one by one, if an index array chose them
    """

    def __init__(self, buffer, offset, shape, strides, picked=None):
        self.buffer, self.offset, self.picked = buffer, offset, picked
        self.shape, self.strides = tuple(shape), tuple(strides)

    def __getitem__(self, i):
        """That of array[i]."""
        offset = self.offset + i * self.strides[0]
        return Place(self.buffer, offset, self.shape[1:], self.strides[1:])

    def broadcast(self, shape):
        """That of the array broadcast to a shape."""
        strides = [0 if n == 1 else s for n, s in zip(self.shape, self.strides)]
        strides = [0] * (len(shape) - len(strides)) + strides
        return Place(self.buffer, self.offset, shape, strides)

    def axes(self):
        """(stride, length) of axes that move, the longest stride first, and the length of
        the runs that they repeat."""
        axes = [(s, n) for s, n in zip(self.strides, self.shape) if s and n > 1]
        run, outer = 1, []
        for stride, n in sorted(axes):
            if stride == run and not outer:
                run *= n
            else:
                outer.insert(0, (stride, n))
        return outer, run

    def overlaps_itself(self):
        """Whether a word is seen at two indices, broadcast axes aside."""
        outer, reach = self.axes()
        for stride, n in reversed(outer):
            if stride < reach:
                return True
            reach += stride * (n - 1)
        return False

    def key(self):
        """(buffer, offset, length of runs, axes): the same for arrays of the same words;
        or (buffer, words, 0) of picked ones."""
        if self.picked is not None:
            return self.buffer, np.unique(self.picked).tobytes(), 0
        outer, run = self.axes()
        return self.buffer, self.offset, run, *outer


def words_at(key, unit=1):
    """The words of a buffer that a Place's key stands for, in units of so many words:
    a slice, or their numbers."""
    _, offset, run, *axes = key
    if not run:
        return np.frombuffer(offset, np.int64)
    if not axes:
        return slice(offset // unit, (offset + run) // unit)
    words = np.array(offset // unit)
    for stride, n in axes:
        words = words[..., None] + stride // unit * np.arange(n)
    return (words[..., None] + np.arange(run // unit)).ravel()


def root(array):
    """The array that owns the memory that `array` is a view of."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def arrays_in(value):
    """All arrays in nested lists and tuples, but for those of a single number."""
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in arrays_in(item)]
    return [value] if isinstance(value, np.ndarray) and value.ndim else []


def unseen(value):
    """The same without a recorder, also in lists, tuples and dicts."""
    if isinstance(value, Recorded):
        return value.view(np.ndarray)
    if isinstance(value, (list, tuple)):
        return type(value)(map(unseen, value))
    if isinstance(value, dict):
        return {key: unseen(item) for key, item in value.items()}
    return value


class Recorded(np.ndarray):
    """An array that tells a recorder what is read of it and written to it."""

    recorder = None

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if out is not None:
            options["out"] = unseen(out)
        result = getattr(ufunc, method)(*unseen(inputs), **options)
        self.recorder.note(inputs, result, product=ufunc is np.matmul)
        return seen(result) if out is None else out[0]

    def __array_function__(self, function, types, args, options):
        result = function(*unseen(args), **unseen(options))
        if options.get("out") is not None:  # written in place, so never a view
            self.recorder.note(args, result)
            return options["out"]
        if function in (np.stack, np.concatenate) and not options:
            # One array after the other.
            lengths = [1 if function is np.stack else len(array) for array in args[0]]
            parts = np.split(result, np.cumsum(lengths)[:-1])
            for array, part in zip(args[0], parts, strict=True):
                self.recorder.note(array, part)
            return seen(result)
        return self.recorder.copied(args, result)

    def __getitem__(self, key):
        result = unseen(self)[unseen(key)]
        if arrays_in(result) and root(result) is not root(self):
            self.recorder.note(self.recorder.picked(self, key), result)
        return seen(result)

    def __setitem__(self, key, value):
        target = unseen(self)[unseen(key)]
        unseen(self)[unseen(key)] = unseen(value)
        if arrays_in(target) and root(target) is not root(self):
            self.recorder.note(value, self.recorder.picked(self, key))
        # After a[key] += b, Python writes a[key] to its own place.
        elif arrays_in(target) and not same_place(value, target):
            self.recorder.note(value, target)


def same_place(a, b):
    """Whether two arrays are the same words in the same order."""
    return isinstance(a, np.ndarray) and (
        (a.__array_interface__["data"], a.shape, a.strides)
        == (b.__array_interface__["data"], b.shape, b.strides)
    )


def seen(result):
    """A result as an array that the recorder sees, if it is an array."""
    return result.view(Recorded) if arrays_in(result) else result


def recorded_method(name):
    """A method that copies the array, or gives a view of it where it can."""

    def method(self, *args, **options):
        result = getattr(unseen(self), name)(*unseen(args), **options)
        return self.recorder.copied(self, result)

    return method


for _name in "reshape", "astype", "copy", "ravel", "flatten", "repeat", "argmax":
    setattr(Recorded, _name, recorded_method(_name))


class RecordedNumpy:
    """numpy for the recorded modules: what it makes of nothing is recorded too, and the
    arrays that it converts without telling."""

    class float32(np.float32):
        def __new__(cls, value):
            return Recorded.recorder.copied(value, np.float32(unseen(value)))

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, *args):
        return np.empty(*args).view(Recorded)

    def zeros(self, *args):
        return Recorded.recorder.copied((), np.zeros(*args))

    def ones(self, *args):
        return Recorded.recorder.copied((), np.ones(*args))

    def eye(self, *args, **options):
        return Recorded.recorder.copied((), np.eye(*args, **options))

    def zeros_like(self, array):
        return Recorded.recorder.copied((), np.zeros_like(unseen(array)))

    def ascontiguousarray(self, array):
        result = np.ascontiguousarray(unseen(array))
        return Recorded.recorder.copied(array, result)


# What a function writes, if it is not a parameter or a moment: the innermost that is
# known decides, by its name or that of its class too.
WRITES = {
    "images": "normalise normalised_maps with_labels encode_labels inputs begin",
    "gathered inputs": "gather im2col",
    "activities": "multiply product activity put see maps normalised normalise_state"
    " classify forward",
    "others": "goodness sum_of_squares inverse_rms loss cross_entropy ff_loss"
    " ff_loss_slopes label_goodness label_scores predict predict_one_pass iterate"
    " ForwardForward.forward sample_wrong_labels wrong_labels",
    "gradients": "goodness_gradient weight_gradient transposed bias_gradient du"
    " input_gradient gradients train_step Layer.update Adam.update",
    "Adam's moments": "step",
}
WRITES = {name: kind for kind, names in WRITES.items() for name in names.split()}
KINDS = ["weights", "Adam's moments", "activities", "gathered inputs", "gradients"]
KINDS += ["images", "others"]


@dataclass
class Program:
    """What was recorded, as cost_blocks() takes it.

    operations: (values made, values read), values being numbers
    who: of each operation, see Recorder
    sizes, kinds: of each value, in words; one of KINDS
    starts: the first operation of each step
    """

    operations: list = field(default_factory=list)
    who: list = field(default_factory=list)
    sizes: list = field(default_factory=list)
    kinds: list = field(default_factory=list)
    starts: list = field(default_factory=list)


class Recorder:
    """Notes the operations on Recorded arrays as (places written, places read, who).

    who: the functions of the recorded modules that were at work, the innermost first,
        and the number of the layer that the innermost worked on, or None
    """

    def __init__(self, modules):
        self.globals = [vars(module) for module in modules]
        self.operations, self.starts, self.on = [], [], False
        self.sizes, self.kinds = [], {}  # words of each buffer; kind, if it is named
        self.buffers = {}  # by address, as long as they live: a weak reference, number
        self.layer_of = {}

    def place(self, array):
        """The Place of an array. A buffer that was freed is another when it comes back."""
        if min(array.strides, default=0) < 0:
            raise NotImplementedError("a reversed array")
        owner = root(array)
        start = owner.__array_interface__["data"][0]
        if start not in self.buffers:
            gone = weakref.ref(owner, lambda _: self.buffers.pop(start))
            self.buffers[start] = gone, len(self.sizes)
            self.sizes.append(owner.size)
        offset = array.__array_interface__["data"][0] - start
        strides = [stride // array.itemsize for stride in array.strides]
        number = self.buffers[start][1]
        return Place(number, offset // array.itemsize, array.shape, strides)

    def picked(self, array, key):
        """The place of array[key], with index arrays in the key."""
        place = self.place(array)
        words = np.array(place.offset)
        for n, stride in zip(place.shape, place.strides):
            words = words[..., None] + stride * np.arange(n)
        return Place(place.buffer, 0, (), (), picked=words[unseen(key)])

    def name(self, kind, *arrays):
        """Whatever is ever written to these arrays is of this kind."""
        for array in arrays:
            self.kinds[self.place(array).buffer] = kind

    def who(self):
        """See the class. A local `self` or `layer` tells the layer."""
        names, layer = [], None
        frame = sys._getframe(2)
        while frame:
            if any(frame.f_globals is known for known in self.globals):
                local, name = frame.f_locals, frame.f_code.co_name
                if "self" in local:
                    name = f"{type(local['self']).__name__}.{name}"
                names.append(name)
                for owner in local.get("self"), local.get("layer"):
                    if layer is None:
                        layer = self.layer_of.get(id(owner))
            elif names and frame.f_globals is globals():
                break
            frame = frame.f_back
        return tuple(names), layer

    def copied(self, operands, result):
        """Note that operands were read for a result, unless it is a view of one."""
        owners = [root(array) for array in arrays_in(operands)]
        if arrays_in(result) and any(root(result) is owner for owner in owners):
            return seen(result)
        self.note(operands, result)
        return seen(result)

    def note(self, operands, result, product=False):
        """Note that operands were read and the result was written.

        Arrays, nested or not, or a Place. product: of stacks of matrices
        """
        if not self.on:
            return
        who = self.who()

        def places(value):
            if isinstance(value, Place):
                return [value]
            return [self.place(array) for array in arrays_in(value) if array.size]

        def split(written, read, depth):  # along the first axes, `depth` or more
            if depth == 0 and any(place.overlaps_itself() for place in read):
                depth = 1
            if depth == 0:
                keys = dict.fromkeys(place.key() for place in read)
                keys = [place.key() for place in written], list(keys)
                self.operations.append((*keys, who))
                return
            for i in range(written[0].shape[0]):
                split([w[i] for w in written], [r[i] for r in read], depth - 1)

        written, read, depth = places(result), places(operands), 0
        if not written and not read:
            return  # of arrays without a word
        if product:
            stack = written[0].shape[:-2]
            read = [place.broadcast(stack + place.shape[-2:]) for place in read]
            depth = len(stack)
        elif any(place.overlaps_itself() for place in read):
            read = [place.broadcast(written[0].shape) for place in read]
        split(written, read, depth)

    def begin_step(self, images):
        """What is noted from here on is a new step, on images that have just come in."""
        self.on = True
        self.starts.append(len(self.operations))
        self.operations.append(([self.place(images).key()], [], ((), None)))

    def split_buffers(self):
        """The blocks of all buffers: {key: numbers of its blocks}, words, buffers.

        Two words of a buffer are in one block if no operation took only one of them.
        """
        keys = {}
        for written, read, _ in self.operations:
            for key in (*written, *read):
                keys.setdefault(key[0], {})[key] = None
        blocks, sizes, buffers = {}, [], []
        for buffer, its_keys in keys.items():
            parts, its_sizes = split_buffer(self.sizes[buffer], its_keys)
            for key, part in parts.items():
                blocks[key] = (part + len(sizes)).tolist()
            sizes += its_sizes
            buffers += [buffer] * len(its_sizes)
        return blocks, sizes, buffers

    def programs(self):
        """The program of what was noted, and the same without the optimiser.

        Without: Adam's operations are left out, so that gradients are made and not read.
        """
        blocks = self.split_buffers()
        return self.program(*blocks), self.program(*blocks, without=ADAM)

    def program(self, blocks, sizes, buffers, without=frozenset()):
        """The operations (values made, values read), each value one of a block."""
        program = Program()
        value = {}  # the value that each block has

        def blocks_of(keys):
            return list(dict.fromkeys(block for key in keys for block in blocks[key]))

        def make(made, kind):
            for block in made:
                value[block] = len(program.sizes)
                program.sizes.append(sizes[block])
                program.kinds.append(self.kinds.get(buffers[block], kind))
            return [value[block] for block in made]

        def add(made, read, who):
            program.operations.append((made, read))
            program.who.append(who)

        for i, (written, read, who) in enumerate(self.operations):
            if i in self.starts:
                program.starts.append(len(program.operations))
            if without.isdisjoint(who[0]):
                read, written = blocks_of(read), blocks_of(written)
                # A constant, or what the first step finds: it comes in here.
                if new := [block for block in read if block not in value]:
                    add(make(new, "others"), [], who)
                read = [value[block] for block in read]
                add(make(written, kind_written(who[0])), read, who)
        return program


ADAM = frozenset({"Adam.update", "Adam.step"})


def kind_written(names):
    """The kind of what these functions write, the innermost first."""
    for name in names:
        for known in (name, name.split(".")[-1]):
            if known in WRITES:
                return WRITES[known]
    if names:
        raise ValueError(f"nobody knows what {names[0]}() writes")
    return "images"  # as they come in


def split_buffer(size, keys):
    """The largest blocks of a buffer of which every key takes some, each of them whole.

    Returns {key: numbers of its blocks, in the order of their first words}, sizes.
    """
    unit = size  # no key tears so many words apart
    for _, offset, run, *axes in keys:
        strides = [stride for stride, _ in axes]
        unit = math.gcd(unit, offset, run, *strides) if run else 1
    label, sizes = np.zeros(size // unit, np.int32), np.array([size // unit])
    for key in keys:
        at = words_at(key, unit)
        found = label[at]
        taken = np.bincount(found, minlength=len(sizes))
        torn = np.flatnonzero((taken > 0) & (taken < sizes))
        if len(torn):
            renamed = np.arange(len(sizes), dtype=np.int32)
            renamed[torn] = len(sizes) + np.arange(len(torn))
            label[at] = renamed[found]
            sizes[torn] -= taken[torn]
            sizes = np.append(sizes, taken[torn])
    first = np.empty(len(sizes), int)
    first[label[::-1]] = np.arange(len(label))[::-1]  # what is written last stays
    parts = {}
    for key in keys:
        part = np.flatnonzero(np.bincount(label[words_at(key, unit)]))
        parts[key] = part[np.argsort(first[part])]
    return parts, (sizes * unit).tolist()


@contextmanager
def recording(rows_at_once=ff.ROWS_AT_ONCE):
    """A Recorder of what the training module and tests/plain.py do in this context.

    Arrays that are made in it are recorded: learners must be, too.
    rows_at_once: rows of tiles in a piece
    """
    recorder = Recorder([ff, plain])
    changes = {
        (ff, "np"): RecordedNumpy(),
        (plain, "np"): RecordedNumpy(),
        (ff, "THREADS"): 1,
        (ff, "ROWS_AT_ONCE"): rows_at_once,
        (ff, "_local"): threading.local(),
    }
    before = {(module, name): getattr(module, name) for module, name in changes}
    try:
        Recorded.recorder = recorder
        for (module, name), value in changes.items():
            setattr(module, name, value)
        yield recorder
    finally:
        recorder.on = False
        for (module, name), value in before.items():
            setattr(module, name, value)


# -------------------------------------------------------------------- the table

STEPS = 3  # the first starts up, the second is priced, the third needs what stays
BATCHES = 1, 8, 64, 256
SETTINGS = "headline", "one row", "one-layer", "textbook", "recurrent"
WORDS = 4, 1  # bytes


def make_learner(name, settings):
    """FF or BP: of plain.py, if "textbook"; else of the training module, the recurrent
    network, or with the recipe "one-layer" or "headline", also that of "one row"."""
    recipe = "one-layer" if settings == "one-layer" else "headline"
    network = "recurrent" if settings == "recurrent" else "feedforward"
    args = ff.training_arguments(recipe, network, bp_baseline=True)
    ours = ff.make_learners(args)[name == "BP"]
    if settings != "textbook":
        return ours
    layers = [
        plain.Layer(field=layer.field, dtype=np.float32, **layer.get_weights())
        for layer in ours.layers
    ]
    if name == "FF":
        return plain.ForwardForward(layers, args.lr, np.float32)
    readout = ours.W_out.value, ours.b_out.value
    return plain.Backprop(layers, *readout, args.lr, np.float32)


def work_on(learner, images, labels, wrong, work="train_step"):
    """A step, or the method `work` that predicts, of a learner of either module."""
    if work != "train_step":
        getattr(learner, work)(images)
    elif isinstance(learner, plain.ForwardForward):
        learner.train_step(images, labels, [wrong])
    else:
        learner.train_step(images, labels)


def random_batch(rng, batch):
    """Noise images, labels, and wrong labels: what is read does not depend on pixels."""
    images = rng.integers(0, 256, (batch, ff.SIDE, ff.SIDE, 3), np.uint8)
    labels = rng.integers(0, 10, batch, np.uint8)
    return images, labels, ff.wrong_labels(labels, rng)


def record(name, settings, batch, work="train_step"):
    """Recorder.programs() of STEPS steps, or predictions, of a learner."""
    rng = np.random.default_rng(0)
    with recording(1 if settings == "one row" else ff.ROWS_AT_ONCE) as recorder:
        learner = make_learner(name, settings)
        for parameter in learner.parameters() if settings != "textbook" else ():
            recorder.name("weights", parameter.value)
            recorder.name("Adam's moments", parameter.m, parameter.v)
        if settings == "textbook":
            for layer in learner.layers:
                recorder.name("weights", *layer.parameters())
            if name == "BP":
                recorder.name("weights", learner.W_out, learner.b_out)
        for i, layer in enumerate(learner.layers):
            for owner in layer, *getattr(layer, "connections", ()):
                recorder.layer_of[id(owner)] = i
        for _ in range(STEPS):
            images, labels, wrong = random_batch(rng, batch)
            images = images.view(Recorded)
            recorder.begin_step(images)
            work_on(learner, images, labels, wrong, work)
        if settings == "recurrent":
            name_padded_maps(recorder, learner.layers)
        return recorder.programs()


def name_padded_maps(recorder, layers):
    """Name what the recurrent network and its BP read, with the zeros around it."""
    for i, layer in enumerate(layers):
        padded = "activities" if i else "images"  # by a connection
        for (name, _), array in layer.connections[0].buffers.items():
            if name == "x":
                recorder.name(padded, array)
        for (name, _), array in layer.buffers.items():
            if name == "n":
                recorder.name("activities", array)


def layer_by_layer(program):
    """A program of FF in another order: a layer is updated before the next is touched.

    The operations are the same, and each reads the same values: a layer's gradient needs
    its own goodness only, and its input from before the update of the layer below is
    kept. What an operation needs comes before it, also where that comes later otherwise.
    """

    def stage(i):
        names, layer = program.who[i]
        updates = "ForwardForward.forward" not in names
        return -1 if layer is None else 2 * layer + updates

    operations, made_by = program.operations, {}
    order, placed = [], set()

    def put(i):
        if i not in placed:
            placed.add(i)
            for value in operations[i][1]:
                put(made_by[value])
            order.append(i)

    for i, (made, _) in enumerate(operations):
        made_by.update(dict.fromkeys(made, i))
    for span in itertools.pairwise([*program.starts, len(operations)]):
        for i in sorted(range(*span), key=stage):
            put(i)
    who = [program.who[i] for i in order]
    return replace(program, operations=[operations[i] for i in order], who=who)


def prices(program, evict=True):
    """The price of the second step, by the kind of what is read: {word: {kind: price}}."""
    first, end = program.starts[1:3]
    sizes = dict(enumerate(program.sizes))
    block, *reads = block_reads([], program.operations, [], sizes, evict, first, end)
    kind = np.array([KINDS.index(kind) for kind in program.kinds])[block]
    result = {}
    for word in WORDS:
        price = block_prices(*reads, word)
        by_kind = [int(price[kind == k].sum()) for k in range(len(KINDS))]
        result[word] = dict(zip(KINDS, by_kind))
    return result


def make_row(name, settings, work, batch, programs, order=""):
    """A row of the table, as it is written to the file; all prices are per image."""
    variants = []
    for program, optimiser in zip(programs, (True, False)):
        for evict in True, False:
            for word, kinds in prices(program, evict).items():
                kinds = {kind: price / batch for kind, price in kinds.items()}
                variant = {"word": word, "evict": evict, "optimiser": optimiser}
                variants.append(
                    variant | {"total": sum(kinds.values()), "kinds": kinds}
                )
    case = {"learner": name, "settings": settings, "work": work, "batch": batch}
    return case | {"order": order, "variants": variants}


def rows():
    """All rows, one after the other."""
    for batch in BATCHES:
        for settings in SETTINGS:
            for name in "FF", "BP":
                programs = record(name, settings, batch)
                yield make_row(name, settings, "train_step", batch, programs)
                if name == "FF" and settings in ("headline", "one row"):
                    programs = [layer_by_layer(program) for program in programs]
                    order = "by layer"
                    yield make_row(name, settings, "train_step", batch, programs, order)
    for settings in SETTINGS:
        for name in "FF", "BP":
            programs = record(name, settings, 1, "predict")
            yield make_row(name, settings, "predict", 1, programs)
    programs = record("FF", "recurrent", 1, "predict_one_pass")
    yield make_row("FF", "recurrent", "predict", 1, programs, "one pass")


def total(row, word=4, evict=True, optimiser=True):
    """The price of a row in one of its variants."""
    wanted = {"word": word, "evict": evict, "optimiser": optimiser}
    (found,) = [one for one in row["variants"] if wanted.items() <= one.items()]
    return found["total"]


def ratios(row, rival, optimiser=True, times=1.0):
    """Row / rival, the lowest and the highest over words and eviction, times a number."""
    variants = [(word, evict, optimiser) for word in WORDS for evict in (True, False)]
    found = [total(row, *variant) / total(rival, *variant) for variant in variants]
    return f"{times * min(found):.3f}-{times * max(found):.3f}"


HEADING = f"""
price per image of the second step, in units of 10^9 (ceil(sqrt(depth)) of each byte)
{"":21}{"batch":>6}{"total":>9}{"weights":>9}{"moments":>9}{"activ.":>8}{"gather":>8}\
{"gradient":>9}{"rest":>7}{"no Adam":>9}{"1 byte":>8}{"all stay":>9}\
{"FF/BP":>15}{"no Adam":>15}"""

LEGEND = """
total: of 4-byte words, dead values leave; its parts, by what is read: weights with biases,
    Adam's moments (in plain.py with its temporaries), activities with W x and the recurrent
    network's states, gathered inputs (strips, im2col), gradients (with Adam's temporaries,
    which overwrite them)
no Adam, 1 byte, all stay: the total without the optimiser; of 1-byte words; without
    eviction: no value ever leaves the stack, which is deeper at every step
FF/BP: lowest and highest over both sizes of words, with and without eviction
one row: headline with pieces of one row of tiles, where the training module has two
by layer: FF with each layer updated before the next is touched, the same operations
textbook: tests/plain.py, where nothing is shared; a batch of 1 is sample by sample
recurrent: the recurrent network of two layers, with its one-pass classifier, and BP on the
    same bottom-up stack; one pass: what the classifier predicts, else the goodness"""


def table_line(row, rival):
    """A row as a line; rival: BP's, or None."""
    kinds = dict(row["variants"][0]["kinds"])
    rest = kinds.pop("images") + kinds.pop("others")
    name = f"{row['learner']} {row['settings']}{row['order'] and ', ' + row['order']}"
    widths = 9, 9, 9, 8, 8, 9, 7, 9, 8, 9
    numbers = [total(row), *kinds.values(), rest, total(row, optimiser=False)]
    numbers += [total(row, word=1), total(row, evict=False)]
    line = f"{name:23}{row['batch']:4}" + "".join(
        f"{number / 1e9:{width}.3f}" for number, width in zip(numbers, widths)
    )
    if rival:
        line += f"{ratios(row, rival):>15}{ratios(row, rival, False):>15}"
    return line


def print_table(rows):
    rivals = {case(row): row for row in rows if row["learner"] == "BP"}
    print(HEADING)
    before = None
    for row in rows:
        part = row["work"], row["batch"]
        if before and part != before:
            print("one image predicted" if row["work"] == "predict" else "")
        before = part
        print(table_line(row, rivals[case(row)] if row["learner"] == "FF" else None))
    print(LEGEND)


def case(row):
    """What FF and BP have in common where they are compared."""
    return row["settings"], row["work"], row["batch"]


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
    step, where = 0, f"{learner.name}, seed {args.seed}"
    for _ in range(args.n_epochs):
        order = learner.generators["order"].permutation(len(images))
        for i in range(0, len(images), args.batch_size):
            batch = order[i : i + args.batch_size]
            x = images[batch]
            if args.augment:
                x = ff.augment(x, learner.generators["augmentation"], args.shift)
            learner.train_step(x, labels[batch])
            step += 1
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
    for seed in range(SEEDS):
        args.seed = seed
        for learner in ff.make_learners(args):
            steps[learner.name].append(steps_until(WANTED, learner, args, *data))
    ff.show_progress("")
    prices = {}
    for name in steps:
        programs = record(name, "one-layer", BATCH)
        prices[name] = make_row(name, "one-layer", "train_step", BATCH, programs)
    tell = ff.teller(args)
    tell(
        f"--recipe one-layer: steps of {BATCH} images until {100 * WANTED:g} % of "
        f"{HELD_OUT:,} held-out images are predicted right, tested every {EVERY} steps;"
    )
    tell(f"mean ± sd of {SEEDS} seeds; and times the price of a step, in units of 10^9")
    tell(f"{'':5}{'steps':>14}{'price':>12}{'steps x price':>17}")
    means = {name: np.mean(counts) for name, counts in steps.items()}
    for name, counts in steps.items():
        price = BATCH * total(prices[name]) / 1e9
        spread = f"{means[name]:.0f} ± {np.std(counts, ddof=1):.0f}"
        tell(f"{name:5}{spread:>14}{price:12.1f}{means[name] * price:17,.0f}")
    fewer, pair = means["FF"] / means["BP"], (prices["FF"], prices["BP"])
    both = f"{ratios(*pair):>12}{ratios(*pair, times=fewer):>17}"
    tell(f"FF/BP{fewer:14.3f}{both}")
    tell("seed by seed: " + ", ".join(f"{n} {counts}" for n, counts in steps.items()))
    ff.tell_data(args, tell)


# ------------------------------------------------------------------ the machine


def train_on_noise(name, steps):
    """What a process does whose memory and cache misses are counted."""
    learner, rng = make_learner(name, "headline"), np.random.default_rng(0)
    for _ in range(steps):
        work_on(learner, *random_batch(rng, 64))


def training_process(name, steps):
    """The command line of one."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); "
    code += f"import data_movement as d; d.train_on_noise({name!r}, {steps})"
    return [sys.executable, "-c", code]


def peak_memory(name):
    """Peak memory of a process that trains with batches of 64, in MB."""
    process = subprocess.Popen(training_process(name, 10))
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("data_movement.py: a training process failed")
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def cache_misses(name):
    """Of the last cache, per step of 64 images; None where nobody may count them."""
    counts = []
    for steps in 10, 60:
        command = "perf", "stat", "-x,", "-e", "cache-misses:u"
        try:
            process = subprocess.run(
                [*command, *training_process(name, steps)],
                stderr=subprocess.PIPE,
                text=True,
                check=True,
            )
            counts.append(int(process.stderr.split(",")[0]))
        except (OSError, subprocess.CalledProcessError, ValueError):
            return None
    return (counts[1] - counts[0]) / 50


def main():
    parser = ff.Parser(
        "Price the data movement of Forward-Forward and backprop (ByteDMD).",
        "data_movement.py --out data_movement.json",
    )
    what = parser.add_mutually_exclusive_group()
    help = "write the table's numbers to this JSON file"
    what.add_argument("--out", type=ff.destination, metavar="FILE", help=help)
    help = "instead of the table: train FF and BP with --recipe one-layer until they "
    help += f"predict {100 * WANTED:g} % right, and price the steps that this takes"
    what.add_argument("--steps", action="store_true", help=help)
    ff.add_data_flags(parser)
    args = parser.parse_args()
    if args.steps:
        data = {"dataset": args.dataset, "cache_dir": args.cache_dir}
        changes = {"train_subset": TRAINED, "batch_size": BATCH, "bp_baseline": True}
        compare_steps(ff.training_arguments("one-layer", **data | changes))
        return
    if args.dataset != "auto" or args.cache_dir:
        parser.error("--dataset and --cache-dir need --steps")
    # First, as a process's peak begins with that of the one it is started from.
    machine = {
        name: {"peak_memory_MB": peak_memory(name), "cache_misses": cache_misses(name)}
        for name in ("FF", "BP")
    }
    all_rows = []
    for one in rows():
        all_rows.append(one)
        ff.show_progress(f"{one['learner']} {one['settings']}, batch {one['batch']}")
    ff.show_progress("")
    print_table(all_rows)
    print()
    for name, found in machine.items():
        line = (
            f"{name} headline, batch 64: peak memory {found['peak_memory_MB']:.0f} MB"
        )
        if found["cache_misses"] is not None:
            line += f", {found['cache_misses']:,.0f} cache misses a step"
        print(line)
    if machine["FF"]["cache_misses"] is None:
        print("cache misses are left out: this machine lets no program count them")
    if args.out:
        content = {"rows": all_rows, "machine": machine, "versions": ff.versions()}
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    ff.command(main)
