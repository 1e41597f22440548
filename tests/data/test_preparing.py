"""The command `prepare`: kills, several at once, full disks."""

import json
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jax_mdlm import prepare
from jax_mdlm.config import ConfigError
from tests.data.prepared_rows import (
    config_file,
    contents,
    start,
    write_rows,
)

WITHIN = 5.0  # seconds from a kill to the end of the workers
BUSY = "is being written by another process; wait for it, or choose another"


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]


def error_of(process: subprocess.Popen[str]) -> str:
    """What the user is told at the end; there is no traceback."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, (process.returncode, errors[-3000:])
    assert "Traceback" not in errors
    (line,) = re.findall(r"^error: (.+)$", errors, re.MULTILINE)
    return line


def members(group: int) -> list[int]:
    """Processes of a group that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


# --- kills ---


def drill(folder: Path, rows: int, size: int, kills: int) -> None:
    """Kills the main process at random moments; at last the folder is that of a calm run."""
    config = config_file(folder / "config.py", write_rows(folder / "rows.jsonl", rows))
    began = time.monotonic()
    finish(start(config, folder / "calm", "--workers", "2", size=size))
    seconds, draw = time.monotonic() - began, random.Random(rows)
    met = 0
    for _ in range(kills):
        process = start(config, folder / "rows", "--workers", "2", size=size)
        time.sleep(draw.uniform(0.4, 1.0) * seconds)
        met += process.poll() is None and len(members(process.pid)) > 2
        process.kill()
        process.communicate()
        killed = time.monotonic()
        while left := members(process.pid):
            assert time.monotonic() < killed + WITHIN, f"workers {left} outlive their parent"
            time.sleep(0.05)
        if (folder / "rows" / "manifest.json").exists():  # it was done before
            assert contents(folder / "rows") == contents(folder / "calm")
            shutil.rmtree(folder / "rows")
    assert met, "no kill met workers"
    finish(start(config, folder / "rows", "--workers", "2", size=size))
    assert contents(folder / "rows") == contents(folder / "calm")


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path) -> None:
    drill(tmp_path, rows=60_000, size=100_000, kills=20)


def test_what_a_kill_leaves_at_the_worst_moments(tmp_path: Path) -> None:
    """Before the plan has its name, before the manifest has its, before `work` is gone."""
    config = config_file(tmp_path / "config.py", write_rows(tmp_path / "rows.jsonl", 60))
    words = ["--config", str(config), "--workers", "1", "--output"]
    prepare.main([*words, str(tmp_path / "calm")])
    calm = contents(tmp_path / "calm")
    other = tmp_path / "other"
    (other / "work").mkdir(parents=True)
    (other / "work" / "plan.json.0123abcd.partial").write_text("{")
    prepare.main([*words, str(other)])
    assert contents(other) == calm
    (other / "work").mkdir()  # the manifest is there
    prepare.main([*words, str(other)])
    assert contents(other) == calm
    shutil.rmtree(other / "spans")
    (other / "work").mkdir()
    plan = {name: json.loads((other / "manifest.json").read_text())[name] for name in PLAN}
    (other / "work" / "plan.json").write_text(json.dumps(plan, indent=1))
    (other / "manifest.json").rename(other / "manifest.json.0123abcd.partial")
    for name in ("train", "spans/0123"):
        (other / name).mkdir(parents=True, exist_ok=True)
        (other / name / "00000.tokens.npy.0123abcd.partial").write_bytes(b"cut")
    prepare.main([*words, str(other)])
    assert contents(other) == calm


PLAN = ("schema", "version", "made_from", "tokenizer", "tokenizer_path")


# --- several at once ---


def test_two_commands_on_one_folder(tmp_path: Path) -> None:
    """Both end well, or one is told that the other is at it."""
    config = config_file(tmp_path / "config.py", write_rows(tmp_path / "rows.jsonl", 600))
    finish(start(config, tmp_path / "calm", "--workers", "1"))
    pair = [start(config, tmp_path / "rows", "--workers", "1") for _ in range(2)]
    ends = [process.wait(60) for process in pair]
    assert 0 in ends
    for process in pair:
        if process.returncode:
            assert error_of(process) == f"{tmp_path / 'rows'} {BUSY}"
        else:
            process.communicate()
    assert contents(tmp_path / "rows") == contents(tmp_path / "calm")


def start_pair(config: Path, output: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            config,
            output,
            "--workers",
            "1",
            XLA_FLAGS="",
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]


@pytest.mark.slow
def test_two_processes_share_the_shards(tmp_path: Path) -> None:
    config = config_file(tmp_path / "config.py", write_rows(tmp_path / "rows.jsonl", 400))
    finish(start(config, tmp_path / "calm", "--workers", "1"))
    pair = start_pair(config, tmp_path / "rows")
    said = [process.communicate(timeout=60)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    for number, text in enumerate(said):
        assert re.search(rf"process {number} prepared \d+ rows in \d\d shards", text), text
    assert contents(tmp_path / "rows") == contents(tmp_path / "calm")


@pytest.mark.parametrize("number", [0, 1])
def test_a_bad_row_of_one_process_ends_both(tmp_path: Path, number: int) -> None:
    lines = Path(write_rows(tmp_path / "rows.jsonl", 100)).read_text().splitlines()
    lines[0 if number == 0 else 22] = '{"prompt": 3, "response": "a"}'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    config = config_file(tmp_path / "config.py", str(tmp_path / "rows.jsonl"))
    pair = start_pair(config, tmp_path / "rows")
    said = [error_of(process) for process in pair]
    assert re.match(
        r".*rows.jsonl:\d+: .*; correct the row or set data.on_bad_row=skip$", said[number]
    )
    assert said[1 - number] == (
        f"another process could not do its part of {tmp_path / 'rows'}; see its last line"
    )
    assert not (tmp_path / "rows" / "manifest.json").exists()


def test_a_folder_of_others_ends_both(tmp_path: Path) -> None:
    """What the first process refuses, and the second cannot know."""
    config = config_file(tmp_path / "config.py", write_rows(tmp_path / "rows.jsonl", 20))
    (tmp_path / "full" / "train").mkdir(parents=True)
    (tmp_path / "full" / "train" / "mine.txt").write_text("mine")
    said = [error_of(process) for process in start_pair(config, tmp_path / "full")]
    assert said[0].endswith("it holds train; choose another")
    assert said[1].startswith("another process could not do its part of")
    assert contents(tmp_path / "full").keys() == {"train/mine.txt"}


# --- full disks ---


def test_a_full_disk_is_one_error_and_is_gone_on_from(
    tmp_path: Path, disk: Callable[[int], Path]
) -> None:
    """Grown page by page: each error is one line, nothing looks whole, what is there is kept."""
    config = config_file(tmp_path / "config.py", write_rows(tmp_path / "rows.jsonl", 60))
    words = ["--config", str(config), "--workers", "1", "--output"]
    prepare.main([*words, str(tmp_path / "calm")])
    errors = []
    for kilobytes in range(4, 2000, 12):
        output = disk(kilobytes) / "rows"
        try:
            prepare.main([*words, str(output)])
        except ConfigError as error:
            errors.append(str(error))
            assert not (output / "manifest.json").exists()
            assert not list(output.rglob("*.partial"))
        else:
            break
    assert len(errors) > 5
    said = rf"{output}\S* must take the [^\n]*\([^\n]*No space left on device[^\n]*\); [^\n]+"
    assert all(re.fullmatch(said, error) for error in errors), errors
    assert contents(output) == contents(tmp_path / "calm")
