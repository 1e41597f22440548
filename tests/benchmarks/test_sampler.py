"""`benchmarks.sampler` on a tiny model, and the PyTorch loop that it is measured against."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sampler, sampler_rival, sampler_runs
from jax_mdlm import model
from jax_mdlm.config import ConfigError, ModelConfig
from tests.sampling.standin import random_params

TINY = (
    "--embed 32 --heads 2 --layers 2 --mlp 48 --vocab 60 --prompt 8 --length 12 --block 6"
    " --steps 12 --repeats 2"
)
LOOP = Path(__file__).parent.parent / "reference" / "generate_torch.py"
NEVER_RIGHT = """
import numpy as np

def make(params, config, options):
    assert isinstance(params["head"], np.ndarray) and params["head"].shape == (32, 60)
    return lambda prompts: np.full((len(prompts), config.max_length), -1)

def describe():
    return {"wheels": 3}
"""


def run(capsys: pytest.CaptureFixture[str], arguments: str) -> dict:
    sampler.main(f"{TINY} {arguments}".split())
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_figures_of_every_batch_and_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "snail.py").write_text(NEVER_RIGHT)
    found = run(capsys, f"--batch 1,2 --settings threshold+dual --rival {tmp_path / 'snail.py'}")
    assert found["rival"] == {"name": "snail.py:make", "wheels": 3}
    assert found["backend"] == "cpu"
    assert found["cores"]["machine"] >= found["cores"]["process"] >= 1
    assert set(found["load"]) == {"before", "after"}
    assert list(found["batch"]) == ["1", "2"]
    for size, figures in found["batch"].items():
        assert list(figures["settings"]) == ["quota", "threshold+dual"]  # the exact one is added
        assert set(figures["ms_of_an_exact_call"]) == {"layers", "head", "rest"}
        assert len(figures["rival"]["runs"]) == 2
        for row in figures["settings"].values():
            assert len(row["runs"]) == 2
            assert row["equal_to_rival"] == 0
            assert row["tokens_per_second"] * row["seconds"] == pytest.approx(
                12 * int(size), rel=0.2
            )
            assert row["ms_per_call"] * row["calls"] == pytest.approx(1e3 * row["seconds"], rel=0.2)
            assert row["times_rival"] > 0
            assert row["times_rival_fastest"] > 0
            assert row["first_call_seconds"] > row["compile_seconds"]
        assert figures["settings"]["quota"]["equal_to_exact"] == 1
        assert figures["settings"]["quota"]["calls"] == 12
        assert figures["settings"]["quota"]["commits_per_call"] == 1


def test_a_search_makes_thresholds_commit(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--batch 1 --settings threshold,factor+prefix --commits 3")
    assert found["head_scale"] > 1
    assert found["commits_found"] == pytest.approx(3, rel=0.4)
    settings = found["batch"]["1"]["settings"]
    assert list(settings) == ["quota", "threshold", "factor+prefix"]
    assert settings["threshold"]["commits_per_call"] == pytest.approx(found["commits_found"], 1e-3)
    assert settings["threshold"]["calls"] < 12
    assert settings["threshold"]["times_rival"] is settings["threshold"]["equal_to_rival"] is None
    assert found["rival"] is None


def test_threads_tie_the_process_to_cores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tied: list[tuple[int, list[int]]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 2, 9}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *call: tied.append(call), raising=False)
    found = run(capsys, "--batch 1 --settings quota --threads 2")
    assert tied == [(0, [2, 5])]
    assert found["cores"]["process"] == 3


def test_commits_are_counted_by_row() -> None:
    committed_at = np.array([[0, 0, 0, 1], [0, 1, 2, 3]])  # the first row waits for the second
    decoded = sampler_runs.Decoded(1.0, np.zeros((2, 4)), committed_at, calls=4)
    assert decoded.commits == 8 / (2 + 4)


@pytest.mark.parametrize("target", [1.5, 4, 30])
def test_search_of_a_scale(target: float) -> None:
    def commits(scale: float) -> float:
        return 1 + 31 / (1 + (20 / scale) ** 3)

    scale, found = sampler_runs.search_scale(commits, target)
    assert found == commits(scale)
    assert found == pytest.approx(target, rel=0.05)


def test_search_returns_the_best_where_there_is_a_jump() -> None:
    scale, found = sampler_runs.search_scale(lambda scale: 1.0 if scale < 7 else 9.0, 4)
    assert found == 1
    assert scale < 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--layers 0", "--layers must be at least 1, got 0"),
        ("--prompt 0", "--prompt must be at least 1, got 0"),
        ("--repeats 0", "--repeats must be at least 1, got 0"),
        ("--seed -1", "--seed must be 0 or more, got -1"),
        ("--threads -1", "--threads must be 0 or more, got -1"),
        ("--threads 99999", "the cores there are, got 99999"),
        ("--vocab 3", "--vocab must be at least 4, got 3"),
        ("--embed 30", "--embed must be a multiple of twice --heads=2"),
        ("--head-scale 0", "--head-scale must be above 0, got 0.0"),
        ("--commits 7", "--commits must lie between 1 and --block=6, got 7.0"),
        ("--batch 1,0", "--batch must be numbers above 0 with commas between, got 1,0"),
        ("--batch x", "--batch must be numbers above 0 with commas between, got x"),
        ("--settings quota,fast", "--settings must be of quota, prefix, dual, threshold"),
    ],
)
def test_arguments_that_cannot_be(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        sampler.main(f"{TINY} {arguments}".split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_counts_that_do_not_divide_are_the_samplers_own_error() -> None:
    with pytest.raises(ConfigError, match=r"block_length must be positive and divide .* got 5"):
        sampler.main(f"{TINY} --block 5".split())


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("none.py", "", r"must be a Python file, or FILE:FUNCTION, got .*none\.py; there is no"),
        ("rival.txt", "", r"must be a Python file, got .*; its name must end in \.py"),
        (
            "rival.py",
            "x = 1",
            r"rival\.py must define make\(params, config, options\), it does not",
        ),
        ("rival.py:run", NEVER_RIGHT, r"rival\.py must define run\("),
        ("rival.py", "import no_such_thing", r"needs the package no_such_thing; install it"),
    ],
)
def test_rivals_that_cannot_be_loaded(tmp_path: Path, place: str, text: str, message: str) -> None:
    if text or place == "rival.txt":
        (tmp_path / place.split(":")[0]).write_text(text)
    with pytest.raises(ConfigError, match=message):
        sampler_rival.load(str(tmp_path / place))


def test_a_rival_names_its_function(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(NEVER_RIGHT + "\nother = make\n")
    rival = sampler_rival.load(f"{tmp_path / 'two.py'}:other")
    assert rival.name == "two.py:other"


# --- the loop in PyTorch ---


@pytest.fixture(scope="module")
def loop():
    pytest.importorskip("torch", reason="PyTorch is not installed (pip install torch==2.13.0)")
    from tests.reference import generate_torch

    return generate_torch


@pytest.mark.torch
@pytest.mark.parametrize(
    ("case", "steps", "length", "block_length"),
    [("full", 16, 16, 16), ("block", 16, 32, 8), ("uneven", 12, 32, 16)],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_step_of_lladas_generate(
    loop, golden, case: str, steps: int, length: int, block_length: int, dtype: str
) -> None:
    import torch

    params, config, arrays = golden
    network, seen = loop.Llada(jax.device_get(params), config), []

    def watched(canvas: torch.Tensor) -> torch.Tensor:
        seen.append(canvas.numpy().copy())
        return network(canvas)

    final = loop.generate(
        watched,
        torch.tensor(arrays[f"gen_{case}_prompt"]),
        length=length,
        block_length=block_length,
        steps=steps,
        mask_id=150,
        softmax_dtype=getattr(torch, dtype),
    )
    np.testing.assert_array_equal([*seen, final.numpy()], arrays[f"gen_{case}_traj"])


@pytest.mark.torch
def test_its_forward_pass(loop, golden) -> None:
    import torch

    params, config, arrays = golden
    network = loop.Llada(jax.device_get(params), config)
    logits = network(torch.tensor(arrays["fwd_ids"]))
    np.testing.assert_allclose(logits, arrays["fwd_logits"], atol=3e-5)


@pytest.mark.torch
def test_its_grouped_heads(loop) -> None:
    import torch

    config = ModelConfig(
        vocab_size=40,
        embed=48,
        layers=2,
        heads=6,
        kv_heads=2,
        head_dim=8,
        mlp=20,
        max_length=16,
        compute_dtype="float32",
        remat="none",
    )
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, 40, (2, 16))
    want = model.apply(params, jnp.asarray(tokens, jnp.int32), config)
    got = loop.Llada(jax.device_get(params), config)(torch.tensor(tokens))
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.torch
def test_counts_that_its_loop_refuses(loop) -> None:
    import torch

    for counts in ({"length": 12, "steps": 12}, {"length": 16, "steps": 5}):
        with pytest.raises(ValueError, match="must be a multiple of block_length=8, and steps="):
            loop.generate(torch.zeros, torch.zeros(1, 1), block_length=8, mask_id=1, **counts)


@pytest.mark.torch
@pytest.mark.parametrize("function", ["make", "make_float32"])
# 10: confidences near 1. Beyond, they are 1 in float32, and which tie comes first is not agreed on.
@pytest.mark.parametrize("scale", [1, 10])
def test_its_tokens_are_ours(
    loop, capsys: pytest.CaptureFixture[str], function: str, scale: int
) -> None:
    arguments = f"--batch 1 --settings quota --head-scale {scale} --rival {LOOP}:{function}"
    found = run(capsys, arguments)
    assert found["rival"]["torch_threads"] >= 1
    assert found["rival"]["name"] == f"generate_torch.py:{function}"
    assert found["batch"]["1"]["settings"]["quota"]["equal_to_rival"] == 1


def test_all_settings_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        sampler.main(["--help"])
    assert stopped.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert ", ".join(sampler.SETTINGS) in words
