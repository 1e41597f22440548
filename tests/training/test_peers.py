"""Who is taken for lost, and what the others then do."""

import contextlib
import threading
import time

import jax
import pytest
from jax._src import distributed

from jax_mdlm.training.stop import Beats, Peers


def test_a_sign_that_does_not_change_is_a_loss() -> None:
    beats = Beats(limit=10)
    assert beats.lost(0, {0: "1", 1: "1"}) == []
    assert beats.lost(9, {0: "5", 1: "1"}) == []
    assert beats.lost(11, {0: "6", 1: "1"}) == [1]
    assert beats.lost(12, {0: "7", 1: "2"}) == [], "it was only slow"
    assert beats.lost(23, {0: "7", 1: "2"}) == [0, 1]


def test_signing_off_or_not_having_begun_is_no_loss() -> None:
    beats = Beats(limit=10)
    assert beats.lost(0, {0: "1", 1: "1"}) == []
    assert beats.lost(30, {0: "2"}) == []
    assert beats.lost(60, {0: "3", 2: "1"}) == [], "its time runs from its first sign"
    assert beats.lost(71, {0: "4", 2: "1"}) == [2]


class Service:
    """The coordination service as its clients see it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.gone = False

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self._reach()
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        self._reach()
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def key_value_delete(self, key: str) -> None:
        self._reach()
        del self.values[key]

    def _reach(self) -> None:
        if self.gone:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service()
    monkeypatch.setattr(distributed.global_state, "client", found)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    return found


def watch(
    monkeypatch: pytest.MonkeyPatch, index: int, limit: float = 0.2
) -> tuple[Peers, list[str], threading.Event]:
    monkeypatch.setattr(jax, "process_index", lambda: index)
    found, left = [], threading.Event()

    def leave(line: str) -> None:
        found.append(line)
        left.set()

    return Peers(every=0.1, limit=limit, leave=leave), found, left


def test_the_first_process_names_the_lost_one_to_all(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.values["jax_mdlm/alive/1"] = "7"  # and never again
    peers, found, left = watch(monkeypatch, 0)
    with peers:
        assert left.wait(10)
    assert found[0].startswith("process 1 of 3 was lost (no sign of life for 0 s); start the comm")
    assert "jax_mdlm/lost/1" in service.values
    others, found, left = watch(monkeypatch, 2)
    with others:
        assert left.wait(10)
    assert found[0].startswith("process 1 of 3 was lost")


def test_a_service_out_of_reach_is_the_first_process(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, found, left = watch(monkeypatch, 2)
    with contextlib.suppress(ZeroDivisionError), peers:  # a bad end does not sign off
        service.gone = True
        assert left.wait(10)
        raise ZeroDivisionError
    assert found[0].startswith("process 0 of 3 was lost")


def test_a_good_end_signs_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    peers, found, _ = watch(monkeypatch, 1)
    with peers:
        while "jax_mdlm/alive/1" not in service.values:
            time.sleep(0.001)
    assert service.values == {}
    assert not found


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_a_broken_collective_waits_for_the_name(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    kind: type[Exception],
) -> None:
    """Of a running program, or of one that is dispatched for the first time."""
    service.values["jax_mdlm/alive/2"] = "7"
    peers, found, left = watch(monkeypatch, 0)
    with pytest.raises(kind), peers:
        raise kind("UNKNOWN: Gloo AllGather failed:\nConnection reset")
    assert left.is_set()
    assert found[0].startswith("process 2 of 3 was lost")
    assert "Gloo AllGather failed: Connection reset; looking for a lost" in capsys.readouterr().err


def test_a_full_device_waits_for_nobody(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    peers, found, _ = watch(monkeypatch, 0, limit=1000)
    with pytest.raises(jax.errors.JaxRuntimeError), peers:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    assert not found


def test_an_error_of_the_program_waits_for_nobody(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, found, _ = watch(monkeypatch, 0, limit=1000)
    with pytest.raises(ValueError, match="operands"), peers:
        raise ValueError("operands could not be broadcast together")
    assert not found


def test_one_process_watches_nobody() -> None:
    before = threading.active_count()
    with Peers():
        assert threading.active_count() == before
