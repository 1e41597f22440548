"""The train command as users run it: resumed, interrupted, killed, over two processes, refused."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from jax_mdlm import evaluate, train
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.containers import SpecialIds
from jax_mdlm.sharding import make_layout
from jax_mdlm.storage import CheckpointError, open_checkpoints
from jax_mdlm.training.run import load_run
from jax_mdlm.training.state import with_slack_row
from jax_mdlm.workdir import load_config
from tests.training.conftest import write_rows

ROOT = Path(__file__).parent.parent
STEPS, SAVE_EVERY = 160, 20


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config like the shipped ones: a tiny model on generated chat rows."""
    folder = tmp_path_factory.mktemp("config")
    write_rows(folder / "rows.jsonl")
    path = folder / "tiny.py"
    path.write_text(
        "from tests.training.conftest import tiny_config\n\n\n"
        "def get_config(preset):\n"
        f"    return tiny_config({str(folder / 'rows.jsonl')!r}, steps={STEPS}, "
        f"save_every={SAVE_EVERY}, evaluate_every={SAVE_EVERY}, keep_checkpoints=100)\n"
    )
    return path


def start(config_file: Path, workdir: Path, *overrides: str, **env: str) -> subprocess.Popen:
    """Starts `python -m jax_mdlm.train` on one CPU device."""
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | env
    command = [sys.executable, "-m", "jax_mdlm.train", "--config", str(config_file)]
    command += ["--workdir", str(workdir), *overrides]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Waits for a run that must end well; what it wrote on stderr."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def lines(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    found = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in found if line.endswith("}")]


def losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(workdir) if line["group"] == "train"}


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    while process.poll() is None:
        if any(line["step"] >= step for line in lines(workdir)):
            return
        time.sleep(0.005)
    raise AssertionError(f"ended before step {step}: {process.communicate()[1]}")


def arrays(workdir: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Everything of a checkpoint, as NumPy."""
    restored = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "tree")
    leaves, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def same_run(left: Path, right: Path) -> None:
    """Bitwise: parameters, moments, keys, and every metric but the clock's."""
    a, b = arrays(left), arrays(right)
    assert a.keys() == b.keys()
    assert len(a) > 30
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    clock = ("steps_per_second", "tokens_per_second")

    def numbers(workdir: Path) -> dict:
        return {
            (line["step"], line["group"]): {k: v for k, v in line.items() if k not in clock}
            for line in lines(workdir)
        }

    x, y = numbers(left), numbers(right)
    # The step before a stop is logged one step late, by nobody.
    assert len(x.keys() & y.keys()) >= len(x) - 2
    for key in x.keys() & y.keys():
        assert x[key] == y[key], key


@pytest.fixture(scope="session")
def undisturbed(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    errors = finish(start(config_file, workdir))
    assert f"step {STEPS}  validation  nll_bound" in errors
    return workdir


def test_a_run_leaves_what_the_readme_says(undisturbed: Path) -> None:
    found = {path.name for path in undisturbed.iterdir()}
    assert {"config.json", "tokenizer", "checkpoints", "metrics.jsonl"} <= found
    checkpoints = open_checkpoints(epath.Path(undisturbed / "checkpoints"))
    record = checkpoints.record(STEPS)
    checkpoints.close()
    assert record["data_position"] == STEPS
    assert json.loads(record["config"])["name"] == "tiny"
    last = [line for line in lines(undisturbed) if line["group"] == "validation"][-1]
    assert 0 < last["nll_bound"] < lines(undisturbed)[0]["nll_bound"]


def test_sigterm_saves_and_a_second_run_goes_on_bitwise(
    config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start(config_file, tmp_path)
    wait_for_step(process, tmp_path, 33)
    process.send_signal(signal.SIGTERM)
    errors = finish(process)
    stopped = re.search(r"stopped by a signal and saved at step (\d+); run again", errors)
    assert stopped, errors
    assert 33 <= int(stopped[1]) < STEPS
    finish(start(config_file, tmp_path))
    same_run(undisturbed, tmp_path)


def test_sigkill_and_a_second_run_goes_on_bitwise(
    config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start(config_file, tmp_path)
    wait_for_step(process, tmp_path, 2 * SAVE_EVERY + 3)
    process.kill()
    process.communicate()
    finish(start(config_file, tmp_path))
    same_run(undisturbed, tmp_path)


@pytest.fixture(scope="session")
def span(config_file: Path, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds of a whole run that compiles nothing any more."""
    began = time.monotonic()
    finish(start(config_file, tmp_path_factory.mktemp("timed")))
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
@pytest.mark.parametrize("part", range(5))
def test_ten_random_moments(
    config_file: Path,
    undisturbed: Path,
    tmp_path: Path,
    how: signal.Signals,
    part: int,
    span: float,
) -> None:
    """Any moment: while importing, compiling, stepping, evaluating, saving."""
    process = start(config_file, tmp_path)
    time.sleep((part + random.random()) / 5 * span)
    process.send_signal(how)
    process.communicate()
    finish(start(config_file, tmp_path))
    same_run(undisturbed, tmp_path)


def test_a_finished_run_has_nothing_to_do_and_can_be_extended(
    config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    errors = finish(start(config_file, workdir))
    assert f"nothing to do: {workdir} has made its {STEPS} steps" in errors
    finish(start(config_file, workdir, f"--config.train.steps={STEPS + 5}"))
    assert lines(workdir)[-1]["step"] == STEPS + 5


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    config_file: Path, tmp_path: Path
) -> None:
    process = start(
        config_file,
        tmp_path,
        "--config.optimizer.learning_rate=1e38",
        "--config.optimizer.warmup_steps=4",
        "--config.optimizer.clip_norm=0",
        "--config.train.save_every=1",
        "--config.train.log_every=3",
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert re.match(
        r"error: (loss|grad_norm) must be finite, but is NaN or infinite at step \d+ \(seen in "
        r"steps \d+ to \d+\); the newest checkpoint is from before that: lower "
        r"optimizer.learning_rate or look at the data of these steps",
        last,
    ), errors
    assert "Traceback" not in errors
    checkpoints = open_checkpoints(epath.Path(tmp_path / "checkpoints"))
    newest = checkpoints.latest()
    checkpoints.close()
    assert newest is not None


def test_rows_without_an_alignment_are_warned_about(config_file: Path, tmp_path: Path) -> None:
    process = start(
        config_file,
        tmp_path,
        "--config.objective.separate_repeats=false",
        "--config.objective.slack_max=0",
        "--config.train.steps=3",
    )
    errors = finish(process)
    assert re.search(
        r"warning: [\d.]+% of the rows have no alignment and are left out of CTC; raise "
        r"data.length or set objective.separate_repeats=true",
        errors,
    )
    assert lines(tmp_path)[0]["infeasible"] > 0.01


def run_pair(config_file: Path, workdir: Path, *overrides: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            config_file,
            workdir,
            *overrides,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]


def test_two_processes_train_save_and_resume(
    config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGTERM to one stops both at the same step; the losses are those of one process."""
    steps = ("--config.train.steps=40", "--config.train.evaluate_every=0")
    pair = run_pair(config_file, tmp_path, *steps)
    wait_for_step(pair[0], tmp_path, 8)
    pair[1].send_signal(signal.SIGTERM)
    first, _ = (finish(process) for process in pair)
    stopped = re.search(r"saved at step (\d+)", first)
    assert stopped, first
    assert int(stopped[1]) < 40
    for process in run_pair(config_file, tmp_path, *steps):
        finish(process)
    alone, spread = losses(undisturbed), losses(tmp_path)
    assert max(spread) == 40
    # A line holds the step before it; the rate is the same until step 36.
    for step in (2, 4, 6):
        assert spread[step] == pytest.approx(alone[step], rel=1e-5)
    resumed = min(step for step in spread if step > int(stopped[1]) and step < 36)
    assert spread[resumed] == pytest.approx(alone[resumed], rel=1e-3), "rounding grows with steps"


def argv(config_file: Path, workdir: Path, *overrides: str) -> list[str]:
    return ["--config", str(config_file), "--workdir", str(workdir), *overrides]


def test_a_work_directory_of_another_config_is_refused(
    config_file: Path, undisturbed: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        train.main(
            argv(config_file, undisturbed, "--config.model.embed=32", "--config.data.seed=1")
        )
    assert str(raised.value) == (
        f"work directory {undisturbed} was made by another config: model.embed=16 there, 32 here; "
        "data.seed=0 there, 1 here; use another --workdir or the same settings"
    )


def test_a_batch_that_does_not_divide_is_refused(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match="train.batch_size / train.microbatches must be a multiple of the mesh's 8 batch "
        "shards, got 4; change the batch size or the mesh",
    ):
        train.main(argv(config_file, tmp_path, "--config.train.batch_size=4"))


def test_a_vocabulary_below_the_tokenizers_is_refused(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.vocab_size must hold the tokenizer's \d+ ids, g"):
        train.main(argv(config_file, tmp_path, "--config.model.vocab_size=3"))
    assert not (tmp_path / "config.json").exists()


def test_a_damaged_checkpoint_is_named(
    config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    for file in (workdir / "checkpoints" / str(STEPS) / "tree").rglob("d/*"):
        file.write_bytes(b"")
    process = start(config_file, workdir)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"checkpoints/{STEPS} must be whole, but is damaged" in errors
    assert f"remove that folder, step {STEPS - SAVE_EVERY} is used then" in errors


def test_a_checkpoint_of_another_shape_is_refused(
    config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The config says one shape, the arrays another: as after a copy between work directories."""
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    config = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(config.replace('"mlp": 24', '"mlp": 16'))
    with pytest.raises(
        CheckpointError, match=r"of another model or optimizer: .*ff_out is \(2, 24"
    ):
        train.main(argv(config_file, workdir, "--config.model.mlp=16", "--config.mesh.fsdp=8"))


def test_init_from_another_run(config_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Parameters are taken over; only the slack token's row is new."""
    train.main(
        argv(
            config_file,
            tmp_path,
            f"--config.init.source={undisturbed}",
            "--config.train.steps=0",
            "--config.train.epochs=0.01",
        )
    )
    config: Config = load_config(epath.Path(tmp_path))
    layout = make_layout(config.mesh)
    source = load_run(epath.Path(undisturbed), config, layout)
    ids: SpecialIds = source.tokenizer.ids
    for how in ("mean", "keep", "normal"):
        copy = jax.tree.map(jnp.copy, source.params)  # it is donated
        params = with_slack_row(copy, how, ids, layout, seed=0)
        others = np.arange(config.model.vocab_size) != ids.slack
        old, new = np.asarray(source.params["wte"]), np.asarray(params["wte"])
        np.testing.assert_array_equal(new[others], old[others])
        mean = old[others].mean(0)
        if how == "mean":
            np.testing.assert_allclose(new[ids.slack], mean, atol=1e-6)
        elif how == "keep":
            np.testing.assert_array_equal(new[ids.slack], old[ids.slack])
        else:
            assert 0 < np.abs(new[ids.slack] - mean).mean() < 3 * old[others].std()
        np.testing.assert_array_equal(params["blocks"]["q_proj"], source.params["blocks"]["q_proj"])
    with pytest.raises(ConfigError, match=r"init.from=nowhere must be a folder of publis"):
        train.main(argv(config_file, tmp_path / "b", "--config.init.source=nowhere"))


def test_error_rates_need_pronunciations(undisturbed: Path) -> None:
    with pytest.raises(
        ConfigError, match="must be trained on pronunciations, its data.source is chat_jsonl"
    ):
        evaluate.main(["pronunciations", "--workdir", str(undisturbed)])
