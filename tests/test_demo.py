"""The page to try generators, in a browser and by its requests."""

import base64
import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from inference import Translator
from models.networks import GENERATORS
from scripts import demo
from tests.conftest import draw_shapes
from tests.helpers import PATIENCE
from tests.test_cli import ONE_THREAD, ROOT
from tests.test_tiles import generator


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two generators, one of them with attention."""
    folder = tmp_path_factory.mktemp("weights")
    for name, attention in (("plain", []), ("attentive", ["block3"])):
        net = generator(GENERATORS["resnet_6blocks"], input_nc=3, output_nc=3, ngf=8, attention=attention)
        torch.save(net.net.state_dict(), folder / f"{name}.pth")
    return [folder / "attentive.pth", folder / "plain.pth"]


@pytest.fixture(scope="module")
def server(files):
    """A server in this process."""
    args = demo.parse(["--weights", *map(str, files), "--device", "cpu"])
    with demo.Server(("127.0.0.1", 0), demo.Demo(demo.load_translators(args))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_without_flags_the_bundled_translations_are_tried():
    translators = demo.load_translators(demo.parse(["--device", "cpu"]))
    assert translators.keys() == {"chart_AtoB", "chart_BtoA", "emoji_AtoB", "emoji_BtoA"}


def test_files_of_one_name_have_names_of_their_own(files, tmp_path):
    twin = shutil.copy(files[0], tmp_path)
    names = demo.load_translators(demo.parse(["--weights", str(files[0]), str(twin), "--device", "cpu"])).keys()
    assert names == {str(files[0]), str(twin)}


def ask(server, method, path, body=None, headers=None):
    """The status and the content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def upload(kind="PNG", size=(40, 30), **keywords):
    file = io.BytesIO()
    draw_shapes("photo", size).save(file, kind, **keywords)
    return file.getvalue()


def test_translation_and_attention(server, files):
    status, content = ask(server, "POST", "/translate?weights=attentive", upload())
    answer = json.loads(content)
    assert status == 200 and answer["blocks"] == {"block3": "gamma 0.500"}
    made = Image.open(io.BytesIO(base64.b64decode(answer["after"].partition(",")[2])))
    expected = Translator.load(files[0], device="cpu")(draw_shapes("photo", (40, 30)))
    assert np.array_equal(np.asarray(made), np.asarray(expected))
    status, figure = ask(server, "GET", f"/attention?id={answer['id']}&block=block3&x=1&y=0.5")
    assert status == 200 and Image.open(io.BytesIO(figure)).width >= 192
    for query in ("id=99&block=block3&x=0&y=0", f"id={answer['id']}&block=nothing&x=0&y=0"):
        assert ask(server, "GET", f"/attention?{query}")[0] == 404
    for query in (f"id={answer['id']}&block=block3&x=2&y=0", f"id={answer['id']}&block=block3&x=nan&y=0", "x=1"):
        assert ask(server, "GET", f"/attention?{query}")[0] == 400


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"no image", 400, "cannot be read as an image: it has no known format"),
        (b"", 400, "cannot be read as an image: it has no known format"),
        (upload("JPEG")[:-200], 400, "cannot be read as an image"),
        (upload()[:150], 400, "cannot be read as an image"),
        (upload(size=(3000, 2000)), 400, "3000x2000 pixels, more than"),
    ],
    ids=["text", "empty", "truncated jpg", "truncated png", "large"],
)
def test_bad_uploads_get_a_message(server, content, status, message):
    found, answer = ask(server, "POST", "/translate?weights=plain", content)
    assert found == status and message in json.loads(answer)["error"]


def test_huge_uploads_are_refused_unread(server):
    status, answer = ask(server, "POST", "/translate?weights=plain", b"", {"Content-Length": str(2**40)})
    assert status == 413 and "more than 32 MiB" in json.loads(answer)["error"]


def test_many_uploads_at_once_wait_or_are_refused(server):
    statuses = []
    with server.demo.running:
        threads = [
            threading.Thread(
                target=lambda: statuses.append(ask(server, "POST", "/translate?weights=plain", upload())[0])
            )
            for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + PATIENCE
        while len(statuses) < 50 - demo.WAITING and time.monotonic() < end:
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * demo.WAITING + [503] * (50 - demo.WAITING)
    assert len(server.demo.results) <= demo.REMEMBERED


def test_a_network_that_fails_gets_an_answer(server, monkeypatch, capfd):
    def fail(image):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(server.demo.translators, "failing", fail)
    monkeypatch.setattr(fail, "input_nc", 3, raising=False)
    monkeypatch.setattr(fail, "net", torch.nn.Identity(), raising=False)
    status, answer = ask(server, "POST", "/translate?weights=failing", upload())
    assert status == 500 and json.loads(answer)["error"] == "the translation failed: out of memory"
    assert ask(server, "POST", "/translate?weights=plain", upload())[0] == 200


def test_a_silent_upload_is_given_up(server, monkeypatch):
    monkeypatch.setattr(demo.Handler, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=PATIENCE) as connection:
        connection.sendall(b"POST /translate?weights=plain HTTP/1.0\r\nContent-Length: 1000\r\n\r\nfew")
        assert connection.recv(1) == b""


def test_nothing_but_the_page_is_readable(server):
    for path in ("/../README.md", "/README.md", "//etc/passwd", "/etc/passwd", "/%2e%2e/README.md", "/demo.html"):
        status, content = ask(server, "GET", path)
        assert status == 404 and b"error" in content
    assert ask(server, "POST", "/", b"x")[0] == 404
    assert ask(server, "POST", "/translate?weights=../net", upload())[0] == 400


def test_the_page_in_a_browser(server, browser, tmp_path):
    """Translate, move the slider, click for attention, change the weights, try a bad file."""
    browser.events.clear()
    browser.resize(1000)
    browser.call("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
    browser.wait("document.readyState === 'complete' && document.querySelector('#weights')?.length === 2")
    photo, bad = tmp_path / "photo.png", tmp_path / "bad.png"
    photo.write_bytes(upload(size=(160, 120)))
    bad.write_bytes(b"no image")

    def choose(*paths):
        node = browser.call("Runtime.evaluate", expression="document.querySelector('#file')")["result"]["objectId"]
        browser.call("DOM.setFileInputFiles", files=[str(path) for path in paths], objectId=node)

    choose(photo)
    browser.wait("document.querySelector('#after').naturalWidth === 160 && !document.querySelector('#figures').hidden")
    assert browser.run("document.querySelector('#block').value") == "block3"
    browser.run("{ const s = document.querySelector('#slider'); s.value = 20; s.dispatchEvent(new Event('input')) }")
    assert "20%" in browser.run("document.querySelector('#after').style.clipPath")
    box = browser.run(
        "(b => [b.left, b.top, b.width, b.height])(document.querySelector('#pair').getBoundingClientRect())"
    )
    browser.click(box[0] + 0.7 * box[2], box[1] + 0.3 * box[3])
    browser.wait("document.querySelector('#map').naturalWidth > 0 && !document.querySelector('#attention').hidden")
    browser.screenshot(tmp_path / "demo.png")
    browser.run(
        "{ const s = document.querySelector('#weights'); s.value = 'plain'; s.dispatchEvent(new Event('change')) }"
    )
    browser.wait("document.querySelector('#message').textContent.includes('no attention')")
    assert browser.run("document.querySelector('#blocks').hidden")
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith((f"http://127.0.0.1:{server.server_port}/", "data:", "blob:")) for url in requests)
    assert not [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    choose(bad)
    browser.wait("document.querySelector('#message.error')?.textContent.includes('bad.png: this file cannot be read')")
    assert browser.run("document.querySelector('#figures').hidden")


def test_the_command_ends_by_ctrl_c(files):
    argv = [sys.executable, "-m", "scripts.demo", "--weights", str(files[1]), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    )
    assert "Open http://127.0.0.1:" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and errors == ""


@pytest.mark.parametrize("flags", ["--direction AtoB", "--epoch 3", "--no_ema"])
def test_flags_of_runs_need_a_run(flags, capsys):
    with pytest.raises(SystemExit):
        demo.main(flags.split())
    assert f"{flags.split()[0]} chooses among the generators of a run: give --name" in capsys.readouterr().err


def test_a_taken_port_is_an_error(server, files):
    with pytest.raises(OSError, match=rf"--port {server.server_port}: .* choose another --port"):
        demo.main(["--weights", str(files[1]), "--port", str(server.server_port), "--device", "cpu"])
