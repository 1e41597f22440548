"""What users are given: `examples/llada_torch.py`, which is in no package, and the guide's lines.

Needs PyTorch.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "examples" / "llada_torch.py"
GUIDE = ROOT / "docs" / "guides" / "conversion.md"

_spec = importlib.util.spec_from_file_location("llada_torch", FILE)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
Llada, load_folder, read_tensors = _module.Llada, _module.load_folder, _module.read_tensors


def block(part: str) -> str:
    """The one python block of the guide that holds this text."""
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    (found,) = [text for text in blocks if part in text]
    return found


def run_block(part: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that it defines, run in `folder`, whose modules it may import."""
    names: dict = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "llada_torch", raising=False)
        exec(compile(block(part), GUIDE.name, "exec"), names)
        patch.delitem(sys.modules, "llada_torch", raising=False)
    return names
