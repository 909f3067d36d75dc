"""Access to the Hub: a server that answers, one that does not, and none."""

import http.server
import socket
import threading
import time

import pytest
from huggingface_hub import constants

from prompt_jax.diagnosis import hub


@pytest.fixture
def online(monkeypatch):
    """Return a function that sets the Hub's address."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


class _Refusing(http.server.BaseHTTPRequestHandler):
    headers_seen: list[str] = []

    def do_HEAD(self):
        self.headers_seen.append(str(self.headers))
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_hub_that_answers(online):
    """Any answer shows that it can be reached. The token is not sent."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        online(f"http://me:password@127.0.0.1:{server.server_port}")
        access = hub.HubProbe().result()
        server.shutdown()
    assert access == hub.HubAccess(f"http://127.0.0.1:{server.server_port}", False, token=True, reachable=True)
    assert _Refusing.headers_seen and "hf_secret" not in "".join(_Refusing.headers_seen)


def test_no_hub(online, monkeypatch):
    online("http://me:password@127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    access = hub.HubProbe().result()
    assert access.reachable is False and "refused" in access.reason and access.token is False
    assert "password" not in str(access)


def test_a_hub_that_does_not_answer(online):
    with socket.create_server(("127.0.0.1", 0)) as server:
        online(f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        access = hub.HubProbe().result(timeout=0.5)
    assert access.reachable is False and access.reason == "no answer in 0.5 s" and time.monotonic() - start < 3


def test_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils.get_session", None)  # would fail
    access = hub.HubProbe().result()
    assert access.offline and access.reachable is None and access.reason == ""


def test_a_token_that_cannot_be_read(online, monkeypatch):
    def fail():
        raise PermissionError

    monkeypatch.setattr("huggingface_hub.get_token", fail)
    online("http://127.0.0.1:9")
    assert hub.HubProbe().result().token is None
