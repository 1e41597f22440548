"""A copy of the launch scripts in a checkout of its own, and a gcloud that reaches no cloud."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = "PROJECT=p\nZONE=z\nNAME=n\nTYPE=v5litepod-16\nWORKDIR=gs://b/run\nPOLL=0\n"


class Pod:
    """`launch/tpu/pod.sh` of a small checkout; `stub` is the folder of the stub gcloud."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.stub = folder / "checkout", folder / "stub"
        self.bin = folder / "bin"
        for part in (self.stub, self.bin, self.checkout / "jax_mdlm"):
            part.mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        shutil.copy(ROOT / "pyproject.toml", self.checkout)
        shutil.copy(ROOT / ".gitignore", self.checkout)
        self.settings = self.checkout / "launch/tpu/pod.env"
        self.settings.write_text(SETTINGS)
        (self.checkout / "jax_mdlm/__init__.py").write_text("")
        self.git("init", "--quiet")
        self.git("add", "--all")
        stub = Path(__file__).parent / "stub_gcloud.py"
        self.program("gcloud", f'exec "{sys.executable}" -S -E "{stub}" "$@"')
        self.states("ACTIVE")

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a call; nothing of the caller's settings gets through."""
        return {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.checkout.parent),
            "STUB": str(self.stub),
            "PYTHON": sys.executable,
            "GIT_CONFIG_GLOBAL": "/dev/null",
        }

    def program(self, name: str, body: str) -> Path:
        """Puts a shell script on the PATH."""
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
        return file

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.checkout, check=True, capture_output=True)

    def states(self, *answers: str) -> None:
        """What the next looks at the queued resource see; the last answer stays."""
        (self.stub / "states").write_text("\n".join(answers) + "\n")

    def __call__(self, *words: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess:
        """Runs pod.sh and checks its exit code."""
        done = subprocess.run(
            ["sh", str(self.checkout / "launch/tpu/pod.sh"), *words],
            env=self.environment | variables,
            cwd=self.checkout.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done
        return done

    def calls(self, verb: str = "") -> list[list[str]]:
        """Arguments of the gcloud calls so far; of one verb only, where it is given."""
        file = self.stub / "calls"
        found = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        return [call for call in found if not verb or verb in call]


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)
