"""The client against a stub on 127.0.0.1 that fails in every way that servers fail."""

import email.utils
import json
import socket
import threading
import time

import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.judge.client import Client, Endpoint, RefusedRequest
from tests.evaluation.judge.stub import completion, serve

MESSAGES = [{"role": "system", "content": "judge"}, {"role": "user", "content": "ä or b?"}]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def make_client(stub, slept=None, **settings):
    sleep = (lambda seconds: None) if slept is None else slept.append
    return Client(Endpoint(stub.url, "m", **{"timeout": 0.3, **settings}), sleep=sleep)


def test_request():
    with serve() as stub:
        client = make_client(stub, key="sk-1", temperature=0.5, max_tokens=7)
        assert client.ask(MESSAGES) == "good"
        assert make_client(stub).ask(MESSAGES) == "good"
    first, second = stub.requests
    assert first["path"] == "/v1/chat/completions"
    assert first["headers"]["Authorization"] == "Bearer sk-1"
    assert first["body"] == {
        "model": "m",
        "messages": MESSAGES,
        "temperature": 0.5,
        "max_tokens": 7,
    }
    assert "Authorization" not in second["headers"]
    assert second["body"] == {"model": "m", "messages": MESSAGES, "temperature": 0.0}


def test_bad_moments_pass():
    """Every kind once, in one conversation with the server; then the reply."""
    script = [
        {"status": 429, "headers": {"Retry-After": "9"}, "body": "slow down"},
        {"silent": True},
        {"body": '{"choices": [{"mess'},
        {"status": 500, "body": "<html>oops</html>"},
        {"body": "[]"},
        {"body": completion("")[:-1].replace('""', "null") + "}"},
        {"cut": True},
        {"status": 408},
        {"status": 503, "headers": {"Retry-After": "soon"}},
    ]
    slept = []
    with serve(script) as stub:
        assert make_client(stub, slept, attempts=10, seed=3).ask(MESSAGES) == "good"
    assert len(stub.requests) == 10
    assert all(request["body"] == stub.requests[0]["body"] for request in stub.requests)
    assert slept[0] == 9  # what Retry-After says, where it is longer than our own wait
    for attempt, wait in enumerate(slept[1:], start=1):
        assert min(2**attempt, 120) / 2 <= wait <= min(2**attempt, 120)


def test_waits_are_seeded():
    def waits(seed):
        slept = []
        with serve([{"status": 500}] * 4) as stub:
            make_client(stub, slept, seed=seed).ask(MESSAGES)
        return slept

    assert waits(1) == waits(1) != waits(2)


def test_retry_after_may_be_a_date():
    moment = email.utils.formatdate(time.time() + 60, usegmt=True)
    slept = []
    with serve([{"status": 429, "headers": {"Retry-After": moment}}]) as stub:
        make_client(stub, slept).ask(MESSAGES)
    assert 55 < slept[0] <= 60


def test_a_server_that_asks_for_too_long_a_wait():
    with (
        serve([{"status": 429, "headers": {"Retry-After": "3600"}}]) as stub,
        pytest.raises(ConfigError, match=r"asks to wait 3600 s \(status 429\), longer than 120 s"),
    ):
        make_client(stub).ask(MESSAGES)
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"silent": True}, "TimeoutError"),
        ({"body": '{"cho'}, r'no chat completion: \{"cho'),
        ({"status": 502, "body": '{"error": {"message": "bad\\ngateway"}}'}, "502, bad gateway"),
        ({"cut": True}, "IncompleteRead"),
    ],
)
def test_it_gives_up(step, said):
    with (
        serve([step] * 3) as stub,
        pytest.raises(ConfigError, match=f"within 2 attempts, the last one: .*{said}.*; start"),
    ):
        make_client(stub, attempts=2).ask(MESSAGES)
    assert len(stub.requests) == 2


def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        client = Client(Endpoint(url, "m", attempts=2), sleep=lambda seconds: None)
        with pytest.raises(ConfigError, match="within 2 attempts, the last one: .*refused"):
            client.ask(MESSAGES)


@pytest.mark.parametrize(
    ("step", "kind", "said"),
    [
        (
            {"status": 401, "body": '{"error": {"message": "bad key sk-77"}}'},
            ConfigError,
            r"\*\*\*",
        ),
        ({"status": 404, "body": '{"error": "no model m"}'}, ConfigError, "404, no model m"),
        ({"status": 400, "body": "too long"}, RefusedRequest, "status 400, too long"),
        ({"status": 307, "headers": {"Location": "http://other/"}}, ConfigError, "status 307"),
        (
            {"status": 429, "body": '{"error": {"message": "pay", "code": "insufficient_quota"}}'},
            ConfigError,
            "status 429, pay",
        ),
    ],
)
def test_what_does_not_pass(step, kind, said):
    """One request, the server's words, and never the key."""
    with serve([step]) as stub:
        client = make_client(stub, key="sk-77")
        with pytest.raises(
            ConfigError, match=f"must accept requests for m, but: .*{said}"
        ) as error:
            client.ask(MESSAGES)
    assert type(error.value) is kind
    assert len(stub.requests) == 1
    assert "sk-77" not in str(error.value)


def test_the_key_is_not_shown():
    endpoint = Endpoint("http://h/v1", "m", "sk-77")
    assert "sk-77" not in repr(endpoint)
    with (
        serve([{"body": json.dumps({"echo": "Bearer sk-77"})}]) as stub,
        pytest.raises(ConfigError) as error,
    ):
        make_client(stub, key="sk-77", attempts=1).ask(MESSAGES)
    assert "sk-77" not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http:///v1", ""])
def test_addresses(url):
    with pytest.raises(ConfigError, match="--url must be an address such as https://host/v1"):
        Client(Endpoint(url, "m"))


def test_an_address_may_name_the_whole_path():
    with serve() as stub:
        url = stub.url + "/chat/completions/"
        assert Client(Endpoint(url, "m")).ask(MESSAGES) == "good"
    assert stub.requests[0]["path"] == "/v1/chat/completions"


def test_threads_share_a_client():
    with serve([{"status": 429}] * 3, reply=lambda messages: messages[-1]["content"]) as stub:
        client, replies = make_client(stub), {}

        def ask(text):
            replies[text] = client.ask([{"role": "user", "content": text}])

        threads = [threading.Thread(target=ask, args=(str(i),)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert replies == {str(i): str(i) for i in range(5)}
    assert len(stub.requests) == 8
