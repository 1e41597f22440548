"""The shipped configs: they validate, open with their command, and their presets are matched."""

import dataclasses
from pathlib import Path

import pytest

from jax_mdlm import command
from jax_mdlm.config import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command_and_validates(path: Path) -> None:
    config = command.parse_config(str(path), [])
    assert command.parse_config(path.stem, []) == config
    text = path.read_text()
    assert f"python -m jax_mdlm.train --config configs/{path.name}" in text.split('"""')[1]
    assert "from jax_mdlm.config import" in text
    assert text.count("\nimport ") + text.count("\nfrom ") == 1, "a config is self-contained"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_baseline_differs_in_the_objective_only(path: Path) -> None:
    hybrid = command.parse_config(str(path), [])
    baseline = command.parse_config(f"{path}:ce", [])
    assert baseline.objective.ctc_weight == baseline.objective.slack_max == 0
    matched = dataclasses.replace(baseline, objective=hybrid.objective, name=hybrid.name)
    assert matched == hybrid
    # The other collapse map is a preset, whichever the config's own is.
    preset = {"merge": "slack_only", "slack_only": "merge"}[hybrid.objective.collapse]
    other = command.parse_config(f"{path}:{preset}", [])
    assert other.objective.collapse == preset
    with pytest.raises(
        ConfigError, match=f"preset of {path.stem} must be .*{preset} or ce, got 'x"
    ):
        command.parse_config(f"{path}:x", [])


def test_llada_ctc_is_the_papers_version_1_with_lladas_recipe() -> None:
    config = command.parse_config("llada_ctc", [])
    objective, optimizer = config.objective, config.optimizer
    assert (objective.collapse, objective.ctc_weight, objective.slack_max) == ("merge", 0.1, 0.5)
    assert (optimizer.learning_rate, optimizer.final_learning_rate) == (2.5e-5, 2.5e-6)
    assert (optimizer.warmup_steps, optimizer.decay_share, optimizer.weight_decay) == (50, 0.1, 0.1)
    assert (config.train.batch_size, config.train.epochs) == (256, 3.0)


def test_one_chip_is_llada_lora_made_small_enough() -> None:
    """In nothing that `plan` does not ask for."""
    whole, small = (
        command.parse_config(name, []) for name in ("llada_lora", "llada_lora:one_chip")
    )
    assert small.lora == dataclasses.replace(whole.lora, base="int8")
    assert (small.model, small.objective) == (whole.model, whole.objective)
    assert (small.optimizer, small.mesh) == (whole.optimizer, whole.mesh)
    assert (small.data.length, small.train.batch_size, small.train.microbatches) == (1024, 16, 4)
    assert small.sample == dataclasses.replace(whole.sample, weights="int8")
