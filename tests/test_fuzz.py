"""Thousands of random corruptions of every file that is read: true data or one line."""

import collections
import gzip
import io
import random
import signal
import warnings
import zipfile

import numpy as np
import pytest
import small

import ff_cifar_locally_connected as ff

ARRAYS = small.make_arrays(10, 4)
TRUTH = [array.tobytes() for array in ARRAYS]
CASES = 350  # of each kind of file
SECONDS = 20  # after which a case counts as a hang


class Hang(BaseException):
    """Not an Exception: nothing that reads a file may swallow it."""


def on_alarm(signum, frame):
    raise Hang


def damage(rng, data):
    """`data` after one to three flips, cuts or insertions, not all at random places."""
    data = bytearray(data)
    # Half of them at the structure: names, sizes and checksums of the members.
    marks = [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"NUMPY", b"ustar", b"IHDR"]
    marks = [
        at for mark in marks if (at := data.find(mark, rng.randrange(len(data)))) > 0
    ]
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(data) or 1)
        if marks and rng.random() < 0.5:
            at = min(len(data), max(0, rng.choice(marks) + rng.randint(-150, 150)))
        size = rng.choice([1, 1, 2, 8, 100, 1000])
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + size] = rng.randbytes(len(data[at : at + size]))
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = rng.randbytes(size)
        else:  # a copy of another place
            other = rng.randrange(len(data) or 1)
            data[at:at] = data[other : other + size]
    return bytes(data)


@pytest.fixture
def outcomes(monkeypatch):
    """Counts of "true data" and "one line"; the constants are small, hangs end."""
    tiny = {"RECEPTIVE_FIELDS": [31, 2], "CHANNELS": 1}
    settings = small.constants(ARRAYS, **tiny, MAX_ARCHIVE=2_000_000)
    for name, value in settings.items():
        monkeypatch.setattr(ff, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    before = signal.signal(signal.SIGALRM, on_alarm)
    yield collections.Counter()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fuzz(outcomes, good, check, change=damage):
    """check(damaged) for CASES damaged files, after check(good): true data or RunError."""
    check(good)
    warnings.simplefilter("ignore")  # of numbers that overflow and headers that are odd
    for seed in range(CASES):
        damaged = change(random.Random(seed), good)
        signal.alarm(SECONDS)
        try:
            check(damaged)
            outcomes["true data"] += 1
        except ff.RunError as error:
            assert len(str(error).splitlines()) == 1
            outcomes["one line"] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        signal.alarm(0)


def check_data(folder, name):
    """check() for the loader: a cache folder that holds nothing but this file."""

    def check(data):
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_bytes(data)
        loaded = ff.load_cifar10(folder)
        assert [array.tobytes() for array in loaded] == TRUTH
        assert [array.shape for array in loaded] == [array.shape for array in ARRAYS]

    return check


def damage_inside(rng, data):
    """Damage behind gzip's checksum: the tar itself."""
    return gzip.compress(damage(rng, gzip.decompress(data)), 1)


def tiny_run(seed):
    """The arguments and the learners of a run that has begun."""
    args = ff.training_arguments(
        train_subset=10,
        eval_subset=4,
        n_epochs=2,
        batch_size=5,
        bp_baseline=True,
        seed=seed,
    )
    return args, ff.make_learners(args)


def state_bits(learners):
    """Everything in a checkpoint, to be compared."""
    arrays = ff.live_arrays(learners) | ff.histories(learners)
    bits = {name: array.tobytes() for name, array in arrays.items()}
    states = [
        generator.bit_generator.state
        for learner in learners
        for generator in learner.generators.values()
    ]
    return bits, [learner.adam.steps for learner in learners], states


def damage_members(rng, data):
    """Damage inside two members of an .npz, with checksums that are good again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = rng.sample(archive.namelist(), 2)

    def head(array):  # the header and a little of what follows it, or that alone
        start = rng.choice([0, 128])
        return array[:start] + damage(rng, array[start:250]) + array[250:]

    return small.reseal(data, names, head)


def test_2000_corruptions_end_in_the_true_data_or_in_one_line(outcomes, tmp_path):
    archives = {
        "cifar-10-binary.tar.gz": small.tar_gz(small.toronto_members(ARRAYS)),
        "cifar10.zip": small.zip_of(small.kaggle_members(ARRAYS)),
    }
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, archive in archives.items():
        check = check_data(cache, name)
        fuzz(outcomes, archive, check)
        if name.endswith(".gz"):
            fuzz(outcomes, archive, check, damage_inside)
    np.savez(tmp_path / "cifar10.npz", **dict(zip(small.NAMES, ARRAYS)))
    good = (tmp_path / "cifar10.npz").read_bytes()
    fuzz(outcomes, good, check_data(cache, "cifar10.npz"))

    path = tmp_path / "model.npz"
    args, learners = tiny_run(seed=1)
    for learner in learners:
        ff.train(learner, ARRAYS, args, tell=lambda line: None)
    model = ff.model_arrays(
        args, learners, {"ff_full_test_acc": 0.25, "bp_full_test_acc": 0.5}
    )
    model = {name: np.asarray(array) for name, array in model.items()}
    ff.save_npz(path, model)

    def check_model(data):
        path.write_bytes(data)
        _, _, arrays = ff.load_model(path)
        assert arrays.keys() == model.keys()
        for name, array in arrays.items():
            assert array.tobytes() == model[name].tobytes()

    fuzz(outcomes, path.read_bytes(), check_model)

    ff.save_checkpoint(path, args, learners)
    truth = state_bits(learners)

    def check_checkpoint(data):
        path.write_bytes(data)
        args, learners = tiny_run(seed=1)
        ff.load_checkpoint(path, args, learners)
        assert state_bits(learners) == truth

    fuzz(outcomes, path.read_bytes(), check_checkpoint)

    assert sum(outcomes.values()) == 6 * CASES >= 2000
    assert outcomes["one line"] > 1000
    assert outcomes["true data"] > 20
    print(dict(outcomes))


def test_files_that_were_made_wrong_but_sealed_well_raise_nothing_else(
    outcomes, tmp_path
):
    """No checksum tells these from sound files: only that they fit can be checked."""
    path = tmp_path / "model.npz"
    args, learners = tiny_run(seed=1)
    for learner in learners:
        ff.train(learner, ARRAYS, args, tell=lambda line: None)

    def check_model(data):
        path.write_bytes(data)
        learners, _, arrays = ff.load_model(path)
        for learner in learners.values():
            assert learner.predict(ARRAYS[2]).shape == (4,)
        assert arrays["layer_specs"].tolist() == [[31, 1], [2, 1]]

    ff.save_npz(path, ff.model_arrays(args, learners, {}))
    fuzz(outcomes, path.read_bytes(), check_model, damage_members)

    def check_checkpoint(data):
        path.write_bytes(data)
        args, learners = tiny_run(seed=1)
        ff.load_checkpoint(path, args, learners)
        learners[0].train_step(ARRAYS[0], ARRAYS[1])
        assert set(learners[1].history) == {
            "loss",
            "train_acc",
            "test_acc",
            "wallclock",
        }

    ff.save_checkpoint(path, args, learners)
    fuzz(outcomes, path.read_bytes(), check_checkpoint, damage_members)
    assert sum(outcomes.values()) == 2 * CASES
    assert outcomes["one line"] > outcomes["true data"] > 0
    print(dict(outcomes))
