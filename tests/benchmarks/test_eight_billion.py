"""`benchmarks.eight_billion`: what a load of LLaDA-8B's first four layers may take; and a tiny one.

Embedding, head and layers are as wide as published, so memory that grows with a layer, or with the
largest tensor, shows as it would with all 32.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import eight_billion, published_folder, watching
from jax_mdlm.config import ModelConfig
from jax_mdlm.model import table
from jax_mdlm.setup import open_setup
from tests.conversion import folders

LAYERS = 4
LEAST_FREE = 10e9  # bytes of disk; the folder takes 3.8 GB

# Most bytes beyond the weights as they end up.
ANONYMOUS_WHILE_LOADING = 1.2e9  # the interpreter (0.3 GB) and what is under way of a tensor
ANONYMOUS = 1.5e9  # with compiled programs and what a call computes
RESIDENT = 1.8e9  # and libraries, and what of the folder is mapped while it is read

GROUP = 128  # inputs that share a scale in int4


def final_bytes(config: ModelConfig, weights: str) -> float:
    """What the weights take in the end: of int4 the layers' matrices, the rest of it is int8."""
    total = 0.0
    for row in table.rows(config):
        shape = table.flat_shape(row, table.shape(row, config))
        size = math.prod(shape)
        if row.is_vector:
            total += 2 * size
        elif weights == "int4" and row.stacked:
            total += size / 2 + 4 * size / GROUP
        else:
            total += size + 4 * size / shape[-2 if row.num_inputs else -1]
    return total


# --- four layers ---


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("four")
    if shutil.disk_usage(place).free < LEAST_FREE:
        pytest.skip("writing four layers of LLaDA-8B needs 10 GB of free disk")
    published_folder.write_llada(place / "llada", published_folder.llada_config(LAYERS))
    yield place / "llada"
    shutil.rmtree(place)  # pytest would keep it for three runs


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of the benchmark run as users run them, not as the tests do."""
    for name in ("XLA_FLAGS", "PJRT_NPROC", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_memory_of_a_published_folder(
    four_layers: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--layers {LAYERS} --weights {weights} --only load sample --json"
    eight_billion.main(["--folder", str(four_layers), *flags.split()])
    found = json.loads(capsys.readouterr().out)
    load, sample = found[f"load folder {weights}"], found[f"sample folder {weights}"]
    for run in (load, sample):
        assert run["exit_code"] == 0, run
    final = final_bytes(published_folder.llada_config(LAYERS), weights)
    assert load["weights_gb"] == pytest.approx(final / 1e9, rel=0.02)
    assert load["loading_peak_anonymous_gb"] < (final + ANONYMOUS_WHILE_LOADING) / 1e9
    for run in (load, sample):
        assert run["peak_anonymous_gb"] < (final + ANONYMOUS) / 1e9
        assert run["peak_high_water_gb"] < (final + RESIDENT) / 1e9
    assert load["slots"] == 128
    assert sample["answer"].startswith("What is slack? -> ")


# --- a tiny one ---


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """One layer of narrow matrices in place of LLaDA-8B's; ids and vocabulary stay."""
    config = ModelConfig(
        vocab_size=126464,
        embed=16,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=8,
        mlp=24,
        max_length=4096,
        rope_theta=500000.0,
        norm_eps=1e-5,
        param_dtype="bfloat16",
    )
    monkeypatch.setattr(eight_billion, "llada_config", lambda layers: config)
    monkeypatch.setattr(eight_billion, "_SETTLE", 0.0)
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_all_measures(
    tmp_path: Path, tiny: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--weights full --length 32 --tokens 2 --json"
    eight_billion.main(["--folder", str(tmp_path / "llada"), *flags.split()])
    said = capsys.readouterr()
    assert "GB on the disk" in said.err
    found = json.loads(said.out)
    assert found["model"]["parameters"] == table.num_parameters(tiny)
    for name in ("cp", "import", "export"):
        assert found[name]["to_disk"] > 0
    for kind in ("folder", "import"):
        load = found[f"load {kind} full"]
        assert load["exit_code"] == 0, load
        assert (load["slots"], load["calls"]) == (32, 2)  # random weights: one slot a call
        assert load["weights_gb"] < load["loading_peak_anonymous_gb"] <= load["peak_anonymous_gb"]
        assert load["peak_anonymous_gb"] <= load["peak_rss_gb"] <= load["peak_high_water_gb"]
    assert found["sample import full"]["exit_code"] == 0
    assert found["sample import full"]["answer"].startswith("What is slack? -> ")
    assert [path.name for path in tmp_path.iterdir()] == ["llada"]  # the rest is removed


def test_a_folder_that_is_there_is_not_written_again(
    tmp_path: Path, tiny: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "llada"
    published_folder.write_llada(folder, tiny)
    before = folders.hashes(folder)
    eight_billion.main(["--folder", str(folder), "--only", "sample", "--weights", "full"])
    assert folders.hashes(folder) == before
    assert "which is there" in capsys.readouterr().err


def test_its_tokenizer_has_lladas_ids(tmp_path: Path, tiny: ModelConfig) -> None:
    published_folder.write_llada(tmp_path / "llada", tiny)
    setup = open_setup(tmp_path / "llada")
    ids, find = setup.tokenizer.ids, setup.tokenizer.find
    assert (ids.mask, ids.slack, ids.eos, ids.pad) == (126336, 126084, 126081, 126081)
    assert ids.terminator == find("<|eot_id|>") == 126348
    assert find("<|startoftext|>") == 126080
    assert find("<|reserved_token_251|>") == 126335
    assert (find("<|start_header_id|>"), find("<|end_header_id|>")) == (126346, 126347)
    prompt = setup.encode("Größe")
    assert prompt[:2] == [126080, 126346]
    assert max(set(prompt) - set(ids.never_merged)) < 256  # byte by byte
    assert "Größe" in setup.tokenizer.decode(prompt)
    assert setup.tokenizer.decode([256, 126079]).split()


def test_its_values(tmp_path: Path, tiny: ModelConfig) -> None:
    published_folder.write_llada(tmp_path / "llada", tiny)
    tensors = folders.read_weights(tmp_path / "llada")
    assert sum(one.nbytes for one in tensors.values()) == published_folder.num_bytes(tiny)
    wte = tensors["model.transformer.wte.weight"].astype("float32")
    assert 0.019 < wte.std() < 0.021
    assert abs(tensors["model.transformer.ln_f.weight"].astype("float32") - 1).max() < 0.1


def test_the_whole_model_is_lladas() -> None:
    config = published_folder.llada_config(32)
    assert table.num_parameters(config) == 8_015_581_184
    assert published_folder.num_bytes(config) == 16_031_162_368


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--layers 0", "--layers must be at least 1, got 0"),
        ("--length 40", "--length must be a multiple of 32, got 40"),
        ("--weights int3", "invalid choice: 'int3'"),
    ],
)
def test_flags_that_cannot_be(
    tmp_path: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        eight_billion.main(["--folder", str(tmp_path / "new"), *flags.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("only", "needed"), [("load sample", "16.4"), ("import", "32.7"), ("export", "49.1")]
)
def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    only: str,
    needed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Usage:
        free = 10**10

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(SystemExit) as stopped:
        eight_billion.main(["--folder", str(tmp_path / "new"), "--only", *only.split()])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"needs {needed} GB on the disk of {tmp_path}" in last
    assert "10.0 GB are free" in last
    assert not (tmp_path / "new").exists()


def test_another_folder_is_left_alone(
    tmp_path: Path, tiny: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.write_folder(tmp_path / "other")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    for name, message in (("other", "it holds another model"), ("notes", "must be new or hold")):
        before = folders.hashes(tmp_path / name)
        with pytest.raises(SystemExit):
            eight_billion.main(["--folder", str(tmp_path / name)])
        assert message in capsys.readouterr().err
        assert folders.hashes(tmp_path / name) == before


def test_memory_is_that_of_the_whole_tree_up_to_a_moment() -> None:
    child = "x = bytearray(200_000_000); import time; time.sleep(0.5)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); sys.exit(3)"
    run = watching.watch([shutil.which("python3") or "python3", "-c", code], every=0.02)
    assert run.code == 3
    assert 200e6 < run.peak("anonymous") <= run.peak("rss") <= run.peak("high_water") < 300e6
    assert run.peak("anonymous", until=run.began) == 0
    assert run.seconds > 0.5
