"""The loader on a real HTTP server on loopback, on small archives of both layouts."""

import errno
import hashlib
import http.client
import http.server
import io
import os
import pty
import re
import resource
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
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

    def url(self, path, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.server_port}{path}"


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


def whole(body):
    def answer(handler):
        handler.head(Content_Length=len(body))
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


def web_page(handler):
    whole(b"<!DOCTYPE html><title>We moved</title>" * 99)(handler)


def dropped(body):
    """Half of what Content-Length announces, then the end of the connection."""

    def answer(handler):
        handler.head(Content_Length=len(body))
        handler.wfile.write(body[: len(body) // 2])

    return answer


def trickle(body, piece):
    """`piece` bytes at a time, 50 times a second, while somebody reads."""

    def answer(handler):
        handler.head(Content_Length=len(body))
        for i in range(0, len(body), piece):
            handler.wfile.write(body[i : i + piece])
            time.sleep(0.02)

    return answer


def silent(handler):
    """Headers, one byte, and then nothing until the test is over."""
    handler.head(Content_Length=1000)
    handler.wfile.write(b"P")
    handler.server.go_on.wait(30)


def waits_half_way(body):
    """Half of the body; the rest when the test says so."""

    def answer(handler):
        handler.head(Content_Length=len(body))
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        handler.server.half_way.set()
        handler.server.go_on.wait(30)
        handler.wfile.write(body[len(body) // 2 :])

    return answer


def redirect(to):
    def answer(handler):
        handler.head(302, Location=to, Content_Length=0)

    return answer


@pytest.fixture
def serve(monkeypatch):
    """serve(toronto=[...], kaggle=[...]): a running server, and URLs that point to it."""
    servers = []

    def serve(toronto=(unavailable,), kaggle=(unavailable,), **others):
        answers = {"/toronto": toronto, "/kaggle": kaggle}
        answers |= {f"/{name}": answer for name, answer in others.items()}
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
    for name, value in small.constants(ARRAYS).items():
        monkeypatch.setattr(ff, name, value)
    monkeypatch.setattr(ff, "TIMEOUT", 1.0)
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
    before = set(names(cache)) if cache.exists() else set()
    for array, truth in zip(ff.load_cifar10(cache), ARRAYS, strict=True):
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, truth, strict=True)
    assert set(names(cache)) == before | {"cifar10.npz"}


def assert_gives_up(cache, *words):
    """One line with all `words`, nothing new in the cache; the next start works."""
    before = names(cache) if cache.exists() else []
    with pytest.raises(RunError) as error:
        ff.load_cifar10(cache)
    line = str(error.value)
    assert len(line.splitlines()) == 1
    for word in (*words, "cifar-10-binary.tar.gz", "cifar10.zip", str(cache)):
        assert word in line
    assert names(cache) == before
    put(cache, "cifar-10-binary.tar.gz", TORONTO)
    assert_loads(cache)
    return line


# ---------------------------------------------------------------- both layouts


@pytest.mark.parametrize("compressed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_both_archives_give_the_same_uint8_arrays(cache, compressed):
    put(cache, "cifar-10-binary.tar.gz", TORONTO)
    assert_loads(cache)
    shutil.rmtree(cache)
    put(cache, "cifar10.zip", small.zip_of(small.kaggle_members(ARRAYS), compressed))
    assert_loads(cache)


def test_the_order_of_members_does_not_matter(cache):
    put(
        cache,
        "cifar-10-binary.tar.gz",
        small.tar_gz(small.toronto_members(ARRAYS)[::-1]),
    )
    assert_loads(cache)
    shutil.rmtree(cache)
    put(cache, "cifar10.zip", small.zip_of(small.kaggle_members(ARRAYS)[::-1]))
    assert_loads(cache)


def test_the_cache_is_used_without_archives_or_a_network(cache, capsys):
    put(cache, "cifar-10-binary.tar.gz", TORONTO)
    assert_loads(cache)
    os.remove(cache / "cifar-10-binary.tar.gz")
    capsys.readouterr()
    assert_loads(cache)
    assert capsys.readouterr() == ("", "")


def test_the_cache_folder_comes_from_the_environment(cache, monkeypatch):
    monkeypatch.setenv("HINTON_CIFAR_CACHE", str(cache))
    put(cache, "cifar10.zip", KAGGLE)
    np.testing.assert_array_equal(ff.load_cifar10()[0], ARRAYS[0])
    assert (cache / "cifar10.npz").exists()


@pytest.mark.skipif(
    not all(Path(REAL, n).is_file() for n in ("cifar-10-binary.tar.gz", "cifar10.zip")),
    reason="needs $HINTON_CIFAR_CACHE with cifar-10-binary.tar.gz and cifar10.zip",
)
def test_the_real_archives_give_the_same_arrays_with_the_published_digest(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ff, "N_TRAIN", 50_000)
    monkeypatch.setattr(ff, "N_TEST", 10_000)
    monkeypatch.setattr(ff, "CIFAR_SHA256", REAL_DIGEST)
    for archive in ("cifar-10-binary.tar.gz", "cifar10.zip"):
        cache = tmp_path / archive
        cache.mkdir()
        (cache / archive).symlink_to(Path(REAL, archive).resolve())
        arrays = ff.load_cifar10(cache)
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array.tobytes())
        assert digest.hexdigest() == REAL_DIGEST
        assert [a.shape for a in arrays] == [
            (50_000, 32, 32, 3),
            (50_000,),
            (10_000, 32, 32, 3),
            (10_000,),
        ]
        assert {a.dtype for a in arrays} == {np.dtype(np.uint8)}
        assert arrays[1][:5].tolist() == [6, 9, 9, 4, 1]  # frog, two trucks, ...
        shutil.rmtree(cache)


# ------------------------------------------------------------------ the network


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (unavailable, "503"),
        (web_page, "<!DOCTYPE"),
        (whole(b""), "closed after 0"),
        (dropped(TORONTO), f"closed after {len(TORONTO) // 2} of {len(TORONTO)} bytes"),
        (unannounced(TORONTO[:-9]), "end-of-stream"),
        (whole(TORONTO[:-9]), "end-of-stream"),
        (whole(KAGGLE), "gzip"),
        (silent, "timed out"),
        (redirect("/toronto"), "redirect"),
        (redirect("file:///etc/passwd"), "file:///etc/passwd"),
        (lambda handler: handler.head(Content_Length="many"), "many"),
    ],
)
def test_a_bad_source_gives_way_to_the_next_in_one_line(
    serve, cache, capsys, bad, reason
):
    server = serve([bad], [whole(KAGGLE)])
    assert_loads(cache)
    *retries, given_up, made = capsys.readouterr().err.splitlines()
    assert "gave up on " + server.url("/toronto") in given_up
    assert reason in given_up
    assert "cifar10.npz" in made
    assert server.url("/kaggle") in made
    assert all("trying again in" in line for line in retries)


def test_a_dropped_connection_is_tried_again_with_growing_waits(serve, cache, capsys):
    server = serve([dropped(TORONTO), dropped(TORONTO), whole(TORONTO)])
    assert_loads(cache)
    assert server.requests == ["/toronto"] * 3
    *retries, _ = capsys.readouterr().err.splitlines()
    waits = [re.search(r"trying again in ([\d.]+) s", line)[1] for line in retries]
    assert waits == ["0.01", "0.02"]


def test_errors_that_stay_are_not_tried_again(serve, cache):
    server = serve([unavailable], [whole(KAGGLE)])
    assert_loads(cache)
    assert server.requests == ["/toronto", "/kaggle"]


def test_a_host_that_is_lost_on_the_way_is_no_fault_of_the_folder(
    serve, cache, capsys, monkeypatch
):
    read1, lost = http.client.HTTPResponse.read1, []

    def unreachable(response, size):
        if response.getheader("Content-Length") == str(len(KAGGLE)):
            return read1(response, size)
        lost.append(response)  # no route can be lost on loopback
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(http.client.HTTPResponse, "read1", unreachable)
    server = serve([whole(TORONTO)], [whole(KAGGLE)])
    assert_loads(cache)
    assert len(lost) == 4  # as often as a dropped connection
    assert server.requests == ["/toronto"] * 4 + ["/kaggle"]
    given_up = capsys.readouterr().err.splitlines()[3]
    assert given_up.startswith(f"gave up on {server.url('/toronto')}: ")
    assert "No route to host" in given_up


def test_a_redirect_is_followed(serve, cache):
    server = serve([redirect("/mirror")], mirror=[whole(TORONTO)])
    assert_loads(cache)
    assert server.requests == ["/toronto", "/mirror"]


def test_a_body_of_unknown_length_is_accepted_if_it_is_whole(serve, cache):
    serve([unannounced(TORONTO)])
    assert_loads(cache)


def test_a_server_below_the_floor_speed_gives_way(serve, cache, capsys, monkeypatch):
    monkeypatch.setattr(ff, "FLOOR_SECONDS", 0.2)
    server = serve([trickle(TORONTO, 50)], [whole(KAGGLE)])
    assert_loads(cache)
    assert server.requests == ["/toronto", "/kaggle"]
    assert "slower than 100 kB/s" in capsys.readouterr().err


def test_a_server_above_the_floor_speed_may_take_its_time(serve, cache, monkeypatch):
    monkeypatch.setattr(ff, "FLOOR_SECONDS", 0.05)
    monkeypatch.setattr(ff, "FLOOR_SPEED", 1)
    server = serve([trickle(TORONTO, len(TORONTO) // 20)])
    assert_loads(cache)
    assert server.requests == ["/toronto"]


def test_no_route_to_any_source_is_one_line_with_the_way_out(cache):
    line = assert_gives_up(cache, "Connection refused", "--dataset synthetic")
    assert line.count(small.CLOSED) == 2


def test_both_sources_down_names_both_and_what_they_answered(serve, cache):
    server = serve([unavailable], [web_page])
    toronto, kaggle = server.url("/toronto"), server.url("/kaggle")
    assert_gives_up(cache, toronto, "503", kaggle, "<!DOCTYPE")


def test_a_download_of_the_wrong_data_is_not_cached(serve, cache):
    others = small.make_arrays(seed=1)
    serve(
        [whole(small.tar_gz(small.toronto_members(others)))],
        [whole(small.zip_of(small.kaggle_members(others)))],
    )
    assert_gives_up(cache, small.digest(ARRAYS), small.digest(others))


def test_a_download_that_does_not_end_is_cut_off(serve, cache, monkeypatch, capsys):
    monkeypatch.setattr(ff, "MAX_ARCHIVE", len(KAGGLE) + 1000)
    serve([unannounced(TORONTO[:2] + bytes(2 * len(KAGGLE)))], [whole(KAGGLE)])
    assert_loads(cache)
    assert f"more than {ff.MAX_ARCHIVE} bytes" in capsys.readouterr().err


def openssl(folder):
    """A key and a certificate for 127.0.0.1 that nobody but this test trusts."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command to make a certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -nodes -newkey rsa:2048 -days 2 -subj /CN=test"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


def serve_tls(server, certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )


def test_https_never_becomes_http_and_needs_a_trusted_certificate(
    serve, cache, tmp_path, monkeypatch
):
    certificate, key = openssl(tmp_path)
    plain = serve([whole(TORONTO)])
    target = plain.url("/toronto")
    tls = Server({"/to-http": [redirect(target)], "/toronto": [whole(TORONTO)]})
    serve_tls(tls, certificate, key)
    threading.Thread(target=tls.serve_forever, args=(0.02,)).start()
    try:
        monkeypatch.setattr(ff, "KAGGLE_URL", small.CLOSED)
        monkeypatch.setattr(ff, "TORONTO_URL", tls.url("/toronto", "https"))
        with pytest.raises(RunError, match="CERTIFICATE_VERIFY_FAILED"):
            ff.load_cifar10(cache)
        assert tls.requests == []

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setattr(ff, "TORONTO_URL", tls.url("/to-http", "https"))
        with pytest.raises(RunError, match="from https to http"):
            ff.load_cifar10(cache)
        assert tls.requests == ["/to-http"]
        assert plain.requests == []

        monkeypatch.setattr(ff, "TORONTO_URL", tls.url("/toronto", "https"))
        assert_loads(cache)
    finally:
        tls.shutdown()
        tls.server_close()


@pytest.mark.parametrize("target", ["http://h/x", "ftp://h/x", "HTTP://h/x"])
def test_a_redirect_from_https_to_anything_else_is_refused(target):
    request = urllib.request.Request("https://h/x")
    with pytest.raises(urllib.error.URLError, match="from https"):
        ff.SecureRedirect().redirect_request(request, None, 302, "", {}, target)
    safe = ff.SecureRedirect().redirect_request(
        request, None, 302, "", {}, "https://h/y"
    )
    assert safe.full_url == "https://h/y"


# ----------------------------------------------------------- damaged archives


def tar_with(change):
    """Toronto's archive after change(members), a list of [TarInfo, bytes]."""
    members = [list(member) for member in small.toronto_members(ARRAYS)]
    change(members)
    return small.tar_gz(members)


def zip_with(change):
    """Kaggle's archive after change(members), a list of [name, bytes]."""
    members = [list(member) for member in small.kaggle_members(ARRAYS)]
    change(members)
    return small.zip_of(members)


def link(kind, target):
    """Turns data_batch_2.bin into a link of this kind."""

    def change(members):
        members[2][0].type, members[2][0].linkname = kind, target
        members[2][1] = b""

    return change


def label_of_ten(members):
    members[1][1] = b"\x0a" + members[1][1][1:]


def image_as(*size_and_mode):
    *size, mode = size_and_mode
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")

    def change(members):
        members[4][1] = file.getvalue()

    return change


TAR_FAULTS = {
    "a batch is missing": (lambda m: m.pop(3), "data_batch_3.bin"),
    "a batch is too short": (lambda m: m[2].append(m[2].pop()[:-1]), "came"),
    "a batch is too long": (lambda m: m[2].append(m[2].pop() + b"x"), "came"),
    "two batches are swapped": (
        lambda m: m.__setitem__(slice(1, 3), [[m[1][0], m[2][1]], [m[2][0], m[1][1]]]),
        "SHA-256",
    ),
    "a batch comes twice, differently": (
        lambda m: m.append([m[1][0], m[2][1]]),
        "SHA-256",
    ),
    "a label is over 9": (label_of_ten, "SHA-256"),
    "a batch is a symbolic link": (link(tarfile.SYMTYPE, "/etc/passwd"), "came"),
    "a batch is a hard link": (
        link(tarfile.LNKTYPE, "cifar-10-batches-bin/data_batch_1.bin"),
        "came",
    ),
    "a batch is a device": (link(tarfile.CHRTYPE, ""), "came"),
    "a batch is elsewhere": (
        lambda m: setattr(m[1][0], "name", "/cifar-10-batches-bin/data_batch_1.bin"),
        "came",
    ),
}
ZIP_FAULTS = {
    "an image is missing": (lambda m: m.pop(5), "image 4 of train is missing"),
    "an image comes twice, differently": (
        lambda m: m.append([m[1][0].replace("/0_", "/00_"), m[2][1]]),
        "SHA-256",
    ),
    "an index is out of range": (
        lambda m: m[1].insert(0, m[1].pop(0).replace("/0_", "/20_")),
        "image 0 of train is missing",
    ),
    "a folder is not of its class": (
        lambda m: m[1].insert(0, re.sub("train/[a-z]+", "train/plane", m[1].pop(0))),
        "image 0 of train is missing",
    ),
    "an image is 32x31": (image_as(32, 31, "RGB"), "came 32x31 RGB"),
    "an image is huge": (image_as(4000, 4000, "RGB"), "came 4000x4000 RGB"),
    "an image is grey": (image_as(32, 32, "L"), "came 32x32 L"),
    "an image has an alpha channel": (image_as(32, 32, "RGBA"), "came 32x32 RGBA"),
    "an image is no PNG": (lambda m: m[4].append(b"GIF89a" + m[4].pop()), "identify"),
    "an image is cut": (lambda m: m[4].append(m[4].pop()[:-40]), "trunc"),
    "an image is another": (lambda m: m[4].append(m[5][1]) or m[4].pop(1), "SHA-256"),
}


@pytest.mark.parametrize("fault", TAR_FAULTS)
def test_a_damaged_tar_is_refused_in_one_line(cache, fault):
    change, reason = TAR_FAULTS[fault]
    put(cache, "cifar-10-binary.tar.gz", tar_with(change))
    assert_gives_up(cache, str(cache / "cifar-10-binary.tar.gz"), reason)


@pytest.mark.parametrize("fault", ZIP_FAULTS)
def test_a_damaged_zip_is_refused_in_one_line(cache, fault):
    change, reason = ZIP_FAULTS[fault]
    put(cache, "cifar10.zip", zip_with(change))
    assert_gives_up(cache, str(cache / "cifar10.zip"), reason)


def strange_members(outside):
    """Names and links that would write outside of a folder they were unpacked into."""
    names = [
        "../escaped",
        "../../escaped",
        f"{outside}/absolute",
        "cifar-10-batches-bin",
    ]
    members = [[tarfile.TarInfo(name), b"x"] for name in names]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info = tarfile.TarInfo("cifar-10-batches-bin/link")
        info.type, info.linkname = kind, str(outside)
        members.append([info, b""])
    members.append([tarfile.TarInfo("cifar-10-batches-bin/link/through"), b"x"])
    return members


def test_members_that_are_not_wanted_are_never_written_anywhere(cache, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    strange = strange_members(outside)
    put(cache, "cifar-10-binary.tar.gz", tar_with(lambda m: m.extend(strange)))
    assert_loads(cache)
    shutil.rmtree(cache)
    strange = [[name, b"x"] for name in {info.name for info, _ in strange}]
    put(cache, "cifar10.zip", zip_with(lambda m: m.extend(strange)))
    assert_loads(cache)
    assert names(tmp_path) == ["cache", "cifar10.npz", "cifar10.zip", "outside"]


def loads_in_little_memory(cache):
    """assert_gives_up(), and never more than 10 MB of Python memory on the way."""
    tracemalloc.start()
    try:
        with pytest.raises(RunError) as error:
            ff.load_cifar10(cache)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert_gives_up(cache)
    return str(error.value)


def test_a_gzip_bomb_is_refused_by_its_size(cache, monkeypatch):
    monkeypatch.setattr(ff, "MAX_ARCHIVE", 500_000)
    bomb = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    archive = tar_with(lambda m: m.insert(1, [bomb, bytes(100_000_000)]))
    put(cache, "cifar-10-binary.tar.gz", archive)
    assert "unpacks to more than 500000 bytes" in loads_in_little_memory(cache)


def test_a_zip_bomb_is_refused_by_its_size(cache):
    members = small.kaggle_members(ARRAYS)
    start = members[4][1].index(b"IDAT") - 4
    chunk = struct.pack(">I", 100_000_000) + b"teXt" + bytes(100_000_004)
    members[4][1] = members[4][1][:start] + chunk + members[4][1][start:]
    archive = small.zip_of(members, zipfile.ZIP_DEFLATED)
    put(cache, "cifar10.zip", archive)
    assert len(archive) < 1e6
    assert "cifar10.zip" in loads_in_little_memory(cache)


def test_a_sparse_member_of_a_terabyte_is_not_read(cache):
    """A hole takes no room in the archive, and all memory once it is read."""
    info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(10**12),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": f"{10**12},0",
    }
    put(cache, "cifar-10-binary.tar.gz", tar_with(lambda m: m.append([info, b""])))
    assert_loads(cache)


# ------------------------------------------------------------- damaged caches


def good_npz(arrays=ARRAYS, **changes):
    file = io.BytesIO()
    np.savez(file, **(dict(zip(small.NAMES, arrays)) | changes))
    return file.getvalue()


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


NPZ = good_npz()
compressed = io.BytesIO()
np.savez_compressed(compressed, **dict(zip(small.NAMES, ARRAYS)))
BAD_CACHES = {
    "empty": b"",
    "cut": NPZ[:-100],
    "cut in half": NPZ[: len(NPZ) // 2],
    "bit-flipped pixels": flipped(NPZ, 5000),
    "bit-flipped directory": flipped(NPZ, len(NPZ) - 60),
    "another file": b"not an npz",
    "a bare array": NPZ[NPZ.index(b"\x93NUMPY") :],
    "other images": good_npz(small.make_arrays(seed=1)),
    "other shapes, same bytes": good_npz(train_x=ARRAYS[0].reshape(20, -1)),
    "other types, same values": good_npz(train_y=ARRAYS[1].astype(np.int64)),
    "one array too many": good_npz(more=np.zeros(3)),
    "one array too few": small.zip_of([]),
    "pickled labels": good_npz(train_y=ARRAYS[1].astype(object)),
    "compressed": compressed.getvalue(),
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
    assert (cache / "cifar10.npz").read_bytes() != BAD_CACHES[damage]
    assert_loads(cache)
    assert capsys.readouterr().err == ""


def test_a_cut_archive_in_the_cache_gives_way_and_is_left_alone(serve, cache, capsys):
    serve([whole(TORONTO)])
    put(cache, "cifar-10-binary.tar.gz", TORONTO[: len(TORONTO) // 2])
    put(cache, "cifar10.zip", KAGGLE[: len(KAGGLE) // 2])
    assert_loads(cache)
    tar, zip_, _ = capsys.readouterr().err.splitlines()
    assert "cifar-10-binary.tar.gz" in tar
    assert "cifar10.zip" in zip_


def test_a_folder_without_a_user_is_one_line_with_the_way_out():
    for call in (ff.cache_folder, ff.load_cifar10):
        with pytest.raises(RunError, match="home.*--cache-dir"):
            call("~no-such-user/folder")


def test_a_header_that_asks_for_all_memory_is_a_damaged_file(tmp_path):
    path = tmp_path / "cifar10.npz"
    shape = b"(20, 32, 32, 3), }" + b" " * 12
    assert NPZ.count(shape) == 1
    large = b"(10000000000, 32, 32, 3), }   "
    names = [f"{name}.npy" for name in small.NAMES]
    path.write_bytes(small.reseal(NPZ, names, lambda b: b.replace(shape, large)))
    with pytest.raises(RunError, match="train_x.npy is shorter than its array"):
        ff.load_npz(path, "cache")


def test_too_little_memory_is_no_fault_of_the_data(serve, cache):
    server = serve([whole(TORONTO)], [whole(KAGGLE)])
    program = """if True:
        import resource, sys
        import ff_cifar_locally_connected as ff

        sys.argv[0] = "script.py"
        ff.TORONTO_URL = ff.KAGGLE_URL = sys.argv.pop()
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)
        ff.command(ff.main)
    """
    whole_size = [np.zeros((50_000, 32, 32, 3), np.uint8), *ARRAYS[1:]]
    put(cache, "cifar10.npz", good_npz(whole_size))
    url = server.url("/toronto")
    end = subprocess.run(
        [sys.executable, "-c", program, "--cache-dir", cache, url],
        cwd=Path(ff.__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert (end.returncode, end.stdout) == (1, "")
    assert end.stderr.startswith("script.py: not enough memory")
    assert len(end.stderr.splitlines()) == 1
    assert server.requests == []


def test_a_folder_that_takes_no_cache_may_hold_the_archive(cache):
    put(cache, "cifar-10-binary.tar.gz", TORONTO)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    process = small.start(settings(), *flags(cache), preexec_fn=limit)
    code, out, err = small.finish(process)
    assert code == 0
    assert "chance" in out
    assert len(err.splitlines()) == 1
    for word in ("cifar-10-binary.tar.gz will be parsed at every start", "too large"):
        assert word in err
    assert names(cache) == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("where", ["file", "file/folder"])
def test_a_cache_folder_that_cannot_be_made_is_one_line(serve, tmp_path, where):
    serve([whole(TORONTO)])
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(RunError, match="cannot make .*--cache-dir") as error:
        ff.load_cifar10(tmp_path / where)
    assert str(tmp_path / where) in str(error.value)
    assert (tmp_path / "file").read_bytes() == b"in the way"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "disk full")])
def test_a_stopped_write_leaves_what_was_there(tmp_path, stop):
    class Stops:
        def __array__(self, *args, **flags):
            raise stop

    path = tmp_path / "model.npz"
    path.write_bytes(b"as it was")
    with pytest.raises((KeyboardInterrupt, RunError)):
        ff.save_npz(path, {"first": np.zeros(9), "second": Stops()})
    assert path.read_bytes() == b"as it was"
    assert names(tmp_path) == ["model.npz"]


def test_writers_of_one_file_that_are_all_process_1_do_not_meet(tmp_path):
    path, started = tmp_path / "file", threading.Barrier(3, timeout=30)

    def write(k):
        def content(file):
            file.write(bytes([k]) * 9)
            started.wait()  # all three are in the middle, and of one process number

        ff.write_whole(path, content)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert path.read_bytes() in [bytes([k]) * 9 for k in range(3)]
    assert names(tmp_path) == ["file"]


def test_a_saved_file_may_be_read_by_whoever_the_umask_allows(tmp_path):
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            ff.save_npz(tmp_path / "file", {"a": np.zeros(9)})
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_the_file_that_a_kill_left_goes_with_a_save_after_an_hour(tmp_path):
    program = """if True:
        import os, pathlib, signal, sys
        import ff_cifar_locally_connected as ff

        def killed(file):
            file.write(bytes(1000))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        ff.write_whole(pathlib.Path(sys.argv[1]), killed)
    """
    command = sys.executable, "-c", program, tmp_path / "model.npz"
    folder = Path(ff.__file__).parent
    end = subprocess.run(command, check=False, cwd=folder)
    assert end.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    ff.save_npz(tmp_path / "another.npz", {"a": np.zeros(9)})
    assert left.exists()  # it may be of one who is still writing
    os.utime(left, (time.time() - 4000,) * 2)
    ff.save_npz(tmp_path / "another.npz", {"a": np.zeros(9)})
    assert names(tmp_path) == ["another.npz"]


# --------------------------------------------------------- processes of its own


def settings(server=None, **others):
    urls = {}
    if server:
        urls = {
            "TORONTO_URL": server.url("/toronto"),
            "KAGGLE_URL": server.url("/kaggle"),
        }
    tiny = {"RECEPTIVE_FIELDS": [29, 3], "CHANNELS": 2}
    return small.constants(ARRAYS, **urls, **tiny, **others)


def flags(cache):
    one_epoch = "--n-epochs 1 --train-subset 10 --eval-subset 10 --batch-size 5"
    return *one_epoch.split(), "--cache-dir", cache


def assert_runs(cache, server=None):
    code, out, err = small.finish(small.start(settings(server), *flags(cache)))
    assert (code, "chance" in out) == (0, True), err


@pytest.mark.parametrize("room", ["for half of the archive", "for half of the cache"])
def test_a_full_disk_is_one_line_and_leaves_nothing(serve, cache, room):
    """A limit on the size of files acts as a full disk does: write() fails."""
    server = serve([whole(TORONTO)])
    size = len(TORONTO) if "archive" in room else len(NPZ) + len(TORONTO)
    if "cache" in room:
        packed = small.tar_gz(small.toronto_members([0 * a for a in ARRAYS]))
        server.answers["/toronto"] = [whole(packed)]
        assert len(packed) < len(NPZ) // 2
        size = len(NPZ)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    blank = small.constants([0 * a for a in ARRAYS])["CIFAR_SHA256"]
    others = {"CIFAR_SHA256": blank} if "cache" in room else {}
    process = small.start(settings(server) | others, *flags(cache), preexec_fn=limit)
    code, out, err = small.finish(process)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "File too large" in err
    assert str(cache) in err
    assert names(cache) == []
    server.answers["/toronto"] = [whole(TORONTO)]
    assert_runs(cache, server)


def test_two_processes_that_start_at_once_both_end_well(serve, cache):
    server = serve([waits_half_way(TORONTO)])
    processes = [small.start(settings(server), *flags(cache)) for _ in range(2)]
    while len(server.requests) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    server.go_on.set()
    ends = [small.finish(process) for process in processes]
    assert [code for code, *_ in ends] == [0, 0]
    results = [re.findall(r"FF +1.{36}", out) for _, out, _ in ends]
    assert results[0] == results[1] != []
    assert names(cache) == ["cifar10.npz"]
    assert_loads(cache)


def test_control_c_during_a_download_leaves_nothing_and_the_next_start_works(
    serve, cache
):
    server = serve([waits_half_way(TORONTO), whole(TORONTO)])
    process = small.start(settings(server, TIMEOUT=30), *flags(cache))
    assert server.half_way.wait(30)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, out, err = small.finish(process)
    assert (code, out) == (130, "")
    assert len(err.splitlines()) == 1
    assert "interrupted" in err
    assert names(cache) == []
    assert_runs(cache, server)


def test_a_terminal_sees_the_progress_of_a_download(serve, cache):
    server = serve([waits_half_way(TORONTO)])
    ours, theirs = pty.openpty()
    process = small.start(settings(server, TIMEOUT=30), *flags(cache), stderr=theirs)
    os.close(theirs)
    seen = b""
    progress = rb"\r(\d+\.\d) of (\d+\.\d) MB, \d+\.\d\d MB/s, \d+ s left"
    while not re.search(progress, seen):
        seen += os.read(ours, 1000)
    server.go_on.set()
    try:
        while data := os.read(ours, 1000):
            seen += data
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    process.communicate()
    assert re.search(rb"FF epoch 1 of 1, step 2 of 2", seen)
    made = f"made {cache / 'cifar10.npz'} from".encode()
    assert re.search(rb"\r *\r+" + re.escape(made), seen)  # on a line wiped clean


def test_a_pipe_sees_no_progress(serve, cache):
    server = serve([whole(TORONTO)])
    _, _, err = small.finish(small.start(settings(server), *flags(cache)))
    url = server.url("/toronto")
    assert err == f"made {cache / 'cifar10.npz'} from {url}\n"
