"""`evaluate sweep`: lists, digests, and a real sweep of tiny models that goes on where it was."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_mdlm import command
from jax_mdlm.config import ConfigError
from jax_mdlm.evaluate import main
from jax_mdlm.experiments.sweep import cores_of, digest, list_runs, parse_run
from tests.training.conftest import write_rows

LISTS = sorted((Path(__file__).parents[2] / "configs" / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_the_shipped_lists(path):
    """Each names its command, its configs validate, and no two of its runs are the same."""
    text = path.read_text().split('"""')[1]
    assert f"python -m jax_mdlm.evaluate sweep --runs experiments/{path.stem}" in text
    runs = command.load_function(f"experiments/{path.stem}", "get_runs")()
    configs = {name: parse_run(words) for name, words in runs.items()}
    assert len({digest(config) for config in configs.values()}) == len(configs) > 1


def test_shared_runs_share_a_digest():
    """A model of two lists is trained once."""
    paper = command.load_function("experiments/paper", "get_runs")()
    weights = command.load_function("experiments/weights", "get_runs")()
    assert digest(parse_run(paper["ctc_merge"])) == digest(parse_run(weights["lambda 4"]))
    assert digest(parse_run(paper["slack_ce"])) == digest(parse_run(weights["lambda 0"]))
    seeded = parse_run([*paper["ce"], "--config.train.seed=3"])
    assert digest(seeded) == digest(parse_run(paper["ce"]))


def list_file(folder: Path) -> Path:
    write_rows(folder / "rows.jsonl")
    (folder / "tiny.py").write_text(
        "from tests.training.conftest import tiny_config\n\n\n"
        "def get_config(preset):\n"
        f"    return tiny_config({str(folder / 'rows.jsonl')!r}, steps=4)\n"
    )
    path = folder / "runs.py"
    path.write_text(
        f"TINY = '--config={folder / 'tiny.py'}'\n\n\n"
        "def get_runs():\n"
        "    return {'ce': [TINY, '--config.objective.ctc_weight=0'], 'ctc': [TINY]}\n"
    )
    return path


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = ["sweep", "--runs", str(list_file(tmp_path)), "--folder", str(tmp_path / "models")]
    words += ["--training-seeds=2", "--strengths", "0", "0.5", "--seeds=1", "--split=validation"]
    words += ["--jobs=2", "--output", str(tmp_path / "out")]
    main([*words, "--only=ce"])
    assert capsys.readouterr().out.count("done: ce") == 2
    records = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert len(records) == 2

    main(words)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    *lines, empty, reason = table.splitlines()
    assert not empty
    assert reason.startswith("no interval (ce rates, ")
    assert reason.endswith("): 5 rows, at least 25 are needed")
    assert [line.split("|")[1].strip() for line in lines] == ["run", "---", "ce", "ctc"]
    assert lines[2].split("|")[2].strip() == "2"
    models = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert [(one["name"], one["seed"], one["steps"]) for one in models] == [
        ("ce", 0, 4),
        ("ctc", 0, 4),
        ("ce", 1, 4),
        ("ctc", 1, 4),
    ]
    assert all(one["minutes"] > 0 for one in models)
    for path, when in records.items():
        assert path.stat().st_mtime_ns == when, "trained once"
    for name in ("intervention.json", "intervention.png", "runs.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_stops_what_it_runs(tmp_path, number):
    """The training saves, is not taken for a finished one, and the same command goes on."""
    pytest.importorskip("matplotlib")
    runs = list_file(tmp_path)
    text = runs.read_text()
    runs.write_text(text.replace("=0']", "=0', '--config.train.steps=100000']"))
    words = ["--runs", str(runs), "--folder", str(tmp_path / "models"), "--split=validation"]
    words += ["--strengths", "0", "0.5", "--seeds=1", "--output", str(tmp_path / "out")]
    # What a shell starts in the background ignores SIGINT, and so would all that it starts.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from jax_mdlm import command, evaluate; command.run(evaluate.main)"
    )
    line = [sys.executable, "-c", code, "sweep", *words]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.rglob("commit_success.txt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        # Only the sweep is signalled; its children have to hear of it.
        process.send_signal(number)
        errors = process.communicate(timeout=120)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("something was still running")
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], errors
    (log,) = (tmp_path / "models").glob("*.log")
    assert "stopped by a signal and saved at step" in log.read_text()
    assert not list(tmp_path.rglob("run.json"))


def test_a_training_that_fails_is_named(tmp_path):
    pytest.importorskip("matplotlib")
    runs = tmp_path / "runs.py"
    runs.write_text(
        "def get_runs():\n"
        "    return {'a': ['--config=pronounce', '--config.init.source=/nowhere/at/all']}\n"
    )
    words = ["--runs", str(runs), "--folder", str(tmp_path / "m"), "--output", str(tmp_path / "o")]
    with pytest.raises(
        ConfigError, match=r"jax_mdlm.train .* must end well, it ended with 2: error"
    ):
        main(["sweep", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only=x"], r"--only must name runs of experiments/paper, ce, .* got \['x'\]"),
        (["--training-seeds=0"], "must be 1 or more, got 0 and 1"),
        (["--config.train.steps=1"], "a sweep takes its settings from --runs"),
        (["--strengths", "2"], "must be 0 and one or more probabilities"),
        (["--metric=bleu"], "metric must be one of symbols, .* got 'bleu'"),
    ],
    ids=str,
)
def test_refusals(tmp_path, words, message):
    pytest.importorskip("matplotlib")
    base = ["sweep", "--runs=experiments/paper", f"--folder={tmp_path}", f"--output={tmp_path}"]
    with pytest.raises(ConfigError, match=message):
        main([*base, *words])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"a": [], "b": ["--config.objective.ctc_weight=4"]}, "runs a and b of .* have the same"),
        ({"a": ["--config.train.seed=3"]}, r"run a of .* must leave train.seed at 0, got 3; --tra"),
        (
            {"a": ["--config.data.source=chat_jsonl"]},
            r"run a of .* has no test split, data\.source is chat_jsonl; name test rows",
        ),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, runs, message):
    pytest.importorskip("matplotlib")
    file = tmp_path / "runs.py"
    words = {name: ["--config=pronounce", *more] for name, more in runs.items()}
    file.write_text(f"def get_runs():\n    return {words!r}\n")
    with pytest.raises(ConfigError, match=message):
        main(["sweep", f"--runs={file}", f"--folder={tmp_path}", f"--output={tmp_path}"])


def test_a_run_that_is_named_twice_is_one(tmp_path):
    args = argparse.Namespace(runs="experiments/paper", folder=str(tmp_path), only="ce,ce")
    args.training_seeds, args.jobs, args.split, args.file = 2, 1, "test", ""
    assert [one.seed for one in list_runs(args, [])] == [0, 1]


def test_a_run_names_one_config():
    with pytest.raises(ConfigError, match="must name one config as --config=NAME, got a"):
        parse_run(["a"])


def test_jobs_share_the_cores():
    if not hasattr(os, "sched_getaffinity"):  # macOS: a job is not bound to cores
        assert cores_of(0, 2) == set()
        return
    cores = os.sched_getaffinity(0)
    assert cores_of(0, 1) == cores
    assert set().union(*(cores_of(number, 2) for number in range(2))) == cores
    assert all(cores_of(number, 99) for number in range(99))
