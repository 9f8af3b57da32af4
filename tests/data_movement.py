# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0", "pillow>=10"]
# ///
"""What a training step pays to fetch its operands: Forward-Forward against backprop.

    uv run tests/data_movement.py

The price is ByteDMD's (data movement distance on bytes). All values live on one stack,
the most recently used on top, and to read a byte at depth d costs ceil(sqrt(d)): about
the length of the wire to it, were the memory laid out in the plane around the
processor. Writes and arithmetic are free. There is no cache size to choose: what was
used a short while ago is cheap, and what waited for long is dear.
"""

from collections import Counter

import numpy as np

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
    size: words of each value that has not one
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


def block_reads(arguments, operations, results, sizes, evict=True):
    """Every read of a block, in order: arrays operation, block, above, size, last.

    As for cost(), but operations are (blocks made, blocks read), and sizes gives the
    words of each block, an integer.
    """
    stack = Stack(arguments, operations, results, sizes, evict)
    reads = []
    for i, (made, operands) in enumerate(operations):
        for block in operands:
            above = stack.above(block)
            reads.append((i, block, above, sizes[block], stack.use(block)))
        for block in made:
            stack.push(block)
    return np.array(reads, np.int64).reshape(-1, 5).T


def block_prices(above, size, last, word=1):
    """The price of each read of a block, see block_reads()."""
    lowest = words_price(above + size - 1, 1, word)
    return np.where(last, words_price(above, size, word), size * lowest)


def cost_blocks(arguments, operations, results, sizes, word=1, evict=True):
    """The price of a program of blocks: that of cost() on its single words."""
    _, _, *reads = block_reads(arguments, operations, results, sizes, evict)
    return int(block_prices(*reads, word).sum())
