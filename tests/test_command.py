"""The edge of the commands: config files, overrides, and the text of every error."""

import subprocess
import sys
from pathlib import Path

import pytest

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError, config_to_json, differences, from_json


def parse(*overrides: str, config: str = "llada_ctc") -> Config:
    return command.parse_config(config, overrides)


def test_values_are_cast_to_the_fields_types() -> None:
    config = parse(
        "--config.optimizer.learning_rate=1e-5",
        "--config.mesh.fsdp=16",
        "--config.objective.separate_repeats=false",
        "--config.objective.collapse=slack_only",
        "--config.mesh.rules=embed=,mlp=tensor+context",
        "--config.init.from=runs/other",
        "--config.data.tokenizer.mask_id",
        "7",
    )
    assert config.optimizer.learning_rate == 1e-5
    assert config.mesh.fsdp == 16
    assert config.objective.separate_repeats is False
    assert config.objective.collapse == "slack_only"
    assert config.mesh.rules == ("embed=", "mlp=tensor+context")
    assert config.data.tokenizer.mask_id == 7
    assert config.init.source == "runs/other"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "--config.optimizer.learning_rat=1",
            "--config.optimizer.learning_rat is not a setting; "
            "did you mean optimizer.learning_rate?",
        ),
        ("--config.optimiser.eps=1", "did you mean optimizer?"),
        ("--config.zzz=1", "--config.zzz is not a setting; known are name, model, "),
        ("--config.train.steps.more=1", "--config.train.steps.more is not a setting; "),
        (
            "--config.train=1",
            "--config.train is a section, set one of its fields: steps, epochs",
        ),
        ("--config.train.steps=many", "--config.train.steps must be of type int, got 'many'"),
        ("--config.train.steps=1.5", "--config.train.steps must be of type int, got '1.5'"),
        (
            "--config.objective.separate_repeats=perhaps",
            "--config.objective.separate_repeats must be of type bool, got 'perhaps'",
        ),
        (
            "--config.objective.collapse=both",
            "--config.objective.collapse must be one of merge, slack_only, got 'both'",
        ),
        ("--config.train.seed", "--config.train.seed needs a value: --config.train.seed=VALUE"),
    ],
)
def test_overrides_that_cannot_be_used(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(override)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model.embed=0", "model.embed must be at least 1, got 0"),
        ("objective.ctc_weight=-1", "objective.ctc_weight must be 0 or more, got -1.0"),
        ("model.kv_heads=5", "model.kv_heads must divide model.heads=32, got 5"),
        ("model.head_dim=7", "model.head_dim must be even, got 7"),
        (
            "data.length=8192",
            "data.length must be at most model.max_length=4096, got 8192; "
            "shorten the canvas or raise model.max_length",
        ),
        ("data.max_labels=5000", "data.max_labels must be at most data.length=4096, got 5000"),
        ("train.microbatches=3", "train.microbatches must divide train.batch_size=256, got 3"),
        ("objective.level_floor=0", "objective.level_floor must lie between 0 and 1, got 0.0"),
        ("train.epochs=0", "train.steps or train.epochs must be above 0, got 0 for both"),
        (
            "sample.block_length=7",
            "sample.block_length must be positive and divide sample.length=256, got 7",
        ),
        ("sample.steps=7", "sample.steps must give each of the 8 blocks a step, got 7"),
        ("sample.threshold=2", "sample.threshold must lie between 0 and 1, got 2.0"),
        ("optimizer.decay_share=2", "optimizer.decay_share must lie between 0 and 1, got 2.0"),
        ("mesh.data=-1", "mesh axes must be positive, with at most one -1, got (-1, -1, 1, 1)"),
    ],
)
def test_settings_that_cannot_work(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(f"--config.{override}")
    assert text in str(raised.value)


def test_config_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"config file 'nothing' was not found; .*llada_lora, llada_pretrain, numbers, pro",
    ):
        command.parse_config("nothing", [])
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(ConfigError, match=r"empty.py must define get_config,"):
        command.parse_config(str(empty), [])
    text = tmp_path / "config.txt"
    text.write_text("")
    with pytest.raises(ConfigError, match=r"config.txt must be a Python file, name it \*\.py"):
        command.parse_config(str(text), [])
    with pytest.raises(ConfigError, match="preset of llada_ctc must be slack_only or ce, got 'x'"):
        command.parse_config("llada_ctc:x", [])


def test_the_settings_of_a_run_are_a_config_file(tmp_path: Path) -> None:
    """So that what was typed for one run need not be typed again for the next."""
    config = parse("--config.mesh.rules=embed=", "--config.train.seed=3")
    file = tmp_path / "config.json"
    file.write_text(config_to_json(config))
    assert command.parse_config(str(file), []) == config
    changed = command.parse_config(str(file), ["--config.train.seed=4"])
    assert differences(config, changed, []) == ["train.seed=3 there, 4 here"]
    with pytest.raises(ConfigError, match=r"config.json has no presets, got 'ce'; leave it out"):
        command.parse_config(f"{file}:ce", [])
    with pytest.raises(ConfigError, match=r"config file '.*other.json' was not found"):
        command.parse_config(str(tmp_path / "other.json"), [])
    file.write_text('{"model_type": "llada"}')
    with pytest.raises(
        ConfigError, match=r"config.json must be the config.json of a work directory, it has no "
    ):
        command.parse_config(str(file), [])


def test_json_round_trip_and_differences() -> None:
    config = parse("--config.mesh.rules=embed=")
    again = from_json(config_to_json(config), "config.json")
    assert again == config
    other = parse("--config.mesh.rules=embed=", "--config.model.embed=64", "--config.train.seed=3")
    assert differences(config, other, ["train."]) == ["model.embed=4096 there, 64 here"]
    with pytest.raises(ConfigError, match=r"here.json is not a config: model.embed: .*integer"):
        from_json(config_to_json(config).replace('"embed": 4096', '"embed": "x"'), "here.json")


def test_a_finished_run_only_takes_other_sample_settings() -> None:
    config = parse()
    changed = command.apply_overrides(config, ["--config.sample.steps=64"], section="sample")
    assert changed.sample.steps == 64
    with pytest.raises(
        ConfigError, match="--config.model.embed cannot be changed here: the model fixes"
    ):
        command.apply_overrides(config, ["--config.model.embed=64"], section="sample")


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_every_command_explains_itself(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"jax_mdlm.{name}", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert f"python -m jax_mdlm.{name}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--config", "nothing"], "error: config file 'nothing' was not found"),
        (
            ["train", "--config", "pronounce", "--config.train.step=3"],
            "error: --config.train.step is not a setting; did you mean train.steps?",
        ),
        (
            ["sample", "--workdir", "nowhere", "word"],
            "error: work directory nowhere must hold config.json, it does not; train one with "
            "python -m jax_mdlm.train --config pronounce --workdir nowhere",
        ),
        (
            ["evaluate", "pronunciations", "--workdir", "nowhere"],
            "error: work directory nowhere must hold config.json",
        ),
    ],
    ids=["file", "field", "sample", "evaluate"],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str], text: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"jax_mdlm.{arguments[0]}", *arguments[1:]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_half_of_the_coordinator_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ConfigError, match=r"JAX_PROCESS_ID must be a number where JAX_COORDINATOR"):
        command.start_processes()


def test_control_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as raised:
        command.run(main)
    assert raised.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; nothing that is not whole will be used\n"


def test_the_package_lists_its_commands() -> None:
    """Every command that can be run, and nothing else."""
    from jax_mdlm.__main__ import COMMANDS

    shown = subprocess.run(
        [sys.executable, "-m", "jax_mdlm"], capture_output=True, text=True, check=True
    ).stdout
    package = Path(command.__file__).parent
    runnable = {
        path.stem
        for path in package.glob("*.py")
        if "command.run(main)" in path.read_text() and path.name != "command.py"
    }
    assert set(COMMANDS) == runnable
    assert all(f"python -m jax_mdlm.{name} " in shown for name in runnable)
    assert "chat, llada_ctc, llada_lora, llada_pretrain, numbers, pronounce" in shown
