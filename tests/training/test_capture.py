"""Which steps are profiled, and what is written."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import ConfigError, profile_steps
from jax_mdlm.training.timing import Capture
from tests.training.forks import Forks
from tests.training.runs import start, start_group


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        ("3:5", [3, 4, 5]),
        ("7:7", [7]),
        ("10+3", [10, 11, 12]),
        ("1+1", [1]),
    ],
)
def test_ranges(text: str, steps: list[int]) -> None:
    assert list(profile_steps(text)) == steps


@pytest.mark.parametrize("text", ["5", "5:4", "0:3", "5+0", "a:b", "3-5", "3:5:7", "-1:4", "3 : 5"])
def test_what_is_no_range_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"profile must read FIRST:LAST or FIRST\+COUNT, in steps from 1 on, got "
    ):
        command.parse_config("pronounce", [f"--config.profile={text}"])


def steps_in(folder: Path) -> dict[str, list[int]]:
    """Numbers of the annotated steps in each trace file below `folder`."""
    found = {}
    for file in sorted(folder.rglob("*.xplane.pb")):
        data = jax.profiler.ProfileData.from_serialized_xspace(file.read_bytes())
        numbers = {
            int(dict(event.stats)["step_num"])
            for plane in data.planes
            for line in plane.lines
            for event in line.events
            if "step_num" in dict(event.stats)
        }
        found[file.name] = sorted(numbers)
    return found


def run(capture: Capture, steps: range) -> None:
    for number in steps:
        with capture.step(number):
            result = jnp.ones(4) * number
        capture.done(number, result)
    capture.close()


@pytest.mark.parametrize(
    ("steps", "covered"),
    [
        (range(1, 9), [3, 4, 5]),
        (range(4, 9), [4, 5]),  # resumed within the range
        (range(1, 5), [3, 4]),  # stopped within it
        (range(6, 9), None),  # resumed behind it
        (range(1, 3), None),
    ],
    ids=str,
)
def test_the_trace_covers_the_steps(
    tmp_path: Path, steps: range, covered: list[int] | None
) -> None:
    run(Capture(profile_steps("3:5"), epath.Path(tmp_path)), steps)
    folder = tmp_path / "profile"
    assert folder.exists() == (covered is not None)
    if covered is not None:
        (numbers,) = steps_in(folder).values()
        assert numbers == covered
        (session,) = (folder / "plugins" / "profile").iterdir()
        assert session.name == f"steps_{covered[0]}_{covered[-1]}"


def test_no_range_writes_nothing(tmp_path: Path) -> None:
    run(Capture(profile_steps(""), epath.Path(tmp_path)), range(1, 4))
    assert not list(tmp_path.iterdir())


WORDS = ("--config.train.steps=6", "--config.profile=3+2", "--config.train.evaluate_every=0")


@pytest.mark.slow
def test_every_process_writes_its_trace(forks: Forks, config_file: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    for child in start_group(forks, config_file, workdir, *WORDS, processes=2, devices=1):
        child.finish()
    traces = steps_in(workdir / "profile")
    assert [name.split(".")[0].rsplit("_", 1)[1] for name in traces] == ["0", "1"]
    assert list(traces.values()) == [[3, 4], [3, 4]]


@pytest.mark.slow
def test_a_run_writes_it_once(forks: Forks, config_file: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    start(forks, config_file, workdir, *WORDS).finish()
    assert list(steps_in(workdir / "profile").values()) == [[3, 4]]
    before = list((workdir / "profile").rglob("*"))
    # Another range is no other run; behind the old one nothing is traced again.
    start(forks, config_file, workdir, *WORDS, "--config.train.steps=8").finish()
    assert list((workdir / "profile").rglob("*")) == before
