"""A real server on a free port of loopback: many clients at once, refusals on the wire, and its end."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import httpx2
import numpy as np
import pytest

from segkit.models.bundle import save_bundle
from segkit.serving.app import build_app
from segkit.serving.limits import Limits
from segkit.serving.running import _signals_end_quietly, address_of, is_loopback, open_socket
from tests.scenes import FORMATS, default_codec, scene
from tests.serving.servers import png, predictor_of, running
from tests.test_cli import segkit

WAIT_S = 120.0
SIZES = ((24, 40), (40, 24), (33, 57))


def pixels(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("kind", ["exclusive", "one_vs_rest", "binary"])
def test_200_requests_at_once_are_all_answered_each_with_its_own_mask(kind):
    """Of every five two are no good, and are refused without harm to those beside them."""
    predictor = predictor_of(kind)
    limits = Limits(max_bytes=2**18)
    good = {number: scene(number, SIZES[number % 3])[0] for number in range(120)}
    expected = {number: predictor.predict(image)[..., 0] for number, image in good.items()}
    malformed, oversized = b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"\x89PNG" + b"\0" * 2**18

    async def scenario(url):
        answers = {}

        async def ask(client, name, content):
            answers[name] = await client.post(f"{url}/predict", content=content)

        async with httpx2.AsyncClient(
            timeout=WAIT_S, limits=httpx2.Limits(max_connections=200), trust_env=False
        ) as client:
            requests = [ask(client, number, png(number, SIZES[number % 3])) for number in good]
            requests += [ask(client, f"malformed {n}", malformed) for n in range(40)]
            requests += [ask(client, f"oversized {n}", oversized) for n in range(40)]
            order = np.random.default_rng(0).permutation(len(requests))
            await asyncio.gather(*(requests[i] for i in order))
            return answers, (await client.get(f"{url}/metrics")).text

    with running(build_app(predictor, limits=limits, batch_size=8)) as url:
        answers, metrics = asyncio.run(scenario(url))
    assert len(answers) == 200
    for number, planes in expected.items():
        assert answers[number].status_code == 200
        assert np.array_equal(pixels(answers[number].content), planes), number
    for name, status in (("malformed", 400), ("oversized", 413)):
        refused = [answer for key, answer in answers.items() if str(key).startswith(name)]
        assert [answer.status_code for answer in refused] == [status] * 40
        assert all(list(answer.json()) == ["error"] for answer in refused)
    # Different answers for different images, or nothing was shown.
    assert len({planes.tobytes() for planes in expected.values()}) == 120
    batches = float(re.search(r"segkit_batch_images_count (\S+)", metrics)[1])
    images = float(re.search(r"segkit_batch_images_sum (\S+)", metrics)[1])
    assert images == 120
    assert batches < 120, "nothing was computed together"


def test_a_full_server_says_when_to_come_again_and_answers_then():
    predictor, hold, inside = predictor_of("binary"), threading.Event(), threading.Event()
    compute = predictor.model.predict_coarse_logits

    def held(*arguments):
        inside.set()
        assert hold.wait(WAIT_S)
        return compute(*arguments)

    predictor.model.predict_coarse_logits = held
    with running(build_app(predictor, limits=Limits(max_requests=1, retry_s=3))) as url:
        answers = []
        first = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{url}/predict", content=png(), timeout=WAIT_S))
        )
        first.start()
        assert inside.wait(WAIT_S)
        full = httpx2.post(f"{url}/predict", content=png(), timeout=WAIT_S)
        assert (full.status_code, full.headers["retry-after"]) == (503, "3")
        assert "full" in full.json()["error"]
        assert httpx2.get(f"{url}/health", timeout=WAIT_S).json()["status"] == "ready"
        hold.set()
        first.join()
        assert answers[0].status_code == 200
        assert httpx2.post(f"{url}/predict", content=png(), timeout=WAIT_S).status_code == 200


def on_wire(url, sent, more=b""):
    """What comes back for bytes on a connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        connection.sendall(sent)
        if more:
            connection.sendall(more)
        received = b""
        while chunk := connection.recv(2**16):
            received += chunk
            if b"\r\n\r\n" in received and received.endswith(b"}"):
                break
        return received


def test_sizes_are_checked_before_a_body_comes_and_while_it_comes():
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    with running(build_app(predictor_of("binary"), limits=Limits(max_bytes=1000, upload_s=WAIT_S))) as url:
        # Declared: refused with none of it sent, since the client waits to be told to go on.
        answer = on_wire(url, f"{head}Content-Length: 5000000\r\nExpect: 100-continue\r\n\r\n".encode())
        assert b" 413 " in answer.split(b"\r\n")[0]
        assert b"100 Continue" not in answer
        # Not declared: refused as soon as too much has come, though the body has no end.
        chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
        answer = on_wire(url, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), chunk * 3)
        assert b" 413 " in answer.split(b"\r\n")[0]


def test_a_client_that_stalls_is_not_waited_for():
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nhalf"
    with running(build_app(predictor_of("binary"), limits=Limits(upload_s=0.05))) as url:
        assert b" 408 " in on_wire(url, head.encode()).split(b"\r\n")[0]


def test_clients_that_leave_do_no_harm():
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\nhalf"
    with running(build_app(predictor_of("binary"), limits=Limits(max_requests=3))) as url:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(10):
            with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
                connection.sendall(head.encode())
        for _ in range(1000):
            if b"segkit_requests_in_progress 0.0" in httpx2.get(f"{url}/metrics", timeout=WAIT_S).content:
                break
        assert httpx2.post(f"{url}/predict", content=png(), timeout=WAIT_S).status_code == 200


def test_addresses():
    with open_socket("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        assert address_of(opened) == f"http://127.0.0.1:{port}"
        assert is_loopback(opened)
        with pytest.raises(ValueError, match=f"127.0.0.1 port {port} .*--port"):
            open_socket("127.0.0.1", port)
    with open_socket("0.0.0.0", 0) as opened:
        assert not is_loopback(opened)
    with pytest.raises(ValueError, match="cannot listen at no such host"):
        open_socket("no such host", 0)
    with pytest.raises(ValueError, match="port is 70000"):
        open_socket("127.0.0.1", 70000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_ended_the_server_does_not_end_the_command_too(number):
    before = signal.getsignal(number)
    with _signals_end_quietly():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


# The command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    format = FORMATS["binary"]
    return save_bundle(predictor_of("binary").model, tmp_path_factory.mktemp("serve") / "m", default_codec(format))


def test_the_command_serves_a_bundle_and_finishes_what_it_has(bundle):
    """The signal comes while a request is sent: half of its body is there, the rest comes after the signal."""
    command = [sys.executable, "-m", "segkit.cli", "serve", str(bundle), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        content = png()
        whole = httpx2.post(f"{url}/predict", content=content, timeout=WAIT_S)
        assert whole.status_code == 200
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content[:100])
            for _ in range(1000):
                if b"in_progress 1.0" in httpx2.get(f"{url}/metrics", timeout=WAIT_S).content:
                    break
            process.send_signal(signal.SIGTERM)
            while not refuses(host, int(port)):
                pass
            connection.sendall(content[100:])
            received = b""
            while chunk := connection.recv(2**16):
                received += chunk
        assert received.startswith(b"HTTP/1.1 200 ")
        assert received.endswith(whole.content)
        out, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, err) == (0, "")
        assert "answered everything" in out
    finally:
        process.kill()
        process.wait()


def refuses(host, port):
    try:
        socket.create_connection((host, port), timeout=WAIT_S).close()
    except OSError:
        return True
    return False


def test_a_taken_port_is_a_mistake_of_the_user(bundle, capsys):
    with open_socket("127.0.0.1", 0) as taken:
        assert segkit("serve", bundle, "--port", taken.getsockname()[1], "--device", "cpu") == 2
    assert "Give another --port" in capsys.readouterr().err


def test_without_the_extra_one_line_says_how_to_install_it(bundle, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "segkit.serving.app", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert segkit("serve", bundle) == 2
    assert capsys.readouterr().err == (
        "segkit: segkit serve needs starlette.applications, which is not installed: pip install 'segkit[serve]'\n"
    )


def test_limits_of_nothing_are_a_mistake_of_the_user(bundle, capsys):
    assert segkit("serve", bundle, "--max-mebibytes", 0) == 2
    assert "max_bytes is 0" in capsys.readouterr().err
