"""Positions that do not count slack: an exploratory network, against text without slack."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jax_mdlm import convert, model, sample, train
from jax_mdlm.config import Config, ConfigError, ModelConfig, SampleConfig, config_to_json
from jax_mdlm.config.checks import validate
from jax_mdlm.model import layers
from tests.sampling.standin import random_params
from tests.training.conftest import tiny_config, write_rows

pytestmark = pytest.mark.slow

SLACK = 7
CONFIG = ModelConfig(
    vocab_size=16,
    embed=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=48,
    max_length=64,
    compute_dtype="float32",
    uncounted_id=SLACK,
)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def tokens():
    rows = np.random.default_rng(0).integers(0, 16, (3, 24))
    rows[0, ::3] = SLACK
    rows[1, 5:9] = SLACK
    return rows.astype(np.int32)


@pytest.mark.parametrize("first", [0, 5])
def test_positions_by_a_loop(tokens, first):
    for row, found in zip(tokens, layers.positions(jnp.asarray(tokens), SLACK, first), strict=True):
        count = first
        for token, position in zip(row, found, strict=True):
            assert position == count
            count += token != SLACK
    everything = layers.positions(jnp.asarray(tokens), -1, first)
    np.testing.assert_array_equal(everything, np.arange(first, first + 24)[None])


def test_slack_that_nobody_reads_changes_nothing(params, tokens):
    """With its keys hidden, slack leaves the other slots what they are in the text without it."""
    for row in tokens:
        text = row[row != SLACK]
        want = model.encode(params, jnp.asarray(text[None]), CONFIG)
        got = model.encode(params, jnp.asarray(row[None]), CONFIG, jnp.asarray(row != SLACK)[None])
        np.testing.assert_allclose(got[0, row != SLACK], want[0], atol=1e-5)
    counted = dataclasses.replace(CONFIG, uncounted_id=-1)
    got = model.encode(params, jnp.asarray(row[None]), counted, jnp.asarray(row != SLACK)[None])
    assert np.abs(got[0, row != SLACK] - want[0]).max() > 1e-2


def test_a_window_counts_as_the_whole_does(params, tokens):
    tokens = jnp.asarray(tokens)
    want = model.encode(params, tokens, CONFIG)
    got, _ = model.encode_window(params, tokens, CONFIG, model.Window(10, 6))
    np.testing.assert_allclose(got, want[:, 10:16], atol=2e-5)
    _, cache = model.encode_window(params, tokens, CONFIG, model.Window(10, 6), keep=True)
    with pytest.raises(ValueError, match=r"uncounted_id=7 must count; decode without a cache"):
        model.encode_window(params, tokens[:, 10:16], CONFIG, model.Window(10, 6, 10), past=cache)


def test_a_cache_is_refused_where_positions_move():
    config = Config(model=CONFIG, sample=SampleConfig(cache="dual"))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, length=64, max_labels=32)
    )
    message = r"with model\.uncounted_id positions move; set sample\.cache=none, got dual"
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_a_run_trains_samples_and_is_not_exported(tmp_path, capsys):
    write_rows(tmp_path / "rows.jsonl")
    tiny = tiny_config(str(tmp_path / "rows.jsonl"), steps=2, save_every=2)
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, uncounted_id=6))
    file = tmp_path / "moving.py"
    file.write_text(
        "from jax_mdlm.config import from_json\n"
        f"def get_config(preset=''):\n    return from_json({config_to_json(config)!r}, 'moving')\n"
    )
    wrong = ["--config", str(file), "--workdir", str(tmp_path / "wrong")]
    said = r"must be slack's id, 6, or -1 \(all slots count\), got 5"
    with pytest.raises(ConfigError, match=said):
        train.main([*wrong, "--config.model.uncounted_id=5"])
    run = str(tmp_path / "run")
    train.main(["--config", str(file), "--workdir", run])
    sample.main(["--workdir", run, "a"])
    assert capsys.readouterr().out
    for adapter in ([], ["--adapter"]):
        with pytest.raises(
            ConfigError, match=r"it would run another network; export a run with -1"
        ):
            convert.main(["export", run, str(tmp_path / "out"), *adapter])
    assert not (tmp_path / "out").exists()
