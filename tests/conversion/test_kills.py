"""Kills at random moments, and full disks.

Whatever happens, a work directory or a target is either refused or complete, the same command
succeeds once its cause is gone, and the source keeps every byte.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.convert import main
from tests.conversion.folders import hashes, read_weights, write_folder
from tests.conversion.refusals import UNFINISHED, assert_refused, command, content, the_error_of

KILLS = 20
AS_STORED = ("--dtype", "float32", "--shard-bytes", "20000")


@pytest.fixture(scope="module")
def exported(imported: Path) -> Path:
    main(["export", str(imported), str(imported.parent / "hf"), *AS_STORED])
    return imported.parent / "hf"


# --- full disks ---


def test_an_import_that_may_not_write_is_refused_and_begun_again(
    source: Path, imported: Path, tmp_path: Path
) -> None:
    """Files of more than 6,000 bytes fail in the middle of writing, as on a full disk."""
    run, before = tmp_path / "run", hashes(source)
    text = the_error_of(command("import", source, run, limit=6000))
    assert f"work directory {run} must take 86,656 bytes, but writing failed (" in text
    assert "free space or choose another, then import again" in text
    assert_refused(run, UNFINISHED)
    main(["import", str(source), str(run)])
    assert content(run) == content(imported)
    assert hashes(source) == before


def test_an_export_that_may_not_write_leaves_nothing(
    imported: Path, exported: Path, tmp_path: Path
) -> None:
    sizes = [path.stat().st_size for path in sorted(exported.glob("*.safetensors"))]
    assert sizes[0] < max(sizes)  # so that it fails in the middle
    done = command("export", imported, tmp_path / "hf", *AS_STORED, limit=max(sizes) - 1)
    text = the_error_of(done)
    assert f"{tmp_path / 'hf'} must take {sum(sizes):,} bytes, but writing failed (" in text
    assert "then export again" in text
    assert list(tmp_path.iterdir()) == []  # not even what would fill the disk
    main(["export", str(imported), str(tmp_path / "hf"), *AS_STORED])
    assert hashes(tmp_path / "hf") == hashes(exported)


# KiB: too few for the tensors; enough for them, but not for all that comes with them
@pytest.mark.parametrize(("size", "text"), [(64, "have room for"), (100, "writing failed")])
def test_a_full_disk_is_one_error_and_no_work_directory(
    source: Path, imported: Path, disk: Callable[[int], Path], size: int, text: str
) -> None:
    run = disk(size) / "run"
    with pytest.raises(ConfigError, match=f"work directory {run} must .*{text}.*free space"):
        main(["import", str(source), str(run)])
    assert_refused(run, UNFINISHED)
    disk(4000)
    main(["import", str(source), str(run)])
    assert content(run) == content(imported)


@pytest.mark.parametrize(("size", "text"), [(64, "have room for"), (100, "writing failed")])
def test_a_full_disk_is_one_error_and_no_target(
    imported: Path, exported: Path, disk: Callable[[int], Path], size: int, text: str
) -> None:
    target = disk(size) / "hf"
    with pytest.raises(ConfigError, match=f"{target} must .*{text}.*free space"):
        main(["export", str(imported), str(target), *AS_STORED])
    assert list(target.parent.iterdir()) == []
    disk(4000)
    main(["export", str(imported), str(target), *AS_STORED])
    assert hashes(target) == hashes(exported)


# --- kills ---


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many small tensors that both directions take about a second."""
    folder = tmp_path_factory.mktemp("large") / "source"
    write_folder(folder, layers=300, embed=64, mlp=128, shards=4, dtype="bfloat16")
    return folder


def kill_at_random(words: list[str], begun: Path) -> Iterator[None]:
    """Runs `convert` and kills it at moments spread over the time for which `begun` exists.

    Yields:
      After two runs that are left alone and after each kill; what was written must be gone when
      the next one begins.
    """

    def start() -> tuple[subprocess.Popen[bytes], float]:
        line = [sys.executable, "-m", "jax_mdlm.convert", *words]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.001)
        return process, time.perf_counter()

    duration = float("inf")
    for _ in range(2):  # the first may find the disk's cache cold
        process, start_time = start()
        while begun.exists():
            time.sleep(0.001)
        duration = min(duration, time.perf_counter() - start_time)
        assert process.wait() == 0
        yield
    draw = random.Random(0)
    for number in range(KILLS):
        process, start_time = start()
        moment = duration * (number + draw.random()) / KILLS
        time.sleep(max(0.0, start_time + moment - time.perf_counter()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        yield


@pytest.mark.slow
def test_a_killed_import_is_refused_or_complete(large: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "run", hashes(large)
    words, whole, refused = ["import", str(large), str(run)], {}, 0
    for _ in kill_at_random(words, run / "import_unfinished"):
        if not whole:
            whole = content(run)
        if (run / "import_unfinished").exists():
            refused += 1
            assert_refused(run, UNFINISHED)
            main(words)
        assert content(run) == whole
        assert hashes(large) == before
        shutil.rmtree(run)
    assert refused >= KILLS // 4  # most, but a run may be faster than those that were timed


@pytest.mark.slow
def test_a_killed_export_leaves_no_target_or_a_complete_one(large: Path, tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "hf"
    main(["import", str(large), str(run)])
    before, whole, lost = hashes(run), {}, 0
    words = ["export", str(run), str(target), "--shard-bytes", "5000000"]
    for _ in kill_at_random(words, tmp_path / "hf.export.partial"):
        if not whole:
            whole = hashes(target)
            weights = read_weights(target)
            for name, tensor in read_weights(large).items():
                assert weights[name].tobytes() == tensor.tobytes(), name
        if not target.exists():
            lost += 1
            main(words)
        assert hashes(target) == whole
        assert hashes(run) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]
        shutil.rmtree(target)
    assert lost >= KILLS // 4


@pytest.mark.slow
def test_of_two_imports_at_once_one_wins(large: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "jax_mdlm.convert", "import", str(large), str(tmp_path / "run")]
    both = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    (error,) = (text for process, text in zip(both, errors) if process.returncode)
    assert "is being written by another process" in error or "must be new or empty" in error
    main(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    weights = read_weights(tmp_path / "hf")
    for name, tensor in read_weights(large).items():
        assert weights[name].tobytes() == tensor.tobytes(), name
