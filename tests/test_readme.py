"""The README: the commands and Python blocks that it gives run, and what it names exists.

Its commands run in their order in one empty folder, each as a process of its own, and
then its Python blocks in the same folder: a file that one of them reads has to be saved
by another. What makes them small are numbers alone: few images, one epoch.
"""

import fnmatch
import functools
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ff_cifar_locally_connected as ff

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
# Commands that take minutes: only their files have to be there.
LONG = "tests/run.py", "tests/benchmark.py", "tests/data_movement.py"

PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^ {4}((?:uv|python3|pip|mkdir) .*)$", README, re.MULTILINE)
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
CODE = re.findall(r"`([^`]+)`", PROSE) + COMMANDS

TRAINED, TESTED = 64, 32  # images
SMALL = f"--dataset synthetic --train-subset {TRAINED} --eval-subset {TESTED}"
SMALL = f"{SMALL} --n-epochs 1".split()  # a later flag overrides an earlier one

# A script's main(); its made-up images are few, but only after its flags were checked.
RUN = f"""
import importlib, pathlib, sys
import ff_cifar_locally_connected as ff

def make_few(make=ff.make_synthetic):
    ff.N_TRAIN, ff.N_TEST = {TRAINED}, {TESTED}
    return make()

ff.make_synthetic = make_few
del sys.argv[0]
ff.command(importlib.import_module(pathlib.Path(sys.argv[0]).stem).main)
"""


def test_no_command_and_no_block_is_overlooked():
    named = re.findall(r"(?:uv run|python3)(?: --with jax)? (\S+\.py)", README)
    found = [word for line in COMMANDS for word in shlex.split(line)]
    assert set(SCRIPTS) < set(named) <= {*found, *LONG}
    assert len(PYTHON) == README.count("```py")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder where all commands have run, and {command: exit code and output}."""
    folder, results = tmp_path_factory.mktemp("readme"), {}
    for line in COMMANDS:
        words = shlex.split(line)
        script = next((word for word in words if word in SCRIPTS), None)
        if script:
            words = words[words.index(script) :]
            if not {"--runs", "--receptive-fields"} & {*words}:  # they take none
                words += SMALL
            words = [sys.executable, "-c", RUN, *words]
        elif words[0] != "mkdir":
            continue
        done = subprocess.run(
            [file for word in words for file in expand(folder, word)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            timeout=60,
        )
        results[line] = done.returncode, done.stdout
    return folder, results


def expand(folder, word):
    """The files that a word with a * stands for, as a shell has it; or the word."""
    found = sorted(folder.glob(word)) if word.endswith("*.npz") else []
    return [str(path.relative_to(folder)) for path in found] or [word]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs_as_it_stands_there(line, followed):
    if line in followed[1]:
        code, output = followed[1][line]
        assert code == 0, output
    elif line.startswith("pip"):  # what the scripts and the tests list in their heads
        heads = "".join((ROOT / name).read_text() for name in (*SCRIPTS, LONG[0]))
        packages = set(re.findall(r'"(\w+)>=', heads))
        assert packages == set(shlex.split(line)[2:])
    else:
        assert any(word in LONG for word in shlex.split(line)), line


@pytest.fixture
def short_runs(monkeypatch):
    """The module with short trainings, on data that repeat after few images.

    The data have CIFAR-10's shapes. As they repeat, so do all predictions: those of the
    first images are enough. What a block changes in the module is undone.
    """
    for name, value in list(vars(ff).items()):
        if not name.startswith("__"):
            monkeypatch.setattr(ff, name, value)
    with monkeypatch.context() as few:
        few.setattr(ff, "N_TRAIN", TRAINED)
        few.setattr(ff, "N_TEST", TRAINED)
        arrays = ff.make_synthetic()
    data = tuple(
        np.resize(array, (count, *array.shape[1:]))
        for array, count in zip(arrays, [ff.N_TRAIN] * 2 + [ff.N_TEST] * 2)
    )
    in_batches, training_arguments = ff.in_batches, ff.training_arguments

    def in_few_batches(work, images):
        few = in_batches(work, images[:TRAINED])
        return few[..., np.arange(len(images)) % TRAINED]

    def few_arguments(*recipe, **changes):
        args = training_arguments(*recipe, **changes)
        args.train_subset, args.eval_subset, args.n_epochs = TRAINED, TESTED, 1
        return args

    monkeypatch.setattr(ff, "load_cifar10", lambda cache_dir=None: data)
    monkeypatch.setattr(ff, "in_batches", in_few_batches)
    monkeypatch.setattr(ff, "training_arguments", few_arguments)


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_every_python_block_runs(block, followed, short_runs, monkeypatch, capsys):
    monkeypatch.chdir(followed[0])
    Path("block.py").write_text(block)
    runpy.run_path("block.py", run_name="__main__")
    out = capsys.readouterr().out
    assert "nan" not in out
    assert re.search(r"0\.\d+\n", out)  # the accuracy at the end


FLAG = r"(?<![\w-])--[a-z][a-z-]*"


@functools.cache
def flags_of(script):
    """{flag: its entry in --help}."""
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        env=os.environ | {"COLUMNS": "500"},
        capture_output=True,
        check=True,
        text=True,
    )
    entries = re.split(r"\n  (?=-)", done.stdout.split("\nexample:")[0])[1:]
    return {
        flag: entry
        for entry in entries
        for flag in re.findall(FLAG, re.split(r"  |\n", entry)[0])
    }


def test_the_table_of_flags_has_all_flags_with_their_choices_and_defaults():
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    table = next(table for table in tables if "--cache-dir" in table)
    for script in SCRIPTS:
        assert flags_of(script).keys() - re.findall(FLAG, table) <= {"--help"}
    entries = {flag: text for it in SCRIPTS for flag, text in flags_of(it).items()}
    for flag, value in re.findall(rf"`({FLAG}) ([^\s`]+)`", table):
        if value != "FILE":
            choices = "{" + value.replace("\\|", ",") + "}"
            assert re.search(
                rf"default: {re.escape(value)}\b|{re.escape(choices)}", entries[flag]
            ), flag


@pytest.mark.parametrize("flag", sorted(set(re.findall(FLAG, README))))
def test_every_flag_that_it_names_exists(flag):
    tools = [name for name in LONG[1:] if f'"{flag}"' in (ROOT / name).read_text()]
    known = any(flag in flags_of(script) for script in SCRIPTS)
    assert known or tools or flag in ("--help", "--with")  # --with: uv's


def test_every_function_that_it_names_exists():
    learners = ff.make_learners(ff.training_arguments(bp_baseline=True))
    learners += ff.make_learners(ff.training_arguments("recurrent"))
    owners = {"ff": [ff], "learner": learners, "ForwardForward": [ff.ForwardForward]}
    owners["Layer"] = [ff.Layer]
    for owner, name in re.findall(
        rf"\b({'|'.join(owners)})\.([A-Za-z_]\w*)", "\n".join(CODE + PYTHON)
    ):
        assert any(hasattr(it, name) for it in owners[owner]), f"{owner}.{name}"
    table = README.split("Where to change what")[1].split("\n\n")[1]
    for name in re.findall(r"`([a-z]\w*)`", table):
        assert hasattr(ff, name), name


@functools.cache
def repository_files():
    """git's files, from the root; all files, where the folder is no git repository."""
    try:
        command = "git", "ls-files", "-z"
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        paths = [ROOT / name for name in done.stdout.decode().split("\0")]
    except (OSError, subprocess.CalledProcessError):
        paths = ROOT.rglob("*")
    return [path.relative_to(ROOT).as_posix() for path in paths if path.is_file()]


def test_every_file_and_link_that_it_names_is_there_and_every_picture_is_shown():
    headings = re.findall(r"^#+ (.*)", PROSE, re.MULTILINE)
    headings = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
    anchors = ["#" + heading.replace(" ", "-") for heading in headings]
    links = re.findall(r"\]\(([^)\s]+)", PROSE)
    for target in links:
        if not target.startswith(("https://", "http://")):
            assert target in anchors or target in repository_files(), target
    for code in CODE:
        code = re.sub(r"--(?:out|outdir|save|checkpoint|plot)\s+\S+", "", code)
        for word in re.findall(r"(?<!\S)[\w./-]+\.(?:py|png|gif|md)(?!\S)", code):
            assert word in repository_files(), word
    pictures = fnmatch.filter(repository_files(), "viz/*") + fnmatch.filter(
        repository_files(), "*.gif"
    )
    assert set(pictures) <= set(links)
