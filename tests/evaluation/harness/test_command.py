"""`evaluate harness` from argv to table and JSON."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluate import main
from tests.evaluation.harness.conftest import TASKS


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]) -> Path:
    """A folder with a task called gsm8k, so that presets know it, and one that they do not know."""
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    monkeypatch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", "")  # put back afterwards
    monkeypatch.delenv("HF_UPDATE_DOWNLOAD_COUNTS")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own"
    shutil.copytree(TASKS, folder)
    (folder / "gsm8k.yaml").write_text("task: gsm8k\ninclude: spell.yaml\n")
    rows = [{"letters": word, "answer": "A"} for word in ("abc", "fade", "cab")]
    for name in ("spell_train.jsonl", "spell.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"letters": "abc", "choices": ["A", "B"], "gold": 0}]
    Path("choose.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return folder


def run(workdir: Path, folder: Path, *flags: str) -> dict:
    flags = ("--include", str(folder), "--output", "out/results.json", *flags)
    main(["harness", "--workdir", str(workdir), *flags])
    return json.loads(Path("out/results.json").read_text())


def test_table_and_json(workdir, own_tasks, capsys, no_network):
    flags = ("--num-fewshot", "0", "--limit", "2", "--samples", "2", "--greedy")
    results = run(workdir, own_tasks, "--tasks", "spell,choose", *flags)
    table = capsys.readouterr().out
    assert "exact_match" in table
    assert "acc" in table
    assert results["n-samples"] == {
        "spell": {"original": 3, "effective": 2},
        "choose": {"original": 1, "effective": 1},
    }
    (config,) = results["config"]  # the same settings: one run
    assert (config["step"], config["samples"], config["chat"]) == (3, 2, False)
    assert config["limit"] == 2
    assert os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] == "0"
    assert no_network == []


def test_a_preset_fills_what_flags_do_not_say(workdir, own_tasks, local_only, capsys):
    flags = ("--preset", "instruct-blocks", "--config.sample.length=24", "--num-fewshot=1")
    results = run(
        workdir, own_tasks, "--tasks", "gsm8k,spell", "--config.sample.steps", "12", *flags
    )
    with_preset, without = results["config"]
    assert with_preset["tasks"] == ["gsm8k"]
    assert with_preset["chat"]
    assert with_preset["num_fewshot"] == 1
    sample = with_preset["sample"]
    assert (sample["length"], sample["block_length"], sample["steps"]) == (24, 8, 12)
    assert without["tasks"] == ["spell"]
    assert not without["chat"]
    sample = without["sample"]
    assert (sample["length"], sample["block_length"], sample["steps"]) == (24, 3, 12)
    assert "preset instruct-blocks says nothing of task spell" in capsys.readouterr().err


def test_a_published_length_does_not_fit_a_small_model(workdir, own_tasks, local_only):
    with pytest.raises(ConfigError, match="and 1024 new slots must fit model.max_length=96"):
        run(workdir, own_tasks, "--tasks", "gsm8k", "--preset", "base", "--num-fewshot=0")
    assert not Path("out/results.json").exists()


def test_code_is_allowed_by_a_flag(workdir, own_tasks):
    with pytest.raises(ConfigError, match="add --allow-code"):
        run(workdir, own_tasks, "--tasks", "code")
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "0"
    results = run(workdir, own_tasks, "--tasks", "code", "--allow-code")
    assert "code" in results["results"]
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", ","], "--tasks must name a task, got ','"),
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (["--num-fewshot=-1"], "--num-fewshot must be at least 0, got -1"),
        (["--limit", "0"], r"--limit must be above 0, got 0\.0; leave it out"),
        (["--output", "."], r"--output \. cannot be written"),
        (["--config.data.seed=1"], r"--config.data.seed cannot be changed here"),
        (["--config.sample.steps=1"], "sample.steps must give each of the 2 blocks a step, got 1"),
    ],
)
def test_refusals(workdir, own_tasks, flags, message):
    with pytest.raises(ConfigError, match=message):
        run(workdir, own_tasks, "--tasks", "spell", *flags)


def test_without_lm_eval(workdir, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name)
    )
    with pytest.raises(ConfigError, match=r"not installed: pip install -e '\S+\[eval\]'"):
        main(["harness", "--workdir", str(workdir), "--tasks", "spell"])
