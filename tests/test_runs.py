"""The command line, checkpoints and model.npz: what a run promises, end to end."""

import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import small
from small import assert_one_line

import ff_cifar_locally_connected as ff

ARRAYS = small.make_arrays(200, 50)
CONSTANTS = small.constants(ARRAYS)
TINY = "--fields", "29,3", "--channels", "2", "--n-epochs", "2"
TINY_NET = {"fields": [29, 3], "channels": 2, "n_epochs": 2}
SUBSETS = "--train-subset", "200", "--eval-subset", "20"
MAIN = ff.__name__


@pytest.fixture(scope="module", autouse=True)
def small_data(tmp_path_factory):
    """Here, too, the small data are CIFAR-10, and at hand."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "cifar10.npz").write_bytes(small.npz(ARRAYS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HINTON_CIFAR_CACHE", str(cache))
        for name, value in (CONSTANTS | {"TAG": ""}).items():
            patch.setattr(ff, name, value)
        yield


def call(*flags):
    """Exit code, stdout and stderr of the main script, in this process."""
    result = small.here(MAIN, *SUBSETS, *flags)
    ff.TAG = ""  # "[synthetic] ", maybe
    return result


def start(*flags, **options):
    """The main script, in a process of its own."""
    return small.start(CONSTANTS, *SUBSETS, *flags, **options)


def arrays_of(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


# -------------------------------------------------------------------- the flags

NONSENSE = {  # flags: values of each; an empty one where a space ends them
    "--n-epochs --n-layers --columns --batch-size --channels": "0 -1 1.5 nan inf x",
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
    "--recipe recurrent --columns 2",
    "--lr 2 --weight-decay 0.6",  # a step would turn the sign of weights
    "--bp-baseline --bp-lr 0.5 --weight-decay 3",
]


@pytest.mark.parametrize("row", [*NONSENSE, *MISFITS])
def test_arguments_without_sense_are_a_one_line_usage_error_before_any_work(
    row, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    Path("READ-ONLY").touch(0o444)  # which would not stop root
    values = NONSENSE[row].split(" ") if row in NONSENSE else []
    commands = [[f"{flag}={value}"] for flag in row.split() for value in values]
    for words in commands or [row.split()]:
        code, out, err = call(*words)
        assert (code, out) == (2, ""), words
        flag = [word.split("=")[0] for word in words if word.startswith("--")][-1]
        assert_one_line(err, f"{MAIN}.py: error: ", flag)
        assert sorted(os.listdir()) == ["FILE", "READ-ONLY"]


DEFAULTS = {
    MAIN: "--dataset auto --seed 0 --n-epochs 10 --n-layers 2 --batch-size 64 "
    "--lr 0.01 --threshold 2.0 --train-subset 10000 --eval-subset 1000 --augment 0",
    "visualize_ff_cifar_locally_connected": "--model model.npz --outdir viz --per-class-test-subset 10000 "
    "--bp-baseline True --n-epochs 10",
    "make_ff_cifar_locally_connected_gif": "--n-epochs 8 --fps 4 --train-subset 4000 --eval-subset 500 "
    "--snapshot-every 1 --out ff_cifar_locally_connected.gif",
    f"{MAIN} --recipe best": "--n-epochs 90 --lr 0.02 --train-subset 50000 "
    "--loss softmax --temperature 0.05 --augment 4 --whiten True --fields 5,9 --columns 2",
}


@pytest.mark.parametrize("words", DEFAULTS)
def test_help_shows_the_recipes_and_every_default_of_the_one_that_is_given(words):
    script, *flags = words.split()
    script = Path(ff.__file__).with_name(f"{script}.py")  # as a user starts it
    command = sys.executable, script, *flags, "--help"
    shown = subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)
    entries = [" ".join(part.split()) for part in re.split(r"\n  (?=--)", shown)[1:]]
    entries = {entry.split()[0].strip(","): entry for entry in entries}
    without = {"--full-test", "--save", "--checkpoint", "--runs", "--receptive-fields"}
    assert {flag for flag in entries if "default: " not in entries[flag]} <= without
    defaults = DEFAULTS[words].split()
    for flag, default in zip(defaults[::2], defaults[1::2]):
        assert f"(default: {default})" in entries[flag]
    for name, flags in ff.RECIPES.items():
        assert f"{name}: {flags}" in shown


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
    assert parsed("--lr", "0.5", "--recipe", recipe) == changed
    assert vars(ff.training_arguments(recipe, "auto", lr=0.5)) == changed


# ------------------------------------------------------------------- the output


def test_too_little_memory_is_one_line_and_an_exit_code():
    code, out, err = call("--channels", 10**9)
    assert (code, out) == (1, "")
    assert_one_line(err, f"{MAIN}.py: not enough memory: ")


def test_a_script_silences_the_warnings_of_overflow_only_for_itself():
    def overflow():
        return np.float32(1e38) * np.float32(10)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ff.command(overflow)
        with pytest.raises(RuntimeWarning, match="overflow"):
            overflow()


def test_a_reader_that_goes_away_is_no_traceback():
    process = start(*TINY)
    assert process.stdout.readline().startswith("python ")
    process.stdout.close()  # as head does
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_results_of_the_synthetic_set_say_so_in_every_line(tmp_path, asked):
    path = tmp_path / "model.npz"
    flags = *TINY, "--cache-dir", tmp_path, "--save", path
    code, out, err = call(*flags, *["--dataset=synthetic"] * asked)
    assert code == 0
    last = err.splitlines()[-1] if err else "nothing"
    assert last.startswith("nothing" if asked else "[synthetic] made-up images")
    assert all(line.startswith("[synthetic] ") for line in out.splitlines())
    assert "not CIFAR-10 results" in out.splitlines()[-1]
    assert ff.load_model(path)[1].dataset == "synthetic"


# ---------------------------------------------------------- data of one's own


def test_data_of_ones_own_bring_their_name_and_classes(capsys, tmp_path):
    settings = TINY_NET | {"train_subset": 200, "eval_subset": 20}
    args = ff.training_arguments(dataset="mine", classes="abcdefghij", **settings)
    (learner,), arrays = ff.run(args, ARRAYS, full_test=True)
    lines = capsys.readouterr().out.splitlines()
    for name in "recipe", "seed", "lr", "bp_lr", "label_input", "negatives", "loss":
        assert f"{name} {vars(args)[name]}, " in lines[1] + ", "
    assert "mine" in lines[2]
    F, S, C = args.fields[0], 33 - args.fields[0], args.channels
    layer = f"layer 0: 32x32x3, fields {F}x{F} -> {S}x{S}x{C}, "
    assert lines[3] == f"{layer}{S * S * C * (3 * F * F + 1):,} parameters"
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
    args = ff.training_arguments(**TINY_NET)
    (learner,), x, y = ff.make_learners(args), ARRAYS[0][:20], np.arange(20) % 10
    shapes = (x, y[:, None]), (x[:, :28, :28], y), (x[..., 0], y), (x, y[:-1])
    for wrong in (*shapes, (x, y + 1), (x, y - 1), (x, y / 2), (x, y / 1.0)):
        for data in (*wrong, x, y), (x, y, *wrong):
            with pytest.raises(ff.RunError) as error:
                ff.train(learner, data, args)
            assert_one_line(str(error.value), "(n, 32, 32, 3)", "(n,) labels")


# --------------------------------------------- model.npz, threads, checkpoints

FF = "ff_g_pos ff_g_neg ff_loss_per_layer"
BP = "bp_W_out bp_b_out bp_loss"
BOTH = "layer0_W layer0_b layer1_W layer1_b test_acc train_acc wallclock"
RECURRENT = "--recipe recurrent --train-subset 16 --batch-size 8 --eval-subset 4"
OF_IT = "ff_layer0_T ff_layer1_V ff_W_class ff_b_class ff_full_test_one_pass_acc "
OF_IT += "ff_one_pass_test_acc ff_one_pass_train_acc"
FULL_TEST = "ff_full_test_acc bp_full_test_acc"
BEST = ff.RECIPES["best"].replace("50000", "200")
OF_COLUMNS = "ff_layer0_V ff_layer1_V ff_layer2_V ff_layer3_V "
OF_COLUMNS += "ff_layer2_W ff_layer2_b ff_layer3_W ff_layer3_b "
OF_COLUMNS += "bp_layer2_W bp_layer2_b bp_layer3_W bp_layer3_b"
RUNS = {  # flags; and what model.npz holds, beside what it always does
    "headline": ("--full-test", FULL_TEST),
    "like best": (BEST, f"{OF_COLUMNS} whitening"),
    "recurrent": (f"{RECURRENT} --full-test", f"{FULL_TEST} {OF_IT}"),
}


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tmp_path_factory):
    """Name, flags, model.npz and stdout of a run that nothing stopped, on one thread."""
    flags = RUNS[request.param][0].split()
    flags += ["--bp-baseline", "--n-epochs", "3", "--seed", "1"]
    path = tmp_path_factory.mktemp("whole") / "model.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ff, "THREADS", 1)
        began = time.perf_counter()
        code, out, err = call(*flags, "--save", path)
        spent = time.perf_counter() - began
    assert (code, err) == (0, "")
    arrays = arrays_of(path)
    assert arrays["ff_wallclock"][-1] + arrays["bp_wallclock"][-1] < spent
    return request.param, flags, path, out


def test_model_npz_holds_exactly_what_is_promised(whole):
    name, _, path, out = whole
    arrays, promised = arrays_of(path), {*f"{FF} {BP} {RUNS[name][1]}".split()}
    promised |= {f"{who}_{n}" for n in BOTH.split() for who in ("ff", "bp")}
    config = json.loads(str(arrays.pop("config")))
    specs, seed, theta = (arrays.pop(n) for n in ("layer_specs", "seed", "threshold"))
    assert arrays.keys() == promised
    args = ff.load_model(path)[1]
    L, field = args.n_layers, args.fields[0] if name != "recurrent" else 11
    assert specs[0].tolist() == [field, args.channels]
    assert (specs.shape, specs.dtype, seed.dtype) == ((L, 2), np.int32, np.int64)
    assert seed == config["arguments"]["seed"] == 1
    np.testing.assert_equal(theta, 2.0 if args.loss == "threshold" else np.nan)
    assert config["versions"]["numpy"] == np.__version__
    assert config["arguments"]["dataset"] == "cifar10"  # as it is at hand
    assert f"saved {path}" in out
    for n, array in arrays.items():
        assert np.isfinite(array).all()
        layered = n.endswith(("pos", "neg", "per_layer"))
        is_history = layered or n.endswith(("acc", "wallclock", "loss"))
        assert array.dtype == (np.float64 if is_history else np.float32)
        if is_history and "full_test" not in n:
            assert array.shape == (L, args.n_epochs)[not layered :], n
        if n.endswith("acc"):
            assert ((0 <= array) & (array <= 1)).all()
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
    whole, tmp_path
):
    _, flags, path, out = whole
    assert "threads 1" in out
    checkpoint, resumed = tmp_path / "c.npz", tmp_path / "m.npz"
    flags = *flags, "--checkpoint", checkpoint, "--save", resumed
    # With the first row the first checkpoint is about to be written.
    for rows, stop, code in (1, signal.SIGINT, 130), (2, signal.SIGKILL, -9):
        process = start(*flags, env={"OMP_NUM_THREADS": "3"})
        lines = []
        while sum(line.startswith(("FF  ", "BP  ")) for line in lines) < rows:
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        assert "threads 3" in lines[0]
        process.send_signal(stop)
        _, _, err = small.finish(process)
        assert process.returncode == code
        goes_on = "interrupted; the same command goes on from the last epoch"
        assert err.startswith(goes_on) if code == 130 else err == ""
        assert not resumed.exists()
    for done in range(2):  # the second time nothing is left to do
        code, out, err = call(*flags)
        assert (code, err) == (0, "")
        assert f"going on from {checkpoint}" in out
        assert ("epoch " in out) == (not done)
        ours, others = arrays_of(resumed), arrays_of(path)
        assert ours.keys() == others.keys()
        for name in [n for n in ours if n != "config" and "wallclock" not in n]:
            assert ours[name].dtype == others[name].dtype, name
            assert ours[name].tobytes() == others[name].tobytes(), name


def test_another_seed_gives_other_numbers():
    runs = []
    for seed in 3, 4:
        settings = TINY_NET | {"seed": seed, "bp_baseline": True, "eval_subset": 20}
        runs.append(ff.run(ff.training_arguments(**settings), ARRAYS)[1])
    for name in ("ff_layer0_W", "bp_layer1_W", "ff_loss_per_layer", "bp_loss"):
        assert (runs[0][name] != runs[1][name]).any()


def test_a_checkpoint_of_other_arguments_is_refused_in_one_line(tmp_path):
    path = tmp_path / "c.npz"
    flags = *TINY, "--checkpoint", path
    assert call(*flags)[0] == 0
    before = path.read_bytes()
    for changed in "--seed 2", "--fields 28,3", "--bp-baseline", "--dataset synthetic":
        code, _, err = call(*flags, *changed.split())
        assert code == 1
        name = changed.split()[0].removeprefix("--").replace("-", "_")
        assert_one_line(err, path, f"{name} = ", "another --checkpoint")
        assert path.read_bytes() == before
    arrays = arrays_of(path)  # as of a version that did not have all of the arguments
    state = json.loads(str(arrays["state"]))
    del state["arguments"]["columns"]
    path.write_bytes(small.npz([], **arrays | {"state": json.dumps(state)}))
    assert "going on from" in call(*flags)[1]


# ------------------------------------------- processes, their threads and memory

PROGRAM = """
import hashlib, multiprocessing, warnings
import small
from small import ff

def training(_):
    args = ff.training_arguments(eval_subset=8, n_epochs=1)
    learner = ff.ForwardForward(args)
    ff.train(learner, small.make_arrays(64, 8), args)
    return hashlib.sha256(learner.weights()["ff_layer1_W"]).hexdigest()

# As threads that were just made spin for a moment, unused.
assert min(ff.time_elsewhere() for _ in range(5)) < 2e-3, "BLAS has threads of its own"

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


STRAYING = """
import threading
import numpy as np

def matmul(a, b, product=np.matmul):  # as of a library with threads of its own
    other = threading.Thread(target=product, args=(a, b))
    other.start()
    other.join()
    return product(a, b)

np.matmul = matmul
import ff_cifar_locally_connected
"""


def test_a_product_that_does_not_stay_in_its_thread_is_warned_of():
    options = {"stderr": subprocess.STDOUT, "cwd": Path(ff.__file__).parent}
    said = subprocess.check_output([sys.executable, "-c", STRAYING], **options)
    assert b"numpy keeps its own threads" in said


def test_batches_of_many_sizes_keep_no_more_memory_than_the_last(monkeypatch):
    monkeypatch.setattr(ff, "THREADS", 1)
    args, used = ff.training_arguments(bp_baseline=True, **TINY_NET), []
    tracemalloc.start()
    # The first ones also fill the scratch memory of the thread, which stays.
    for sizes in [12], [12], [*range(1, 13), 12]:
        learners = ff.make_learners(args)
        for learner, size in itertools.product(learners, sizes):
            learner.predict(ARRAYS[2][:size])
        used.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    _, alone, after_many = used
    assert abs(after_many - alone) < 0.03 * alone


# ------------------------------------------------------ damaged and foreign files


class Payload:
    """Unpickling this creates a file, in the working folder."""

    def __reduce__(self):
        return open, ("unpickled", "w")


@pytest.fixture
def files(tmp_path):
    """Of each kind of file: its bytes, and a function that loads arrays from a path."""
    settings = {"train_subset": 10, "eval_subset": 4, "n_epochs": 1, "whiten": True}
    settings |= {"fields": [31, 2], "channels": 1, "bp_baseline": True}
    args, path = ff.training_arguments(**settings), tmp_path / "checkpoint.npz"
    learners, arrays = ff.run(args, ARRAYS)
    ff.save_checkpoint(path, args, learners)

    def load_checkpoint(path):
        learners = ff.make_learners(args)
        ff.load_checkpoint(path, args, learners)
        return learners[0].weights() | learners[1].weights()

    def load_data(path):
        return dict(zip(ff.NAMES, ff.load_cifar10(path.parent)))

    return {
        "model": (small.npz([], **arrays), lambda path: ff.load_model(path)[2]),
        "checkpoint": (path.read_bytes(), load_checkpoint),
        "data": (small.npz(ARRAYS), load_data),
    }


def test_files_that_are_damaged_or_of_another_kind_are_refused(
    files, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path, payload = tmp_path / "cifar10.npz", np.array([Payload()], object)
    configs = [json.dumps({"arguments": a}) for a in ({"no_such": 1}, {"n_layers": 9})]
    changes = {  # of arrays; None: it is not there
        "model": (
            *({"config": text} for text in (*configs, "{", "{}", payload)),
            *({"bp_b_out": other} for other in (None, np.zeros(1), payload)),
            *({"ff_layer0_b": np.zeros((2, 2, 2))}, {"whitening": None}),
            {"whitening": np.zeros((5, 4, 3, 3), np.float32)},
        ),
        "checkpoint": (
            *({"state": text} for text in ("{", "{}", payload)),
            *(
                {"FF_0_m": other}
                for other in (None, np.zeros(3), np.zeros(()), payload)
            ),
        ),
        "data": ({"train_y": payload},),
    }
    for kind, (good, load) in files.items():
        path.write_bytes(good)
        arrays = arrays_of(path)
        foreign = [other for other, _ in files.values() if other != good]
        damaged = [b"", b"text", pickle.dumps(payload)]
        for change in changes[kind]:
            there = {n: a for n, a in (arrays | change).items() if a is not None}
            damaged.append(small.npz([], **there))
        for content in damaged + foreign:
            path.write_bytes(content)
            with pytest.raises(ff.RunError) as error:
                load(path)
            assert type(error.value) is ff.RunError
            refusal, is_ours = str(error.value), kind != "data"
            assert f"{path} is no sound {kind}" in refusal or not is_ours
            assert ("of another kind" in refusal) == (is_ours and content in foreign)
    assert not Path("unpickled").exists()
    pickle.loads(pickle.dumps(Payload())).close()
    assert Path("unpickled").exists()  # the payload does bite
    with pytest.raises(ff.NoFile, match="--save model.npz"):
        ff.load_model(tmp_path / "nothing.npz")


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


def test_2000_corrupted_files_are_refused_or_what_they_were(files, tmp_path):
    def bits(arrays):
        return {name: array.tobytes() for name, array in arrays.items()}

    warnings.simplefilter("ignore")  # of odd headers
    path, refused = tmp_path / "cifar10.npz", 0
    for kind, (good, load) in files.items():
        path.write_bytes(good)
        truth = bits(load(path))
        for seed in range(667):
            path.write_bytes(damage(random.Random(seed), good))
            try:
                assert bits(load(path)) == truth, (kind, seed)
            except ff.RunError:
                refused += 1
    assert 1000 < refused < 3 * 667 - 20


# -------------------------------------------------------- whole files or none


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_write_that_is_stopped_leaves_what_was_there(tmp_path, stop):
    def write(file):
        small.heed_interrupts()
        file.write(bytes(1000))
        file.flush()
        os.kill(os.getpid(), stop)

    path = tmp_path / "model.npz"
    path.write_bytes(b"as it was")
    work = {"target": ff.write_whole, "args": (path, write)}
    child = multiprocessing.get_context("fork").Process(**work)
    child.start()
    child.join()
    assert child.exitcode == (-stop if stop == signal.SIGKILL else 1)
    assert path.read_bytes() == b"as it was"
    assert len([*tmp_path.iterdir()]) == 1 + (stop == signal.SIGKILL)


def test_what_is_written_anew_keeps_its_mode_and_the_links_to_it(tmp_path):
    link, target = tmp_path / "link.npz", tmp_path / "target.npz"
    target.touch()
    target.chmod(0o604)
    link.symlink_to(target)
    assert ff.write_whole(link, lambda file: file.write(b"new"))
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o604


def test_a_full_disk_is_a_line_for_each_file_and_costs_nothing_else(tmp_path):
    model, checkpoint = tmp_path / "model.npz", tmp_path / "checkpoint.npz"
    model.write_bytes(b"as it was")
    flags = *TINY, "--save", model, "--checkpoint", checkpoint
    options = {"env": {"TMPDIR": str(tmp_path)}, "preexec_fn": small.files_below(10**5)}
    code, out, err = small.finish(start(*flags, **options))
    assert code == 1
    assert "FF     2" in out
    assert "saved" not in out
    # After each of two epochs; and at the end for the model, also as a temporary file.
    places, lines = [checkpoint, checkpoint, model, tmp_path], err.splitlines()
    for place, line in zip(places, lines, strict=True):
        assert line.startswith(f"cannot write {place}")
        assert line.endswith(": File too large")
    assert [*tmp_path.iterdir()] == [model]
    assert model.read_bytes() == b"as it was"


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
    tmp_path, flags, words
):
    path, usual = tmp_path / "model.npz", () if "recipe" in flags else TINY
    large = "--lr", "1e12", "--layer-rates", "1e12,1e12"
    code, out, err = call(*usual, *large, "--save", path, *flags.split())
    assert code == 1
    assert not re.search(r"chance|\bnan\b|\binf\b", out)
    assert_one_line(err, words, "not finite", "learning rate is 1e+12", "try a smaller")
    assert not path.exists()
