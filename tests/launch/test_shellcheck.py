"""Every shell script of the repository is POSIX sh and clean."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT

SCRIPTS = sorted((ROOT / "launch").rglob("*.sh"))
COMMANDS = [script for script in SCRIPTS if script.read_text().startswith("#!")]


def show(script: Path) -> str:
    return str(script.relative_to(ROOT))


@pytest.mark.parametrize("script", COMMANDS, ids=show)
def test_shellcheck(script: Path) -> None:
    """With what the script sources, in its context; -s sh also where env.sh has no first line."""
    beside = str(Path(sys.executable).parent)
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([beside, os.environ["PATH"]]))
    assert shellcheck, "shellcheck is not installed; pip install -e '.[dev]' brings it"
    done = subprocess.run(
        [shellcheck, "--external-sources", "--check-sourced", "--shell=sh", show(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_no_script_escapes() -> None:
    """What has no first line is sourced by a command, and was checked with it."""
    sourced = set()
    for script in COMMANDS:
        text = script.read_text()
        sourced |= {ROOT / name for name in re.findall(r"^ *\. (launch/\S+\.sh)$", text, re.M)}
        sourced |= {script.parent / name for name in re.findall(r'^\. "\$here/(.+)"$', text, re.M)}
    assert set(SCRIPTS) == set(COMMANDS) | sourced
    if not (ROOT / ".git").exists():  # an unpacked sdist
        return
    elsewhere = subprocess.run(
        ["git", "ls-files", "*.sh"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {ROOT / name for name in elsewhere} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=show)
def test_a_script_is_short_and_runs_with_dash(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 300
    assert max(map(len, script.read_text().splitlines())) <= 100
    subprocess.run([shutil.which("dash") or "sh", "-n", str(script)], check=True)
