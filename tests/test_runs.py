"""The command line, checkpoints and model.npz: what a run promises, end to end."""

import argparse
import ast
import collections
import itertools
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
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import small
from small import assert_one_line

import ff_cifar_locally_connected as ff

ARRAYS = small.make_arrays(200, 50)
SETTINGS = small.constants(ARRAYS)
TINY = "--fields", "29,3", "--channels", "2", "--n-epochs", "2"
MAIN = ff.__name__
VISUALIZE = "visualize_ff_cifar_locally_connected"


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """The constants of the small data, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | {"TAG": ""}).items():
            patch.setattr(ff, name, value)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder with the small data, ready to be loaded."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "cifar10.npz").write_bytes(small.npz(ARRAYS))
    return folder


def on_small_data(cache, flags):
    subsets = "--train-subset", 200, "--eval-subset", 20
    return [*subsets, "--cache-dir", cache, *flags]


@pytest.fixture(scope="module")
def call(cache):
    """call(*flags): exit code, stdout and stderr of a script, in this process."""

    def call(*flags, script=MAIN):
        result = small.here(script, *on_small_data(cache, flags))
        ff.TAG = ""  # "[synthetic] ", maybe
        return result

    return call


def start(cache, *flags, **options):
    """The main script, in a process of its own."""
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


def read_rows(process, count):
    """All that a process prints until the end of its next `count` rows of epochs."""
    lines = []
    while count:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
        count -= lines[-1].startswith(("FF  ", "BP  "))
    return "".join(lines)


# -------------------------------------------------------------------- the flags

NONSENSE = {  # flags: values of each; an empty one where a space ends them
    "--n-epochs --n-layers --batch-size --channels": "0 -1 1.5 nan inf x",
    "--train-subset --eval-subset": "0 -1 1.5 nan inf x 201",
    "--seed --augment": "-1 1.5 nan inf x 9223372036854775808",
    "--lr --bp-lr --threshold --temperature": "0 -1 nan inf -inf 1e-99 1e99 x ",
    "--weight-decay": "-1 nan inf x",
    "--lr-schedule --label-input --negatives --loss --objective": "x Corner ",
    "--dataset --recipe": "mnist CIFAR10 Best two\nlines ",
    "--fields": "5 0,5 5,33 5, 5,x 5;5 5,-5 20,14 ",
    "--layer-rates": "1 1, 1,x 1;1 1,-1 1,nan ",
    "--save --checkpoint": "/ /no/m.npz FILE/m.npz READ-ONLY /dev/null ",
    "--no-such-flag --epoch": "1 two\nlines",  # no abbreviations
    "--n-layers": "5",
    "--eval-subset": "51",
    "--augment": "33",
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
]


@pytest.mark.parametrize("row", [*NONSENSE, *MISFITS])
def test_arguments_without_sense_are_a_one_line_usage_error_before_any_work(
    call, row, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    Path("READ-ONLY").touch(0o444)  # which would not stop root
    values = NONSENSE[row].split(" ") if row in NONSENSE else []
    commands = [[f"{flag}={value}"] for flag in row.split() for value in values]
    for words in commands or [row.split()]:
        code, out, err = call("--cache-dir", "cache", *words)
        assert (code, out) == (2, ""), words
        flag = [word.split("=")[0] for word in words if word.startswith("--")][-1]
        assert_one_line(err, f"{MAIN}.py: error: ", flag)
        assert sorted(os.listdir()) == ["FILE", "READ-ONLY"]


DEFAULTS = {
    MAIN: "--dataset auto --seed 0 --n-epochs 10 --n-layers 2 --batch-size 64 "
    "--lr 0.01 --threshold 2.0 --train-subset 10000 --eval-subset 1000 --augment 0",
    VISUALIZE: "--model model.npz --outdir viz --per-class-test-subset 10000 "
    "--bp-baseline True --n-epochs 10",
    "make_ff_cifar_locally_connected_gif": "--n-epochs 8 --fps 4 --train-subset 4000 --eval-subset 500 "
    "--snapshot-every 1 --out ff_cifar_locally_connected.gif",
    f"{MAIN} --recipe best": "--n-epochs 90 --lr 0.02 --train-subset 50000 "
    "--loss softmax --temperature 0.05 --augment 4 --whiten True --fields 5,9",
}


@pytest.mark.parametrize("words", DEFAULTS)
def test_help_shows_the_recipes_and_every_default_of_the_one_that_is_given(words):
    script, *flags = words.split()
    script = Path(ff.__file__).with_name(f"{script}.py")  # as a user starts it
    options = {"capture_output": True, "text": True, "timeout": 60}
    command = sys.executable, script, *flags, "--help"
    done = subprocess.run(command, check=True, **options)
    assert done.stderr == ""
    entries = re.split(r"\n  (?=--)", done.stdout)[1:]
    entries = {
        entry.split()[0].strip(","): " ".join(entry.split()) for entry in entries
    }
    without = {"--full-test", "--save", "--checkpoint", "--runs", "--receptive-fields"}
    assert {flag for flag in entries if "default: " not in entries[flag]} <= without
    defaults = DEFAULTS[words].split()
    for flag, default in zip(defaults[::2], defaults[1::2]):
        assert f"(default: {default})" in entries[flag]
    for name, flags in ff.RECIPES.items():
        assert f"{name}: {flags}" in done.stdout


def parsed(*flags):
    parser = ff.Parser()
    ff.add_training_flags(parser)
    return vars(ff.parse(parser, flags))


@pytest.mark.parametrize("recipe", ["headline", "one-layer", "best", "recurrent"])
def test_a_recipe_is_the_flags_it_stands_for_and_another_flag_overrides_it(
    recipe, monkeypatch
):
    monkeypatch.setattr(ff, "N_TRAIN", 50_000)
    by_name = parsed("--recipe", recipe)
    if recipe != "recurrent":  # which is a network of its own
        spelled = parsed(*ff.RECIPES[recipe].split())
        assert by_name == spelled | {"recipe": recipe}
    changed = by_name | {"lr": 0.5}
    assert parsed("--recipe", recipe, "--lr", "0.5") == changed
    assert parsed("--lr=0.5", "--recipe", recipe) == changed
    assert vars(ff.training_arguments(recipe, "auto", lr=0.5)) == changed


# ------------------------------------------------------------------- the output

GOES_ON = "; the same command goes on from the last epoch that it saved"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ff.RunError("two\nlines"), 1, "s.py: two lines"),
        (ff.UsageError("no"), 2, "s.py: no"),
        (MemoryError("of 9 TB"), 1, "s.py: not enough memory: of 9 TB"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted" + GOES_ON),
    ],
)
def test_what_ends_a_script_is_one_line_and_an_exit_code(
    error, code, line, monkeypatch, capsys
):
    def main():
        raise error

    flags = ["--checkpoint=c.npz"] if GOES_ON in line else []
    monkeypatch.setattr(sys, "argv", ["folder/s.py", *flags])
    with pytest.raises(SystemExit) as end:
        ff.command(main)
    assert end.value.code == code
    assert capsys.readouterr() == ("", line + "\n")


def test_a_reader_that_goes_away_is_no_traceback(cache):
    process = start(cache, *TINY)
    assert process.stdout.readline().startswith("python ")
    process.stdout.close()  # as head does
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_results_of_the_synthetic_set_say_so_in_every_line(call, tmp_path, asked):
    path = tmp_path / "model.npz"
    flags = *TINY, "--cache-dir", tmp_path, "--save", path
    code, out, err = call(*flags, *["--dataset=synthetic"] * asked)
    assert code == 0
    last = err.splitlines()[-1] if err else "nothing"
    assert last.startswith("nothing" if asked else "[synthetic] made-up images")
    assert all(line.startswith("[synthetic] ") for line in out.splitlines())
    assert "not CIFAR-10 results" in out.splitlines()[-1]
    assert ff.load_model(path)[1].dataset == "synthetic"


@pytest.mark.parametrize("asked", [True, False])
def test_cifar10_that_is_meant_and_cannot_be_had_is_an_error(call, tmp_path, asked):
    if not asked:  # but whoever has a file there means it
        (tmp_path / "cifar10.zip").write_bytes(b"damaged")
    flags = "--cache-dir", tmp_path, *["--dataset=cifar10"] * asked
    code, out, err = call(*flags)
    assert (code, out) == (1, "")
    *given_up, last = err.splitlines()
    assert all(line.startswith("gave up on ") for line in given_up)
    assert_one_line(last, f"{MAIN}.py: no CIFAR-10 from", tmp_path)


# ---------------------------------------------------------- data of one's own


def test_data_of_ones_own_bring_their_name_and_classes(capsys, tmp_path):
    changes = {"fields": [29, 3], "channels": 2, "n_epochs": 1}
    changes |= {"train_subset": 200, "eval_subset": 20}
    args = ff.training_arguments(dataset="mine", classes="abcdefghij", **changes)
    (learner,), arrays = ff.run(args, ARRAYS, full_test=True)
    lines = capsys.readouterr().out.splitlines()
    for name in "recipe", "seed", "lr", "bp_lr", "label_input", "negatives", "loss":
        assert f"{name} {vars(args)[name]}, " in lines[1] + ", "
    assert "mine" in lines[2]
    heading, *rows = [line.split() for line in lines[-11:]]
    assert heading == ["class", "FF", "%"]
    right = ff.in_batches(learner.predict, ARRAYS[2]) == ARRAYS[3]
    by_class = [100 * right[ARRAYS[3] == label].mean() for label in range(10)]
    assert rows == [[c, f"{value:.1f}"] for c, value in zip("abcdefghij", by_class)]
    (tmp_path / "m.npz").write_bytes(small.npz([], **arrays))
    assert vars(ff.load_model(tmp_path / "m.npz")[1]) == vars(args)
    with pytest.raises(ff.UsageError, match="10 classes, not 9"):
        ff.training_arguments(classes="abcdefghi")


def test_data_of_other_shapes_are_refused_in_one_line():
    args = ff.training_arguments(fields=[29, 3], channels=2, n_epochs=1)
    (learner,), x, y = ff.make_learners(args), ARRAYS[0][:20], np.arange(20) % 10
    shapes = (x, y[:, None]), (x[:, :28, :28], y), (x[..., 0], y), (x, y[:-1])
    for wrong in (*shapes, (x, y + 1), (x, y - 1), (x, y / 2)):
        for data in (*wrong, x, y), (x, y, *wrong):
            with pytest.raises(ff.RunError) as error:
                ff.train(learner, data, args)
            assert_one_line(str(error.value), "(n, 32, 32, 3)", "(n,) labels")


# --------------------------------------------- model.npz, threads, checkpoints

BEST = ff.RECIPES["best"].replace("50000", "200") + " --n-epochs 3 --bp-baseline"
RECURRENT = "--recipe recurrent --train-subset 16 --batch-size 8 --eval-subset 4"
FF = "layer0_W layer0_b test_acc train_acc wallclock g_pos g_neg loss_per_layer"
BOTH = "layer0_W layer0_b layer1_W layer1_b test_acc train_acc wallclock"
BP = "W_out b_out loss"
RUNS = {  # flags; and what model.npz holds of FF, of BP and of both
    "headline": ("--full-test --bp-baseline", FF, BP, BOTH + " full_test_acc"),
    "like best": (BEST, FF + " layer0_V layer1_V", BP, BOTH),
    "recurrent": (
        RECURRENT + " --full-test --bp-baseline",
        FF + " layer0_T layer1_V W_class b_class one_pass_test_acc one_pass_train_acc "
        "full_test_one_pass_acc",
        BP,
        BOTH + " full_test_acc",
    ),
    "no BP": (
        "--n-layers 1 --n-epochs 30 --negatives sampled --augment 2 --lr-schedule linear",
        *(FF, "", ""),
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def whole(request, call, tmp_path_factory):
    """Name, flags, model.npz and stdout of a run that nothing stopped, on one thread."""
    flags = ["--n-epochs", "3", *RUNS[request.param][0].split(), "--seed", "1"]
    path = tmp_path_factory.mktemp("whole") / "model.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ff, "THREADS", 1)
        code, out, err = call(*flags, "--save", path)
    assert (code, err) == (0, "")
    return request.param, flags, path, out


def test_model_npz_holds_exactly_what_is_promised(whole):
    name, _, path, out = whole
    arrays, (_, of_ff, of_bp, both) = arrays_of(path), RUNS[name]
    promised = {f"{who}_{n}" for n in both.split() for who in ("ff", "bp")}
    promised |= {f"ff_{n}" for n in of_ff.split()} | {f"bp_{n}" for n in of_bp.split()}
    promised |= {"whitening"} if name == "like best" else set()
    config = json.loads(str(arrays.pop("config")))
    specs, seed, theta = (arrays.pop(n) for n in ("layer_specs", "seed", "threshold"))
    assert arrays.keys() == promised
    learners, args, _ = ff.load_model(path)
    layers = learners["FF"].layers
    assert specs.tolist() == [[layer.field, args.channels] for layer in layers]
    assert (specs.dtype, seed.dtype, theta.dtype) == (np.int32, np.int64, np.float64)
    assert seed == config["arguments"]["seed"] == 1
    np.testing.assert_equal(theta, 2.0 if args.loss == "threshold" else np.nan)
    assert config["versions"]["numpy"] == np.__version__
    assert config["arguments"]["dataset"] == "cifar10"  # as it is at hand
    assert "synthetic" not in out
    assert f"saved {path}" in out
    for n, array in arrays.items():
        assert np.isfinite(array).all()
        is_history = n.endswith(("acc", "wallclock", "pos", "neg", "loss", "per_layer"))
        assert array.dtype == (np.float64 if is_history else np.float32)
        if is_history and "full_test" not in n:
            layered = n.endswith(("pos", "neg", "per_layer"))
            assert array.shape == (*[len(specs)] * layered, args.n_epochs), n
        if n.endswith("wallclock"):
            assert (np.diff([0, *array]) > 0).all()


def test_a_saved_model_predicts_as_the_run_did(whole):
    learners, args, arrays = ff.load_model(whole[2])
    n = args.eval_subset
    for learner in learners.values():
        for method, infix in learner.ways.values():
            accuracy = ff.accuracy(learner, ARRAYS[2][:n], ARRAYS[3][:n], method)
            assert accuracy == arrays[f"{learner.name.lower()}_{infix}test_acc"][-1]


def test_a_run_that_is_stopped_goes_on_to_the_same_bits_on_any_number_of_threads(
    whole, call, cache, tmp_path
):
    _, flags, path, out = whole
    assert "threads 1" in out
    checkpoint, resumed = tmp_path / "c.npz", tmp_path / "m.npz"
    flags = *flags, "--checkpoint", checkpoint, "--save", resumed
    # With the first row the first checkpoint is about to be written.
    for rows, stop, code in (1, signal.SIGINT, 130), (2, signal.SIGKILL, -9):
        process = start(cache, *flags, env={"OMP_NUM_THREADS": "3"})
        assert "threads 3" in read_rows(process, rows)
        process.send_signal(stop)
        _, _, err = small.finish(process)
        assert process.returncode == code
        assert err == (f"interrupted{GOES_ON}\n" if code == 130 else "")
        assert not resumed.exists()
    for done in range(2):  # the second time nothing is left to do
        code, out, err = call(*flags)
        assert (code, err) == (0, "")
        assert f"going on from {checkpoint}" in out
        assert ("epoch " in out) == (not done)
        assert_same_bits(path, resumed, but=["config"])


def test_another_seed_gives_other_numbers(call, tmp_path):
    flags = *TINY, "--bp-baseline", "--save", tmp_path / "model.npz"
    runs = []
    for seed in 3, 4:
        assert call(*flags, "--seed", seed)[0] == 0
        runs.append(arrays_of(flags[-1]))
    for name in ("ff_layer0_W", "bp_layer1_W", "ff_loss_per_layer", "bp_loss"):
        assert (runs[0][name] != runs[1][name]).any()


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


# ------------------------------------------- processes, their threads and memory

PROGRAM = """
import hashlib, multiprocessing, time, warnings
import numpy as np
import small
from small import ff

def training(_):
    args = ff.training_arguments(eval_subset=8, n_epochs=1)
    learner = ff.ForwardForward(args)
    ff.train(learner, small.make_arrays(64, 8), args)
    return hashlib.sha256(learner.weights()["ff_layer1_W"]).hexdigest()

x, shares = np.ones((1500, 1500)), []
for _ in range(5):  # as threads that were just made spin for a moment, unused
    ours, everyones = time.thread_time(), time.process_time()
    x @ x
    shares.append((time.process_time() - everyones) / (time.thread_time() - ours))
assert min(shares) < 1.2, "BLAS has threads of its own"

ff.tell = lambda line: None
here = training(0)
warnings.simplefilter("ignore")  # that a process with threads is forked
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(training, [0, 0]) == [here, here]
print(here)
"""


def test_numpy_imported_first_and_forks_change_neither_bits_nor_the_threads_of_blas():
    threads = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"
    paths = [str(Path(file).parent) for file in (ff.__file__, small.__file__)]
    environment = os.environ | dict.fromkeys(threads, "2")
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    options = {"stderr": subprocess.STDOUT, "env": environment, "text": True}
    results = []
    for first in MAIN, "numpy":
        command = sys.executable, "-c", f"import {first}\n{PROGRAM}"
        results.append(subprocess.check_output(command, **options))
    assert len({*results}) == len(results[0].splitlines()) == 1


@pytest.mark.parametrize("flags", ["--label-input everywhere", "--recipe recurrent"])
def test_batches_of_many_sizes_keep_no_more_memory_than_the_last(flags):
    small_net = [] if "recurrent" in flags else TINY
    args = argparse.Namespace(**parsed(*flags.split(), *small_net, "--bp-baseline"))

    def traced_after(*sizes):
        learners = ff.make_learners(args)
        for size, learner in itertools.product(sizes, learners):
            learner.predict(ARRAYS[2][:size])
        return tracemalloc.get_traced_memory()[0]

    traced_after(12)  # fills the scratch memory of the threads, which stays
    tracemalloc.start()
    alone, many = traced_after(12), traced_after(*range(1, 13), 12)
    tracemalloc.stop()
    assert abs(many - alone) < 0.03 * alone


# ------------------------------------------------------ damaged and foreign files


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_damaged_or_of_another_kind_are_refused_in_one_line(
    call, tmp_path
):
    model, checkpoint = tmp_path / "model.npz", tmp_path / "checkpoint.npz"
    goes_on = *TINY, "--bp-baseline", "--checkpoint", checkpoint
    draws = "--model", model, "--outdir", tmp_path
    assert call(*goes_on, "--save", model)[0] == 0
    evidence = tmp_path / "unpickled"
    payload = np.array([Payload(evidence)], object)

    arrays, state = arrays_of(model), arrays_of(checkpoint)
    arguments = json.loads(str(arrays["config"]))["arguments"]
    misfits = {"n_layers": 9}, {"no_such": 1}
    configs = [json.dumps({"arguments": arguments | misfit}) for misfit in misfits]
    changes = [{"config": config} for config in (*configs, "{", "{}", payload)]
    changes += [{"seed": payload}, {"bp_b_out": payload}]
    models = [arrays | change for change in changes]
    models.append({name: arrays[name] for name in arrays if name != "bp_W_out"})

    no_bp = {n: v for n, v in json.loads(str(state["state"])).items() if n != "BP"}
    changes = [{"state": text} for text in (json.dumps(no_bp), "{", "{}", payload)]
    changes += [{"FF_0_m": wrong} for wrong in (np.zeros(3), payload)]
    checkpoints = [state | change for change in changes]

    foreign = [small.npz([], **arrays), small.npz([], **state), small.npz(ARRAYS)]
    for path, script, flags, damaged, what, advice in (
        (model, VISUALIZE, draws, models, "model", ff.MAKE_MODEL),
        (checkpoint, MAIN, goes_on, checkpoints, "checkpoint", "another --checkpoint"),
    ):
        damaged = [
            b"",
            b"text",
            pickle.dumps(payload),
            *(small.npz([], **d) for d in damaged),
        ]
        ours = path.read_bytes()
        for content in (*damaged, *(f for f in foreign if f != ours)):
            path.write_bytes(content)
            code, _, err = call(*flags, script=script)
            assert code == 1
            assert_one_line(err, f"{path} is no sound {what}", advice)
            assert ("a file of another kind" in err) == (content in foreign)
            assert path.read_bytes() == content
    (tmp_path / "cifar10.npz").write_bytes(small.npz(ARRAYS, train_y=payload))
    assert call(*TINY, "--cache-dir", tmp_path)[0] == 1
    assert not evidence.exists()
    pickle.loads(pickle.dumps(Payload(evidence))).close()
    assert evidence.exists()  # the payload does bite


def test_a_model_that_is_missing_is_told_apart_from_one_that_is_not_sound(tmp_path):
    for path, kind in (tmp_path / "nothing.npz", ff.NoFile), (tmp_path, ff.RunError):
        with pytest.raises(kind, match="--save model.npz") as error:
            ff.load_model(path)
        assert type(error.value) is kind


MARKS = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"NUMPY"


def damage(rng, data):
    """`data` after one to three flips, cuts or insertions, not all at random places."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, other = (rng.randrange(len(data) + 1) for _ in range(2))
        # Half of them at the structure: names, sizes and checksums of the members.
        mark = data.find(rng.choice(MARKS), at)
        if mark >= 0 and rng.random() < 0.5:
            at = max(0, mark + rng.randint(-150, 150))
        size = rng.choice([1, 1, 2, 8, 100, 1000])
        new = rng.choice([b"", rng.randbytes(size), data[other : other + size]])
        data = data[:at] + new + data[at + rng.choice([0, 1, size, size, len(data)]) :]
    return data


def test_2000_corrupted_files_are_one_line_or_what_they_were(tmp_path):
    changes = {"train_subset": 10, "eval_subset": 4, "n_epochs": 1, "bp_baseline": True}
    args = ff.training_arguments(fields=[31, 2], channels=1, **changes)
    learners, arrays = ff.run(args, ARRAYS)
    ff.save_checkpoint(tmp_path / "c.npz", args, learners)

    def load_checkpoint(path):
        learners = ff.make_learners(args)
        ff.load_checkpoint(path, args, learners)
        return learners[0].weights() | learners[1].weights()

    def bits(arrays):
        return {name: array.tobytes() for name, array in arrays.items()}

    warnings.simplefilter("ignore")  # of odd headers
    outcomes = collections.Counter()
    for good, load in (
        (small.npz([], **arrays), lambda path: ff.load_model(path)[2]),
        ((tmp_path / "c.npz").read_bytes(), load_checkpoint),
        (
            small.npz(ARRAYS),
            lambda _: dict(zip(small.NAMES, ff.load_cifar10(tmp_path))),
        ),
    ):
        path = tmp_path / "cifar10.npz"
        path.write_bytes(good)
        truth = bits(load(path))
        for seed in range(667):
            path.write_bytes(damage(random.Random(seed), good))
            try:
                assert bits(load(path)) == truth, (good[:100], seed)
                outcomes["sound"] += 1
            except ff.RunError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 1000
    assert outcomes["sound"] > 20


# -------------------------------------------------------- whole files or none


@pytest.mark.parametrize("end", ["killed", "interrupted", "full"])
def test_a_write_that_is_stopped_leaves_what_was_there(tmp_path, end):
    def write(file):
        file.write(bytes(1000))
        file.flush()
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt if end == "interrupted" else OSError(28, "disk full")

    def process():
        try:
            sys.exit(ff.write_whole(path, write))
        except KeyboardInterrupt:
            sys.exit(130)

    path = tmp_path / "model.npz"
    path.write_bytes(b"as it was")
    child = multiprocessing.get_context("fork").Process(target=process)
    child.start()
    child.join()
    codes = {"killed": -signal.SIGKILL, "interrupted": 130, "full": 0}  # False
    assert child.exitcode == codes[end]
    assert path.read_bytes() == b"as it was"
    assert len([*tmp_path.iterdir()]) == 1 + (end == "killed")


def test_what_is_written_anew_keeps_its_mode_and_the_links_to_it(tmp_path):
    link, target = tmp_path / "link.npz", tmp_path / "target.npz"
    target.touch()
    target.chmod(0o604)
    link.symlink_to(target)
    assert ff.write_whole(link, lambda file: file.write(b"new"))
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize(("limit", "fits"), [(500_000, True), (100_000, False)])
def test_a_full_disk_is_a_line_for_each_file_and_costs_nothing_else(
    cache, tmp_path, limit, fits
):
    def limit_files():  # write() fails at their size, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    model, checkpoint = tmp_path / "model.npz", tmp_path / "checkpoint.npz"
    model.write_bytes(b"as it was")
    flags = *TINY, "--save", model, "--checkpoint", checkpoint
    options = {"env": {"TMPDIR": str(tmp_path)}, "preexec_fn": limit_files}
    code, out, err = small.finish(start(cache, *flags, **options))
    assert code == 1
    assert "FF     2" in out
    assert ("saved" in out) == fits  # the model has no moments
    # After each of two epochs; and at the end for the model, also as a temporary file.
    places = [checkpoint] * 2 + [model, tmp_path] * (not fits)
    lines = err.splitlines()
    assert len(lines) == len(places)
    for place, line in zip(places, lines):
        assert line.startswith(f"cannot write {place}")
        assert line.endswith(": File too large")
    assert [*tmp_path.iterdir()] == [model]
    if fits:
        assert len(arrays_of(model)["ff_test_acc"]) == 2
    else:
        assert model.read_bytes() == b"as it was"


@pytest.mark.parametrize("gone", [True, False])
def test_a_model_whose_place_is_lost_during_the_run_is_kept_and_a_line_says_where(
    call, tmp_path, monkeypatch, gone
):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    path = folder / "model.npz"

    def tell(line="", tell=ff.tell):
        if line.startswith("FF     1"):
            _ = folder.rmdir() if gone else path.mkdir()
        tell(line)

    monkeypatch.setattr(ff, "tell", tell)
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    code, out, err = call(*TINY, "--save", path)
    (kept,) = elsewhere.iterdir()
    assert code == 1
    assert "saved" not in out
    cannot, where = err.splitlines()
    assert cannot.startswith(f"cannot write {path}: ")
    assert where == f"what was to be there is in {kept}"
    assert len(arrays_of(kept)["ff_test_acc"]) == 2
    assert kept.suffix == ".npz"
    assert [*tmp_path.rglob("*.tmp")] == []
    assert ff.UNWRITTEN == [path]


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


def test_python_3_9_can_read_the_scripts_up_to_the_line_that_refuses_it():
    for path in Path(ff.__file__).parent.glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 9))
    source = Path(ff.__file__).read_text()
    assert source.index("sys.version_info < (3, 10)") < source.index("import numpy")


def test_every_file_asks_for_the_same_versions_of_packages():
    root = Path(ff.__file__).parent
    files = [*root.glob("*.py"), *root.glob("tests/*.py"), root / ".ci" / "run"]
    text = "".join(file.read_text("utf-8") for file in files)
    bounds = set(re.findall(r'"([a-z]+)>=([\d.]+)"', text))
    names = ["imageio", "matplotlib", "numpy", "pillow", "pytest"]
    assert sorted(name for name, _ in bounds) == names
