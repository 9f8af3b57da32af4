"""The loader on a real HTTP server on loopback, on small archives of both layouts."""

import http.server
import os
import pty
import re
import shutil
import signal
import tarfile
import threading
import time
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

    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that go away are the point of some tests


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


@pytest.fixture
def serve(monkeypatch):
    """serve([answers of Toronto], [of Kaggle]): the server, where the URLs lead."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.half_way, server.go_on = threading.Event(), threading.Event()

        def serve(toronto=(unavailable,), kaggle=(unavailable,)):
            server.requests = []
            server.answers = {"/toronto": [*toronto], "/kaggle": [*kaggle]}
            address = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setattr(ff, "TORONTO_URL", f"{address}/toronto")
            monkeypatch.setattr(ff, "KAGGLE_URL", f"{address}/kaggle")
            return server

        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield serve
        server.go_on.set()
        server.shutdown()


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


def tar(change):
    change(members := small.toronto_members(ARRAYS))
    return "cifar-10-binary.tar.gz", small.tar_gz(members)


def zip_(change):
    change(members := small.kaggle_members(ARRAYS))
    return "cifar10.zip", small.zip_of(members)


@pytest.mark.parametrize("archive", [tar, zip_])
def test_both_archives_give_the_same_arrays_in_whatever_order_they_are(cache, archive):
    put(cache, *archive(list.reverse))
    assert_loads(cache)


def test_the_cache_serves_without_archives_or_a_network_and_numpy_alone_reads_it(
    cache, monkeypatch
):
    monkeypatch.setenv("HINTON_CIFAR_CACHE", str(cache))
    put(cache, "cifar10.zip", KAGGLE)
    ff.load_cifar10()
    os.remove(cache / "cifar10.zip")
    np.testing.assert_array_equal(ff.load_cifar10()[0], ARRAYS[0])
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
    shutil.rmtree(cache)


# ------------------------------------------------------------------ the network

WEB_PAGE = b"<!DOCTYPE html><title>We moved</title>" * 99
HALF = TORONTO[: len(TORONTO) // 2]
BAD_SOURCES = {
    "an error": (unavailable, "503"),
    "a web page": (sends(WEB_PAGE), "gzip"),
    "nothing": (sends(b""), "closed after 0"),
    "half": (sends(HALF, len(TORONTO)), f"after {len(HALF)} of {len(TORONTO)} bytes"),
    "silence": (waits_half_way(TORONTO), "timed out"),
    "a local file": (redirect("file:///etc/passwd"), "file:///etc/passwd"),
    "an odd length": (sends(TORONTO, "many"), "many"),
}


@pytest.mark.parametrize("fault", BAD_SOURCES)
def test_a_bad_source_gives_way_to_the_next_in_one_line(serve, cache, capsys, fault):
    bad, reason = BAD_SOURCES[fault]
    serve([bad], [sends(KAGGLE)])
    assert_loads(cache)
    *retries, given_up, made = capsys.readouterr().err.splitlines()
    assert f"gave up on {ff.TORONTO_URL}: " in given_up
    assert reason in given_up
    assert made == f"made {cache / 'cifar10.npz'} from {ff.KAGGLE_URL}"
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
    server = serve([redirect("/kaggle")], [sends(TORONTO, "")])
    assert_loads(cache)
    assert server.requests == ["/toronto", "/kaggle"]


@pytest.mark.parametrize(
    ("seconds", "floor", "piece", "asked"),
    [
        (0.1, 100e3, 50, ["/toronto", "/kaggle"]),
        (0.1, 1, len(TORONTO) // 20, ["/toronto"]),
        (60, 1e9, len(TORONTO) // 20, ["/toronto"]),
    ],
)
def test_a_server_gives_way_only_below_the_floor_speed_and_not_at_once(
    serve, cache, capsys, monkeypatch, seconds, floor, piece, asked
):
    monkeypatch.setattr(ff, "FLOOR_SECONDS", seconds)
    monkeypatch.setattr(ff, "FLOOR_SPEED", floor)
    server = serve([sends(TORONTO, piece=piece)], [sends(KAGGLE)])
    assert_loads(cache)
    assert server.requests == asked
    slow = "slower than 100 kB/s" in capsys.readouterr().err
    assert slow == (len(asked) == 2)


def test_where_no_source_has_the_data_both_are_named_and_nothing_is_cached(
    serve, cache
):
    others, cut = small.make_arrays(seed=1), DAMAGED["an image is cut"][1]
    foreign = small.zip_of(small.kaggle_members(others))
    digests = map(small.digest, (ARRAYS, others))
    for archive, *words in (foreign, *digests), (cut, "truncated"):
        cache.mkdir()
        serve(kaggle=[sends(archive)])
        urls = ff.TORONTO_URL, ff.KAGGLE_URL
        assert_gives_up(cache, NoFile, *urls, "503", *words)
        shutil.rmtree(cache)


def test_no_route_to_any_source_is_told_with_what_is_in_the_cache_folder(cache):
    cache.mkdir()
    assert_gives_up(cache, NoFile, f"{small.CLOSED}: ", "refused", "(it has: none)")
    os.remove(cache / "cifar10.npz")
    (cache / "cifar-10-binary.tar.gz").rename(cache / "cifar-10-python.tar.gz")
    assert_gives_up(cache, NoFile, "(it has: cifar-10-python.tar.gz)")


# ------------------------------------------------- damaged archives and caches


def link_out(members):
    members[2][0].type, members[2][0].linkname = tarfile.SYMTYPE, "/etc/passwd"
    members[2][1] = b""


def swap(members):
    members[1][1], members[2][1] = members[2][1], members[1][1]


GREY = small.png(np.zeros((32, 32), np.uint8))
DAMAGED = {
    "a batch is missing": tar(lambda m: m.pop(3)),
    "a batch is too short": tar(lambda m: m[2].append(m[2].pop()[:-1])),
    "a batch is too long": tar(lambda m: m[2].append(m[2].pop() + b"x")),
    "two batches are swapped": tar(swap),
    "a batch is a link out": tar(link_out),
    "an index is too high": zip_(lambda m: m.append(["train/cat/60_cat.png", m[1][1]])),
    "two images are swapped": zip_(swap),
    "an image is grey": zip_(lambda m: m[4].__setitem__(1, GREY)),
    "an image is cut": zip_(lambda m: m[4].append(m[4].pop()[:-40])),
    "the end is missing": ("cifar10.zip", KAGGLE[: len(KAGGLE) // 2]),
}


@pytest.mark.parametrize("name, archive", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_archive_is_refused_in_one_line_left_alone_and_the_next_taken(
    serve, cache, capsys, name, archive
):
    put(cache, name, archive)
    assert_gives_up(cache, RunError, cache / name, f"(it has: {name})")
    first = capsys.readouterr().err.splitlines()[0]
    assert re.match(rf"gave up on {re.escape(str(cache / name))}: .", first)
    shutil.rmtree(cache)
    put(cache, name, archive)
    serve([sends(TORONTO)])
    assert_loads(cache)
    assert (cache / name).read_bytes() == archive


BAD_CACHES = {
    "a flipped bit": NPZ[:5000] + bytes([NPZ[5000] ^ 1]) + NPZ[5001:],
    "a bare array": NPZ[NPZ.index(b"\x93NUMPY") :],
    "other images": small.npz(small.make_arrays(seed=1)),
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


def start(cache, **options):
    """A small run of the main script that gets its data where this process would."""
    urls = {"TORONTO_URL": ff.TORONTO_URL, "KAGGLE_URL": ff.KAGGLE_URL}
    settings = small.constants(ARRAYS, TIMEOUT=30.0, **urls)
    flags = "--n-epochs 1 --train-subset 10 --eval-subset 10 --batch-size 5"
    flags += " --fields 29,3 --channels 2"
    return small.start(settings, *flags.split(), "--cache-dir", cache, **options)


def assert_runs(cache, **options):
    """It trains on the true data; returns what it says on stderr."""
    code, out, err = small.finish(start(cache, **options))
    assert (code, "chance" in out, "synthetic" in out) == (0, True, False), err
    return err


def test_a_disk_too_full_for_the_archive_is_an_error_and_leaves_nothing(serve, cache):
    serve([sends(TORONTO)], [sends(KAGGLE)])
    room = small.files_below(len(TORONTO) // 2)
    code, out, err = small.finish(start(cache, preexec_fn=room))
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    small.assert_one_line(last, "no CIFAR-10 from", "File too large", cache)
    assert names(cache) == []
    assert_runs(cache)


def test_a_folder_that_takes_no_cache_may_hold_the_archive(cache):
    put(cache, "cifar-10-binary.tar.gz", TORONTO)
    err = assert_runs(cache, preexec_fn=small.files_below(1000))
    small.assert_one_line(err, "cannot write", cache / "cifar10.npz", "too large")
    assert names(cache) == ["cifar-10-binary.tar.gz"]


def test_two_processes_that_start_at_once_both_end_well(serve, cache):
    server = serve([waits_half_way(TORONTO)])
    processes = [start(cache) for _ in range(2)]
    while len(server.requests) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    server.go_on.set()
    ends = [small.finish(process) for process in processes]
    assert [code for code, *_ in ends] == [0, 0]
    assert names(cache) == ["cifar10.npz"]
    assert_loads(cache)


def test_control_c_during_a_download_leaves_nothing_and_the_next_start_works(
    serve, cache
):
    server = serve([waits_half_way(TORONTO), sends(TORONTO)])
    process = start(cache)
    assert server.half_way.wait(30)
    process.send_signal(signal.SIGINT)
    code, out, err = small.finish(process)
    assert (code, out) == (130, "")
    assert err == "interrupted\n"
    assert names(cache) == []
    assert_runs(cache)


def test_a_terminal_sees_the_progress_and_its_line_wiped_clean(serve, cache):
    serve([sends(TORONTO)])
    ours, theirs = pty.openpty()
    process = start(cache, stderr=theirs)
    os.close(theirs)
    process.communicate()
    assert process.returncode == 0
    seen = os.read(ours, 10_000)
    os.close(ours)
    assert re.search(rb"\r\d+\.\d of \d+\.\d MB in \d+ s", seen)
    assert b"FF epoch 1 of 1" in seen
    made = f"made {cache / 'cifar10.npz'} from".encode()
    assert re.search(rb"\r *\r+" + re.escape(made), seen)
