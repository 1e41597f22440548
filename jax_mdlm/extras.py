"""How a missing extra is installed where this package runs.

It is on no index that pip asks: what is installed again, with the extra, is the checkout or the
file that the running package came from.
"""

import importlib.metadata
import json
import urllib.parse
import urllib.request
from pathlib import Path

import jax_mdlm

_NAME = "jax-mdlm"


def how_to_install(extra: str) -> str:
    """What to type for the packages of an extra, for the end of an error.

    Args:
      extra: Of `pyproject.toml`, e.g. "eval".

    Returns:
      `pip install ...` of the checkout that runs, or of the file, folder or repository that pip
      says the package was installed from. Where it says nothing, or the file is gone, a sentence
      with the name that the file has.
    """
    above = Path(jax_mdlm.__file__).resolve().parents[1]
    if _is_checkout(above):
        return _editable(above, extra)
    origin = _origin()
    url = origin.get("url", "")
    file = _local(url)
    if file is not None and origin.get("dir_info", {}).get("editable"):
        return _editable(file, extra)
    if url and (file is None or file.exists()):
        vcs = origin.get("vcs_info")
        if vcs:
            revision = vcs.get("requested_revision") or vcs["commit_id"]
            url = f"{vcs['vcs']}+{url}@{revision}"
        return f"pip install '{_NAME}[{extra}] @ {url}'"
    wheel = f"{_NAME.replace('-', '_')}-{jax_mdlm.__version__}-py3-none-any.whl"
    return (
        f"install the file of this package again with the extra [{extra}]: "
        f"pip install 'FOLDER/{wheel}[{extra}]'"
    )


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    return project.is_file() and f'name = "{_NAME}"' in project.read_text("utf-8")


def _editable(checkout: Path, extra: str) -> str:
    place = "." if checkout == Path.cwd() else str(checkout)
    return f"pip install -e '{place}[{extra}]'"


def _origin() -> dict:
    """What pip noted of where the package is from (PEP 610); {} where it noted nothing."""
    try:
        text = importlib.metadata.distribution(_NAME).read_text("direct_url.json")
        found = json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _local(url: str) -> Path | None:
    """The path of a `file://` address."""
    parts = urllib.parse.urlsplit(url)
    return Path(urllib.request.url2pathname(parts.path)) if parts.scheme == "file" else None
