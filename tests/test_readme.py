"""The README: its commands and Python blocks run as they stand, what it names exists.

They run in one folder, the commands in their order and then the blocks: a file that one
of them reads has to be saved by another. All that is made small are the trainings, and
the data: they have CIFAR-10's shapes, but repeat after few images.
"""

import glob
import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import small

import ff_cifar_locally_connected as ff

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
# Commands that take minutes: only their files have to be there.
LONG = [f"tests/{n}.py" for n in ("run", "benchmark", "data_movement", "controls")]

PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^ {4}((?:uv|python3|pip|mkdir) .*)$", README, re.MULTILINE)
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
CODE = re.findall(r"`([^`]+)`", PROSE) + COMMANDS
FLAG = r"(?<![\w-])--[a-z][a-z-]*"
FEW = 64  # images


@pytest.fixture(scope="module", autouse=True)
def small_runs(tmp_path_factory):
    """An empty folder, where what trains takes few images, once, of data that repeat.

    As the data repeat, so do all predictions: those of the first images are enough.
    """
    parse, in_batches = ff.parse, ff.in_batches
    sizes = (ff.N_TRAIN, ff.N_TRAIN, ff.N_TEST, ff.N_TEST)
    arrays = zip(small.make_arrays(FEW, FEW), sizes)
    data = tuple(np.resize(a, (size, *a.shape[1:])) for a, size in arrays)

    def parse_few(*args):
        args = parse(*args)
        args.train_subset, args.eval_subset, args.n_epochs = FEW, FEW // 2, 1
        return args

    def in_few_batches(work, images):
        few = in_batches(work, images[:FEW])
        return few[..., np.arange(len(images)) % FEW]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        patch.setenv("COLUMNS", "500")  # for --help
        patch.setattr(ff, "load_cifar10", lambda cache_dir=None: data)
        patch.setattr(ff, "parse", parse_few)
        patch.setattr(ff, "in_batches", in_few_batches)
        yield


@pytest.fixture(scope="module")
def results(small_runs):
    """{command: exit code and output} of those that take no minutes."""
    found = {}
    for line in COMMANDS:
        words = shlex.split(line)
        if script := next((word for word in words if word in SCRIPTS), None):
            flags = []
            for word in words[words.index(script) + 1 :]:  # *: as a shell has it
                flags += sorted(glob.glob(word)) or [word]
            found[line] = small.here(Path(script).stem, *flags)
        elif words[0] == "mkdir":
            found[line] = [subprocess.call(words)]
    return found


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs_as_it_stands_there(line, results):
    if line in results:
        assert results[line][0] == 0, results[line]
    elif line.startswith("pip"):  # what all list in their heads, in one version
        files = *SCRIPTS, *LONG, ".ci/run"
        heads = "".join((ROOT / name).read_text() for name in files)
        assert set(re.findall(r'"(\w+>=[\d.]+)"', heads)) == set(shlex.split(line)[2:])
    else:
        assert {"venv", *LONG} & {*shlex.split(line)}


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_every_python_block_runs(block, results, monkeypatch, capsys):
    for name, value in vars(ff).copy().items():
        monkeypatch.setattr(ff, name, value)  # so that what it changes is undone
    Path("block.py").write_text(block)
    runpy.run_path("block.py")
    out = capsys.readouterr().out
    assert "nan" not in out
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", out)]
    assert numbers
    if "goodness_gradient(" in block:  # by central differences, and as it says
        assert numbers == pytest.approx(numbers[:1] * 2, rel=1e-3)


def test_no_command_and_no_block_is_overlooked():
    named = re.findall(r"(?:uv run|python3)(?: --with jax)? (\S+\.py)", README)
    found = [word for line in COMMANDS for word in shlex.split(line)]
    assert set(SCRIPTS) < set(named) <= {*found, *LONG}
    assert len(PYTHON) == README.count("```py")


def scores(model, image, learner):
    """Those of the ten labels for an image (32, 32, 3), as the README has it, "To rebuild
    a prediction": with numpy alone, from model.npz."""
    x = image / 255 - (0.4914, 0.4822, 0.4465)
    if "whitening" in model:
        edges = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(edges, (5, 5), (0, 1))
        x = np.einsum("ijcrs,rscd->ijd", around, model["whitening"])
    is_ff, found, top = learner == "ff", [], []
    arguments = json.loads(str(model["config"]))["arguments"]
    corner = is_ff and arguments["label_input"] == "corner"
    columns, L = arguments["columns"], len(model["layer_specs"])
    for k, column in np.ndindex(10 if is_ff else 1, columns):
        h, goodness = x.copy(), []
        if corner:
            h[:3, :10] = -1
            h[:3, k] = 1
        for i, (field, _) in enumerate(model["layer_specs"]):
            i += column * L
            W, b = (model[f"{learner}_layer{i}_{name}"] for name in "Wb")
            x_at = np.lib.stride_tricks.sliding_window_view(h, (field, field), (0, 1))
            x_at = x_at.transpose(0, 1, 3, 4, 2).reshape(*W.shape[:3])
            u = np.einsum("ijk,ijkc->ijc", x_at, W) + b
            V = model.get(f"{learner}_layer{i}_V", np.zeros((10, 1, 1, 1)))
            goodness.append(np.mean(np.maximum(u + V[k], 0) ** 2))
            h = np.maximum(u + V.mean(axis=0), 0)
            h = h / np.sqrt(np.mean(h**2)) if is_ff else h
        found.append(sum(goodness[1:]) if corner else goodness[-1])
        top += [*h.ravel()]
    if is_ff:
        return np.reshape(found, (10, columns)).mean(axis=1)
    return top @ model["bp_W_out"] + model["bp_b_out"]


@pytest.mark.parametrize("recipe", ["headline", "best"])
def test_a_prediction_can_be_rebuilt_from_model_npz_as_described(recipe):
    sizes = {"train_subset": FEW, "eval_subset": FEW // 2, "n_epochs": 1}
    args = ff.training_arguments(recipe, bp_baseline=True, **sizes)
    data = ff.load_cifar10()
    (FF, BP), model = ff.run(args, data)
    for image in data[2][:5]:
        wanted = FF.label_scores(image[None])[:, 0]
        np.testing.assert_allclose(scores(model, image, "ff"), wanted, rtol=1e-4)
        wanted = BP.forward(image[None])[2][:, 0]
        np.testing.assert_allclose(scores(model, image, "bp"), wanted, atol=1e-4)


def test_every_flag_that_it_names_exists():
    shown = "".join(small.here(Path(name).stem, "--help")[1] for name in SCRIPTS)
    # Of an entry of --help its flags, and not what is said of them.
    flags = " ".join(re.findall(r"^  (-.*?)(?:  |$)", shown, re.MULTILINE))
    tools = "".join((ROOT / name).read_text() for name in LONG[1:])
    known = re.findall(FLAG, flags) + re.findall(rf'"({FLAG})"', tools)
    assert set(re.findall(FLAG, README)) <= {*known, "--with"}  # uv's


def test_every_function_that_it_names_exists():
    learners = ff.make_learners(ff.training_arguments(bp_baseline=True))
    learners += ff.make_learners(ff.training_arguments("recurrent"))
    owners = {"ff": [ff], "learner": learners, "ForwardForward": [ff.ForwardForward]}
    owners["Layer"] = [ff.Layer]
    pattern = rf"\b({'|'.join(owners)})\.([A-Za-z_]\w*)"
    for owner, name in re.findall(pattern, "\n".join(CODE + PYTHON)):
        assert any(hasattr(it, name) for it in owners[owner]), f"{owner}.{name}"
    table = README.split("| to change | look at |")[1].split("\n\n")[0]
    for name in re.findall(r"`([a-z]\w*)`", table):
        assert hasattr(ff, name), name


def repository_files():
    """git's files, from the root; all files, where the folder is no git repository."""
    try:
        command = "git", "ls-files", "-z"
        names = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")]
    return {name for name in names if (ROOT / name).is_file()}


def test_every_file_and_link_that_it_names_is_there_and_every_picture_is_shown():
    files, links = repository_files(), set(re.findall(r"\]\(([^)\s]+)", PROSE))
    headings = re.findall(r"^#+ (.*)", PROSE, re.MULTILINE)
    headings = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
    anchors = {"#" + heading.replace(" ", "-") for heading in headings}
    assert {link for link in links if "://" not in link} <= anchors | files
    assert {name for name in files if name.endswith((".png", ".gif"))} <= links
    for code in CODE:
        code = re.sub(r"--(?:out|outdir|save|checkpoint|plot)\s+\S+", "", code)
        names = re.findall(r"(?<!\S)[\w./-]+\.(?:py|png|gif|md)(?!\S)", code)
        assert files.issuperset(names), code
