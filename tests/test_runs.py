"""The command line, checkpoints and model.npz: what a run promises, end to end."""

import io
import json
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small

import ff_cifar_locally_connected as ff
from ff_cifar_locally_connected import RunError

ARRAYS = small.make_arrays(200, 50)
TINY = {"RECEPTIVE_FIELDS": [29, 3], "CHANNELS": 2}
SETTINGS = small.constants(ARRAYS, **TINY)
FULL_SIZE = small.constants(ARRAYS)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder with the small data, ready to be loaded."""
    folder = tmp_path_factory.mktemp("cache")
    np.savez(folder / "cifar10.npz", **dict(zip(small.NAMES, ARRAYS)))
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """The constants of the tiny runs, in this process."""
    for name, value in SETTINGS.items():
        monkeypatch.setattr(ff, name, value)


@pytest.fixture
def run(cache):
    """run(flags, settings): exit code, stdout, stderr of a small run of its own."""

    def run(*flags, settings=SETTINGS, **options):
        return small.finish(start(cache, *flags, settings=settings, **options))

    run.cache = cache
    return run


def start(cache, *flags, settings=SETTINGS, **options):
    subset = "--train-subset", "200", "--eval-subset", "20", "--cache-dir", cache
    return small.start(settings, *subset, *flags, **options)


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


def assert_one_line(text, *words):
    assert len(text.splitlines()) == 1, text
    for word in words:
        assert str(word) in text


# -------------------------------------------------------------------- the flags

NONSENSE = {
    "--seed": ["-1", "nan", "1.5", "x", "", str(2**63), "9" * 400, "1" * 9999],
    "--n-epochs": ["0", "-1", "nan", "1.5", "inf", "x"],
    "--n-layers": ["0", "-1", "3", "nan", "1.5", "x"],
    "--batch-size": ["0", "-1", "nan", "inf", "x"],
    "--lr": ["0", "-0.1", "nan", "inf", "-inf", "1e-99", "1e99", "x", ""],
    "--bp-lr": ["0", "nan", "x", "0.1"],  # the last: without --bp-baseline
    "--lr-schedule": ["cosine", ""],
    "--weight-decay": ["-1", "nan", "inf", "x"],
    "--channels": ["0", "-1", "nan", "1.5", "9" * 19],
    "--label-input": ["nowhere", "Corner"],
    "--negatives": ["easy", ""],
    "--threshold": ["0", "-2", "nan", "inf", "x", "half"],
    "--temperature": ["0", "-1", "nan"],
    "--fields": ["", "0", "33", "5,", "5,x", "5;5", "5,-5"],
    "--layer-rates": ["", "0", "1,", "1,x", "1;1", "1,-1", "1,nan"],
    "--shift": ["-1", "33", "1.5", "nan"],
    "--train-subset": ["0", "-1", "201", "nan", "1.5", "x"],
    "--eval-subset": ["0", "-1", "51", "nan", "inf", "x"],
    "--dataset": ["mnist", "CIFAR10", "", "two\nlines"],
    "--save": ["", "/", "/no such folder/model.npz", "{file}/model.npz", os.devnull],
    "--checkpoint": ["", "/", "/no such folder/c.npz", "{file}/c.npz", os.devnull],
    "--no-such-flag": ["1", "two\nlines"],
}


@pytest.mark.parametrize("flag", NONSENSE)
def test_a_value_without_sense_is_a_one_line_usage_error_before_any_work(
    tiny, flag, monkeypatch, capsys, tmp_path
):
    file = tmp_path / "file"
    file.touch()
    for value in NONSENSE[flag]:
        value = value.replace("{file}", str(file))
        flags = ["--cache-dir", str(tmp_path / "cache"), f"{flag}={value}"]
        monkeypatch.setattr(sys, "argv", ["script.py", *flags])
        with pytest.raises(SystemExit) as stop:
            ff.command(ff.main)
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert_one_line(err, "script.py: error: ", flag)
        assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "flags",
    ["--lr nan", "--train-subset 201", "--save /no/such/folder/x.npz", "words"],
)
def test_a_usage_error_of_the_script_itself_has_exit_code_2(run, flags):
    code, out, err = run(*flags.split())
    assert (code, out) == (2, "")
    assert_one_line(err)


@pytest.mark.parametrize(
    "flags",
    [
        "--negatives all --threshold 2",
        "--recipe best --threshold halfway",
        "--network recurrent --recipe best",
        "--network recurrent --n-layers 1",
        "--network recurrent --n-layers 4",
        "--network recurrent --label-input corner",
        "--network recurrent --label-input everywhere",
        "--network recurrent --negatives sampled",
        "--label-input top",
        "--negatives classifier",
        "--objective min",
        "--network recurrent --fields 5,5",
        "--fields 5",
        "--n-layers 2 --fields 20,14",
        "--network recurrent --layer-rates 1,0.5",
        "--network recurrent --scored last",
        "--layer-rates 1",
        "--pass-up neutral",
        "--shift 3",
    ],
)
def test_flags_that_do_not_fit_together_are_a_one_line_usage_error(
    tiny, flags, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["script.py", *flags.split()])
    with pytest.raises(SystemExit) as stop:
        ff.command(ff.main)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_line(err, "script.py: error: ", flags.split()[-2])


def test_a_recipe_sets_defaults_and_flags_before_or_after_it_override_them(monkeypatch):
    def parsed(flags):
        parser = ff.Parser()
        ff.add_training_flags(parser)
        monkeypatch.setattr(sys, "argv", ["script.py", *flags.split()])
        return ff.parse(parser)

    best = parsed("--recipe best")
    assert vars(best) == vars(ff.training_arguments("best", dataset="auto"))
    assert (best.negatives, best.threshold, best.fields) == ("all", None, [5, 9])
    for flags in ("--recipe best --lr 0.5", "--lr 0.5 --recipe best"):
        assert vars(parsed(flags)) == vars(best) | {"lr": 0.5}
    assert parsed("").threshold == 2.0
    assert parsed("--network recurrent").threshold == "halfway"


def test_a_recurrent_run_saves_loads_resumes_and_does_not_depend_on_threads(
    run, tmp_path
):
    flags = "--network", "recurrent", "--train-subset", "32", "--eval-subset", "8"
    flags += "--batch-size", "16", "--n-epochs", "2", "--bp-baseline", "--full-test"
    whole, other, resumed = (tmp_path / f"{name}.npz" for name in "abc")
    env = {"OMP_NUM_THREADS": "1"}
    assert run(*flags, "--save", whole, settings=FULL_SIZE)[0] == 0
    assert run(*flags, "--save", other, settings=FULL_SIZE, env=env)[0] == 0
    assert_same_bits(whole, other, but=["config"])
    arrays = arrays_of(whole)
    assert arrays["layer_specs"].tolist() == [[11, 3], [11, 3]]
    shapes = {
        "ff_layer0_W": (32, 32, 363, 3),
        "ff_layer0_T": (32, 32, 363, 3),
        "ff_layer1_V": (10, 32, 32, 3),
        "ff_W_class": (2 * 32 * 32 * 3, 10),
        "ff_b_class": (10,),
        "ff_one_pass_test_acc": (2,),
        "ff_one_pass_train_acc": (2,),
        "ff_full_test_one_pass_acc": (),
        "bp_layer1_W": (32, 32, 363, 3),
    }
    assert {name: arrays[name].shape for name in shapes} == shapes
    assert not arrays.keys() & {"ff_layer1_T", "ff_layer0_V", "bp_layer0_T"}

    checkpoint = "--checkpoint", tmp_path / "checkpoint.npz"
    process = small.start(FULL_SIZE, "--cache-dir", run.cache, *flags, *checkpoint)
    rows_until(process, 1)
    process.kill()
    process.communicate()
    done = run(*flags, *checkpoint, "--save", resumed, settings=FULL_SIZE)
    assert done[0] == 0
    assert_same_bits(whole, resumed)


def test_a_run_with_whitening_and_neutral_labels_saves_loads_and_resumes(run, tmp_path):
    flags = "--label-input", "everywhere", "--negatives", "all", "--pass-up", "neutral"
    flags += "--whiten", "--fields", "5,4", "--n-epochs", "2", "--bp-baseline"
    flags += "--augment", "--shift", "4", "--full-test", "--temperature", "0.05"
    flags += "--layer-rates", "1,0.3", "--scored", "last"
    whole, resumed = tmp_path / "a.npz", tmp_path / "b.npz"
    assert run(*flags, "--save", whole)[0] == 0
    checkpoint = "--checkpoint", tmp_path / "checkpoint.npz"
    process = small.start(SETTINGS, "--cache-dir", run.cache, *flags, *checkpoint)
    rows_until(process, 1)
    process.kill()
    process.communicate()
    assert run(*flags, *checkpoint, "--save", resumed)[0] == 0
    assert_same_bits(whole, resumed)
    arrays = arrays_of(whole)
    assert arrays["layer_specs"].tolist() == [[5, 2], [4, 2]]
    kernel = ff.whitening_filter(ARRAYS[0])
    np.testing.assert_array_equal(arrays["whitening"], kernel)


def test_a_model_from_before_there_were_networks_still_loads(tiny, tmp_path):
    _, arrays = model_bytes()
    config = json.loads(arrays["config"])
    for name in ["fields", *ff.OLDER_DEFAULTS]:
        del config["arguments"][name]
    np.savez(tmp_path / "old.npz", **arrays | {"config": json.dumps(config)})
    _, args, _ = ff.load_model(tmp_path / "old.npz")
    assert (args.network, args.objective) == ("feedforward", "max")


def test_a_usage_error_that_cannot_be_printed_is_still_one(cache):
    with open("/dev/full", "w") as full:
        assert start(cache, "--lr", "nan", stderr=full).wait(60) == 2


def test_the_model_and_the_checkpoint_cannot_be_one_file(run, tmp_path):
    code, _, err = run("--save", tmp_path / "x.npz", "--checkpoint", tmp_path / "x.npz")
    assert code == 2
    assert_one_line(err, "--save", "--checkpoint")


def test_another_spelling_of_the_checkpoint_is_the_same_file(run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "x.npz").symlink_to("y.npz")
    for model in ("link/y.npz", "x.npz", f"../{tmp_path.name}/y.npz"):
        files = "--save", tmp_path / model, "--checkpoint", tmp_path / "y.npz"
        code, _, err = run(*files)
        assert code == 2
        assert_one_line(err, "--save", "--checkpoint")


def test_help_shows_every_default(run):
    code, out, _ = run("--help")
    assert code == 0
    out = " ".join(out.split())
    for default in ("10000", "1000", "10", "2", "64", "0.01", "2.0", "auto"):
        assert f"default: {default}" in out


def test_a_reader_that_goes_away_is_no_traceback(cache):
    process = start(cache, "--n-epochs", "1")
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1


@pytest.mark.parametrize("where", ["gone", "full"])
def test_lines_that_cannot_be_printed_do_not_cost_the_run(cache, tmp_path, where):
    path = tmp_path / "model.npz"
    with open("/dev/full", "w") as full:
        options = {"stdout": full} if where == "full" else {}
        process = start(cache, "--n-epochs", "20", "--save", path, **options)
        if where == "gone":
            process.stdout.close()
        err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert_one_line(err, "ff_cifar_locally_connected.py: lines were lost", "cannot be")
    assert len(arrays_of(path)["ff_test_acc"]) == 20


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_streams_that_are_closed_do_not_matter(cache, tmp_path, closed):
    def close():
        for descriptor in closed:
            os.close(descriptor)

    path, data = tmp_path / "model.npz", tmp_path / "data"
    streams = {"stdout": None, "stderr": None} if len(closed) > 1 else {}
    flags = "--n-epochs", "1", "--save", path, "--cache-dir", data
    code, out, err = small.finish(start(cache, *flags, preexec_fn=close, **streams))
    assert code == 0
    assert ("chance" in (out or "")) == (1 not in closed)
    assert ("gave up on" in (err or "")) == (2 not in closed)
    assert len(arrays_of(path)["ff_test_acc"]) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_that_the_terminal_cannot_show_does_not_cost_the_run(
    run, tmp_path, encoding
):
    names = tmp_path / "mod\u00e8le-\u03b8.npz", tmp_path / "\u03b8.npz"
    flags = "--n-epochs", "1", "--save", names[0], "--checkpoint", names[1]
    terminal = {"env": {"PYTHONIOENCODING": encoding}, "encoding": encoding}
    for _ in range(2):  # the second time going on from the checkpoint
        code, out, err = run(*flags, **terminal)
        assert (code, err) == (0, "")
        assert "-\\u03b8.npz" in out
    assert "going on from" in out
    code, _, err = run("--checkpoint", names[1], **terminal)
    assert code == 1
    assert_one_line(err, "\\u03b8.npz was made with")


# ------------------------------------------------------------------ model.npz


def expected_model(layers, n_epochs, with_bp, full_test):
    """Name -> (shape, dtype) as they are promised to other programs."""
    f4, f8 = np.dtype(np.float32), np.dtype(np.float64)
    n_layers, epochs = len(layers), (n_epochs,)
    model = {
        "layer_specs": ((n_layers, 2), np.dtype(np.int32)),
        "threshold": ((), f8),
        "seed": ((), np.dtype(np.int64)),
        "ff_test_acc": (epochs, f8),
        "ff_train_acc": (epochs, f8),
        "ff_wallclock": (epochs, f8),
    }
    for name in ("loss_per_layer", "g_pos", "g_neg"):
        model[f"ff_{name}"] = ((n_layers, n_epochs), f8)
    for prefix in ("ff", "bp") if with_bp else ("ff",):
        side, depth = 32, 3
        for i, (field, channels) in enumerate(layers):
            side -= field - 1
            shape = side, side, field * field * depth, channels
            model[f"{prefix}_layer{i}_W"] = shape, f4
            model[f"{prefix}_layer{i}_b"] = (side, side, channels), f4
            depth = channels
        if full_test:
            model[f"{prefix}_full_test_acc"] = (), f8
    if with_bp:
        model |= {"bp_W_out": ((side * side * depth, 10), f4), "bp_b_out": ((10,), f4)}
        for name in ("test_acc", "train_acc", "loss", "wallclock"):
            model[f"bp_{name}"] = epochs, f8
    return model


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        ("", [(11, 8), (5, 8)]),
        ("--bp-baseline --full-test", [(11, 8), (5, 8)]),
        ("--bp-baseline --n-layers 3", [(11, 8), (5, 8), (5, 8)]),
        ("--full-test --n-layers 1", [(11, 8)]),
    ],
)
def test_model_npz_holds_exactly_what_is_promised(run, tmp_path, flags, layers):
    path = tmp_path / "model.npz"
    training = "--n-epochs", "2", "--train-subset", "50", "--seed", "5", "--save", path
    code, out, err = run(*flags.split(), *training, settings=FULL_SIZE)
    assert (code, err) == (0, "")
    arrays = arrays_of(path)
    config = json.loads(str(arrays.pop("config")))
    expected = expected_model(layers, 2, "--bp" in flags, "--full" in flags)
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    assert found == expected
    assert arrays["layer_specs"].tolist() == [list(layer) for layer in layers]
    assert arrays["seed"] == config["arguments"]["seed"] == 5
    assert arrays["threshold"] == config["arguments"]["threshold"] == 2.0
    assert config["versions"]["numpy"] == np.__version__
    assert f"saved {path}" in out
    for name, array in arrays.items():
        assert np.isfinite(array).all()
        if name.endswith("_acc"):
            assert ((0 <= array) & (array <= 1)).all()
        if name.endswith("_wallclock"):
            assert (np.diff([0, *array]) > 0).all()


def test_a_saved_model_predicts_as_the_run_did(run, tiny, tmp_path):
    path = tmp_path / "model.npz"
    code, *_ = run("--bp-baseline", "--full-test", "--n-epochs", "2", "--save", path)
    assert code == 0
    learners, args, arrays = ff.load_model(path)
    assert (args.n_epochs, args.bp_baseline) == (2, True)
    for name, learner in learners.items():
        accuracy = ff.accuracy(learner, ARRAYS[2], ARRAYS[3])
        assert accuracy == arrays[f"{name.lower()}_full_test_acc"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(run, tmp_path):
    for name, seed in (("a.npz", 3), ("b.npz", 3), ("c.npz", 4)):
        flags = "--bp-baseline", "--n-epochs", "2", "--seed", seed
        assert run(*flags, "--save", tmp_path / name)[0] == 0
    assert_same_bits(tmp_path / "a.npz", tmp_path / "b.npz")
    a, c = arrays_of(tmp_path / "a.npz"), arrays_of(tmp_path / "c.npz")
    for name in ("ff_layer0_W", "bp_layer1_W", "ff_loss_per_layer", "bp_loss"):
        assert (a[name] != c[name]).any()


@pytest.mark.parametrize(
    "more",
    ["", "--label-input everywhere --negatives sampled --augment --threshold halfway"],
)
def test_the_number_of_threads_does_not_change_the_bits(run, tmp_path, more):
    for threads in "1", "2":
        flags = "--bp-baseline", "--n-epochs", "1", "--save", tmp_path / threads
        flags = *flags, *more.split()
        env = {"OMP_NUM_THREADS": threads}
        code, out, _ = run(*flags, settings=FULL_SIZE, env=env)
        assert code == 0
        assert f"threads {threads}" in out
    assert_same_bits(tmp_path / "1", tmp_path / "2", but=["config"])
    assert set(ff.load_model(tmp_path / "1")[0]) == {"FF", "BP"}


def python(program, **environment):
    """Stdout and stderr of a program that finds the main script beside it."""
    end = subprocess.run(
        [sys.executable, "-c", program],
        cwd=os.path.dirname(ff.__file__),
        env=os.environ | environment,
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return end.stdout, end.stderr


TRAINS = """
import hashlib, numpy as np

def training(_=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 64, np.uint8)
    args = ff.training_arguments(train_subset=64, eval_subset=8, n_epochs=1)
    learner = ff.ForwardForward(args)
    ff.train(learner, [images, labels] * 2, args, tell=lambda line: None)
    return hashlib.sha256(learner.weights()["ff_layer1_W"]).hexdigest()
"""


def test_numpy_imported_first_changes_neither_bits_nor_the_threads_of_blas():
    imports = "import numpy", "import ff_cifar_locally_connected as ff"
    product = """
import sys, time
x, shares = np.ones((1500, 1500)), []
for _ in range(5):  # as threads that were just made spin for a moment, unused
    ours, everyones = time.thread_time(), time.process_time()
    x @ x
    shares.append((time.process_time() - everyones) / (time.thread_time() - ours))
assert min(shares) < 1.2, "BLAS has threads of its own"
print(training())
"""
    threads = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"
    environment = dict.fromkeys(threads, "2")
    ends = []
    for order in (imports, imports[::-1]):
        program = "\n".join([*order, TRAINS, product])
        ends.append(python(program, **environment))
    assert ends[0] == ends[1]
    assert ends[0][1] == ""


def test_a_fork_after_a_training_trains_too():
    imports = "import ff_cifar_locally_connected as ff"
    forks = """
import multiprocessing, warnings
warnings.simplefilter("ignore")  # that a process with threads is forked
here = training()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(training, [0, 0]) == [here, here]
print("done")
"""
    program = f"{imports}\n{TRAINS}\n{forks}"
    assert python(program, OMP_NUM_THREADS="2") == ("done\n", "")


@pytest.mark.parametrize(
    ("setting", "threads"),
    [("3", 3), ("4,2", 4), (" 4", 4), ("4 , 2", 4), ("", None), (" ", None)],
)
def test_the_first_number_of_omp_num_threads_counts(
    monkeypatch, capsys, setting, threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    cores = min(8, len(os.sched_getaffinity(0)))
    assert ff.count_threads() == (threads or cores)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("setting", ["0", "-1", "many", "1.5", ",2", "9" * 5000])
def test_a_number_of_threads_that_cannot_be_understood_is_said(
    monkeypatch, capsys, setting
):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    cores = min(8, len(os.sched_getaffinity(0)))
    assert ff.count_threads() == cores
    assert_one_line(
        capsys.readouterr().err, f"OMP_NUM_THREADS={setting!r}", f"{cores} run"
    )


def test_threads_that_cannot_start_are_one_line_that_says_what_to_do():
    program = """
import sys, threading
import ff_cifar_locally_connected as ff
threading.stack_size(1 << 46)  # more than there is room for
sys.argv = "script.py --dataset synthetic --n-epochs 1".split()
try:
    ff.command(ff.main)
except SystemExit as end:
    print("exit code", end.code)
"""
    out, err = python(program, OMP_NUM_THREADS="2")
    assert out.splitlines()[-1] == "exit code 1"
    assert_one_line(err, "script.py: can't start new thread", "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.1234, 3, "  0.123"),
        (99.9994, 3, " 99.999"),
        (100, 3, " 100.00"),
        (100, 2, " 100.00"),
        (12345.678, 3, "  12346"),
        (999999, 0, " 999999"),
        (1e18, 3, "  1e+18"),
        (float("inf"), 3, "    inf"),
    ],
)
def test_columns_of_the_epochs_never_run_together(value, digits, text):
    assert ff.cell(value, digits) == text


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def model_bytes():
    """A model.npz of the tiny model, as bytes and as arrays."""
    args = ff.training_arguments(
        train_subset=200, eval_subset=20, n_epochs=2, bp_baseline=True
    )
    learners = ff.make_learners(args)
    for one in learners:
        ff.set_epochs(one, 2)
    arrays = ff.model_arrays(args, learners, {"ff_full_test_acc": 0.5})
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue(), arrays


def with_config(arrays, **changes):
    """The arrays with a config that disagrees with them."""
    config = json.loads(arrays["config"])
    config["arguments"] |= changes
    return arrays | {"config": json.dumps(config)}


MODEL_FAULTS = {
    "too few layers": lambda a: with_config(a, n_layers=1),
    "too many layers": lambda a: with_config(a, n_layers=9),
    "another seed": lambda a: with_config(a, seed=7),
    "an impossible seed": lambda a: with_config(a, seed=10**30),
    "no threshold": lambda a: with_config(a, threshold="two"),
    "a threshold of NaN": lambda a: with_config(
        a | {"threshold": np.float64(np.nan)}, threshold=float("nan")
    ),
    "halfway, with a number": lambda a: with_config(a, threshold="halfway"),
    "no baseline": lambda a: with_config(a, bp_baseline=False),
    "a deep config": lambda a: a | {"config": "[" * 100_000},
    "no JSON": lambda a: a | {"config": "{"},
    "no arguments": lambda a: a | {"config": "{}"},
    "other layers": lambda a: a | {"layer_specs": a["layer_specs"] + np.int32(1)},
    "other units": lambda a: a | {"ff_layer0_W": a["ff_layer0_W"][:, :, :-1]},
    "other types": lambda a: a | {"ff_layer0_W": a["ff_layer0_W"].astype(np.float16)},
    "fewer epochs than asked for": lambda a: with_config(a, n_epochs=3),
    "other epochs": lambda a: a | {"bp_loss": np.zeros(3)},
    "a number for a list": lambda a: a | {"ff_wallclock": np.float64(1)},
    "more arrays": lambda a: a | {"ff_layer2_W": np.zeros(3)},
    "no weights": lambda a: {n: v for n, v in a.items() if n != "bp_W_out"},
    "not a number": lambda a: a | {"bp_b_out": np.full(10, np.nan, np.float32)},
    "nothing": lambda a: {},
}


def assert_no_model(path):
    with pytest.raises(RunError) as error:
        ff.load_model(path)
    assert_one_line(str(error.value), path, ff.MAKE_MODEL)


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_model_that_contradicts_itself_is_refused_in_one_line(tiny, fault, tmp_path):
    _, arrays = model_bytes()
    path = tmp_path / "model.npz"
    np.savez(path, **arrays)
    assert set(ff.load_model(path)[0]) == {"FF", "BP"}
    np.savez(path, **MODEL_FAULTS[fault](arrays))
    assert_no_model(path)


def test_a_model_that_is_missing_or_damaged_is_refused_in_one_line(tiny, tmp_path):
    path = tmp_path / "model.npz"
    assert_no_model(path)
    assert_no_model(tmp_path)
    data, arrays = model_bytes()
    flipped = bytearray(data)
    flipped[data.index(arrays["ff_layer0_W"].tobytes())] ^= 4
    for damaged in (b"", b"text", data[:-1], data[: len(data) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        assert_no_model(path)
    path.write_bytes(data)
    ff.load_model(path)


def test_nothing_is_ever_unpickled(tiny, tmp_path):
    path, evidence = tmp_path / "model.npz", tmp_path / "unpickled"
    _, arrays = model_bytes()
    payload = np.array([Payload(evidence)], dtype=object)
    for name in ("config", "ff_layer0_W", "seed", "another"):
        np.savez(path, **arrays | {name: payload})
        assert_no_model(path)
        with pytest.raises(RunError, match="unless allow_pickle|allow_pickle=False"):
            ff.load_npz(path, "checkpoint")
    path.write_bytes(pickle.dumps(Payload(evidence)))
    assert_no_model(path)
    assert not evidence.exists()
    pickle.loads(path.read_bytes()).close()
    assert evidence.exists()  # the payload does bite


def test_a_full_disk_at_the_end_of_a_run_is_one_line(run, tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    for flag in ("--save", "--checkpoint"):
        path = tmp_path / "file.npz"
        code, out, err = run("--n-epochs", "1", flag, path, preexec_fn=limit)
        assert code == 1
        assert "FF     1" in out
        assert_one_line(err, path, "File too large")
        assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_saved_is_kept_elsewhere_in_one_line(cache, tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    flags = "--n-epochs", "2", "--save", folder / "model.npz"
    process = start(cache, *flags, env={"TMPDIR": str(elsewhere)})
    rows_until(process, 1)
    folder.rmdir()
    code, _, err = small.finish(process)
    (kept,) = elsewhere.iterdir()
    assert code == 1
    assert_one_line(err, f"cannot write {folder / 'model.npz'}", f"is in {kept}")
    assert len(arrays_of(kept)["ff_test_acc"]) == 2


def test_a_name_is_as_long_as_the_disk_allows_or_a_usage_error(run, tmp_path):
    for length in (250, 255, 256):
        name = "m" * (length - 4) + ".npz"
        code, out, err = run("--n-epochs", "1", "--save", tmp_path / name)
        if length > 255:
            assert (code, out) == (2, "")
            assert_one_line(err, "--save", "name too long")
        else:
            assert (code, err) == (0, "")
            assert len(arrays_of(tmp_path / name)["ff_test_acc"]) == 1


def test_a_link_to_the_model_stays_and_its_target_is_written(run, tmp_path):
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link.npz", tmp_path / "folder" / "model.npz"
    link.symlink_to(target)
    for _ in range(2):  # there is no target yet; and there is one
        assert run("--n-epochs", "1", "--save", link)[0] == 0
        assert link.is_symlink()
        assert not target.is_symlink()
        assert len(arrays_of(target)["ff_test_acc"]) == 1
        assert list(target.parent.iterdir()) == [target]


# ---------------------------------------------------------------- checkpoints

EPOCHS = 30
LONG = "--bp-baseline", "--full-test", "--n-epochs", str(EPOCHS), "--seed", "1"
# All generators, and the schedule, have to go on where they were.
LONG += "--negatives", "sampled", "--augment", "--lr-schedule", "linear"


def rows_until(process, count):
    """Read rows of epochs, until there are `count` of them."""
    while count:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        count -= line.startswith(("FF  ", "BP  "))


def test_a_run_killed_20_times_ends_with_the_same_bits(cache, run, tmp_path):
    whole, killed = tmp_path / "whole.npz", tmp_path / "killed.npz"
    assert run(*LONG, "--save", whole)[0] == 0
    checkpoint = tmp_path / "checkpoint.npz"
    flags = *LONG, "--checkpoint", checkpoint, "--save", killed
    moments = random.Random(0)
    kills = 0
    while kills < 20:
        process = start(cache, *flags)
        # Between the first instruction and the third epoch from where it went on.
        if moments.random() < 0.8:
            rows_until(process, moments.randint(0, 2))
        else:
            time.sleep(moments.uniform(0, 0.2))
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode == -signal.SIGKILL  # the run has not come to its end
        assert not killed.exists()
    code, out, err = small.finish(start(cache, *flags))
    assert (code, err) == (0, "")
    assert f"going on from {checkpoint}" in out
    assert out.count("\nFF  ") + out.count("\nBP  ") < 2 * EPOCHS  # it did go on
    assert_same_bits(whole, killed)
    again = tmp_path / "again.npz"
    code, out, _ = run(*LONG, "--checkpoint", checkpoint, "--save", again)
    assert code == 0
    assert "epoch " not in out  # nothing was left to do: no headers of empty tables
    assert_same_bits(whole, again)


def test_control_c_is_one_line_that_says_how_to_go_on(cache, run, tmp_path):
    whole, stopped = tmp_path / "whole.npz", tmp_path / "stopped.npz"
    flags = "--n-epochs", "60", "--checkpoint", tmp_path / "c.npz"
    process = start(cache, *flags, "--save", stopped)
    rows_until(process, 2)
    process.send_signal(signal.SIGINT)
    code, _, err = small.finish(process)
    assert code == 130
    assert_one_line(err, "interrupted", "--checkpoint")
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
    code, out, _ = run(*flags, "--save", stopped)
    assert code == 0
    assert "going on from" in out
    assert run("--n-epochs", "60", "--save", whole)[0] == 0
    assert_same_bits(whole, stopped)


@pytest.mark.parametrize(
    "changed",
    [
        "--seed 2",
        "--lr 0.02",
        "--n-epochs 3",
        "--n-layers 1",
        "--batch-size 32",
        "--threshold 1.5",
        "--train-subset 100",
        "--eval-subset 10",
        "--bp-baseline",
    ],
)
def test_a_checkpoint_of_other_arguments_is_refused_in_one_line(
    run, tmp_path_factory, changed
):
    path = tmp_path_factory.getbasetemp() / "arguments-checkpoint.npz"
    flags = "--n-epochs", "2", "--checkpoint", path
    if not path.exists():
        assert run(*flags)[0] == 0
    before = path.read_bytes()
    code, _, err = run(*flags, *changed.split())
    assert code == 1
    name = changed.split()[0].removeprefix("--").replace("-", "_")
    assert_one_line(err, path, f"{name} = ", "--checkpoint")
    assert path.read_bytes() == before


def test_a_checkpoint_that_contradicts_itself_is_refused_in_one_line(run, tmp_path):
    path = tmp_path / "c.npz"
    flags = "--n-epochs", "2", "--checkpoint", path
    assert run(*flags)[0] == 0
    good = arrays_of(path)
    state = json.loads(str(good["state"]))
    for changes in (
        {"ff_g_pos": good["ff_g_pos"][:, 1:]},
        {"ff_g_pos": good["ff_g_pos"].astype(np.int64)},
        {"FF_0_m": good["FF_0_m"][1:]},
        {"bp_loss": good["ff_g_pos"][0]},
        {"state": json.dumps(state | {"steps": ["many"]})},
        {"state": json.dumps(state | {"steps": []})},
        {"state": json.dumps(state | {"generators": [{}, {}]})},
        {"state": "[" * 100_000},
    ):
        np.savez(path, **good | changes)
        code, _, err = run(*flags)
        assert code == 1, changes
        assert_one_line(err, path, "no checkpoint of this run", "another --checkpoint")


def test_a_file_that_is_no_checkpoint_is_refused_and_kept(run, cache, tmp_path):
    path = tmp_path / "c.npz"
    for content in (b"", b"text", (cache / "cifar10.npz").read_bytes()):
        path.write_bytes(content)
        code, _, err = run("--checkpoint", path)
        assert code == 1
        assert_one_line(err, path)
        assert path.read_bytes() == content


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lr 1e18", ["FF epoch 1 of 2", "layer 0"]),
        ("--lr 1e15 --bp-baseline", ["BP epoch 1 of 2", "loss"]),
    ],
)
def test_a_learning_rate_that_diverges_is_one_line(run, tmp_path, flags, words):
    path = tmp_path / "model.npz"
    code, _, err = run(*flags.split(), "--n-epochs", "2", "--save", path)
    assert code == 1
    rate = f"learning rate {float(flags.split()[1]):g}"
    assert_one_line(err, *words, rate, "smaller --lr")
    assert not path.exists()


@pytest.mark.parametrize(
    "more", ["", "--n-layers 1", "--bp-baseline --lr 1e-9 --bp-lr 1e18"]
)
def test_what_only_the_last_step_diverges_to_is_no_result(run, tmp_path, more):
    """One step: its loss is from before it, and the weights after it are finite."""
    path = tmp_path / "model.npz"
    flags = "--train-subset", "64", "--n-epochs", "1", "--lr", "1e18", "--save", path
    code, out, err = run(*flags, *more.split())
    assert code == 1
    assert "chance" not in out
    assert_one_line(err, "not finite", "learning rate 1e+18", "smaller --lr")
    assert not path.exists()


def test_a_model_whose_scores_overflow_is_not_drawn(tiny, tmp_path):
    args = ff.training_arguments(train_subset=200, n_epochs=1, n_layers=1)
    learner = ff.ForwardForward(args)
    learner.layers[0].b.value[:] = 1e30  # finite; its square is not
    with pytest.raises(RunError, match="score of a label is not finite"):
        ff.predict(learner, ARRAYS[2])


@pytest.mark.parametrize(
    "flags",
    [
        "--weight-decay 1e9",
        "--lr 2 --weight-decay 0.6",
        "--weight-decay 3 --bp-baseline --bp-lr 0.5",
    ],
)
def test_a_decay_that_turns_the_sign_of_weights_is_a_usage_error(run, flags):
    code, out, err = run(*flags.split())
    assert (code, out) == (2, "")
    assert_one_line(err, "lr ", "--weight-decay", "above 1")


def test_no_data_is_one_line_and_exit_code_1(run, tmp_path):
    code, out, err = run("--dataset=cifar10", "--cache-dir", tmp_path / "nothing")
    assert (code, out) == (1, "")
    *given_up, last = err.splitlines()
    assert all(line.startswith("gave up on ") for line in given_up)
    assert_one_line(last, "ff_cifar_locally_connected.py: no CIFAR-10 from")


def test_every_line_about_synthetic_data_says_so():
    flags = "--dataset=synthetic", "--n-epochs=1", "--train-subset=64"
    command = sys.executable, ff.__file__, *flags, "--eval-subset=16"
    out = subprocess.check_output(command, text=True, timeout=60)
    assert all(line.startswith("[synthetic] ") for line in out.splitlines())


def test_where_no_source_has_cifar10_the_synthetic_set_runs_and_says_so(run, tmp_path):
    folder, path = tmp_path / "nothing", tmp_path / "m.npz"
    code, out, err = run("--n-epochs=1", "--save", path, "--cache-dir", folder)
    assert code == 0
    *given_up, instead = err.splitlines()
    assert [line.split(":")[0] for line in given_up] == ["gave up on http"] * 2
    assert instead.startswith("[synthetic] no source has CIFAR-10")
    assert f"cifar10.zip (Kaggle's) into {folder}" in instead
    assert all(line.startswith("[synthetic] ") for line in out.splitlines())
    assert "not CIFAR-10 results" in out.splitlines()[-1]
    config = json.loads(str(arrays_of(path)["config"]))
    assert config["arguments"]["dataset"] == "synthetic"


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("visualize_ff_cifar_locally_connected", ["--model", "no", "--outdir"]),
        ("make_ff_cifar_locally_connected_gif", ["--out"]),
    ],
)
def test_the_drawing_scripts_say_so_too(cache, tmp_path, script, flags):
    flags = (
        *flags,
        tmp_path / "drawn",
        "--epochs",
        "1",
        "--cache-dir",
        tmp_path / "none",
    )
    code, out, err = small.finish(start(cache, *flags, env={"SCRIPT": script}))
    assert code == 0, err
    assert err.splitlines()[-1].startswith("[synthetic] no source has CIFAR-10")
    assert all(line.startswith("[synthetic] ") for line in out.splitlines())
    assert "not CIFAR-10 results" in out.splitlines()[-1]
    assert (tmp_path / "drawn").exists()


def test_where_cifar10_is_at_hand_auto_is_cifar10(run, tmp_path):
    path = tmp_path / "m.npz"
    code, out, err = run("--n-epochs=1", "--save", path)
    assert (code, err) == (0, "")
    assert "synthetic" not in out
    config = json.loads(str(arrays_of(path)["config"]))
    assert config["arguments"]["dataset"] == "cifar10"


@pytest.mark.parametrize(
    "name", ["cifar10.npz", "cifar-10-binary.tar.gz", "cifar10.zip"]
)
def test_a_damaged_file_of_the_data_is_an_error_and_not_made_up_for(
    run, tmp_path, name
):
    (tmp_path / name).write_bytes(b"damaged")
    code, out, err = run("--cache-dir", tmp_path)
    assert (code, out) == (1, "")
    assert_one_line(err.splitlines()[-1], "no CIFAR-10 from", tmp_path / name)


def test_every_file_asks_for_the_same_versions_of_packages():
    root = ff.Path(ff.__file__).parent
    files = [*root.glob("*.py"), *root.glob("tests/*.py"), root / ".ci" / "run"]
    text = "".join(file.read_text("utf-8") for file in files)
    bounds = set(re.findall(r'"([a-z]+)>=([\d.]+)"', text))
    names = ["imageio", "matplotlib", "numpy", "pillow", "pytest"]
    assert sorted(name for name, _ in bounds) == names
