"""The house: who may import whom, which room owns which package, how large a file may be."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jax_mdlm"
FILES = sorted(PACKAGE.rglob("*.py"))

# room -> rooms of ours that it may import, itself aside
BASE = {"config", "containers", "extras"}
MAY_IMPORT = {
    "config": set(),
    "containers": set(),
    "extras": set(),
    "processes": set(),
    "sharding": BASE,
    "storage": BASE,
    "foreign": {"config"},
    "workdir": BASE | {"foreign", "storage"},
    "parameters": BASE | {"workdir", "storage", "model"},
    "diffusion": BASE,
    "model": BASE | {"sharding"},
    "data": BASE | {"foreign", "processes", "sharding", "storage"},
    "sampling": BASE | {"sharding", "storage", "diffusion", "model", "data"},
    "likelihood": BASE | {"sharding", "diffusion", "model", "sampling"},
    "conversion": BASE
    | {"foreign", "processes", "sharding", "storage", "workdir", "parameters", "model", "data"},
}
MAY_IMPORT["training"] = MAY_IMPORT["conversion"] | {"conversion", "diffusion"}
MAY_IMPORT["setup"] = MAY_IMPORT["conversion"] | {"conversion", "sampling"}
MAY_IMPORT["mdlm"] = MAY_IMPORT["setup"] | {"setup", "likelihood", "progress"}
MAY_IMPORT["evaluation"] = MAY_IMPORT["mdlm"] | {"mdlm", "diffusion", "training"}
MAY_IMPORT["viewing"] = MAY_IMPORT["mdlm"] | {"mdlm"}
MAY_IMPORT["experiments"] = MAY_IMPORT["evaluation"] | {"evaluation"}
MAY_IMPORT["planning"] = MAY_IMPORT["training"] | {"training", "sampling"}
# What commands share at their edge. Rooms that speak to the user may import it, too.
EDGE = {
    "command": BASE | {"processes"},
    "progress": set(),
    "opening": MAY_IMPORT["mdlm"] | {"mdlm", "command", "progress"},
    "__main__": {"command"},
}
SPEAKING = {"training", "evaluation", "viewing", "experiments", "planning"}
SPEAKING_FILES = {"conversion/run.py"}
COMMANDS = {"train", "sample", "convert", "evaluate", "plan", "prepare"}

# package -> the only places that may import it
OWNED = {
    "flax.nnx": (),  # parameters are a dict, and layers functions of it
    "transformers": ("data/tokenizer",),
    "sentencepiece": ("data/tokenizer",),
    "tokenizers": ("data/tokenizer",),
    "tensorflow_datasets": ("data/",),
    "grain": ("data/",),
    "pyarrow": ("data/",),
    "orbax": ("storage/",),
    "tensorstore": ("storage/",),
    "fsspec": ("storage/",),
    "safetensors": (),  # of the tests; ours streams
    "matplotlib": ("experiments/figures.py",),
    "sacrebleu": ("evaluation/scores.py",),
    "torch": ("conversion/pickles.py",),  # where it is installed, to read pickles safely
    "tensorflow": (),
    "lm_eval": ("evaluation/harness",),
    "gradio": ("viewing/web.py",),
    "IPython": ("viewing/notebook.py",),
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


def allowed(file: Path) -> set[str]:
    room = room_of(file)
    if room == "__init__":
        return {"mdlm"}  # when it is asked for
    if room in COMMANDS:
        return set(MAY_IMPORT) | set(EDGE)
    own = MAY_IMPORT[room] if room in MAY_IMPORT else EDGE[room]
    speaks = room in SPEAKING or show(file) in SPEAKING_FILES
    return own | (set(EDGE) if speaks else set())


def test_imports_follow_the_plan() -> None:
    wrong = []
    for file in FILES:
        used = {name.split(".")[1] for name in imports(file) if name.startswith("jax_mdlm.")}
        if forbidden := used - {room_of(file), "__version__"} - allowed(file):
            wrong.append(f"{show(file)} imports {sorted(forbidden)}")
    assert not wrong


def test_rooms_are_built_on_each_other_without_a_circle() -> None:
    floors: dict[str, int] = {}
    rooms = {**MAY_IMPORT, **EDGE}
    while len(floors) < len(rooms):
        ready = {name for name in rooms.keys() - floors if rooms[name] <= floors.keys()}
        assert ready, f"a circle among {sorted(rooms.keys() - floors)}"
        floors |= dict.fromkeys(ready, len(floors))


def test_heavy_packages_stay_in_their_rooms() -> None:
    wrong = [
        f"{show(file)} imports {name}"
        for file in FILES
        for name in imports(file)
        for package, places in OWNED.items()
        if name == package or name.startswith(package + ".")
        if not show(file).startswith(places or "nowhere")
    ]
    assert not wrong


def test_a_file_is_one_idea() -> None:
    assert not [show(file) for file in FILES if "util" in file.name]
    assert not [show(file) for file in FILES if len(file.read_text().splitlines()) > 400]


def test_commands_parse_call_and_print() -> None:
    for name in COMMANDS:
        assert len((PACKAGE / f"{name}.py").read_text().splitlines()) < 150
    imported = {name for file in FILES for name in imports(file) if room_of(file) not in COMMANDS}
    assert not imported & {f"jax_mdlm.{name}" for name in COMMANDS}


def test_every_room_is_known() -> None:
    rooms = {room_of(file) for file in FILES} - {"__init__"}
    assert rooms == set(MAY_IMPORT) | set(EDGE) | COMMANDS


def test_a_public_name_means_one_thing() -> None:
    """Of the classes and functions at the top of all files.

    Commands and their tasks have a `main` or `run` each; `jax_mdlm.load` and
    `jax_mdlm.conversion.load` are one door at two heights.
    """
    names = Counter(
        node.name
        for file in FILES
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    )
    assert {name for name, count in names.items() if count > 1} == {"main", "run", "load"}


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
