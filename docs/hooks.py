"""Puts files from outside `docs/` on the site, and makes links of a checkout work there.

Links are written as they work between files of a checkout, `../../launch/tpu/README.md` for one.
On the site `docs/` is the root, so they are rewritten page by page. What a page links to and is no
page itself (a notebook, a config) is published beside it as a file. What stands in a list item is
indented to the item's text in a checkout, and by four columns for Python-Markdown.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "launch/README.md",
    "launch/tpu/README.md",
    "launch/gke/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)
FRONT = {"README.md": "index.md"}  # the front page of a checkout and that of the site

# Group 2 is the path of an inline link or image: not an anchor alone, not an address.
_LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ITEM = re.compile(r" *([-*+]|\d+\.) +")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside `docs/`, then every file that some page links to."""
    for path in PAGES:
        files.append(_file(path, config))
    for file in list(files.documentation_pages()):
        for line, is_text in _lines(file.content_string):
            for _, link in _LINK.findall(line) if is_text else ():
                target = _resolve(link, file)
                uri = _site_path(target)
                if files.get_file_from_path(uri) is None and (ROOT / target).is_file():
                    files.append(_file(target, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links relative to the checkout into links relative to the site, and list items."""
    here = posixpath.dirname(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        target = _site_path(_resolve(match[2], page.file))
        return match[1] + posixpath.relpath(target, here or ".")

    linked = "\n".join(
        _LINK.sub(rewrite, line) if is_text else line for line, is_text in _lines(markdown)
    )
    return "\n".join(_indented(linked))


def _file(path: str, config: MkDocsConfig) -> File:
    return File.generated(config, path, abs_src_path=str(ROOT / path))


def _resolve(link: str, file: File) -> str:
    """Path in the checkout of what `link` in `file` leads to."""
    source = Path(file.abs_src_path or "").relative_to(ROOT).as_posix()
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _site_path(target: str) -> str:
    return FRONT.get(target, target.removeprefix("docs/"))


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each is text: links in code are no links."""
    fenced = False
    for line in markdown.split("\n"):
        fence = bool(_FENCE.match(line))
        yield line, not fenced and not fence
        fenced ^= fence


def _indented(markdown: str) -> Iterator[str]:
    """The lines, with four columns for every list item that they stand in."""
    offsets: list[int] = []  # columns in which the text of the open items begins
    for line, is_text in _lines(markdown):
        indent = len(line) - len(line.lstrip(" "))
        while line.strip() and offsets and indent < offsets[-1]:
            offsets.pop()
        yield " " * 4 * len(offsets) + line[offsets[-1] if offsets else 0 :] if line.strip() else ""
        if is_text and (item := _ITEM.match(line)):
            offsets.append(item.end())
