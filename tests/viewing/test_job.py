"""Lists of prompts worked through to a file: in order, resumed, refused, over two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_mdlm import sample
from jax_mdlm.config import ConfigError

ROOT = Path(__file__).parent.parent.parent
NOISE = ["--config.sample.temperature=0.8", "--config.sample.batch_size=4"]


def words(workdir: Path, prompts_file: Path, output: Path, *more: str) -> list[str]:
    base = ["--workdir", str(workdir), "--file", str(prompts_file), "--output", str(output)]
    return [*base, *NOISE, *more]


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(workdir, prompts_file, tmp_path_factory) -> list[dict]:
    """What an undisturbed run in one process writes."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    sample.main(words(workdir, prompts_file, output, "--config.mesh.fsdp=8"))
    return rows(output)


def test_one_row_per_prompt_in_order(whole, prompts_file):
    asked = rows(prompts_file)
    assert len(whole) == len(asked) == 11
    for row, prompt in zip(whole, asked, strict=True):
        assert {key: row[key] for key in prompt if key != "response"} == {
            key: value for key, value in prompt.items() if key != "response"
        }
        assert isinstance(row["response"], str)
    assert whole[9]["answer"] == "D A B"
    assert whole[10]["template"] == "B [MASK*3] C"
    assert whole[10]["response"].split()[0] == "B"
    assert whole[10]["response"].split()[-1] == "C"
    assert len({row["response"] for row in whole[:8]}) > 1


@pytest.mark.parametrize("kept", [0, 1, 5, 10, 11])
def test_a_list_goes_on_where_it_stopped(workdir, prompts_file, tmp_path, whole, capsys, kept):
    """Also behind a row that was cut off in the middle; noise is drawn by the row's number."""
    output = tmp_path / "out.jsonl"
    more = ["--config.mesh.fsdp=8", "--trace", str(tmp_path / "trace.jsonl")]
    sample.main(words(workdir, prompts_file, output, *more))
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:kept]) + ('{"prompt": "ab' if kept < 11 else ""))
    sample.main(words(workdir, prompts_file, output, *more))
    assert rows(output) == whole
    traces = rows(tmp_path / "trace.jsonl")
    assert [row["response"] for row in traces] == [row["response"] for row in whole]
    assert f"11 rows in {output}" in capsys.readouterr().err


def test_a_killed_list_ends_like_an_undisturbed_one(workdir, prompts_file, tmp_path, whole):
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "jax_mdlm.sample", *words(workdir, prompts_file, output)]
    command[-1] = "--config.sample.batch_size=1"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if output.exists() and output.read_text().count("\n") >= 2:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert output.read_text().count("\n") >= 2
    sample.main(words(workdir, prompts_file, output, "--config.mesh.fsdp=8"))
    assert rows(output) == whole


@pytest.mark.slow
def test_two_processes_write_what_one_does(workdir, prompts_file, tmp_path, whole):
    """Four devices each; the first one writes every row once."""
    output = tmp_path / "out.jsonl"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jax_mdlm.sample", *words(workdir, prompts_file, output)]
    command += ["--config.mesh.fsdp=4", "--config.mesh.tensor=2"]
    processes = []
    for number in range(2):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
    for process in processes:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
        assert b"->" not in out, "answers go to the file"
    assert rows(output) == whole


# --- refusals ---


@pytest.fixture
def finished(workdir, prompts_file, tmp_path) -> Path:
    output = tmp_path / "out.jsonl"
    sample.main(words(workdir, prompts_file, output, "--config.mesh.fsdp=8"))
    return output


def test_other_settings_are_refused(workdir, prompts_file, finished):
    before = finished.read_text()
    with pytest.raises(ConfigError, match=r"was begun with other settings \(seed=0 there, 1 here"):
        sample.main(words(workdir, prompts_file, finished, "--config.sample.seed=1"))
    (finished.parent / "out.jsonl.settings.json").write_text("{")
    with pytest.raises(ConfigError, match=r"its out.jsonl.settings.json cannot be read; choose"):
        sample.main(words(workdir, prompts_file, finished))
    assert finished.read_text() == before


def test_other_prompts_are_refused(workdir, prompts_file, finished, tmp_path):
    other = tmp_path / "other.jsonl"
    lines = prompts_file.read_text().splitlines(keepends=True)
    other.write_text("".join([lines[1], *lines[1:]]))
    with pytest.raises(ConfigError, match=r"out.jsonl:1 must be the answer to prompt 1, it is not"):
        sample.main(words(workdir, other, finished))
    other.write_text("".join(lines[:3]))
    with pytest.raises(ConfigError, match=r"out.jsonl has 11 rows for 3 prompts; choose another"):
        sample.main(words(workdir, other, finished))


def test_a_trace_must_be_as_long_as_the_output(workdir, prompts_file, finished, tmp_path):
    trace = tmp_path / "short.jsonl"
    trace.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"must have a row for each of the 11 that --output has"):
        sample.main(words(workdir, prompts_file, finished, "--trace", str(trace)))


def test_an_output_that_cannot_be_written(workdir, prompts_file, tmp_path):
    with pytest.raises(ConfigError, match=r"--output .* must be a file that can be written, but"):
        sample.main(words(workdir, prompts_file, tmp_path))
