"""Means are divided once; windows fetch late; throughput and MFU by their formula."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Mean
from jax_mdlm.training import timing
from jax_mdlm.training.log import Log, StepMetrics
from jax_mdlm.training.timing import Throughput, find_chip


def step(loss: float, count: float = 1.0) -> dict[str, Mean]:
    return {"loss": Mean(jnp.float32(loss), jnp.float32(count)), "grad_norm": Mean.of(jnp.ones(()))}


def test_a_window_is_a_mean_of_totals_and_leaves_the_running_step() -> None:
    window = StepMetrics()
    assert window.report() == {}
    for number, (total, count) in enumerate([(6.0, 3.0), (1.0, 1.0), (100.0, 1.0)]):
        window.add(number, step(total, count))
    window.check()  # a save between two reports loses nothing
    assert window.report() == {"loss": 7 / 4, "grad_norm": 1.0}
    assert window.report() == {}, "the newest step waits for the next report"
    window.add(3, step(0.0))
    assert window.report()["loss"] == 100
    window.add(4, step(2.0))
    assert window.report(running=0)["loss"] == 1, "where the next thing waits for it anyway"
    assert window.report(running=0) == {}


def test_two_steps_may_be_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    window, steps = StepMetrics(), [step(float(number)) for number in range(4)]
    for number, means in enumerate(steps):
        window.add(number, means)
        window.keep_up(ahead=2)
    assert [id(means) for means in waited] == [id(means) for means in steps[:2]]


def test_a_bad_step_is_named_with_its_window() -> None:
    window = StepMetrics()
    for number in range(5, 9):
        window.add(number, step(float("nan") if number >= 7 else 1.0))
    with pytest.raises(
        FloatingPointError,
        match=r"loss must be finite, but is NaN or infinite at step 7 \(seen in steps 5 to 8\); "
        r"the newest checkpoint is from before that: lower optimizer.learning_rate",
    ):
        window.check()


def test_means_of_nothing_are_zero() -> None:
    assert Mean.of(jnp.ones(3), jnp.zeros(3, bool)).value == 0
    total = Mean.of(jnp.array([1.0, 5.0]), jnp.array([True, False])) + Mean.of(jnp.array([3.0]))
    assert total.value == 2


def test_mfu_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig()
    assert Throughput(config, 4096).read(1.0) == {}, "no step, no rate"
    clock = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(timing, "find_chip", lambda kind: find_chip("TPU v5e"))
    throughput = Throughput(config, 4096)
    throughput.step()
    rates = throughput.read(8 * 4096.0)
    flops = 6 * (8_015_581_184 - 126464 * 4096) + 12 * 32 * 4096 * 4096
    assert rates["tokens_per_second"] == 4 * 4096
    assert rates["mfu"] == pytest.approx(4 * 4096 * flops / (8 * 197e12))


def test_steps_under_way_count_for_the_next_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 3.0, 4.0, 4.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    throughput = Throughput(ModelConfig(), 4096)
    for _ in range(4):
        throughput.step()
    assert throughput.read(10.0, running=1) == {"steps_per_second": 1.0, "tokens_per_second": 10.0}
    assert throughput.read(10.0)["steps_per_second"] == 1.0


def test_a_resumed_log_forgets_what_is_written_again(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path)
    log = Log(folder, resumed_at=0, tensorboard=True)
    for number in (1, 2, 3):
        log.write(number, "train", {"loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "gro')  # killed while writing
    log = Log(folder, resumed_at=2, tensorboard=False)
    assert log.lost_steps == 1, "the third; the fourth did not get its line"
    log.write(3, "train", {"loss": 2.0})
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in found] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_samples_are_lines_and_a_resumed_log_forgets_them_too(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path)
    log = Log(folder, resumed_at=0, tensorboard=True)
    log.write_samples(2, [], [])
    assert not (tmp_path / "samples.jsonl").exists(), "a run that decodes nothing has no file"
    for step in (2, 4):
        rows = [{"prompt": "a\u2028b", "canvas": ["A", "·"]}, {"prompt": "c", "canvas": []}]
        log.write_samples(step, rows, ["    text      A"])
    log.close()
    Log(folder, resumed_at=2, tensorboard=False)
    found = (tmp_path / "samples.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(line)["step"] for line in found] == [2, 2]
    assert json.loads(found[0]) == {"step": 2, "prompt": "a\u2028b", "canvas": ["A", "·"]}
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"samples/1/text_summary" in events.read_bytes()


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    log = Log(epath.Path(tmp_path), resumed_at=0, tensorboard=True)
    log.write(1, "train", {"loss": 1.0})
    log.write_samples(1, [{"prompt": "a"}], ["a"])
    log.close()
    assert list(tmp_path.iterdir()) == []
