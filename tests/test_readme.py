"""The README: what it tells people to run runs, and what it names exists.

Its commands run in their order in one empty folder, each as a process of its own, and
then its Python blocks in the same folder: a file that one of them reads has to be saved
by another. What makes them small are numbers alone: few images, one epoch.
"""

import ast
import fnmatch
import functools
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import ff_cifar_locally_connected as ff

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8").expandtabs(4)
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
# Commands that take minutes: only their files have to be there.
LONG = "tests/run.py", "tests/benchmark.py", "tests/data_movement.py"
# What the README may name though no script has it, and why.
NOT_OURS = {
    "--with": "uv's: a package more",
}

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

# --------------------------------------------------------------- the README's parts

CODE = re.compile(
    r"^ *(?P<fence>```|~~~)(?P<language>\w*)[^\n]*\n(?P<fenced>.*?)^ *(?P=fence)"
    r"|(?<=\n\n)(?P<indented>(?: {4}[^\n]*\n+)+)"
    r"|`(?P<span>[^`]+)`",
    re.DOTALL | re.MULTILINE,
)
PARTS = list(CODE.finditer(README))
TEXT = CODE.sub(lambda part: part["span"] or "", README)  # without the blocks
PYTHON = [
    textwrap.dedent(part["fenced"]) for part in PARTS if part["language"] == "python"
]


def parse(line):
    """The words of a command of a known kind, from its program on; or None."""
    words = shlex.split(line.replace("uv run --with jax ", "uv run "), comments=True)
    match words:
        case ["uv", "run", script, *flags] | ["python3", script, *flags]:
            if script in LONG or script in SCRIPTS:
                return script, *flags
        case ["pip", "install", *_] | ["mkdir", _]:
            return tuple(words)


def read_commands():
    """{words, or the line of no known kind: line} in order, and the blocks of output.

    A block is of commands, unless it has no language and begins with something else;
    a span is one if it begins like one.
    """
    commands, outputs = {}, []
    for part in PARTS:
        if part["span"]:
            lines = [" ".join(part["span"].split())]
            if not re.match(r"(uvx?|python3?|pip|mkdir) ", lines[0]):
                continue
        else:
            block = textwrap.dedent(part["fenced"] or part["indented"])
            lines = re.sub(r"\\\n *", "", block).splitlines()
            lines = [line for line in lines if re.match(r" *[^ #]", line)]
            if part["language"] == "python":
                continue
            if part["language"] in (None, "", "text") and not parse(lines[0]):
                outputs.append(block)
                continue
        commands |= {parse(line) or line: line for line in lines}
    return commands, outputs


COMMANDS, OUTPUTS = read_commands()


def test_no_command_and_no_block_is_overlooked():
    run = re.findall(r"(?:uv\s+run(?:\s+--with\s+jax)?|python3?)\s+(\S+\.py)", README)
    assert set(run) == {words[0] for words in COMMANDS if words[0].endswith(".py")}
    assert len(PYTHON) == len(re.findall(r"^ *(?:```|~~~) *py", README, re.MULTILINE))
    for mark in "`", "~~~", "<pre", "<code":
        assert mark not in TEXT


# ------------------------------------------------------------------- what it runs


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder where all commands have run, and {words: exit code and output}."""
    folder, results = tmp_path_factory.mktemp("readme"), {}
    for words in COMMANDS:
        if words[0] == "mkdir" or words[0] in SCRIPTS:
            command = [file for word in words for file in expand(folder, word)]
            if words[0] in SCRIPTS:
                command = [sys.executable, "-c", RUN, *command]
                if not {"--runs", "--receptive-fields"} & {*words}:  # they take none
                    command += SMALL
            done = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                text=True,
                timeout=60,
            )
            results[words] = done.returncode, done.stdout
    return folder, results


def expand(folder, word):
    """The files that a word with a * stands for, as a shell has it; or the word."""
    found = sorted(folder.glob(word)) if "*" in word else []
    return [str(path.relative_to(folder)) for path in found] or [word]


@pytest.mark.parametrize("words", COMMANDS, ids=COMMANDS.get)
def test_every_command_runs_as_it_stands_there(words, followed):
    assert isinstance(words, tuple), f"a command of no known kind: {words}"
    if words in followed[1]:
        code, output = followed[1][words]
        assert code == 0, output
    elif words[0] in LONG:
        assert (ROOT / words[0]).is_file()
    else:  # pip: what the scripts and the tests list in their heads
        heads = "".join((ROOT / name).read_text() for name in (*SCRIPTS, LONG[0]))
        assert set(words[2:]) == set(re.findall(r'"(\w+)>=', heads))


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

    def few_arguments(recipe="headline", network="feedforward", **changes):
        args = training_arguments(recipe, network, **changes)
        parsed = parse_flags(recipe=recipe, network=network, **changes)
        assert vars(args) == vars(parsed) | {"dataset": args.dataset}
        args.train_subset, args.eval_subset, args.n_epochs = TRAINED, TESTED, 1
        return args

    monkeypatch.setattr(ff, "load_cifar10", lambda cache_dir=None: data)
    monkeypatch.setattr(ff, "make_synthetic", lambda seed=0: data)
    monkeypatch.setattr(ff, "in_batches", in_few_batches)
    monkeypatch.setattr(ff, "training_arguments", few_arguments)


def parse_flags(**values):
    """The arguments of a command line that gives these values, or its usage error."""
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in values.items()
        if value is not False and value is not None
    ]
    parser = ff.Parser()
    ff.add_training_flags(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["README.md", *flags])
        return ff.parse(parser)


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_every_python_block_runs_and_prints_what_it_says(
    block, followed, short_runs, monkeypatch, capsys
):
    """What it says is a comment with a number behind print(); its numbers may differ."""
    monkeypatch.chdir(followed[0])
    Path("block.py").write_text(block)
    runpy.run_path("block.py", run_name="__main__")
    out = capsys.readouterr().out
    assert "nan" not in out
    printed = map(without_numbers, out.splitlines())
    for said in re.findall(r"^ *print\(.*\) +# (.*\d.*)", block, re.MULTILINE):
        assert without_numbers(said) in printed, said  # which goes on from there


def without_numbers(text):
    return re.sub(r"-?\d[\d.,]*(e[+-]\d+)?", "0", text).strip()


@pytest.mark.parametrize("output", OUTPUTS, ids=range(len(OUTPUTS)))
def test_the_words_of_an_output_are_those_that_the_scripts_print(output):
    files = *SCRIPTS, *LONG, "tests/jax_peer.py"
    trees = [ast.parse((ROOT / name).read_text()) for name in files]
    constants = [
        node.value if isinstance(node, ast.Constant) else node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.FunctionDef)
    ]
    ours = "\n".join(" ".join(str(value).split()) for value in constants)
    for line in output.splitlines():
        if line.split(":")[0] not in ff.versions():  # whose words are the machine's
            line = re.sub(r"\S+\.\w+|cifar10|synthetic", "0", line)  # files and data
            for phrase in re.split(r"[^A-Za-z ]+|  +", line):
                assert phrase.strip() in ours, line


# ----------------------------------------------------------------- what it names

FLAG = r"(?<![\w-])--[a-z][a-z-]*"


@functools.cache
def flags_of(script):
    """{flag: (the words that its --help has for its value, the default or None)}."""
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        env=os.environ | {"COLUMNS": "500"},
        capture_output=True,
        check=True,
        text=True,
    )
    flags = {}
    for entry in re.split(r"\n  (?=-)", done.stdout)[1:]:
        names = re.split(r"  |\n", entry)[0]
        value = re.search(r" (\{.*?\}|[^\s-][^\s,]*)", names)
        words = re.findall(r"[^{},|]+", value[1]) if value else []
        default = re.search(r"default: ([^\s;)]*[^\s;,)])", entry)
        for flag in re.findall(FLAG, names):
            flags[flag] = set(words), default and default[1]
    return flags


@functools.cache
def known(flag):
    """[(words for its value, default)] of the flag, in the programs that have it."""
    tools = [name for name in LONG if "ff.Parser(" in (ROOT / name).read_text()]
    return [flags_of(s)[flag] for s in (*SCRIPTS, *tools) if flag in flags_of(s)]


def flag_table():
    """The README's table that names the most flags."""
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    return max(tables, key=lambda table: len(set(re.findall(FLAG, table))))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_a_script_is_in_the_table_of_flags(script):
    missing = flags_of(script).keys() - re.findall(FLAG, flag_table())
    assert missing <= {"--help"}
    assert "--help" in README


def test_the_table_of_flags_shows_all_choices_and_the_defaults():
    for flag, value in re.findall(rf"`({FLAG}) ([^\s`]+)`", flag_table()):
        value = value.replace("\\|", "|")
        if "|" in value:
            assert any(set(value.split("|")) == words for words, _ in known(flag)), flag
        else:
            assert any(
                value in words or is_same(value, default)
                for words, default in known(flag)
            ), f"{flag} {value}"


def is_same(text, default):
    try:
        return float(text) == float(default)
    except (TypeError, ValueError):
        return text == default


@pytest.mark.parametrize("flag", sorted(set(re.findall(FLAG, README))))
def test_every_flag_that_it_names_exists(flag):
    assert known(flag) or flag in NOT_OURS


def test_every_choice_that_it_names_beside_a_flag_exists():
    for part in PARTS:
        code = " ".join(part[0].split())
        for flag, value in re.findall(rf"({FLAG})[ =](\w[\w|\\-]*)", code):
            for words, _ in known(flag):
                if words and not any(map(str.isupper, words)):  # as N and FILE are
                    named = set(re.findall(r"[\w-]+", value))
                    assert named <= words or f"{flag} {value}" in NOT_OURS, code


def test_every_function_that_it_names_exists():
    learners = ff.make_learners(ff.training_arguments(bp_baseline=True))
    learners += ff.make_learners(ff.training_arguments(network="recurrent"))
    owners = {"ff": [ff], "learner": learners}
    for part in PARTS:
        for owner, name in re.findall(r"\b(ff|learner)\.([A-Za-z_]\w*)", part[0]):
            assert any(hasattr(it, name) for it in owners[owner]), f"{owner}.{name}"


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


def test_every_file_that_it_names_is_in_the_repository():
    for part in PARTS:
        # What the scripts write is new, and Python blocks are run.
        code = "" if part["language"] == "python" else part[0]
        code = re.sub(r"--(?:out|outdir|save|checkpoint)\s+\S+", "", code)
        for word in re.findall(r"[^\s`|]+", code):
            if re.fullmatch(r"[\w.*/-]+(?:/|\.(?:py|png|gif|md))", word):
                word += "*" if word.endswith("/") else ""
                assert fnmatch.filter(repository_files(), word), word


def targets(text):
    """What a Markdown text links to and shows."""
    found = re.findall(r"\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)", text)
    return [markdown or html for markdown, html in found]


def test_every_link_within_the_repository_leads_somewhere():
    headings = re.findall(r"^#+ (.*)", TEXT, re.MULTILINE)
    kept = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
    anchors = ["#" + heading.replace(" ", "-") for heading in kept]
    for target in targets(TEXT):
        if not target.startswith(("https://", "http://")):
            assert target in anchors or target in repository_files(), target


def test_every_committed_picture_is_shown():
    pictures = fnmatch.filter(repository_files(), "viz/*.png")
    pictures += fnmatch.filter(repository_files(), "*.gif")
    shown = re.findall(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]*src=\"([^\"]+)", TEXT)
    assert set(pictures) <= {markdown or html for markdown, html in shown}
