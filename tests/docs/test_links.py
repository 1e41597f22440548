"""Every link in every page leads somewhere, and the file tree in CONTRIBUTING is the tree."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LEFT_OUT = {"runs", "site", "build", "dist"}  # what commands leave behind
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.md")
    if not any(
        part.startswith(".") or part in LEFT_OUT for part in path.relative_to(ROOT).parts[:-1]
    )
)
GUIDES = [page for page in PAGES if page.startswith("docs/")]

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[([^\[\]]*)\]\(([^)\s]+)\)")
_BARE = re.compile(r"<(https?://[^>\s]+)>")
_HEADING = re.compile(r"#{1,6}\s+(.+?)\s*#*$")
_FENCE = re.compile(r"\s*(```|~~~)")


def text_lines(page: str) -> Iterator[str]:
    """The lines outside code blocks."""
    fenced = False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield line


def links(page: str) -> list[str]:
    """Targets of links and images; what stands in code is no link."""
    found = []
    for line in text_lines(page):
        line = re.sub(r"`[^`]*`", "``", line)
        # An image within a link is two: the picture, and what a click leads to.
        for match in (*_LINK.finditer(line), *_IMAGE.finditer(line)):
            found.append(match.groups()[-1])
        found += _BARE.findall(line)
    return list(dict.fromkeys(found))


def slugs(page: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    found: set[str] = set()
    for line in text_lines(page):
        if heading := _HEADING.match(line):
            shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            number = next(n for n in range(99) if (f"{slug}-{n}" if n else slug) not in found)
            found.add(f"{slug}-{number}" if number else slug)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page: str) -> None:
    dead = []
    for link in links(page):
        if urlsplit(link).scheme:
            continue
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        is_file = (ROOT / target).is_file()
        if not is_file or (anchor and (not target.endswith(".md") or anchor not in slugs(target))):
            dead.append(link)
    assert not dead, f"{page}: dead links {dead}"


@pytest.mark.parametrize("page", PAGES)
def test_addresses_are_well_formed(page: str) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", f"{page}: {link} is not https"
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_images_say_what_they_show(page: str) -> None:
    silent = [
        target for line in text_lines(page) for alt, target in _IMAGE.findall(line) if not alt
    ]
    assert not silent, f"{page}: images without alt text {silent}"


def tree() -> list[str]:
    """The paths of CONTRIBUTING's file tree: folders and files by name, below the line's folder."""
    block = (ROOT / "CONTRIBUTING.md").read_text().split("## The house")[1].split("```")[1]
    paths, top, room = [], "", ""
    for line in re.sub(r"\([^)]*\)", "", block.strip()).splitlines():
        names = re.findall(r"(?<![\w/])[a-z_][\w.]*(?:/(?!\w)|\.py\b|\.sh\b)", line)
        if not line.startswith(" "):
            top, room = names.pop(0), ""
            paths.append(top)
        elif re.match("  [a-z_]+/", line):
            room = names[0]
        for name in names:
            inside = top + room + name
            paths.append(inside if name != room and (ROOT / inside).exists() else top + name)
    return paths


def test_what_the_tree_names_is_there() -> None:
    for path in tree():
        there = ROOT / path
        assert there.is_dir() if path.endswith("/") else there.is_file(), path


def test_the_tree_names_every_room() -> None:
    rooms = {
        f"jax_mdlm/{path.parent.name}/"
        for path in (ROOT / "jax_mdlm").glob("*/__init__.py")
        if path.parent.name != "configs"
    }
    tops = {
        f"{path.relative_to(ROOT).as_posix()}/"
        for folder in ("docs", "launch")
        for path in (ROOT / folder).iterdir()
        if path.is_dir() and not path.name.startswith(("_", "."))
    }
    configs = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert rooms | tops | configs <= set(tree())


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_does_not_repeat_the_readme(guide: str) -> None:
    # Commands belong to both; three lines of one page in another are a fact with two truths.
    def runs(page: str) -> set[tuple[str, ...]]:
        lines = [line.strip() for line in text_lines(page) if line.strip()]
        return {tuple(lines[i : i + 3]) for i in range(len(lines) - 2)}

    assert not runs("README.md") & runs(guide)


def test_the_rules_see_what_they_forbid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text(
        "# One (two)\n\n# One two\n\n```\n[no](link.md)\n```\n`[no](link.md)`\n"
        "[![](badge.svg)](gone.md) [ok](#one-two-1) <https://a.b>\n"
    )
    monkeypatch.setattr("tests.docs.test_links.ROOT", tmp_path)
    assert slugs("a.md") == {"one-two", "one-two-1"}
    assert links("a.md") == ["gone.md", "#one-two-1", "badge.svg", "https://a.b"]
    with pytest.raises(AssertionError, match=r"dead links \['gone.md', 'badge.svg'\]"):
        test_links_within_the_repository_lead_somewhere("a.md")
    with pytest.raises(AssertionError, match="without alt text"):
        test_images_say_what_they_show("a.md")
