"""The site of `docs/` builds without a warning, and asks no other host for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.slow


class Fetched(HTMLParser):
    """What a browser asks for when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and not {"stylesheet", "icon", "preconnect", "preload"} & set(
            (values.get("rel") or "").split()
        ):
            return
        name = "href" if tag == "link" else "data" if tag == "object" else "src"
        if tag != "a" and values.get(name):
            self.addresses.append(values[name] or "")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The built site, and what was said while it was built."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # the theme's news, not about our pages
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    return folder, build.stdout + build.stderr


def test_the_build_has_nothing_to_warn_about(built: tuple[Path, str]) -> None:
    assert not re.findall(r"^(?:WARNING|ERROR).*", built[1], re.MULTILINE)


def test_no_page_fetches_from_elsewhere(built: tuple[Path, str]) -> None:
    pages = list(built[0].rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert any(address.endswith(".js") for address in parser.addresses)
        foreign = [one for one in parser.addresses if re.match(r"[a-z]+:|//", one)]
        assert not foreign, f"{page.relative_to(built[0])}: {foreign}"


def test_pages_from_outside_docs_are_there(built: tuple[Path, str]) -> None:
    folder, _ = built
    pods = (folder / "guides/pods/index.html").read_text(encoding="utf-8")
    assert 'href="../../launch/tpu/"' in pods
    tpu = (folder / "launch/tpu/index.html").read_text(encoding="utf-8")
    assert "A run on Cloud TPU VMs" in tpu
    # Steps with commands between them are one list, and its numbers go on.
    steps = tpu.split("<ol>")
    assert len(steps) == 2
    assert steps[1].split("</ol>")[0].count("<li>") == 9
    # Linked files that are no pages are published beside them.
    assert (folder / "launch/colab/alignment.ipynb").is_file()


def test_the_api_comes_from_the_docstrings(built: tuple[Path, str]) -> None:
    folder, _ = built
    for page, name, words in (
        ("conversion", "jax_mdlm.conversion.load", "folder of published weights"),
        ("sampling", "jax_mdlm.sampling.SampleOptions", "Which slots are fixed by a call"),
        # in one piece: by default a line of `Returns:` with a colon would begin another value
        ("diffusion", "jax_mdlm.diffusion.objective", "metrics to be added over microbatches"),
        ("config", "jax_mdlm.config.validate", "new slots per prompt"),
        ("mdlm", "jax_mdlm.mdlm.load", "Opens a model: a training run"),
    ):
        html = (folder / f"api/{page}/index.html").read_text(encoding="utf-8")
        assert f'id="{name}"' in html, name
        assert words in re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html)), name
