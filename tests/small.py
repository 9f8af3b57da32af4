"""A CIFAR-10 of a few noise images: its two archives, and scripts that run on it.

    python3 small.py '{"N_TRAIN": 20, ...}' SCRIPT SCRIPT-FLAGS

sets these constants of the main script, and then runs SCRIPT as its command line does.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import ff_cifar_locally_connected as ff

CLOSED = "http://127.0.0.1:9/"  # the discard port: nobody listens, no route


def make_arrays(n_train=20, n_test=10, seed=0):
    """train_x, train_y, test_x, test_y: noise, darker or lighter by its label."""
    rng = np.random.default_rng(seed)
    arrays = []
    for n in (n_train, n_test):
        labels = rng.integers(0, 10, n, np.uint8)
        noise = rng.integers(0, 100, (n, 32, 32, 3), np.uint8)
        arrays += [noise + 15 * labels[:, None, None, None], labels]
    return arrays


def digest(arrays):
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def constants(arrays, **others):
    """The constants that make `arrays` the true data, with nobody on the network."""
    return {
        "N_TRAIN": len(arrays[0]),
        "N_TEST": len(arrays[2]),
        "CIFAR_SHA256": digest(arrays),
        "TORONTO_URL": CLOSED,
        "KAGGLE_URL": CLOSED,
        "RETRY_WAITS": [0.01, 0.02, 0.03],
        **others,
    }


def npz(arrays, **changes):
    """The bytes of a cifar10.npz with these arrays."""
    file = io.BytesIO()
    np.savez(file, **(dict(zip(ff.NAMES, arrays)) | changes))
    return file.getvalue()


def toronto_members(arrays):
    """[TarInfo, bytes] of the members of Toronto's archive, in their order."""
    train_x, train_y, test_x, test_y = arrays
    parts = [*zip(np.split(train_x, 5), np.split(train_y, 5)), (test_x, test_y)]
    batches = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    folder = tarfile.TarInfo("cifar-10-batches-bin")
    folder.type = tarfile.DIRTYPE
    members = [[folder, b""]]
    for name, (images, labels) in zip(batches, parts):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        data = np.hstack([labels[:, None], planes]).tobytes()
        members.append([tarfile.TarInfo(f"cifar-10-batches-bin/{name}"), data])
    members.append([tarfile.TarInfo("cifar-10-batches-bin/batches.meta.txt"), b"a\n"])
    return members


def tar_gz(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def kaggle_members(arrays):
    """[name, bytes] of the members of Kaggle's ImageFolder."""
    members = [["cifar10/labels.txt", b"airplane\n"]]
    for split, images, labels in zip(("train", "test"), arrays[::2], arrays[1::2]):
        for i, (image, label) in enumerate(zip(images, labels)):
            name = ff.CLASSES[label]
            members.append([f"cifar10/{split}/{name}/{i}_{name}.png", png(image)])
    return members


def zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def heed_interrupts():
    """Undo that a process started in the background ignores Ctrl-C, as all below it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def files_below(size):
    """Limits a process as a full disk does: write() fails when a file has this size."""

    def limit():
        heed_interrupts()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def start(settings, *flags, script=ff.__name__, env=None, **options):
    """A script in a process of its own, with these constants and flags."""
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, __file__, json.dumps(settings), script, *map(str, flags)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        | {"env": environment | (env or {}), "preexec_fn": heed_interrupts}
        | options,
    )


def finish(process):
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def here(script, *flags):
    """Exit code, stdout and stderr of a script that runs in this process."""
    module, code = importlib.import_module(script), 0
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"{script}.py", *map(str, flags)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ff.command(module.main)
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
    return code, out.getvalue(), err.getvalue()


def assert_one_line(text, *words):
    assert len(text.splitlines()) == 1, text
    for word in words:
        assert str(word) in text


if __name__ == "__main__":
    for constant, value in json.loads(sys.argv.pop(1)).items():
        setattr(ff, constant, value)
    script = importlib.import_module(sys.argv.pop(1))
    sys.argv[0] = script.__file__
    ff.command(script.main)
