"""Against PyTorch: exports load there, its pickles are imported, the guide's lines merge as we do.

The oracle is `examples/llada_torch.py`, the file that users copy, itself checked against the
published code's numbers.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed (pip install torch==2.13.0)")

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from jax_mdlm import conversion, model
from jax_mdlm.config import ConfigError
from jax_mdlm.containers import SpecialIds
from jax_mdlm.convert import main as convert
from jax_mdlm.sampling import sample
from jax_mdlm.sampling.loop import merge
from tests.conversion.example import (
    FILE,
    GUIDE,
    Llada,
    block,
    load_folder,
    read_tensors,
    run_block,
)
from tests.sampling.making import make_options

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "data" / "llada_random_mha"
GOLDEN_IDS = SpecialIds(mask=150, slack=149, pad=151, eos=151, terminator=152, never_merged=(153,))
GROUPED = {
    "d_model": 48,
    "n_heads": 6,
    "n_kv_heads": 2,
    "n_layers": 3,
    "mlp_hidden_size": 70,
    "vocab_size": 90,
    "embedding_size": 96,
    "max_sequence_length": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "mask_token_id": 80,
    "eos_token_id": 81,
    "pad_token_id": 81,
    "slack_token_id": 82,
    "slack_collapse": "slack_only",
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that PyTorch wrote: two query heads of three share a key head, all else odd too."""
    folder = tmp_path_factory.mktemp("grouped")
    settings = json.loads((GOLDEN / "config.json").read_text()) | GROUPED
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    weights = Llada(settings).state_dict()
    for name, weight in weights.items():
        if "norm" in name or "ln_f" in name:  # ones would hide a norm that is mixed up
            weight.add_(0.3 * torch.randn_like(weight))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def torch_logits(folder: Path, ids: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    with torch.no_grad():
        shown = None if valid is None else torch.tensor(valid)
        return load_folder(folder)(torch.tensor(ids), shown).float().numpy()


def rows_and_padding(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, vocabulary, (3, 21))
    valid = np.arange(21) >= np.array([[0], [4], [9]])
    return ids, valid


def assert_same(folder: Path, other: Path) -> None:
    """Both folders import to the same values, bit by bit."""
    (ours, config), (theirs, same) = conversion.load(str(folder)), conversion.load(str(other))
    assert config == same
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- the oracle itself ---


def test_the_torch_reference_has_the_published_numbers(golden: dict[str, np.ndarray]) -> None:
    got = torch_logits(GOLDEN, golden["fwd_ids"])
    np.testing.assert_allclose(got, golden["fwd_logits"], atol=2e-5)
    valid = golden["pad_mask"].astype(bool)
    got = torch_logits(GOLDEN, golden["pad_ids"], valid)
    np.testing.assert_allclose(got[valid], golden["pad_logits"][valid], atol=2e-5)


def test_every_published_tensor_is_loaded_and_no_other() -> None:
    assert len(load_folder(GOLDEN).state_dict()) == len(read_tensors(GOLDEN)) == 3 + 9 * 2


# --- export ---


@pytest.fixture(scope="module", params=["golden", "grouped"])
def source(request: pytest.FixtureRequest, grouped: Path) -> Path:
    return GOLDEN if request.param == "golden" else grouped


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    convert(["import", str(source), str(folder / "run")])
    convert(["export", str(folder / "run"), str(folder / "hf"), "--dtype", "float32"])
    return folder / "hf"


def test_an_exported_folder_loads_strictly_and_agrees(exported: Path, source: Path) -> None:
    params, config = conversion.load(str(source))
    ids, valid = rows_and_padding(config.vocab_size)
    run = jax.jit(model.apply, static_argnames="config")
    got = torch_logits(exported, ids)
    np.testing.assert_allclose(run(params, jnp.asarray(ids), config), got, atol=2e-5)
    ours = np.asarray(run(params, jnp.asarray(ids), config, jnp.asarray(valid)))
    np.testing.assert_allclose(ours[valid], torch_logits(exported, ids, valid)[valid], atol=2e-5)
    assert np.ptp(got) > 1  # not a comparison of zeros


def test_an_exported_folder_has_the_tensors_of_its_source(exported: Path, source: Path) -> None:
    before, after = read_tensors(source), read_tensors(exported)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


def test_config_json_comes_back_as_it_was(exported: Path, source: Path) -> None:
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (source, exported)
    )
    assert before == after


def test_a_run_that_began_here_describes_itself_in_full(grouped: Path, tmp_path: Path) -> None:
    """No published config.json to lean on; PyTorch's class would fill gaps with GPT-2's values."""
    convert(["import", str(grouped), str(tmp_path / "run")])
    shutil.rmtree(tmp_path / "run" / "source")
    convert(["export", str(tmp_path / "run"), str(tmp_path / "hf"), "--dtype", "float32"])
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert settings["slack_token_id"] == 82
    assert settings["slack_collapse"] == "slack_only"
    assert settings["multi_query_attention"] is None
    ids, _ = rows_and_padding(96)
    got, want = torch_logits(tmp_path / "hf", ids), torch_logits(grouped, ids)
    np.testing.assert_array_equal(got, want)


def test_an_exported_shard_says_that_it_is_pytorchs(exported: Path) -> None:
    """Without this entry transformers 4 stops with an AttributeError."""
    for shard in exported.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_the_default_export_is_the_bfloat16_that_pytorch_rounds_to(tmp_path: Path) -> None:
    convert(["import", str(GOLDEN), str(tmp_path / "run")])
    convert(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    after = read_tensors(tmp_path / "hf")
    for name, tensor in read_tensors(GOLDEN).items():
        assert torch.equal(tensor.bfloat16(), after[name]), name
    assert load_folder(tmp_path / "hf").model["transformer"]["wte"].weight.dtype == torch.bfloat16


# --- what torch.save wrote ---


def pickled(folder: Path, source: Path, files: int, dtype: torch.dtype = torch.float32) -> Path:
    """`source` as Hugging Face wrote it before safetensors: one pickle, or several and an index."""
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    tensors = {name: tensor.to(dtype) for name, tensor in read_tensors(source).items()}
    if files == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    where = {}
    for number in range(files):
        names = sorted(tensors)[number::files]
        file = f"pytorch_model-{number + 1:05}-of-{files:05}.bin"
        torch.save({name: tensors[name] for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("files", [1, 3])
def test_pickles_are_imported_like_safetensors(source: Path, tmp_path: Path, files: int) -> None:
    folder = pickled(tmp_path / "bin", source, files)
    assert_same(folder, source)
    convert(["import", str(folder), str(tmp_path / "run")])
    assert_same(tmp_path / "run", source)


def test_bfloat16_pickles_keep_their_bits(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "bin", GOLDEN, 1, torch.bfloat16)
    convert(["import", str(folder), str(tmp_path / "run")])
    convert(["export", str(tmp_path / "run"), str(tmp_path / "hf"), "--dtype", "bfloat16"])
    after = read_tensors(tmp_path / "hf")
    for name, tensor in read_tensors(GOLDEN).items():
        assert torch.equal(tensor.bfloat16(), after[name]), name


class Trap:
    """What an attacker pickles: unpickling it opens a file for writing, which creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("place", ["instead of the tensors", "beside the tensors"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, place: str) -> None:
    folder, sprung = pickled(tmp_path / "bin", GOLDEN, 1), tmp_path / "sprung"
    beside = read_tensors(GOLDEN) if place == "beside the tensors" else {}
    torch.save(beside | {"extra": Trap(sprung)}, folder / "pytorch_model.bin")
    torch.load(folder / "pytorch_model.bin", weights_only=False)["extra"].close()
    assert sprung.exists()  # the trap works
    sprung.unlink()
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin") as refused:
        convert(["import", str(folder), str(tmp_path / "run")])
    assert "\n" not in str(refused.value)
    words = [sys.executable, "-m", "jax_mdlm.convert", "import", folder, tmp_path / "run"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {refused.value}"
    assert "Traceback" not in done.stderr
    assert not sprung.exists()
    with pytest.raises(ConfigError):
        conversion.load(str(tmp_path / "run"))  # nothing that looks whole was left


# --- the lines of docs/guides/conversion.md for PyTorch users ---


def test_the_guides_lines_load_an_export(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with the export and the file that the guide tells to copy, and nothing else."""
    shutil.copytree(exported, tmp_path / "exported")
    shutil.copy(FILE, tmp_path)
    names = run_block("logits = model(ids)", tmp_path, monkeypatch)
    params, config = conversion.load(tmp_path / "exported")
    want = model.apply(params, jnp.asarray(names["ids"].numpy()), config)
    np.testing.assert_allclose(names["logits"].numpy(), want, atol=2e-5)
    assert np.ptp(names["logits"].numpy()) > 1


def test_what_the_example_does_not_compute_is_refused(tmp_path: Path) -> None:
    settings = json.loads((GOLDEN / "config.json").read_text())
    for changes, text in (({"alibi": True}, "must say alibi=False, it says True"), ({}, "nothing")):
        said = settings | changes if changes else {"model_type": "llada"}
        with pytest.raises(ValueError, match=text):
            Llada(said)


CODE = """
from transformers import PretrainedConfig, PreTrainedModel
from .llada_torch import Llada

class LLaDAConfig(PretrainedConfig):
    model_type = "llada"

class LLaDAModelLM(PreTrainedModel):
    config_class = LLaDAConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Llada(config.to_dict()).model
        self.post_init()

    def forward(self, input_ids):
        return Llada.forward(self, input_ids)
"""


def test_the_guides_line_runs_the_code_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the published code, which comes with the weights and is exported with them."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(GOLDEN, tmp_path / "in")
    where = {"AutoConfig": "modeling_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"}
    described = json.loads((GOLDEN / "config.json").read_text()) | {"auto_map": where}
    (tmp_path / "in" / "config.json").write_text(json.dumps(described))
    (tmp_path / "in" / "modeling_llada.py").write_text(CODE)
    shutil.copy(FILE, tmp_path / "in")
    convert(["import", str(tmp_path / "in"), str(tmp_path / "run")])
    convert(["export", str(tmp_path / "run"), str(tmp_path / "exported"), "--dtype", "float32"])
    names = run_block("AutoModel", tmp_path, monkeypatch)
    ids, _ = rows_and_padding(160)
    with torch.no_grad():
        got = names["model"](torch.tensor(ids)).numpy()
    np.testing.assert_allclose(got, torch_logits(GOLDEN, ids), atol=2e-5)


@pytest.fixture(scope="module")
def lines() -> dict:
    """The names that the guide's block on sampling defines."""
    names: dict = {}
    exec(compile(block("def merge_("), GUIDE.name, "exec"), names)
    return names


def test_the_guides_merge_is_ours(lines: dict) -> None:
    rng, prompt, merged = np.random.default_rng(0), 5, 0
    names = {"slack_id": 9, "mask_id": 8, "special_ids": [7, 6, 9]}
    ids = SpecialIds(mask=8, slack=9, pad=7, eos=7, terminator=6)
    for _ in range(50):
        canvas = rng.integers(0, 10, (4, prompt + 12)) // rng.integers(1, 4)
        committed = (canvas != ids.mask) & (np.arange(canvas.shape[1]) >= prompt)
        want = np.asarray(merge(jnp.asarray(canvas), jnp.asarray(committed), ids))
        got = torch.tensor(canvas)
        lines["merge_"](got, prompt, **names)
        np.testing.assert_array_equal(got, want)
        merged += (want != canvas).sum()
    assert merged > 100


def test_the_guides_strip_drops_slack_and_nothing_else(lines: dict) -> None:
    rows = lines["strip"](torch.tensor([[9, 1, 9, 9, 1], [2, 2, 8, 9, 3]]), 9)
    assert [row.tolist() for row in rows] == [[1, 1], [2, 2, 8, 3]]


@torch.no_grad()
def test_lladas_loop_with_the_guides_lines_is_our_sampler(lines: dict) -> None:
    """LLaDA's generate.py in short (temperature 0, low-confidence remasking, whole answer)."""
    network, length, steps = load_folder(GOLDEN), 32, 8
    prompts = np.load(GOLDEN / "golden.npz")["gen_full_prompt"]
    x = torch.full((2, prompts.shape[1] + length), GOLDEN_IDS.mask)
    x[:, : prompts.shape[1]] = torch.tensor(prompts)
    for _ in range(steps):
        probabilities = network(x).softmax(-1)
        probabilities[..., GOLDEN_IDS.mask] = (
            0  # a trained model gives it none; ours never takes it
        )
        confidence, tokens = probabilities.max(-1)
        confidence[x != GOLDEN_IDS.mask] = -1
        chosen = torch.zeros_like(x, dtype=torch.bool)
        chosen.scatter_(1, confidence.topk(length // steps).indices, True)
        x[chosen] = tokens[chosen]
        lines["merge_"](x, prompts.shape[1], GOLDEN_IDS.slack, GOLDEN_IDS.mask, GOLDEN_IDS.special)

    params, config = conversion.load(str(GOLDEN))
    options = make_options(length=length, block_length=length, steps=steps, ids=GOLDEN_IDS)
    state = sample(params, config, prompts.tolist(), options, jax.random.key(0))
    np.testing.assert_array_equal(x[:, -length:], state.canvas[:, -length:])
    answer = lines["strip"](x[:, -length:], GOLDEN_IDS.slack)
    assert any(len(row) < length for row in answer)  # the merge had work to do
