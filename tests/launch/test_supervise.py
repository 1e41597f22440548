"""launch/tpu/supervise.sh: what is started again, what is not, and how a stop is passed on."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT

SCRIPT = ROOT / "launch/tpu/supervise.sh"


def supervise(folder: Path, body: str, restarts: int = 3, pause: int = 0) -> subprocess.Popen[str]:
    """Supervises a shell script that counts its starts in the file `starts`."""
    (folder / "command").write_text(f"echo >>starts\n{body}\n")
    return subprocess.Popen(
        ["sh", str(SCRIPT), "sh", "command"],
        cwd=folder,
        env={"PATH": "/bin:/usr/bin", "RESTARTS": str(restarts), "PAUSE": str(pause)},
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], folder: Path) -> tuple[int, int, str]:
    """Exit code, number of starts, last line."""
    text, _ = process.communicate(timeout=20)
    starts = folder / "starts"
    return process.returncode, len(starts.read_text().splitlines()), text.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "finished"),
        (1, "ended with code 1, which a restart does not mend"),
        (2, "ended with code 2, which a restart does not mend"),
        (130, "ended with code 130, which a restart does not mend"),
    ],
)
def test_codes_that_end_a_run(tmp_path: Path, code: int, words: str) -> None:
    last = ended(supervise(tmp_path, f"exit {code}"), tmp_path)
    assert last[:2] == (code, 1)
    assert last[2].endswith(words)


@pytest.mark.parametrize("death", ["kill -KILL $$", "kill -ABRT $$", "exit 143", "exit 70"])
def test_what_was_cut_down_is_started_again(tmp_path: Path, death: str) -> None:
    body = f"[ $(wc -l <starts) -ge 3 ] || {{ {death}; }}"
    assert ended(supervise(tmp_path, body), tmp_path)[:2] == (0, 3)


def test_restarts_are_limited(tmp_path: Path) -> None:
    code, starts, last = ended(supervise(tmp_path, "kill -KILL $$"), tmp_path)
    assert (code, starts) == (137, 4)
    assert last.endswith("ended with code 137 after 3 restarts, no more are allowed")


def wait_for_file(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stop_waits_for_the_save_and_is_passed_on_once(tmp_path: Path) -> None:
    body = "trap 'echo >>terms' TERM; touch ready; while [ ! -f go ]; do sleep 0.02; done"
    process = supervise(tmp_path, f"{body}\necho saved")
    wait_for_file(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    wait_for_file(tmp_path / "terms")
    process.send_signal(signal.SIGTERM)  # an impatient second stop must not end the save
    time.sleep(0.2)
    assert process.poll() is None
    (tmp_path / "go").touch()
    code, starts, last = ended(process, tmp_path)
    assert (code, starts) == (143, 1)  # saved, not finished
    assert last.endswith("stopped; the command ended with code 0")
    assert (tmp_path / "terms").read_text() == "\n"


def test_a_stop_of_a_command_that_fails_keeps_its_code(tmp_path: Path) -> None:
    process = supervise(tmp_path, "trap 'exit 5' TERM; touch ready; while :; do sleep 0.02; done")
    wait_for_file(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    assert ended(process, tmp_path)[:2] == (5, 1)


def test_a_stop_between_two_starts(tmp_path: Path) -> None:
    process = supervise(tmp_path, "touch ready; kill -KILL $$", pause=30)
    wait_for_file(tmp_path / "ready")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    code, starts, last = ended(process, tmp_path)
    assert (code, starts) == (143, 1)
    assert last.endswith("stopped before a start")
