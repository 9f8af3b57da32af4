"""The command line, checkpoints and model.npz: what a run promises, end to end."""

import collections
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import small
from small import assert_one_line

import ff_cifar_locally_connected as ff
from ff_cifar_locally_connected import RunError

ARRAYS = small.make_arrays(200, 50)
SETTINGS = small.constants(ARRAYS)
TINY = "--fields", "29,3", "--channels", "2", "--n-epochs", "2"
SCRIPTS = {  # each with the flag for what it makes
    ff.__name__: "--save",
    "visualize_ff_cifar_locally_connected": "--outdir",
    "make_ff_cifar_locally_connected_gif": "--out",
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder with the small data, ready to be loaded."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "cifar10.npz").write_bytes(small.npz(ARRAYS))
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """The constants of the small data, in this process."""
    for name, value in SETTINGS.items():
        monkeypatch.setattr(ff, name, value)
    monkeypatch.setattr(ff, "TAG", "")  # what a run leaves there is taken back


def on_small_data(cache, flags):
    subsets = "--train-subset", "200", "--eval-subset", "20"
    return [*subsets, "--cache-dir", str(cache), *map(str, flags)]


@pytest.fixture
def call(cache, tiny, monkeypatch, capsys):
    """call(*flags): exit code, stdout and stderr of the main script, in this process."""

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["script.py", *on_small_data(cache, flags)])
        code = 0
        try:
            ff.command(ff.main)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def start(cache, *flags, **options):
    """A script on the small data, in a process of its own."""
    return small.start(SETTINGS, *on_small_data(cache, flags), **options)


def arrays_of(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def assert_same_bits(path, other, but=()):
    """Two model files are the same but for the seconds (and `but`)."""
    ours, others = arrays_of(path), arrays_of(other)
    assert ours.keys() == others.keys()
    for name in ours:
        if not name.endswith("_wallclock") and name not in but:
            assert ours[name].dtype == others[name].dtype, name
            assert ours[name].tobytes() == others[name].tobytes(), name


def rows_until(process, count):
    """Read rows of epochs, until there are `count` of them."""
    while count:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        count -= line.startswith(("FF  ", "BP  "))


# -------------------------------------------------------------------- the flags

NONSENSE = {
    "--seed": ["-1", "nan", "1.5", "x", "", str(2**63), "1" * 9999],
    "--n-epochs": ["0", "-1", "nan", "1.5", "inf", "x"],
    "--n-layers": ["0", "-1", "5", "nan", "1.5", "x"],
    "--batch-size": ["0", "-1", "nan", "inf", "x"],
    "--lr": ["0", "-0.1", "nan", "inf", "-inf", "1e-99", "1e99", "x", ""],
    "--bp-lr": ["0", "nan", "x"],
    "--lr-schedule": ["cosine", ""],
    "--weight-decay": ["-1", "nan", "inf", "x"],
    "--channels": ["0", "-1", "nan", "1.5"],
    "--label-input": ["nowhere", "Corner"],
    "--negatives": ["easy", ""],
    "--loss": ["hinge", ""],
    "--threshold": ["0", "-2", "nan", "inf", "x"],
    "--temperature": ["0", "-1", "nan"],
    "--fields": ["", "5", "0,5", "5,33", "5,", "5,x", "5;5", "5,-5", "20,14"],
    "--layer-rates": ["", "1", "1,", "1,x", "1;1", "1,-1", "1,nan"],
    "--augment": ["-1", "33", "1.5", "nan"],
    "--train-subset": ["0", "-1", "201", "nan", "1.5", "x"],
    "--eval-subset": ["0", "-1", "51", "nan", "inf", "x"],
    "--dataset": ["mnist", "CIFAR10", "", "two\nlines"],
    "--recipe": ["worst", ""],
    "--save": ["", "/", "/no such folder/m.npz", "FILE/m.npz", os.devnull],
    "--checkpoint": ["", "/", "/no such folder/c.npz", "FILE/c.npz", os.devnull],
    "--no-such-flag": ["1", "two\nlines"],
    "--epoch": ["1"],  # no abbreviations
}
MISFITS = [
    "--negatives all",
    "--loss softmax --threshold 3",
    "--objective min",
    "--recipe recurrent --n-layers 1",
    "--recipe recurrent --n-layers 4",
    "--recipe recurrent --label-input corner",
    "--recipe recurrent --fields 5,5",
    "--lr 2 --weight-decay 0.6",  # a step would turn the sign of weights
    "--bp-baseline --bp-lr 0.5 --weight-decay 3",
    "--save LINK/y.npz --checkpoint y.npz",  # one file
]


@pytest.mark.parametrize("flag", [*NONSENSE, *MISFITS])
def test_arguments_without_sense_are_a_one_line_usage_error_before_any_work(
    call, flag, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    (tmp_path / "LINK").symlink_to(tmp_path)
    if flag in NONSENSE:
        commands = [[f"{flag}={value}"] for value in NONSENSE[flag]]
    else:
        commands = [flag.split()]
    for flags in commands:
        code, out, err = call("--cache-dir", tmp_path / "cache", *flags)
        assert (code, out) == (2, ""), flags
        assert_one_line(err, "script.py: error: ", *flag.split()[-2:-1])
        assert sorted(p.name for p in tmp_path.iterdir()) == ["FILE", "LINK"]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", ["--lr nan", "--objective min"])
def test_a_usage_error_of_each_script_has_exit_code_2(cache, script, flags):
    code, out, err = small.finish(start(cache, *flags.split(), script=script))
    assert (code, out) == (2, "")
    assert_one_line(err, f"{script}.py: error: ")


DEFAULTS = {
    ff.__name__: "--dataset auto --seed 0 --n-epochs 10 --n-layers 2 --batch-size 64 "
    "--lr 0.01 --threshold 2.0 --train-subset 10000 --eval-subset 1000 --augment 0",
    "visualize_ff_cifar_locally_connected": "--model model.npz --outdir viz "
    "--per-class-test-subset 10000 --bp-baseline True --n-epochs 10",
    "make_ff_cifar_locally_connected_gif": "--n-epochs 8 --fps 4 --train-subset 4000 "
    "--eval-subset 500 --snapshot-every 1 --out ff_cifar_locally_connected.gif",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_default_and_the_recipes(script):
    process = small.start({}, "--help", script=script)
    code, out, err = small.finish(process)
    assert (code, err) == (0, "")
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=--)", out)[1:]]
    entries = {entry.split()[0].strip(","): entry for entry in entries}
    without = {"--full-test", "--save", "--checkpoint", "--runs", "--receptive-fields"}
    assert {flag for flag in entries if "default: " not in entries[flag]} <= without
    defaults = DEFAULTS[script].split()
    for flag, default in zip(defaults[::2], defaults[1::2]):
        assert f"(default: {default})" in entries[flag]
    for name, flags in ff.RECIPES.items():
        assert f"{name}: {flags}" in out


def parsed(*flags):
    parser = ff.Parser()
    ff.add_training_flags(parser)
    return vars(ff.parse(parser, flags))


@pytest.mark.parametrize("recipe", ["headline", "one-layer", "best", "recurrent"])
def test_a_recipe_is_the_flags_it_stands_for_and_another_flag_overrides_it(recipe):
    by_name = parsed("--recipe", recipe)
    if recipe != "recurrent":  # which is a network of its own
        spelled = parsed(*ff.RECIPES[recipe].split())
        assert by_name == spelled | {"recipe": recipe}
    for flags in (
        ["--recipe", recipe, "--lr", "0.5"],
        ["--lr=0.5", "--recipe", recipe],
    ):
        assert parsed(*flags) == by_name | {"lr": 0.5}
    changes = {"dataset": "auto", "lr": 0.5}
    assert vars(ff.training_arguments(recipe, **changes)) == by_name | {"lr": 0.5}


# ------------------------------------------------------------------- the output


def test_a_reader_that_goes_away_is_no_traceback(cache):
    process = start(cache, *TINY)
    assert process.stdout.readline().startswith("python ")
    process.stdout.close()  # as head does
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_where_no_source_has_cifar10_the_synthetic_set_runs_and_every_line_says_so(
    cache, tmp_path, script
):
    folder, made = tmp_path / "nothing", tmp_path / "made.npz"
    flags = "--n-epochs", "1", "--cache-dir", folder, SCRIPTS[script], made
    process = start(cache, *flags, script=script, cwd=tmp_path)
    code, out, err = small.finish(process)
    assert code == 0, err
    *given_up, instead = err.splitlines()
    assert [line.split(":")[0] for line in given_up] == ["gave up on http"] * 2
    assert instead.startswith("[synthetic] ")
    assert f"cifar10.zip (Kaggle's) into {folder}" in instead
    assert all(line.startswith("[synthetic] ") for line in out.splitlines())
    assert "not CIFAR-10 results" in out.splitlines()[-1]
    assert made.exists()
    if script == ff.__name__:
        assert json.loads(str(arrays_of(made)["config"]))["arguments"]["dataset"] == (
            "synthetic"
        )


def test_a_run_on_synthetic_data_that_is_asked_for_says_so_too(call):
    code, out, err = call(*TINY, "--dataset=synthetic")
    assert (code, err) == (0, "")
    assert all(line.startswith("[synthetic] ") for line in out.splitlines())
    assert "not CIFAR-10 results" in out.splitlines()[-1]


@pytest.mark.parametrize(
    "at_hand", ["", "cifar10.npz", "cifar-10-binary.tar.gz", "cifar10.zip"]
)
def test_cifar10_that_is_meant_and_cannot_be_had_is_an_error(call, tmp_path, at_hand):
    flags = "--cache-dir", tmp_path
    if at_hand:  # whoever has a file there means it
        (tmp_path / at_hand).write_bytes(b"damaged")
    else:
        flags = *flags, "--dataset", "cifar10"
    code, out, err = call(*flags)
    assert (code, out) == (1, "")
    *given_up, last = err.splitlines()
    assert all(line.startswith("gave up on ") for line in given_up)
    assert_one_line(last, "script.py: no CIFAR-10 from", tmp_path / at_hand)


# --------------------------------------------- model.npz, threads, checkpoints

WHOLE = {
    "headline": "--bp-baseline --full-test",
    "like best": ff.RECIPES["best"].replace("50000", "200") + " --bp-baseline",
    "recurrent": "--recipe recurrent --train-subset 16 --batch-size 8 --eval-subset 4 "
    "--bp-baseline --full-test",
    "no BP": "--n-layers 1",
}
LAYERS = {  # field, side of the map, inputs of a field, channels
    "headline": [(11, 22, 363, 8), (5, 18, 200, 8)],
    "like best": [(5, 28, 75, 8), (9, 20, 648, 8)],
    "recurrent": [(11, 32, 363, 3), (11, 32, 363, 3)],
    "no BP": [(11, 22, 363, 8)],
}


@pytest.fixture(scope="module", params=WHOLE)
def whole(request, cache, tmp_path_factory):
    """Name, flags, model.npz and stdout of a run that nothing stopped, on one thread."""
    flags = [*WHOLE[request.param].split(), "--n-epochs", "3"]
    path = tmp_path_factory.mktemp("whole") / "model.npz"
    one = {"OMP_NUM_THREADS": "1"}
    code, out, err = small.finish(start(cache, *flags, "--save", path, env=one))
    assert (code, err) == (0, "")
    return request.param, flags, path, out


def promised(name, flags):
    """Name -> (shape, dtype) of all arrays in model.npz but for the config."""
    layers, E = LAYERS[name], (3,)
    weights, history = (
        {},
        {f"ff_{n}": E for n in ("test_acc", "train_acc", "wallclock")},
    )
    for i, (_, side, inputs, C) in enumerate(layers):
        weights[f"ff_layer{i}_W"] = side, side, inputs, C
        weights[f"ff_layer{i}_b"] = side, side, C
    flat = side * side * C
    if "--full-test" in flags:
        history["ff_full_test_acc"] = ()
    if "--bp-baseline" in flags:
        for names in (weights, history):
            names |= {n.replace("ff", "bp", 1): shape for n, shape in names.items()}
        weights |= {"bp_W_out": (flat, 10), "bp_b_out": (10,)}
        history["bp_loss"] = E
    for n in ("loss_per_layer", "g_pos", "g_neg"):
        history[f"ff_{n}"] = len(layers), *E
    if name == "like best":
        weights |= {"ff_layer0_V": (10, 28, 28, 8), "ff_layer1_V": (10, 20, 20, 8)}
        weights["whitening"] = 5, 5, 3, 3
    if name == "recurrent":
        weights |= {"ff_layer0_T": (32, 32, 363, 3), "ff_layer1_V": (10, 32, 32, 3)}
        weights |= {"ff_W_class": (2 * flat, 10), "ff_b_class": (10,)}
        history |= {"ff_one_pass_test_acc": E, "ff_one_pass_train_acc": E}
        history["ff_full_test_one_pass_acc"] = ()
    f4, f8 = np.dtype(np.float32), np.dtype(np.float64)
    found = {"threshold": ((), f8), "seed": ((), np.dtype(np.int64))}
    found["layer_specs"] = (len(layers), 2), np.dtype(np.int32)
    found |= {n: (shape, f4) for n, shape in weights.items()}
    return found | {n: (shape, f8) for n, shape in history.items()}


def test_model_npz_holds_exactly_what_is_promised(whole):
    name, flags, path, out = whole
    arrays = arrays_of(path)
    config = json.loads(str(arrays.pop("config")))
    found = {n: (array.shape, array.dtype) for n, array in arrays.items()}
    assert found == promised(name, flags)
    assert arrays["layer_specs"].tolist() == [[f, C] for f, *_, C in LAYERS[name]]
    assert arrays["seed"] == config["arguments"]["seed"] == 0
    theta = 2.0 if config["arguments"]["loss"] == "threshold" else np.nan
    np.testing.assert_equal(arrays.pop("threshold"), theta)
    assert config["versions"]["numpy"] == np.__version__
    assert config["arguments"]["dataset"] == "cifar10"  # as it is at hand
    assert "synthetic" not in out
    assert f"saved {path}" in out
    for n, array in arrays.items():
        assert np.isfinite(array).all()
        if n.endswith("acc"):
            assert ((0 <= array) & (array <= 1)).all()
        if n.endswith("wallclock"):
            assert (np.diff([0, *array]) > 0).all()


def test_a_saved_model_predicts_as_the_run_did(whole, tiny):
    learners, args, arrays = ff.load_model(whole[2])
    n = args.eval_subset
    for learner in learners.values():
        for method, infix in learner.ways.values():
            accuracy = ff.accuracy(learner, ARRAYS[2][:n], ARRAYS[3][:n], method)
            assert accuracy == arrays[f"{learner.name.lower()}_{infix}test_acc"][-1]


def test_a_run_that_is_killed_goes_on_to_the_same_bits_on_any_number_of_threads(
    whole, cache, tmp_path
):
    _, flags, path, out = whole
    assert "threads 1" in out
    two = {"OMP_NUM_THREADS": "2"}
    flags, resumed = (*flags, "--checkpoint", tmp_path / "c.npz"), tmp_path / "m.npz"
    process = start(cache, *flags, env=two)
    rows_until(process, 2)  # the checkpoint of the first epoch has been written
    process.kill()
    process.communicate()
    process = start(cache, *flags, "--save", resumed, env=two)
    code, out, err = small.finish(process)
    assert (code, err) == (0, "")
    assert "threads 2" in out
    assert "going on from" in out
    assert_same_bits(path, resumed, but=["config"])


def test_another_seed_gives_other_numbers(call, tmp_path):
    flags = *TINY, "--bp-baseline", "--save", tmp_path / "model.npz"
    runs = []
    for seed in 3, 4:
        assert call(*flags, "--seed", seed)[0] == 0
        runs.append(arrays_of(flags[-1]))
    for name in ("ff_layer0_W", "bp_layer1_W", "ff_loss_per_layer", "bp_loss"):
        assert (runs[0][name] != runs[1][name]).any()


LONG = *TINY, "--bp-baseline", "--n-epochs", "30", "--seed", "1"
# All generators, and the schedule, have to go on where they were.
LONG += "--negatives", "sampled", "--augment", "2", "--lr-schedule", "linear"


def test_a_run_that_is_stopped_ten_times_ends_with_the_same_bits(cache, call, tmp_path):
    whole, stopped = tmp_path / "whole.npz", tmp_path / "stopped.npz"
    assert call(*LONG, "--save", whole)[0] == 0
    checkpoint, moments = tmp_path / "checkpoint.npz", random.Random(0)
    flags = *LONG, "--checkpoint", checkpoint, "--save", stopped
    for stop in range(10):
        process = start(cache, *flags)
        # Between the first instruction and the third epoch from where it went on.
        if stop % 3:
            rows_until(process, moments.randint(1, 2))
        time.sleep(moments.uniform(0, 0.02 if stop % 3 else 0.2))
        if stop % 3 == 1:
            process.send_signal(signal.SIGINT)  # Ctrl-C
            code, _, err = small.finish(process)
            assert code == 130
            assert_one_line(err, "interrupted", "--checkpoint")
        else:
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        assert not stopped.exists()
    for done in range(2):  # the second time nothing is left to do
        code, out, err = call(*flags)
        assert (code, err) == (0, "")
        assert f"going on from {checkpoint}" in out
        assert ("epoch " in out) == (not done)
        assert_same_bits(whole, stopped)


def test_a_checkpoint_of_other_arguments_is_refused_in_one_line(call, tmp_path):
    path = tmp_path / "c.npz"
    flags = *TINY, "--checkpoint", path
    assert call(*flags)[0] == 0
    before = path.read_bytes()
    for changed in (
        *("--seed 2", "--lr 0.02", "--n-epochs 3", "--n-layers 1", "--batch-size 32"),
        *("--threshold 1.5", "--train-subset 100", "--eval-subset 10", "--bp-baseline"),
        *("--fields 28,3", "--dataset synthetic", "--whiten", "--augment 1"),
    ):
        code, _, err = call(*flags, *changed.split())
        assert code == 1
        name = changed.split()[0].removeprefix("--").replace("-", "_")
        assert_one_line(err, path, f"{name} = ", "another --checkpoint")
        assert path.read_bytes() == before


# ---------------------------------------------------- processes and their threads

TRAINS = """
import hashlib
import numpy as np
import ff_cifar_locally_connected as ff

ff.tell = lambda line: None

def training(_=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 64, np.uint8)
    args = ff.training_arguments(train_subset=64, eval_subset=8, n_epochs=1)
    learner = ff.ForwardForward(args)
    ff.train(learner, [images, labels] * 2, args)
    return hashlib.sha256(learner.weights()["ff_layer1_W"]).hexdigest()
"""
BLAS = """
import time
x, shares = np.ones((1500, 1500)), []
for _ in range(5):  # as threads that were just made spin for a moment, unused
    ours, everyones = time.thread_time(), time.process_time()
    x @ x
    shares.append((time.process_time() - everyones) / (time.thread_time() - ours))
assert min(shares) < 1.2, "BLAS has threads of its own"
print(training())
"""
FORKS = """
import multiprocessing, warnings
warnings.simplefilter("ignore")  # that a process with threads is forked
here = training()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(training, [0, 0]) == [here, here]
print("done")
"""


def python(program):
    """Stdout of a program that finds the main script beside it, on two threads."""
    threads = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"
    command = sys.executable, "-c", program
    options = {"stderr": subprocess.STDOUT, "text": True, "timeout": 60}
    options["env"] = os.environ | dict.fromkeys(threads, "2")
    return subprocess.check_output(command, cwd=Path(ff.__file__).parent, **options)


def test_numpy_imported_first_changes_neither_bits_nor_the_threads_of_blas():
    first = python("import ff_cifar_locally_connected\n" + TRAINS + BLAS)
    assert python(TRAINS + BLAS) == first
    assert len(first.splitlines()) == 1


def test_a_fork_after_a_training_trains_too():
    assert python(TRAINS + FORKS) == "done\n"


# ------------------------------------------------------ damaged and foreign files


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def saved(call, tmp_path):
    """The model.npz and the checkpoint of one run of the tiny model, and its flags."""
    model, checkpoint = tmp_path / "model.npz", tmp_path / "checkpoint.npz"
    flags = *TINY, "--bp-baseline", "--checkpoint", checkpoint
    assert call(*flags, "--save", model)[0] == 0
    return model, checkpoint, flags


def test_a_model_that_is_missing_or_damaged_is_one_line_that_says_what_to_do(
    saved, tmp_path
):
    model, checkpoint, _ = saved
    arrays = arrays_of(model)
    config = json.loads(str(arrays["config"]))
    others = [json.dumps({"arguments": config["arguments"] | {"n_layers": 9}})]
    others += [json.dumps({"arguments": config["arguments"] | {"no_such": 1}})]
    changes = [{"config": other} for other in (*others, "{", "{}")]
    changes.append({"ff_layer0_W": arrays["ff_layer0_W"][:, :, :-1]})
    contents = [small.npz([], **arrays | change) for change in changes]
    del arrays["bp_W_out"]
    contents += [small.npz([], **arrays), small.npz(ARRAYS), checkpoint.read_bytes()]
    for content in (b"", b"text", *contents):
        model.write_bytes(content)
        with pytest.raises(RunError) as error:
            ff.load_model(model)
        assert_one_line(str(error.value), model, ff.MAKE_MODEL)
    for path in (tmp_path, tmp_path / "nothing.npz"):
        with pytest.raises(RunError, match="--save model.npz"):
            ff.load_model(path)


def test_a_file_that_is_no_checkpoint_of_the_run_is_refused_and_kept(call, saved):
    model, path, flags = saved
    arrays = arrays_of(path)
    state = json.loads(str(arrays["state"]))
    no_bp = {name: state[name] for name in ("arguments", "FF")}
    changes = [{"state": json.dumps(no_bp)}, {"state": "{"}, {"FF_0_m": np.zeros(3)}]
    contents = [small.npz([], **arrays | change) for change in changes]
    contents += [b"", b"text", model.read_bytes(), small.npz(ARRAYS)]
    for content in contents:
        path.write_bytes(content)
        code, _, err = call(*flags)
        assert code == 1
        assert_one_line(err, path, "no sound checkpoint", "another --checkpoint")
        assert path.read_bytes() == content


def test_nothing_is_ever_unpickled(call, saved, tmp_path):
    model, checkpoint, flags = saved
    evidence, cached = tmp_path / "unpickled", tmp_path / "data" / "cifar10.npz"
    cached.parent.mkdir()
    payload = np.array([Payload(evidence)], dtype=object)
    pickled = pickle.dumps(Payload(evidence))
    model_arrays, state = arrays_of(model), arrays_of(checkpoint)
    for content in (
        pickled,
        small.npz(ARRAYS, train_y=payload),
        *(small.npz([], **{name: payload}) for name in ("config", "state")),
        *(small.npz([], **model_arrays | {n: payload}) for n in ("seed", "bp_b_out")),
        small.npz([], **state | {"FF_0_m": payload}),
    ):
        for path in (model, checkpoint, cached):
            path.write_bytes(content)
        for read, path in ((ff.load_model, model), (ff.load_cifar10, cached.parent)):
            with pytest.raises(RunError):
                read(path)
        assert call(*flags)[0] == 1
    assert not evidence.exists()
    pickle.loads(pickled).close()
    assert evidence.exists()  # the payload does bite


def damage(rng, data):
    """`data` after one to three flips, cuts or insertions, not all at random places."""
    data = bytearray(data)
    # Half of them at the structure: names, sizes and checksums of the members.
    marks = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"NUMPY"
    marks = [data.find(mark, rng.randrange(len(data))) for mark in marks]
    marks = [at for at in marks if at > 0]
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, size = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 8, 100, 1000])
        if marks and rng.random() < 0.5:
            at = max(0, rng.choice(marks) + rng.randint(-150, 150))
        other = rng.randrange(len(data) + 1)
        new = rng.choice([b"", rng.randbytes(size), data[other : other + size]])
        data[at : at + rng.choice([0, 1, size, size, len(data)])] = new
    return bytes(data)


def test_2000_corrupted_files_are_one_line_or_what_they_were(tiny, tmp_path):
    changes = {"train_subset": 10, "eval_subset": 4, "n_epochs": 1, "bp_baseline": True}
    args = ff.training_arguments(fields=[31, 2], channels=1, **changes)
    learners = ff.make_learners(args)
    for learner in learners:
        ff.train(learner, ARRAYS, args)

    def model(path):
        return ff.load_model(path)[2]

    def checkpoint(path):
        learners = ff.make_learners(args)
        ff.load_checkpoint(path, args, learners)
        return {n: w for learner in learners for n, w in learner.weights().items()}

    def cifar10(path):
        return dict(zip(small.NAMES, ff.load_cifar10(path.parent)))

    def bits(arrays):
        return {name: array.tobytes() for name, array in arrays.items()}

    paths = [tmp_path / f"{load.__name__}.npz" for load in (model, checkpoint, cifar10)]
    arrays = ff.model_arrays(args, learners, {})
    ff.write_whole(paths[0], lambda file: np.savez(file, **arrays))
    ff.save_checkpoint(paths[1], args, learners)
    paths[2].write_bytes(small.npz(ARRAYS))
    warnings.simplefilter("ignore")  # of odd headers
    outcomes = collections.Counter()
    for path, load in zip(paths, (model, checkpoint, cifar10)):
        good, truth = path.read_bytes(), bits(load(path))
        for seed in range(667):
            path.write_bytes(damage(random.Random(seed), good))
            try:
                assert bits(load(path)) == truth, f"{path.name}, seed {seed}"
                outcomes["sound"] += 1
            except RunError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 1000
    assert outcomes["sound"] > 20


# -------------------------------------------------------- whole files or none


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "disk full")])
def test_a_stopped_write_leaves_what_was_there(tmp_path, stop):
    class Stops:
        def __array__(self, *args, **flags):
            raise stop

    path = tmp_path / "model.npz"
    path.write_bytes(b"as it was")
    with pytest.raises((KeyboardInterrupt, RunError)):
        ff.write_whole(path, lambda file: np.savez(file, a=np.zeros(9), b=Stops()))
    assert path.read_bytes() == b"as it was"
    assert [*tmp_path.iterdir()] == [path]


def test_a_killed_write_leaves_what_was_there(tmp_path):
    def killed(file):
        file.write(bytes(1000))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    path = tmp_path / "model.npz"
    path.write_bytes(b"as it was")
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=ff.write_whole, args=(path, killed))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b"as it was"


def test_a_link_stays_and_its_target_is_written(tmp_path):
    link, target = tmp_path / "link.npz", tmp_path / "target.npz"
    link.symlink_to(target)
    ff.write_whole(link, lambda file: file.write(b"new"))
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("flag", ["--save", "--checkpoint"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(cache, tmp_path, flag):
    def limit():  # on the size of files: write() fails, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    path = tmp_path / "file.npz"
    if flag == "--save":
        path.write_bytes(b"as it was")
    before = [(file, file.read_bytes()) for file in tmp_path.iterdir()]
    process = start(cache, "--n-epochs", "1", flag, path, preexec_fn=limit)
    code, out, err = small.finish(process)
    assert code == 1
    assert "FF     1" in out
    assert_one_line(err, "cannot write", "File too large")
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == before


def test_a_result_that_cannot_be_written_is_kept_and_the_line_says_where(
    cache, tmp_path
):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    flags = *TINY, "--save", folder / "model.npz"
    process = start(cache, *flags, env={"TMPDIR": str(elsewhere)})
    rows_until(process, 1)
    folder.rmdir()
    code, _, err = small.finish(process)
    (kept,) = elsewhere.iterdir()
    assert code == 1
    assert_one_line(err, f"cannot write {folder / 'model.npz'}", f"is in {kept}")
    assert len(arrays_of(kept)["ff_test_acc"]) == 2


# --------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--n-epochs 2", "FF: a loss_per_layer in epoch 1"),
        ("--bp-lr 1e12 --lr 1e-9 --bp-baseline", "BP: a loss in epoch 1"),
        ("--recipe recurrent --eval-subset 8", "FF: a "),
        # One step: its loss is from before it, and the weights after it are finite.
        ("--train-subset 64", "FF: a goodness"),
        ("--train-subset 64 --n-layers 1", "FF: a goodness"),
        ("--train-subset 64 --bp-lr 1e12 --lr 1e-9 --bp-baseline", "BP: a score"),
    ],
)
def test_numbers_that_are_not_finite_are_one_line_and_never_a_result(
    call, tmp_path, flags, words
):
    path, usual = tmp_path / "model.npz", () if "recipe" in flags else TINY
    large = "--lr", "1e12", "--layer-rates", "1e12,1e12"
    code, out, err = call(*usual, *large, "--save", path, *flags.split())
    assert code == 1
    assert not re.search(r"chance|\bnan\b|\binf\b", out)
    assert_one_line(err, words, "not finite", "learning rate is 1e+12", "try a smaller")
    assert not path.exists()


def test_every_file_asks_for_the_same_versions_of_packages():
    root = Path(ff.__file__).parent
    files = [*root.glob("*.py"), *root.glob("tests/*.py"), root / ".ci" / "run"]
    text = "".join(file.read_text("utf-8") for file in files)
    bounds = set(re.findall(r'"([a-z]+)>=([\d.]+)"', text))
    names = ["imageio", "matplotlib", "numpy", "pillow", "pytest"]
    assert sorted(name for name, _ in bounds) == names
