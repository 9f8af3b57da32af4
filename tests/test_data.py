"""The loader on a real HTTP server on loopback, on small archives of both layouts."""

import http.server
import io
import os
import pty
import re
import resource
import shutil
import signal
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image

import ff_cifar_locally_connected as ff
from ff_cifar_locally_connected import RunError

ARRAYS = small.make_arrays()
TORONTO = small.tar_gz(small.toronto_members(ARRAYS))
KAGGLE = small.zip_of(small.kaggle_members(ARRAYS))
NPZ = small.npz(ARRAYS)
REAL = os.environ.get("HINTON_CIFAR_CACHE", "")
REAL_DIGEST = "80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660"

# ------------------------------------------------------------------- the server


class Server(http.server.ThreadingHTTPServer):
    """Answers /path with answers[path], one for each request; the last one stays."""

    daemon_threads = True

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {path: list(a) for path, a in answers.items()}
        self.requests = []
        self.half_way, self.go_on = threading.Event(), threading.Event()

    def handle_error(self, request, client_address):
        pass  # clients that go away are the point of some tests

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        answers = self.server.answers[self.path]
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *args):
        pass

    def head(self, code=200, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def sends(body, announced=None):
    """The body, all at once; announced: another Content-Length than its own."""

    def answer(handler):
        handler.head(Content_Length=len(body) if announced is None else announced)
        handler.wfile.write(body)

    return answer


def unannounced(body):
    """The body without a Content-Length, closed at its end."""

    def answer(handler):
        handler.head()
        handler.wfile.write(body)

    return answer


def unavailable(handler):
    handler.send_error(503)


def redirect(to):
    return lambda handler: handler.head(302, Location=to, Content_Length=0)


def trickle(body, piece):
    """`piece` bytes at a time, 50 times a second, while somebody reads."""

    def answer(handler):
        handler.head(Content_Length=len(body))
        for i in range(0, len(body), piece):
            handler.wfile.write(body[i : i + piece])
            time.sleep(0.02)

    return answer


def waits_half_way(body):
    """Half of the body; the rest when the test says so, or is over."""

    def answer(handler):
        handler.head(Content_Length=len(body))
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        handler.server.half_way.set()
        handler.server.go_on.wait(30)
        handler.wfile.write(body[len(body) // 2 :])

    return answer


@pytest.fixture
def serve(monkeypatch):
    """serve([answers of Toronto], [of Kaggle]): a running server, where the URLs lead."""
    servers = []

    def serve(toronto=(unavailable,), kaggle=(unavailable,), mirror=(unavailable,)):
        answers = {"/toronto": toronto, "/kaggle": kaggle, "/mirror": mirror}
        server = Server(answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        monkeypatch.setattr(ff, "TORONTO_URL", server.url("/toronto"))
        monkeypatch.setattr(ff, "KAGGLE_URL", server.url("/kaggle"))
        return server

    yield serve
    for server in servers:
        server.go_on.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    """The small arrays are CIFAR-10, and no test reaches out to the network."""
    for name, value in small.constants(ARRAYS, TIMEOUT=1.0).items():
        monkeypatch.setattr(ff, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HINTON_CIFAR_CACHE", raising=False)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def put(cache, name, data):
    cache.mkdir(exist_ok=True)
    (cache / name).write_bytes(data)


def names(folder):
    return sorted(p.name for p in folder.rglob("*"))


def assert_loads(cache):
    """The loader returns the true arrays, and caches them and nothing else."""
    before = set(names(cache))
    for array, truth in zip(ff.load_cifar10(cache), ARRAYS, strict=True):
        np.testing.assert_array_equal(array, truth, strict=True)
    assert set(names(cache)) == before | {"cifar10.npz"}


def assert_gives_up(cache, *words):
    """One line with all `words`, nothing new in the cache; the next start works."""
    before = names(cache)
    with pytest.raises(RunError) as error:
        ff.load_cifar10(cache)
    advice = "cifar-10-binary.tar.gz", "cifar10.zip", cache, "--dataset synthetic"
    small.assert_one_line(str(error.value), *words, *advice)
    assert names(cache) == before
    put(cache, "cifar-10-binary.tar.gz", TORONTO)
    assert_loads(cache)


# ------------------------------------------------------------ archives and cache

SOUND = {
    "Toronto's": ("cifar-10-binary.tar.gz", TORONTO),
    "Kaggle's": ("cifar10.zip", KAGGLE),
    "Toronto's, in another order": (
        "cifar-10-binary.tar.gz",
        small.tar_gz(small.toronto_members(ARRAYS)[::-1]),
    ),
    "Kaggle's, compressed and in another order": (
        "cifar10.zip",
        small.zip_of(small.kaggle_members(ARRAYS)[::-1], zipfile.ZIP_DEFLATED),
    ),
}


@pytest.mark.parametrize("archive", SOUND)
def test_both_archives_give_the_same_arrays_in_the_same_order(cache, archive):
    put(cache, *SOUND[archive])
    assert_loads(cache)


def test_the_cache_serves_without_archives_or_a_network_and_numpy_alone_reads_it(
    cache, monkeypatch, capsys
):
    monkeypatch.setenv("HINTON_CIFAR_CACHE", str(cache))
    put(cache, "cifar10.zip", KAGGLE)
    ff.load_cifar10()
    os.remove(cache / "cifar10.zip")
    capsys.readouterr()
    np.testing.assert_array_equal(ff.load_cifar10()[0], ARRAYS[0])
    assert capsys.readouterr() == ("", "")
    with np.load(cache / "cifar10.npz", allow_pickle=False) as file:
        assert file.files == ["train_x", "train_y", "test_x", "test_y"]
        for name, truth in zip(file.files, ARRAYS):
            np.testing.assert_array_equal(file[name], truth, strict=True)


@pytest.mark.skipif(
    not all(Path(REAL, n).is_file() for n in ("cifar-10-binary.tar.gz", "cifar10.zip")),
    reason="needs $HINTON_CIFAR_CACHE with cifar-10-binary.tar.gz and cifar10.zip",
)
@pytest.mark.parametrize("archive", ["cifar-10-binary.tar.gz", "cifar10.zip"])
def test_the_real_archives_give_arrays_with_the_published_digest(
    cache, monkeypatch, archive
):
    monkeypatch.setattr(ff, "N_TRAIN", 50_000)
    monkeypatch.setattr(ff, "N_TEST", 10_000)
    monkeypatch.setattr(ff, "CIFAR_SHA256", REAL_DIGEST)
    cache.mkdir()
    (cache / archive).symlink_to(Path(REAL, archive).resolve())
    arrays = ff.load_cifar10(cache)
    assert small.digest(arrays) == REAL_DIGEST
    images = 32, 32, 3
    shapes = [(50_000, *images), (50_000,), (10_000, *images), (10_000,)]
    assert [a.shape for a in arrays] == shapes
    assert {a.dtype for a in arrays} == {np.dtype(np.uint8)}
    assert arrays[1][:5].tolist() == [6, 9, 9, 4, 1]  # frog, two trucks, ...
    shutil.rmtree(cache)


# ------------------------------------------------------------------ the network

WEB_PAGE = b"<!DOCTYPE html><title>We moved</title>" * 99
HALF = TORONTO[: len(TORONTO) // 2]
BAD_SOURCES = {
    "an error": (unavailable, "503"),
    "a web page": (sends(WEB_PAGE), "gzip"),
    "nothing": (sends(b""), "closed after 0"),
    "half": (sends(HALF, len(TORONTO)), f"after {len(HALF)} of {len(TORONTO)} bytes"),
    "a cut archive": (unannounced(HALF), "unexpected end"),
    "another archive": (sends(KAGGLE), "gzip"),
    "silence": (waits_half_way(TORONTO), "timed out"),
    "a circle": (redirect("/toronto"), "redirect"),
    "a local file": (redirect("file:///etc/passwd"), "file:///etc/passwd"),
    "an odd length": (sends(TORONTO, "many"), "many"),
}


@pytest.mark.parametrize("fault", BAD_SOURCES)
def test_a_bad_source_gives_way_to_the_next_in_one_line(serve, cache, capsys, fault):
    bad, reason = BAD_SOURCES[fault]
    server = serve([bad], [sends(KAGGLE)])
    assert_loads(cache)
    *retries, given_up, made = capsys.readouterr().err.splitlines()
    assert f"gave up on {server.url('/toronto')}: " in given_up
    assert reason in given_up
    assert made == f"made {cache / 'cifar10.npz'} from {server.url('/kaggle')}"
    # Only what a dropped connection may explain is tried again.
    assert len(retries) == (3 if fault in ("nothing", "half") else 0)
    assert all("trying again in" in line for line in retries)


def test_a_dropped_connection_is_tried_again_with_growing_waits(serve, cache, capsys):
    dropped = sends(HALF, len(TORONTO))
    server = serve([dropped, dropped, sends(TORONTO)])
    assert_loads(cache)
    assert server.requests == ["/toronto"] * 3
    *retries, _ = capsys.readouterr().err.splitlines()
    waits = [re.search(r"trying again in ([\d.]+) s", line)[1] for line in retries]
    assert waits == ["0.01", "0.02"]


def test_a_redirect_is_followed_and_a_body_of_unknown_length_is_accepted(serve, cache):
    server = serve([redirect("/mirror")], mirror=[unannounced(TORONTO)])
    assert_loads(cache)
    assert server.requests == ["/toronto", "/mirror"]


@pytest.mark.parametrize(
    ("floor", "piece", "asked"),
    [(100e3, 50, ["/toronto", "/kaggle"]), (1, len(TORONTO) // 20, ["/toronto"])],
)
def test_a_server_gives_way_only_below_the_floor_speed(
    serve, cache, capsys, monkeypatch, floor, piece, asked
):
    monkeypatch.setattr(ff, "FLOOR_SECONDS", 0.1)
    monkeypatch.setattr(ff, "FLOOR_SPEED", floor)
    server = serve([trickle(TORONTO, piece)], [sends(KAGGLE)])
    assert_loads(cache)
    assert server.requests == asked
    slow = "slower than 100 kB/s" in capsys.readouterr().err
    assert slow == (len(asked) == 2)


def test_no_route_to_any_source_is_one_line_with_the_way_out(cache):
    cache.mkdir()
    assert_gives_up(cache, "Connection refused", f"{small.CLOSED}: ")


def test_both_sources_down_names_both_and_what_they_answered(serve, cache):
    server = serve([unavailable], [sends(WEB_PAGE)])
    toronto, kaggle = server.url("/toronto"), server.url("/kaggle")
    cache.mkdir()
    assert_gives_up(cache, toronto, "503", kaggle, "not a zip file")


def test_a_download_of_the_wrong_data_is_not_cached(serve, cache):
    others = small.make_arrays(seed=1)
    toronto = small.tar_gz(small.toronto_members(others))
    serve([sends(toronto)], [sends(small.zip_of(small.kaggle_members(others)))])
    cache.mkdir()
    assert_gives_up(cache, small.digest(ARRAYS), small.digest(others))


# ------------------------------------------------- damaged archives and caches


def link(kind, target):
    """Turns data_batch_2.bin into a link of this kind."""

    def change(members):
        members[2][0].type, members[2][0].linkname = kind, target
        members[2][1] = b""

    return change


def swap_two_batches(members):
    members[1][1], members[2][1] = members[2][1], members[1][1]


def image_as(*size, mode):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return lambda members: members[4].__setitem__(1, file.getvalue())


def renamed(pattern, name):
    """Renames the first image."""
    return lambda m: m[1].__setitem__(0, re.sub(pattern, name, m[1][0]))


TAR_FAULTS = {
    "a batch is missing": lambda m: m.pop(3),
    "a batch is too short": lambda m: m[2].append(m[2].pop()[:-1]),
    "a batch is too long": lambda m: m[2].append(m[2].pop() + b"x"),
    "two batches are swapped": swap_two_batches,
    "a batch comes twice, differently": lambda m: m.append([m[1][0], m[2][1]]),
    "a label is over 9": lambda m: m[1].append(b"\x0a" + m[1].pop()[1:]),
    "a batch is a link out": link(tarfile.SYMTYPE, "/etc/passwd"),
    "a batch is a link to itself": link(
        tarfile.LNKTYPE, "cifar-10-batches-bin/data_batch_2.bin"
    ),
}
ZIP_FAULTS = {
    "an image is missing": lambda m: m.pop(5),
    "an image is another": lambda m: m[4].__setitem__(1, m[5][1]),
    "an index is out of range": renamed("/0_", "/30_"),
    "a folder is of no class": renamed("train/[a-z]+", "train/plane"),
    "an image is 32x31": image_as(32, 31, mode="RGB"),
    "an image is grey": image_as(32, 32, mode="L"),
    "an image has an alpha channel": image_as(32, 32, mode="RGBA"),
    "an image is no PNG": lambda m: m[4].append(b"GIF89a" + m[4].pop()),
    "an image is cut": lambda m: m[4].append(m[4].pop()[:-40]),
}


@pytest.mark.parametrize("fault", [*TAR_FAULTS, *ZIP_FAULTS])
def test_a_damaged_archive_is_refused_in_one_line(cache, capsys, fault):
    if fault in TAR_FAULTS:
        members, name = small.toronto_members(ARRAYS), "cifar-10-binary.tar.gz"
        TAR_FAULTS[fault](members)
        put(cache, name, small.tar_gz(members))
    else:
        members, name = small.kaggle_members(ARRAYS), "cifar10.zip"
        ZIP_FAULTS[fault](members)
        put(cache, name, small.zip_of(members))
    assert_gives_up(cache, cache / name)
    first = capsys.readouterr().err.splitlines()[0]
    assert re.match(rf"gave up on {re.escape(str(cache / name))}: .", first)


BAD_CACHES = {
    "empty": b"",
    "cut": NPZ[:-100],
    "cut in half": NPZ[: len(NPZ) // 2],
    "a flipped bit": NPZ[:5000] + bytes([NPZ[5000] ^ 1]) + NPZ[5001:],
    "another file": b"not an npz",
    "a bare array": NPZ[NPZ.index(b"\x93NUMPY") :],
    "other images": small.npz(small.make_arrays(seed=1)),
    "labels of another type": small.npz(ARRAYS, train_y=ARRAYS[1].astype(np.int64)),
    "one array too few": small.zip_of([]),
    "pickled labels": small.npz(ARRAYS, train_y=ARRAYS[1].astype(object)),
}


@pytest.mark.parametrize("damage", BAD_CACHES)
def test_a_damaged_cache_is_made_anew_and_one_line_says_so(cache, capsys, damage):
    put(cache, "cifar-10-binary.tar.gz", TORONTO)
    put(cache, "cifar10.npz", BAD_CACHES[damage])
    assert_loads(cache)
    reason, made = capsys.readouterr().err.splitlines()
    assert reason.startswith(f"gave up on {cache / 'cifar10.npz'}: ")
    archive = cache / "cifar-10-binary.tar.gz"
    assert made == f"made {cache / 'cifar10.npz'} from {archive}"
    assert_loads(cache)
    assert capsys.readouterr().err == ""


def test_cut_archives_at_hand_give_way_to_the_network_and_are_left_alone(
    serve, cache, capsys
):
    server = serve([sends(TORONTO)])
    put(cache, "cifar-10-binary.tar.gz", HALF)
    put(cache, "cifar10.zip", KAGGLE[: len(KAGGLE) // 2])
    assert_loads(cache)
    tar, zip_, made = capsys.readouterr().err.splitlines()
    assert f"gave up on {cache / 'cifar-10-binary.tar.gz'}" in tar
    assert f"gave up on {cache / 'cifar10.zip'}" in zip_
    assert server.url("/toronto") in made
    assert (cache / "cifar-10-binary.tar.gz").read_bytes() == HALF


@pytest.mark.parametrize("where", ["file", "file/folder", 300 * "x"])
def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path, where):
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(RunError) as error:
        ff.load_cifar10(tmp_path / where)
    small.assert_one_line(str(error.value), f"into {tmp_path / where}")
    assert (tmp_path / "file").read_bytes() == b"in the way"


# --------------------------------------------------------- processes of its own


def start(cache, server=None, timeout=1.0, **options):
    """A small run of the main script that gets its data from the server."""
    urls = {"TIMEOUT": timeout}
    for name in ("toronto", "kaggle") if server else ():
        urls[f"{name.upper()}_URL"] = server.url(f"/{name}")
    flags = "--n-epochs 1 --train-subset 10 --eval-subset 10 --batch-size 5"
    flags += " --fields 29,3 --channels 2"
    settings = small.constants(ARRAYS, **urls)
    return small.start(settings, *flags.split(), "--cache-dir", cache, **options)


def assert_runs(cache, server):
    code, out, err = small.finish(start(cache, server))
    assert (code, "chance" in out) == (0, True), err


def files_below(size):
    """A limit on the size of files acts as a full disk does: write() fails."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_disk_too_full_for_the_archive_is_an_error_and_leaves_nothing(serve, cache):
    server = serve([sends(TORONTO)], [sends(KAGGLE)])
    room = files_below(len(TORONTO) // 2)
    code, out, err = small.finish(start(cache, server, preexec_fn=room))
    assert (code, out) == (1, "")
    *given_up, last = err.splitlines()
    assert [line.split(" http")[0] for line in given_up] == ["gave up on"] * 2
    small.assert_one_line(last, "no CIFAR-10 from", "File too large", cache)
    assert names(cache) == []
    assert_runs(cache, server)


def test_a_folder_that_takes_no_cache_may_hold_the_archive(cache):
    put(cache, "cifar-10-binary.tar.gz", TORONTO)
    code, out, err = small.finish(start(cache, preexec_fn=files_below(1000)))
    assert code == 0
    assert "chance" in out
    words = "cifar-10-binary.tar.gz will be read anew at every start", "too large"
    small.assert_one_line(err, *words)
    assert names(cache) == ["cifar-10-binary.tar.gz"]


def test_two_processes_that_start_at_once_both_end_well(serve, cache):
    server = serve([waits_half_way(TORONTO)])
    processes = [start(cache, server, timeout=30) for _ in range(2)]
    while len(server.requests) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    server.go_on.set()
    ends = [small.finish(process) for process in processes]
    assert [code for code, *_ in ends] == [0, 0]
    losses = [re.findall(r"^FF +1 +([\d.]+)", out, re.MULTILINE) for _, out, _ in ends]
    assert losses[0] == losses[1] != []
    assert names(cache) == ["cifar10.npz"]
    assert_loads(cache)


def test_control_c_during_a_download_leaves_nothing_and_the_next_start_works(
    serve, cache
):
    server = serve([waits_half_way(TORONTO), sends(TORONTO)])
    process = start(cache, server, timeout=30)
    assert server.half_way.wait(30)
    process.send_signal(signal.SIGINT)
    code, out, err = small.finish(process)
    assert (code, out) == (130, "")
    small.assert_one_line(err, "interrupted")
    assert names(cache) == []
    assert_runs(cache, server)


def test_a_terminal_sees_the_progress_and_its_line_wiped_clean(serve, cache):
    ours, theirs = pty.openpty()
    process = start(cache, serve([sends(TORONTO)]), stderr=theirs)
    os.close(theirs)
    process.communicate()
    assert process.returncode == 0
    seen = os.read(ours, 10_000)
    os.close(ours)
    assert re.search(rb"\r\d+\.\d of \d+\.\d MB, \d+ s left", seen)
    assert b"FF epoch 1 of 1" in seen
    made = f"made {cache / 'cifar10.npz'} from".encode()
    assert re.search(rb"\r *\r+" + re.escape(made), seen)
