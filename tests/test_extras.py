"""What an error says of a missing extra: the checkout, or the file that was installed; no index."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jax_mdlm
from jax_mdlm.extras import how_to_install

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jax_mdlm"


def test_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command works from where it is typed."""
    monkeypatch.chdir(ROOT)
    assert how_to_install("eval") == "pip install -e '.[eval]'"
    monkeypatch.chdir(tmp_path)
    assert how_to_install("eval") == f"pip install -e '{ROOT}[eval]'"


def installed(folder: Path, record: object | None) -> str:
    """What an installed package says, of which pip noted `record` in direct_url.json."""
    site = folder / "site"
    (site / "jax_mdlm").mkdir(parents=True)
    for name in ("__init__.py", "extras.py"):
        shutil.copy(PACKAGE / name, site / "jax_mdlm")
    noted = site / "jax_mdlm-0.1.0.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text("Metadata-Version: 2.1\nName: jax-mdlm\nVersion: 0.1.0\n")
    if record is not None:
        (noted / "direct_url.json").write_text(json.dumps(record))
    code = "from jax_mdlm.extras import how_to_install; print(how_to_install('demo'), end='')"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(site)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_from_the_file_of_a_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "a b" / "jax_mdlm-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    record = {"url": wheel.as_uri(), "archive_info": {}}
    assert installed(tmp_path / "1", record) == f"pip install 'jax-mdlm[demo] @ {wheel.as_uri()}'"
    wheel.unlink()  # what is gone is not named
    assert str(wheel.parent) not in installed(tmp_path / "2", record)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"url": "https://h/jax_mdlm-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'jax-mdlm[demo] @ https://h/jax_mdlm-0.1.0-py3-none-any.whl'",
        ),
        (
            {"url": "https://h/r.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
            "pip install 'jax-mdlm[demo] @ git+https://h/r.git@c0ffee'",
        ),
        (
            {
                "url": "https://h/r.git",
                "vcs_info": {"vcs": "git", "commit_id": "c0ffee", "requested_revision": "v1"},
            },
            "pip install 'jax-mdlm[demo] @ git+https://h/r.git@v1'",
        ),
        (
            {"url": "file:///some/copy", "dir_info": {"editable": True}},
            "pip install -e '/some/copy[demo]'",
        ),
        ({"url": f"{ROOT.as_uri()}", "dir_info": {}}, f"'jax-mdlm[demo] @ {ROOT.as_uri()}'"),
    ],
)
def test_from_what_pip_noted(tmp_path: Path, record: dict, said: str) -> None:
    assert installed(tmp_path, record).endswith(said)


@pytest.mark.parametrize("record", [None, {}, "no object of PEP 610", {"url": "file:///gone.whl"}])
def test_where_pip_noted_nothing_the_file_is_described(tmp_path: Path, record: object) -> None:
    wheel = f"jax_mdlm-{jax_mdlm.__version__}-py3-none-any.whl"
    assert installed(tmp_path, record) == (
        "install the file of this package again with the extra [demo]: "
        f"pip install 'FOLDER/{wheel}[demo]'"
    )


def test_every_error_asks_this_function() -> None:
    """For an extra that exists; no other file of the package knows how one is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = set()
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text("utf-8")
        asked |= set(re.findall(r"how_to_install\(['\"](\w+)['\"]\)", text))
        if file.name != "extras.py":
            assert "jax-mdlm[" not in text, file
    assert asked == {"eval", "colab", "cloud", "demo"}
    assert asked <= set(project["optional-dependencies"])


def test_no_text_promises_that_an_index_has_the_package() -> None:
    """`jax-mdlm[x]` alone asks an index; with ` @ ` after it a file or a repository."""
    asks_an_index = re.compile(r"\bjax[-_]mdlm(\[[\w,]+\])?(?=['\"\s]|$)(?! @)")
    texts = [path for name in ("docs", "launch", "configs") for path in (ROOT / name).rglob("*.*")]
    for path in [*ROOT.glob("*.md"), *texts]:
        if path.suffix in (".md", ".py", ".sh", ".ipynb", ".env"):
            for line in path.read_text("utf-8").splitlines():
                _, pip, typed = line.partition("pip install")
                assert not (pip and asks_an_index.search(typed)), f"{path}: {line}"
