"""The house: who may import whom, which room owns which package, how large a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jax_mdlm"
FILES = sorted(PACKAGE.rglob("*.py"))

# room -> rooms of ours that it may import, itself aside
BASE = {"config", "containers", "extras"}
MAY_IMPORT = {
    "config": set(),
    "containers": set(),
    "extras": set(),
    "sharding": BASE,
    "storage": BASE,
    "foreign": {"config"},
    "workdir": BASE | {"foreign", "storage", "model"},
    "diffusion": BASE,
    "model": BASE | {"sharding"},
    "data": BASE | {"sharding"},
    "training": BASE | {"sharding", "storage", "workdir", "diffusion", "model", "data"},
    "sampling": BASE | {"sharding", "storage", "diffusion", "model", "data"},
    "conversion": BASE | {"foreign", "sharding", "storage", "workdir", "model", "data"},
}
MAY_IMPORT["evaluation"] = MAY_IMPORT["training"] | {"training", "sampling"}
# what commands share at their edge; nothing else imports these
EDGE = {"command": BASE | {"cloud"}, "cloud": set(), "progress": set(), "__main__": {"command"}}
COMMANDS = {"train", "sample", "convert", "evaluate", "plan", "benchmark"}

# package -> the only places that may import it
OWNED = {
    "flax.nnx": (),  # parameters are a dict, and layers functions of it
    "transformers": ("data/tokenizer",),
    "sentencepiece": ("data/tokenizer",),
    "tokenizers": ("data/tokenizer",),
    "tensorflow_datasets": ("data/",),
    "grain": ("data/",),
    "orbax": ("storage/",),
    "tensorstore": ("storage/",),
    "fsspec": ("storage/",),
    "safetensors": (),  # of the tests; ours streams
    "matplotlib": ("evaluate/figures.py",),
    "sacrebleu": ("evaluation/scores.py",),
    "torch": ("conversion/pickles.py",),  # where it is installed, to read pickles safely
    "tensorflow": (),
    "lm_eval": ("evaluation/harness",),
    "gradio": ("sample/web.py",),
    "IPython": ("sample/notebook.py",),
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Dotted names of everything that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def show(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=show)
def test_imports_follow_the_plan(file: Path) -> None:
    room = room_of(file)
    used = {name.split(".")[1] for name in imports(file) if name.startswith("jax_mdlm.")}
    used -= {room, "__version__"}
    if room == "__init__":
        allowed: set[str] = set()
    elif room in COMMANDS:
        allowed = set(MAY_IMPORT) | set(EDGE)
    else:
        allowed = MAY_IMPORT[room] if room in MAY_IMPORT else EDGE[room]
    assert used <= allowed, f"{show(file)} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("file", FILES, ids=show)
def test_heavy_packages_stay_in_their_rooms(file: Path) -> None:
    for name in imports(file):
        for package, places in OWNED.items():
            if name == package or name.startswith(package + "."):
                assert show(file).startswith(places or "nowhere"), f"{show(file)} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=show)
def test_a_file_is_one_idea(file: Path) -> None:
    assert "util" not in file.name
    assert len(file.read_text().splitlines()) <= 400


def test_every_room_is_known() -> None:
    rooms = {room_of(file) for file in FILES} - {"__init__"}
    assert rooms <= set(MAY_IMPORT) | set(EDGE) | COMMANDS


def test_the_mathematics_is_light() -> None:
    heavy = ["transformers", "sentencepiece", "tokenizers", "tensorflow_datasets", "grain", "torch"]
    code = (
        "import sys, jax_mdlm.diffusion\n"
        f"found = [name for name in {heavy} + ['safetensors'] if name in sys.modules]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_happens_at_import() -> None:
    """No module starts a backend: devices are chosen by commands."""
    modules = [
        "jax_mdlm." + show(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for file in FILES
        if file.parent != PACKAGE or not file.name.startswith("__")
    ]
    code = (
        "import importlib, jax\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a backend was started'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
