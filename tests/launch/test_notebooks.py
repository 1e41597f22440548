"""The notebooks of launch/colab: their form, and each from top to bottom on this machine."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "launch/colab").glob("*.ipynb"))
LLADA_CELL, LLADA_NAME = "settings", "LLADA"  # of sample_llada.ipynb


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text("utf-8"))["cells"]


def code_of(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def llada_settings() -> list[str]:
    """The overrides with which sample_llada.ipynb decodes on a TPU chip."""
    (source,) = [
        "".join(cell["source"])
        for cell in cells(ROOT / "launch/colab/sample_llada.ipynb")
        if cell["id"] == LLADA_CELL
    ]
    (value,) = [
        statement.value
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        and [target.id for target in statement.targets if isinstance(target, ast.Name)]
        == [LLADA_NAME]
    ]
    return ast.literal_eval(value)


def test_there_are_four() -> None:
    names = ["alignment", "convert", "finetune_ctc", "sample_llada"]
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_holds_no_output(path: Path) -> None:
    found = cells(path)
    assert len(found) <= 12
    assert len({cell["id"] for cell in found}) == len(found)
    assert found[0]["cell_type"] == "markdown"
    assert "".join(found[0]["source"]).startswith("# ")
    for cell in found:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        assert len(cell["source"]) <= 45, cell["id"]
    text = path.read_text("utf-8")
    assert "github.com" not in text, "the project has no address of its own"
    assert "trust_remote_code" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_all_begin_alike(path: Path) -> None:
    """One cell that installs and says what was found."""
    first = code_of(path)[0]
    assert first == code_of(NOTEBOOKS[0])[0]
    assert "[colab,tpu]" in first
    assert 'COPY = ""' in first
    assert "describe_device()" in first


def installs(copy: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the first cell of a notebook in `folder` asks pip for where nothing is installed."""

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    asked: list[str] = []
    head, pip, tail = code_of(NOTEBOOKS[0])[0].partition("    %pip install -q {place}\n")
    assert pip
    cell = head.replace('COPY = ""', f"COPY = {copy!r}") + "    asked.append(place)\n" + tail
    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(folder)
    exec(cell, {"asked": asked})
    return asked[0]


def test_what_a_notebook_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkout around it, or what COPY names; without both it says what to set."""
    monkeypatch.delenv("COLAB_TPU_1VM", raising=False)
    folder = ROOT / "launch" / "colab"
    assert installs("", folder, monkeypatch).startswith(f'-e "{ROOT}[colab')
    assert "no accelerator" in capsys.readouterr().out
    found = installs("https://host/copy", tmp_path, monkeypatch)
    assert re.fullmatch(r'"jax-mdlm\[colab(,tpu)?\] @ git\+https://host/copy"', found)
    assert installs("/content/a.whl", tmp_path, monkeypatch).startswith('"/content/a.whl[colab')
    with pytest.raises(RuntimeError, match="set COPY in this cell to the address of its repo"):
        installs("", tmp_path, monkeypatch)


def test_the_settings_of_llada_are_found() -> None:
    assert "--config.sample.length=128" in llada_settings()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_cpu(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty folder, without a network; a cell that fails fails the test."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    for name in ("XLA_FLAGS", "PJRT_NPROC"):  # of the tests' eight devices; a runtime has its own
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.fspath(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    where = {"metadata": {"path": os.fspath(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    errors = [output for output in outputs if output["output_type"] == "error"]
    assert not errors
    shown = "".join(output.get("text", "") for output in outputs)
    assert "no accelerator" in shown
    if path.stem != "sample_llada":  # which shows pages
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        compared = path.stem == "convert"
        assert pictures or compared
    if path.stem in ("sample_llada", "finetune_ctc"):
        pages = [o for o in outputs if "srcdoc" in o.get("data", {}).get("text/html", "")]
        assert pages
    if path.stem == "convert" and importlib.util.find_spec("torch"):
        assert "largest difference to PyTorch" in shown


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(("topology", "weights"), [("v5e:1x1", "int8"), ("v6e:1x1", "full")])
def test_llada_fits_the_chips_of_colab(topology: str, weights: str) -> None:
    """The program of the cell that asks LLaDA-8B, by the TPU compiler, with room to spare."""
    import functools

    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from jax_mdlm import command
    from jax_mdlm.config import Config, MeshConfig, ModelConfig
    from jax_mdlm.containers import SpecialIds
    from jax_mdlm.model import Form
    from jax_mdlm.sampling import options_from, program
    from jax_mdlm.sharding import make_layout
    from jax_mdlm.viewing.notebook import ROOM

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    config = Config(name="llada", model=ModelConfig(remat="none"))
    config = command.apply_overrides(config, llada_settings(), section="sample")
    ids = SpecialIds(mask=126336, slack=126084, pad=126081, eos=126081, terminator=126348)
    options = options_from(config.sample, config.objective.collapse, ids, trace=True)
    chips = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, chips_per_host_bounds=(1, 1, 1)
    )
    layout = make_layout(MeshConfig(), chips.devices)
    params, inputs, region = program._abstract(config.model, options, layout, Form(weights), 512, 1)
    fixed = {"config": config.model, "options": options, "layout": layout}
    first = functools.partial(program.first_state, region=region, **fixed)
    until = jax.ShapeDtypeStruct((), jnp.int32, sharding=layout.replicated)
    state = jax.eval_shape(first, params, *inputs)
    part = program.continue_batch.lower(params, state, inputs[1], until, **fixed).compile()
    used = part.memory_analysis().peak_memory_in_bytes
    print(f"LLaDA-8B, {weights}, {topology}, 512 slots of prompt: {used / 1e9:.2f} GB")
    assert used <= ROOM[weights]
