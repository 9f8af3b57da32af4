"""The loader on a real HTTP server on loopback, on small archives of both layouts."""

import contextlib
import http.server
import os
import pty
import re
import resource
import shutil
import signal
import ssl
import subprocess
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import small

import ff_cifar_locally_connected as ff
from ff_cifar_locally_connected import NoFile, RunError

ARRAYS = small.make_arrays()
TORONTO = small.tar_gz(small.toronto_members(ARRAYS))
KAGGLE = small.zip_of(small.kaggle_members(ARRAYS))
NPZ = small.npz(ARRAYS)
REAL = os.environ.get("HINTON_CIFAR_CACHE", "")
REAL_DIGEST = "80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660"

# ------------------------------------------------------------------- the server


class Server(http.server.ThreadingHTTPServer):
    """Answers /path with answers[path], one for each request; the last one stays."""

    daemon_threads, scheme = True, "http"

    def begin(self, **answers):
        self.answers = {f"/{name}": list(a) for name, a in answers.items()}
        self.requests = []
        self.half_way, self.go_on = threading.Event(), threading.Event()

    def handle_error(self, request, client_address):
        pass  # clients that go away are the point of some tests

    def url(self, path):
        return f"{self.scheme}://127.0.0.1:{self.server_port}{path}"


@contextlib.contextmanager
def running(context=None):
    """A Server; context: of its certificate, for https."""
    with Server(("127.0.0.1", 0), Handler) as server:
        if context:
            server.scheme = "https"
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield server
        server.shutdown()


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


def sends(body, announced=None, piece=None):
    """The body; announced: its Content-Length, or none if it is ""; piece: so many bytes
    at a time, 50 times a second."""

    def answer(handler):
        length = len(body) if announced is None else announced
        handler.head(**({} if length == "" else {"Content_Length": length}))
        for i in range(0, len(body), piece or max(1, len(body))):
            handler.wfile.write(body[i : i + piece] if piece else body)
            time.sleep(0.02 if piece else 0)

    return answer


def unavailable(handler):
    handler.send_error(503)


def redirect(to):
    return lambda handler: handler.head(302, Location=to, Content_Length=0)


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


@pytest.fixture(scope="module")
def the_server():
    with running() as server:
        yield server


@pytest.fixture
def serve(the_server, monkeypatch):
    """serve([answers of Toronto], [of Kaggle]): the server, where the URLs lead."""

    def serve(toronto=(unavailable,), kaggle=(unavailable,), mirror=(unavailable,)):
        the_server.begin(toronto=toronto, kaggle=kaggle, mirror=mirror)
        monkeypatch.setattr(ff, "TORONTO_URL", the_server.url("/toronto"))
        monkeypatch.setattr(ff, "KAGGLE_URL", the_server.url("/kaggle"))
        return the_server

    yield serve
    the_server.go_on.set()


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


def assert_gives_up(cache, kind, *words):
    """--dataset cifar10 is an error of this kind (NoFile: --dataset auto goes on with
    made-up images), of one line with all `words`; the next start works."""
    before = names(cache)
    with pytest.raises(RunError) as error:
        ff.load_data(ff.training_arguments(dataset="cifar10", cache_dir=cache))
    assert type(error.value) is kind
    advice = "cifar-10-binary.tar.gz", "cifar10.zip", cache, "--dataset synthetic"
    small.assert_one_line(str(error.value), *words, *advice)
    assert "SSL_CERT_FILE" not in str(error.value)
    assert names(cache) == before
    put(cache, "cifar-10-binary.tar.gz", TORONTO)
    assert_loads(cache)


# ------------------------------------------------------------ archives and cache


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("archive", ["cifar-10-binary.tar.gz", "cifar10.zip"])
def test_both_archives_give_the_same_arrays_in_whatever_order_they_are(
    cache, archive, order
):
    if archive == "cifar10.zip":
        members = small.kaggle_members(ARRAYS)[::order]
        put(cache, archive, small.zip_of(members, zipfile.ZIP_DEFLATED))
    else:
        put(cache, archive, small.tar_gz(small.toronto_members(ARRAYS)[::order]))
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
    shapes = [(50_000, 32, 32, 3), (50_000,), (10_000, 32, 32, 3), (10_000,)]
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
    "a cut archive": (sends(HALF, ""), "unexpected end"),
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


def test_a_dropped_connection_is_tried_anew_with_growing_waits(serve, cache, capsys):
    dropped = sends(KAGGLE + bytes(100_000), 10**6)
    server = serve(kaggle=[dropped, dropped, sends(KAGGLE)])
    assert_loads(cache)
    assert server.requests == ["/toronto", *["/kaggle"] * 3]
    _, *retries, _ = capsys.readouterr().err.splitlines()
    waits = [re.search(r"trying again in ([\d.]+) s", line)[1] for line in retries]
    assert waits == ["0.01", "0.02"]


def test_a_redirect_is_followed_and_a_body_of_unknown_length_is_accepted(serve, cache):
    server = serve([redirect("/mirror")], mirror=[sends(TORONTO, "")])
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
    server = serve([sends(TORONTO, piece=piece)], [sends(KAGGLE)])
    assert_loads(cache)
    assert server.requests == asked
    slow = "slower than 100 kB/s" in capsys.readouterr().err
    assert slow == (len(asked) == 2)


OTHERS = small.make_arrays(seed=1)
NO_SOURCES = {
    "errors": (unavailable, sends(WEB_PAGE), "503", "not a zip file"),
    "other data": (
        sends(small.tar_gz(small.toronto_members(OTHERS))),
        sends(small.zip_of(small.kaggle_members(OTHERS))),
        *map(small.digest, (ARRAYS, OTHERS)),
    ),
}


@pytest.mark.parametrize("case", NO_SOURCES)
def test_where_no_source_has_the_data_both_are_named_and_nothing_is_cached(
    serve, cache, case
):
    toronto, kaggle, *words = NO_SOURCES[case]
    server = serve([toronto], [kaggle])
    cache.mkdir()
    assert_gives_up(cache, NoFile, *map(server.url, ("/toronto", "/kaggle")), *words)


def test_no_route_to_any_source_is_told_with_what_is_in_the_cache_folder(cache):
    cache.mkdir()
    assert_gives_up(cache, NoFile, f"{small.CLOSED}: ", "refused", "(it has: none)")
    os.remove(cache / "cifar10.npz")
    (cache / "cifar-10-binary.tar.gz").rename(cache / "cifar-10-python.tar.gz")
    assert_gives_up(cache, NoFile, "(it has: cifar-10-python.tar.gz)")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
def test_a_certificate_that_fails_is_told_with_the_variable_that_makes_it_trusted(
    cache, tmp_path, monkeypatch
):
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {tmp_path / 'key'} "
    command += f"-out {tmp_path / 'trusted'} -subj /CN=127.0.0.1 "
    command += "-addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "trusted", tmp_path / "key")
    with running(context) as server:
        server.begin(toronto=[sends(TORONTO)], kaggle=[sends(KAGGLE)])
        monkeypatch.setattr(ff, "TORONTO_URL", server.url("/toronto"))
        trusted = {"SSL_CERT_FILE": str(tmp_path / "trusted")}
        with pytest.raises(NoFile) as error:
            ff.load_cifar10(cache)
        small.assert_one_line(str(error.value), "certificate verify", *trusted)
        assert server.requests == names(cache) == []
        err = assert_runs(cache, server, env=trusted)
    small.assert_one_line(err, f"from {server.url('/toronto')}")
    assert_loads(cache)


# ------------------------------------------------- damaged archives and caches


def link_out(members):
    members[2][0].type, members[2][0].linkname = tarfile.SYMTYPE, "/etc/passwd"
    members[2][1] = b""


def swap_two_batches(members):
    members[1][1], members[2][1] = members[2][1], members[1][1]


def image(*shape):
    return lambda m: m[4].__setitem__(1, small.png(np.zeros(shape, np.uint8)))


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
    "a batch is a link out": link_out,
}
ZIP_FAULTS = {
    "an image is missing": lambda m: m.pop(5),
    "an image is another": lambda m: m[4].__setitem__(1, m[5][1]),
    "an index is out of range": renamed("/0_", "/30_"),
    "a folder is of no class": renamed("train/[a-z]+", "train/plane"),
    "an image is 32x31": image(32, 31, 3),
    "an image is grey": image(32, 32),
    "an image has an alpha channel": image(32, 32, 4),
    "an image is no PNG": lambda m: m[4].append(b"GIF89a" + m[4].pop()),
    "an image is cut": lambda m: m[4].append(m[4].pop()[:-40]),
}


@pytest.mark.parametrize("fault", [*TAR_FAULTS, *ZIP_FAULTS])
def test_a_damaged_archive_is_refused_in_one_line(cache, capsys, fault):
    name, members, faults, pack = (
        ("cifar-10-binary.tar.gz", small.toronto_members, TAR_FAULTS, small.tar_gz)
        if fault in TAR_FAULTS
        else ("cifar10.zip", small.kaggle_members, ZIP_FAULTS, small.zip_of)
    )
    faults[fault](members := members(ARRAYS))
    put(cache, name, pack(members))
    assert_gives_up(cache, RunError, cache / name, f"(it has: {name})")
    first = capsys.readouterr().err.splitlines()[0]
    assert re.match(rf"gave up on {re.escape(str(cache / name))}: .", first)


BAD_CACHES = {
    "empty": b"",
    "cut": NPZ[:-100],
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
def test_a_cache_folder_that_cannot_be_looked_at_is_one_line_and_no_synthetic_run(
    tmp_path, where
):
    (tmp_path / "file").write_bytes(b"in the way")
    args = ff.training_arguments(dataset="auto", cache_dir=tmp_path / where)
    with pytest.raises(RunError) as error:
        ff.load_data(args)
    assert type(error.value) is RunError
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


def assert_runs(cache, server=None, **options):
    """It trains on the true data; returns what it says on stderr."""
    code, out, err = small.finish(start(cache, server, **options))
    assert (code, "chance" in out, "synthetic" in out) == (0, True, False), err
    return err


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
    err = assert_runs(cache, preexec_fn=files_below(1000))
    small.assert_one_line(err, "cannot write", cache / "cifar10.npz", "too large")
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
    assert re.search(rb"\r\d+\.\d of \d+\.\d MB in \d+ s", seen)
    assert b"FF epoch 1 of 1" in seen
    made = f"made {cache / 'cifar10.npz'} from".encode()
    assert re.search(rb"\r *\r+" + re.escape(made), seen)
