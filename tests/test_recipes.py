"""CONTRIBUTING's recipes: each change, made in the files that it names and in no others, works.

The changes are made in a copy of the package, which a process of its own imports.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.conftest import write_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SCORE = '''@dataclasses.dataclass(frozen=True)
class FromTheRight(Quota):
    """The last slot first."""

    def score(self, offer: Offer, key: jax.Array) -> jax.Array:
        """The slot's number."""
        return jnp.broadcast_to(jnp.arange(offer.tokens.shape[1]), offer.tokens.shape) * 1.0


NAMED: dict[str, Strategy] = {
    "right": FromTheRight(),
'''
TERM = '''def _sharpness(seen: Seen) -> tuple[jax.Array, dict[str, Mean]]:
    """Per row the mean square of the log-normaliser, over rows with a response (z-loss)."""
    there = seen.corruption.response
    squares = jnp.where(there, seen.slots.log_normaliser**2, 0.0)
    rows = jnp.sum(squares, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
    return jnp.sum(rows), {"sharpness": Mean.of(rows, jnp.any(there, axis=1))}


SHARPNESS = Term("sharpness", _sharpness, weight=lambda config: TermWeight(config.sharpness))
TERMS = (CE, CTC, SHARPNESS)
'''
ROWS = """    normed = "q_norm", "k_norm"
    return _LLADA + tuple(
        ParamRow(("blocks", name), ("layers", "head_dim"), f"{_BLOCK}{name}.weight", 0)
        for name in normed * config.qk_norm
    )
"""
CHANGES = {
    "A commit strategy": {
        "jax_mdlm/sampling/commit.py": ("NAMED: dict[str, Strategy] = {\n", SCORE),
        "jax_mdlm/config/sections.py": (
            'Literal["confidence", ',
            'Literal["right", "confidence", ',
        ),
    },
    "A loss term": {
        "jax_mdlm/diffusion/terms.py": ("TERMS = (CE, CTC)\n", TERM),
        "jax_mdlm/config/sections.py": (
            "    ctc_weight: float = 0.1",
            "    sharpness: float = 0.0  # weight of the z-loss\n    ctc_weight: float = 0.1",
        ),
        "jax_mdlm/config/checks.py": ('"ctc_weight slack_max', '"sharpness ctc_weight slack_max'),
    },
    "A model family": {
        "jax_mdlm/config/sections.py": (
            "    mlp: int = 12288",
            "    qk_norm: bool = False  # RMSNorm of queries and keys\n    mlp: int = 12288",
        ),
        "jax_mdlm/model/table.py": ("    return _LLADA\n", ROWS),
        "jax_mdlm/model/denoiser.py": (
            "        return flat.reshape(",
            "        split = flat.reshape(",
            "rotary[0].shape[-1])  # [B, Q, N, H]\n",
            "rotary[0].shape[-1])\n"
            "        norm = params.get(name.replace('proj', 'norm'))\n"
            "        return split if norm is None else layers.rms_norm(split, norm, eps=eps)\n",
        ),
        "jax_mdlm/conversion/published.py": (
            '    "attention_layer_norm": (False, (False,), "q/k norm"),\n',
            '    "attention_layer_norm": (False, (False, True), "q/k norm"),\n',
            '        embed=settings["d_model"],\n',
            '        embed=settings["d_model"],\n'
            '        qk_norm=settings["attention_layer_norm"],\n',
            '            "d_model": config.embed,\n',
            '            "d_model": config.embed,\n'
            '            "attention_layer_norm": config.qk_norm,\n',
        ),
    },
}


def files_of(recipe: str) -> set[str]:
    """The files of the package that a recipe names, one in each numbered step."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition(f"### {recipe}\n")[2]
    return set(re.findall(r"^\d\. `(jax_mdlm/[\w/]+\.py)`", text.partition("\n### ")[0], re.M))


def change(recipe: str, folder: Path) -> None:
    """Copies the package into a folder and makes the change there."""
    shutil.copytree(
        ROOT / "jax_mdlm", folder / "jax_mdlm", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, pairs in CHANGES[recipe].items():
        path = folder / name
        text = path.read_text()
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            assert text.count(old) == 1, f"{name}: {old}"
            text = text.replace(old, new)
        path.write_text(text)


def run(folder: Path, *words: str, code: int = 0) -> str:
    """What a command of the folder's package says."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def tiny_config(folder: Path) -> str:
    """A config file as users write them."""
    write_rows(folder / "rows.jsonl")
    path = folder / "tiny.py"
    path.write_text(
        "import tests.training.conftest as tests\n\n\n"
        "def get_config(preset):\n"
        f"    return tests.tiny_config({str(folder / 'rows.jsonl')!r}, steps=2, evaluate_every=2)\n"
    )
    return str(path)


@pytest.mark.parametrize("recipe", CHANGES)
def test_a_recipe_names_the_files_of_the_change(recipe: str) -> None:
    assert files_of(recipe) == set(CHANGES[recipe])


def test_a_commit_strategy(tmp_path: Path) -> None:
    """It can be named in settings, decodes by its rule, and a wrong name is told with it."""
    change("A commit strategy", tmp_path)
    workdir = str(tmp_path / "run")
    run(tmp_path, "jax_mdlm.train", f"--config={tiny_config(tmp_path)}", f"--workdir={workdir}")
    sample = ("jax_mdlm.sample", f"--workdir={workdir}", "abc")
    trace = tmp_path / "trace.jsonl"
    named = ("--config.sample.strategy=right", "--config.sample.steps=8", f"--trace={trace}")
    run(tmp_path, *sample, *named)
    (record,) = map(json.loads, trace.read_text().splitlines())
    assert record["committed_at"] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert "right" in run(tmp_path, *sample, "--config.sample.strategy=wrong", code=2)


def test_a_loss_term(tmp_path: Path) -> None:
    """It is trained, logged, validated and shown, by its weight in the settings."""
    change("A loss term", tmp_path)
    train = ("jax_mdlm.train", f"--config={tiny_config(tmp_path)}", "--workdir")
    weight = "--config.objective.sharpness="
    shown = run(tmp_path, *train, str(tmp_path / "run"), weight + "0.5")
    assert "sharpness" in shown
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = {row["group"]: row for row in map(json.loads, lines)}
    row = rows["train"]
    expected = row["ce"] + row["ctc_weight"] * row["ctc"] + 0.5 * row["sharpness"]
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert rows["validation"]["sharpness"] > 0
    assert "objective.sharpness" in run(
        tmp_path, *train, str(tmp_path / "none"), weight + "-1", code=2
    )


def test_a_model_family(tmp_path: Path) -> None:
    """LLaDA with its switch for q/k norms: trained, adapted, exported, loaded, quantised."""
    change("A model family", tmp_path)
    config = tiny_config(tmp_path)
    train = ("jax_mdlm.train", f"--config={config}", "--config.model.qk_norm=true", "--workdir")
    run(tmp_path, *train, "run")
    run(tmp_path, *train, "lora", "--config.init.from=run", "--config.lora.rank=2")
    run(tmp_path, "jax_mdlm.convert", "export", "lora", "folder", "--dtype=float32")
    shown = run(tmp_path, "jax_mdlm.convert", "inspect", "folder").split()
    assert shown[shown.index("tensors") + 1] == "25"  # 3, and 9 + 2 of each layer
    (tmp_path / "both.py").write_text(
        "import jax_mdlm, numpy as np\n"
        "run, folder = jax_mdlm.load('lora'), jax_mdlm.load('folder')\n"
        "tokens = [[5, 6, 7, 8]]\n"
        "assert np.array_equal(run.logits(tokens), folder.logits(tokens))\n"
        "assert run.generate(['abc', 'dea']) == folder.generate(['abc', 'dea'])\n"
        "near = jax_mdlm.load('folder', weights='int8').logits(tokens) - folder.logits(tokens)\n"
        "assert 0 < np.abs(near).max() < 0.2\n"
        "assert folder.params['blocks'][0]['q_norm'].shape == (8,)\n"
        "folder.params['blocks'][0]['q_norm'] *= 3\n"
        "assert not np.allclose(run.logits(tokens), folder.logits(tokens))\n"
    )
    run(tmp_path, "both")
