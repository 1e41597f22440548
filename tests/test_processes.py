"""Where other processes are looked for: exactly on pods."""

import http.server
import threading
from collections.abc import Iterator
from typing import ClassVar

import jax
import pytest

from jax_mdlm import command, processes


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of a TPU VM."""

    attributes: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[1]
        self.asked.append(name)
        known = name in self.attributes and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if known else 404)
        self.end_headers()
        if known:
            self.wfile.write(self.attributes[name].encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Metadata]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
    Metadata.attributes, Metadata.asked = {}, []
    yield Metadata
    server.shutdown()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Sets what JAX leaves behind when it is imported on a machine with chips."""

    def make(chips: bool = True, platforms: str | None = "tpu,cpu", **env: str) -> None:
        for name in (
            "TPU_SKIP_MDS_QUERY",
            "TPU_PROCESS_ADDRESSES",
            "TPU_WORKER_HOSTNAMES",
            "MEGASCALE_NUM_SLICES",
            "JAX_COORDINATOR_ADDRESS",
        ):
            monkeypatch.delenv(name, raising=False)
        if not chips:
            monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(processes, "_platforms", lambda: platforms)

    return make


POD = "t1v-n-0-w-0:8470:10.0.0.2,t1v-n-0-w-1:8470:10.0.0.3"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a.svc,b.svc", "TPU_WORKER_ID": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a.svc"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_PROCESS_ADDRESSES": "local"}, False),  # Kaggle
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a.svc", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a.svc", "MEGASCALE_NUM_SLICES": "1"}, False),
        ({"TPU_SKIP_MDS_QUERY": "true", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_SKIP_MDS_QUERY": "true"}, False),  # Colab
    ],
    ids=str,
)
def test_variables_decide_without_the_server(
    machine, metadata: type[Metadata], env: dict[str, str], expected: bool
) -> None:
    metadata.attributes = {"worker-network-endpoints": POD}
    machine(**env)
    assert processes.on_pod() == expected
    assert not metadata.asked


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"worker-network-endpoints": POD, "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n"}, True),
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.2", "tpu-env": "X: 'y'"}, False),
        ({"worker-network-endpoints": "a", "tpu-env": "A: 'b'\nMEGASCALE_NUM_SLICES: '2'\n"}, True),
        ({"worker-network-endpoints": "a", "tpu-env": "MEGASCALE_NUM_SLICES: '1'"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_the_metadata_server_of_a_tpu_vm(
    machine, metadata: type[Metadata], attributes: dict[str, str], expected: bool
) -> None:
    metadata.attributes = attributes
    machine()
    assert processes.on_pod() == expected
    assert metadata.asked


def test_no_server_is_no_pod(machine) -> None:
    machine(GCE_METADATA_IP="127.0.0.1:9")
    assert not processes.on_pod()


@pytest.mark.parametrize("platforms", ["cpu", None, "cuda,cpu"])
def test_other_platforms_ask_nobody(
    machine, metadata: type[Metadata], platforms: str | None
) -> None:
    metadata.attributes = {"worker-network-endpoints": POD}
    machine(platforms=platforms, TPU_WORKER_HOSTNAMES="a,b")
    assert not processes.on_pod()
    assert not metadata.asked


def test_without_chips_nobody_is_asked(machine, metadata: type[Metadata]) -> None:
    metadata.attributes = {"worker-network-endpoints": POD}
    machine(chips=False)
    assert not processes.on_pod()
    assert not metadata.asked


def test_processes_are_joined_exactly_on_pods(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    patience = {"heartbeat_timeout_seconds": command.HEARTBEAT_SECONDS}
    machine(TPU_WORKER_HOSTNAMES="a")
    command.start_processes()
    assert calls == []
    machine(TPU_WORKER_HOSTNAMES="a,b")
    command.start_processes(detect=False)
    assert calls == []
    command.start_processes()
    assert calls == [((), patience)]
    machine(
        chips=False,
        platforms="cpu",
        JAX_COORDINATOR_ADDRESS="10.0.0.2:1234",
        JAX_NUM_PROCESSES="4",
        JAX_PROCESS_ID="3",
    )
    command.start_processes(detect=False)
    assert calls[1:] == [(("10.0.0.2:1234", 4, 3), patience)]


def test_processes_that_do_not_find_each_other_are_to_try_again(
    machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

    machine(TPU_WORKER_HOSTNAMES="a.svc,b.svc", TPU_WORKER_ID="0")
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(SystemExit) as ended:
        command.start_processes()
    assert ended.value.code == command.AGAIN
    assert capsys.readouterr().err == (
        "error: the processes of this run must find each other, they did not (DEADLINE_EXCEEDED: "
        "Barrier timed out.); start the same command again on all of them\n"
    )
