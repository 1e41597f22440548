"""The whole chain for real: the stub gcloud executes each command line in a home per worker."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import Pod

# A python that says what it was given, trains for ever and saves on SIGTERM.
PYTHON = """
for word in "$@"; do printf '%s\\0' "$word"; done >"$HOME/arguments"
printf '%s' "${LIBTPU_INIT_ARGS:-none}" >"$HOME/libtpu"
trap 'echo "saved at step 7"; echo saved >>"$HOME/saves"; exit 0' TERM
echo "step 1"
while :; do sleep 0.05; done
"""
UV = """
echo "$*" >>"$HOME/uv"
case $1 in
  venv) mkdir -p .venv/bin; cp "$(dirname "$0")/fake_python" .venv/bin/python ;;
  python) [ "$2" = find ] && echo "$FOUND_PYTHON"; exit 0 ;;
esac
"""
HARD = [
    "a b",
    "it's",
    'say "x"',
    "$HOME `id` $(id)",
    "*",
    "two\nlines",
    "end\n",
    "",
    "\\",
    "--config.é=1",
]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.02)


@pytest.fixture
def workers(pod: Pod) -> Iterator[list[Path]]:
    """Homes of four workers, two per slice; what still runs at the end is ended."""
    pod.program("fake_python", PYTHON)
    pod.program("uv", UV)
    (pod.stub / "workers").write_text("2")
    pod.settings.write_text(pod.settings.read_text() + "NODE_COUNT=2\n")
    yield [pod.stub / f"n-{node}/{number}" for node in range(2) for number in range(2)]
    (pod.stub / "unreachable").unlink(missing_ok=True)
    pod("stop")


def test_from_create_to_resume(pod: Pod, workers: list[Path]) -> None:
    (pod.checkout / "configs").mkdir()
    (pod.checkout / "configs/mine.py").write_text("# new, not yet added")
    (pod.checkout / "key.json").write_text("secret")
    (pod.checkout / "jax_mdlm/__init__.py").write_text("changed = True")
    (pod.checkout / "launch/quickstart.sh").unlink()
    pod.states("!NOT_FOUND", "ACCEPTED", "ACTIVE")
    pod("create")

    said = pod("setup").stdout
    assert len(re.findall(": ready", said)) == 4
    for home in workers:
        there = {
            str(file.relative_to(home / "jax_mdlm"))
            for file in home.rglob("*.*")
            if file.is_relative_to(home / "jax_mdlm")
        }
        assert "configs/mine.py" in there  # tracked or not, Python goes along
        assert not {"key.json", "launch/quickstart.sh", "launch/tpu/pod.env"} & there
        assert (home / "jax_mdlm/jax_mdlm/__init__.py").read_text() == "changed = True"
        assert (home / "uv").read_text().splitlines() == [
            f"venv --quiet --python {sys.executable} .venv",
            "pip install --quiet --python .venv/bin/python -e .[tpu,cloud]",
        ]

    pod("run", "--config", "mine", *HARD, LIBTPU_INIT_ARGS="--xla_a=1 --xla_b='2'")
    words = ["-m", "jax_mdlm.train", "--workdir", "gs://b/run", "--config", "mine", *HARD]
    for home in workers:
        wait_for(lambda: (home / "libtpu").exists())
        assert (home / "arguments").read_bytes().decode().split("\0")[:-1] == words
        assert (home / "libtpu").read_text() == "--xla_a=1 --xla_b='2'"

    done = pod("status")
    assert done.stdout.startswith("n: ACTIVE\n")
    assert len(re.findall(r": running \(pid \d+\): step 1", done.stdout)) == 4
    assert len(re.findall(": step 1", pod("logs", "all", "--slice", "1").stdout)) == 2
    again = pod("run", "--config", "mine", code=2)
    assert (
        len(re.findall(r"error: .* a run is under way \(pid \d+\); stop it first", again.stderr))
        == 4
    )
    assert "a run is under way" in pod("setup", code=2).stderr  # its code is not touched

    said = pod("stop").stdout
    assert len(re.findall("supervise: .* stopped; the command ended with code 0", said)) == 4
    assert [(home / "saves").read_text() for home in workers] == ["saved\n"] * 4
    assert len(re.findall("not running: supervise: .* stopped", pod("status").stdout)) == 4
    assert len(re.findall("nothing is running", pod("stop").stdout)) == 4

    # New chips: homes that know nothing. An argument that was remembered arrives as it was.
    for home in workers:
        home.rename(home.with_name(f"old-{home.name}"))
    pod.states("SUSPENDED|SERVICE|", "ACCEPTED", "ACTIVE")
    pod("resume")
    for home in workers:
        wait_for(lambda: (home / "libtpu").exists())
        assert (home / "arguments").read_bytes().decode().split("\0")[:-1] == words
        assert (home / "libtpu").read_text() == "--xla_a=1 --xla_b='2'"


def test_setup_again_updates_and_keeps(pod: Pod, workers: list[Path]) -> None:
    pod("setup")
    (workers[0] / "jax_mdlm/runs").mkdir()
    (workers[0] / "jax_mdlm/runs/mine").write_text("")
    (pod.checkout / "launch/test.sh").unlink()
    (pod.checkout / "new.py").write_text("")
    pod("setup")
    for home in workers:
        assert not (home / "jax_mdlm/launch/test.sh").exists()
        assert (home / "jax_mdlm/new.py").exists()
        assert len((home / "uv").read_text().splitlines()) == 2  # not installed a second time
    assert (workers[0] / "jax_mdlm/runs/mine").exists()


def test_setup_from_git(pod: Pod, workers: list[Path]) -> None:
    pod.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first")
    source = f"SOURCE={pod.checkout}"
    pod(source, "setup")
    (pod.checkout / "new.py").write_text("")
    pod.git("add", "--all")
    pod.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "second")
    (workers[0] / "jax_mdlm/launch/quickstart.sh").write_text("edited on the worker")
    pod(source, "setup")
    for home in workers:
        assert (home / "jax_mdlm/new.py").exists()
        assert (home / "jax_mdlm/.venv/bin/python").exists()
        assert len((home / "uv").read_text().splitlines()) == 2
    pod(source, "REVISION=HEAD~1", "setup", code=2)  # a remote knows branches, tags and commits
    assert "setup failed on n-0 n-1" in pod(source, "REVISION=nowhere", "setup", code=2).stderr


def test_a_worker_with_an_old_python_gets_one_from_uv(pod: Pod, workers: list[Path]) -> None:
    tools = "sh cat cp cmp dirname env find git grep gzip hostname mkdir mktemp"
    for name in f"{tools} ps rm sed sleep sort tail tar tr".split():
        found = next(
            (p for p in (Path("/bin") / name, Path("/usr/bin") / name) if p.exists()), None
        )
        if found:
            pod.program(name, f'exec "{found}" "$@"')
    old = pod.program("python3", 'case $1 in -c) exit 1 ;; esac\necho "$*" >>"$HOME/python3"')
    (pod.bin / "uv").rename(pod.bin / "uv_of_pip")
    old.write_text(
        old.read_text()
        + 'mkdir -p "$HOME/.local/bin"; cp "$(dirname "$0")/uv_of_pip" "$HOME/.local/bin/uv"\n'
        + 'cp "$(dirname "$0")/fake_python" "$HOME/.local/bin"\n'
    )
    pod("setup", PATH=str(pod.bin), PYTHON="", FOUND_PYTHON=sys.executable)
    for home in workers:
        assert (home / "python3").read_text() == "-m pip install --quiet --user uv\n"
        assert (home / "uv").read_text().splitlines() == [
            "python install --quiet 3.12",
            "python find 3.12",
            f"venv --quiet --python {sys.executable} .venv",
            "pip install --quiet --python .venv/bin/python -e .[tpu,cloud]",
        ]
