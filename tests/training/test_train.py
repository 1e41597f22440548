"""The train command as users run it: finished, extended, interrupted, refused."""

import json
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jax_mdlm import command, conversion, evaluate, train
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.containers import SpecialIds
from jax_mdlm.data.corpus import open_tokenizer
from jax_mdlm.progress import Progress
from jax_mdlm.storage import CheckpointError, open_checkpoints
from jax_mdlm.training.loop import term_health
from jax_mdlm.training.state import with_slack_row
from jax_mdlm.workdir import load_config
from tests.training.forks import Forks
from tests.training.runs import SAVE_EVERY, STEPS, arguments, lines, same_run, start, wait_for_step


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


@pytest.mark.slow
def test_a_chat_run_is_decoded_scored_and_shown(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    """At every evaluation: chrF, exact match, texts and canvases; a second part goes on."""
    words = ("--config.train.decode_rows=4", "--config.train.evaluate_every=2")
    words = (*words, "--config.train.tensorboard=true")
    text = start(forks, config_file, tmp_path, *words, "--config.train.steps=2").finish()
    more = start(forks, config_file, tmp_path, *words, "--config.train.steps=4").finish()
    for console, step in ((text, 2), (more, 4)):
        assert f"step {step}/{step}  validation  nll_bound" in console
        assert re.search(r"  chrf [\d.e-]+  exact_match [\d.]+  slack_share [\d.]+\n", console)
        assert len(re.findall(r"^  [a-e]{3} -> ", console, re.MULTILINE)) == 3
        assert len(re.findall(r"^    canvas", console, re.MULTILINE)) == 3
    for line in lines(tmp_path, "validation"):
        assert 0 <= line["exact_match"] <= 1
        assert 0 <= line["chrf"] <= 1
    found = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == [2] * 4 + [4] * 4
    assert found[0].keys() == {"step", "prompt", "reference", "text", "canvas"}
    assert {tuple(row["reference"].split()) for row in found} <= {
        tuple(row["prompt"].upper()[::-1]) for row in found
    }
    assert all(len(row["canvas"]) <= 8 for row in found)
    events = (tmp_path / "tensorboard").glob("events*")
    assert all(b"samples/3/text_summary" in path.read_bytes() for path in events)


def test_sigterm_saves_and_a_second_run_goes_on_bitwise(
    forks: Forks, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start(forks, config_file, tmp_path)
    wait_for_step(process, tmp_path, 33)
    process.send(signal.SIGTERM)
    errors = process.finish()
    stopped = re.search(r"stopped by a signal and saved at step (\d+); run again", errors)
    assert stopped, errors
    assert 33 <= int(stopped[1]) < STEPS
    start(forks, config_file, tmp_path).finish()
    same_run(undisturbed, tmp_path)


def test_sigkill_and_a_second_run_goes_on_bitwise(
    forks: Forks, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start(forks, config_file, tmp_path)
    wait_for_step(process, tmp_path, 2 * SAVE_EVERY + 3)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    start(forks, config_file, tmp_path).finish()
    same_run(undisturbed, tmp_path)


def test_a_finished_run_has_nothing_to_do_and_can_be_extended(
    forks: Forks, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    errors = start(forks, config_file, workdir).finish()
    assert f"nothing to do: {workdir} has made its {STEPS} steps" in errors
    start(forks, config_file, workdir, f"--config.train.steps={STEPS + 5}").finish()
    assert lines(workdir)[-1]["step"] == STEPS + 5


def test_the_log_says_what_is_done_before_it_takes_long(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    """Step of total, pace and what is left; the balance once, at the end."""
    words = ("--config.train.save_every=1", "--config.train.evaluate_every=0")
    text = start(forks, config_file, tmp_path, *words, "--config.train.steps=3").finish()
    patterns = [
        r"reading \S+rows\.jsonl \.\.\.",
        r"\S+rows\.jsonl: JSONL, prompt and response, 80 rows",
        r"training rows: .*",
        r"[\d,]+ parameters, 1 cpu device",
        r"compiling the step for 16 x 32 slots \.\.\.",
        r"step 1/3  loss .*  [\d.]+ s a step  \d+ s left",
        r"step 2/3  loss .*  [\d.]+ s a step  \d+ s left",
        r"step 3/3  loss .*  [\d.]+ s a step",
        r"step 3/3  validation  .*",
        r"goodput [\d.]+% of \d+ s \(.*\)",
    ]
    said = text.splitlines()
    assert len(said) == len(patterns), text
    for line, pattern in zip(said, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    assert len(lines(tmp_path, "goodput")) == 3, "the file has one after every save"
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3]

    more = start(forks, config_file, tmp_path, *words, "--config.train.steps=5").finish()
    assert more.splitlines()[4:6] == [
        "going on from step 3",
        "compiling the step for 16 x 32 slots ...",
    ]
    assert "step 4/5  loss" in more


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("slack_max=0.0", "set objective.slack_max above 0: without slack equal neighbours merge"),
        (
            "separate_repeats=false",
            "set objective.separate_repeats=true, which is false here",
        ),
        ("separate_repeats=true", "raise data.length=32, which leaves their slack no room"),
        ("collapse=slack_only", "raise data.length=32, which leaves their slack no room"),
    ],
)
def test_the_remedy_for_rows_without_an_alignment_is_one(
    tiny: Config, setting: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is true already is not recommended."""
    config = command.apply_overrides(tiny, [f"--config.objective.{setting}"])
    values = {"ctc": 1.0, "ce": 1.0, "ctc_weight": 0.1, "infeasible": 0.292}
    term_health(values, config, Progress(10))
    assert capsys.readouterr().err == (
        "warning: 29.2% of the rows have no alignment and are left out of CTC; " + remedy + "\n"
    )
    assert term_health(values | {"infeasible": 0.005}, config, Progress(10)) == {"ctc_to_ce": 0.1}
    assert capsys.readouterr().err == ""


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    process = start(
        forks,
        config_file,
        tmp_path,
        "--config.optimizer.learning_rate=1e38",
        "--config.optimizer.warmup_steps=4",
        "--config.optimizer.clip_norm=0",
        "--config.train.save_every=1",
        "--config.train.log_every=3",
    )
    assert process.wait() == 1
    errors = process.text()
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


@pytest.mark.slow
def test_rows_without_an_alignment_are_warned_about(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    process = start(
        forks,
        config_file,
        tmp_path,
        "--config.objective.separate_repeats=false",
        "--config.objective.slack_max=0",
        "--config.train.steps=3",
    )
    errors = process.finish()
    assert re.search(
        r"warning: [\d.]+% of the rows have no alignment and are left out of CTC; set "
        r"objective.slack_max above 0: without slack equal neighbours merge",
        errors,
    )
    assert lines(tmp_path)[0]["infeasible"] > 0.01


def test_a_work_directory_of_another_config_is_refused(
    forks: Forks, config_file: Path, undisturbed: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        train.main(
            arguments(config_file, undisturbed, "--config.model.embed=32", "--config.data.seed=1")
        )
    assert str(raised.value) == (
        f"work directory {undisturbed} was made by another config: model.embed=16 there, 32 here; "
        "data.seed=0 there, 1 here; use the same settings, or begin a run of its own from it: "
        f"another --workdir and --config.init.from={undisturbed}"
    )


def test_a_batch_that_does_not_divide_is_refused(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError,
        match="train.batch_size / train.microbatches must be a multiple of the mesh's 8 batch "
        r"shards, got 4 \(rows of 32 slots\); change the batch size or the mesh",
    ):
        train.main(arguments(config_file, tmp_path, "--config.train.batch_size=4"))


def test_checkpoints_cannot_be_kept_every_minus_one_steps() -> None:
    with pytest.raises(ConfigError, match="train.keep_every must be 0 or more, got -1"):
        command.parse_config("pronounce", ["--config.train.keep_every=-1"])


def test_a_vocabulary_below_the_tokenizers_is_refused(
    forks: Forks, config_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"model.vocab_size must hold the tokenizer's \d+ ids, g"):
        train.main(arguments(config_file, tmp_path, "--config.model.vocab_size=3"))
    assert not (tmp_path / "config.json").exists()


def test_a_checkpoint_of_another_shape_is_refused(
    forks: Forks, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The config says one shape, the arrays another: as after a copy between work directories."""
    workdir = tmp_path / "copy"
    shutil.copytree(undisturbed, workdir)
    config = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(config.replace('"mlp": 24', '"mlp": 16'))
    with pytest.raises(
        CheckpointError, match=r"of another model or optimizer: .*ff_out is \(2, 24"
    ):
        train.main(arguments(config_file, workdir, "--config.model.mlp=16", "--config.mesh.fsdp=8"))


@pytest.mark.slow
def test_init_from_another_run(
    forks: Forks, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Parameters are taken over; only the slack token's row is new."""
    train.main(
        arguments(
            config_file,
            tmp_path,
            f"--config.init.source={undisturbed}",
            "--config.train.steps=0",
            "--config.train.epochs=0.01",
        )
    )
    config: Config = load_config(epath.Path(tmp_path))
    workdir = epath.Path(undisturbed)
    source, _ = conversion.load(workdir)
    ids: SpecialIds = open_tokenizer(config.data, workdir).ids
    for how in ("mean", "keep", "normal"):
        copy = jax.tree.map(jnp.copy, source)  # it is donated
        params = with_slack_row(copy, how, ids, seed=0)
        others = np.arange(config.model.vocab_size) != ids.slack
        old, new = np.asarray(source["wte"]), np.asarray(params["wte"])
        np.testing.assert_array_equal(new[others], old[others])
        mean = old[others].mean(0)
        if how == "mean":
            np.testing.assert_allclose(new[ids.slack], mean, atol=1e-6)
        elif how == "keep":
            np.testing.assert_array_equal(new[ids.slack], old[ids.slack])
        else:
            assert 0 < np.abs(new[ids.slack] - mean).mean() < 3 * old[others].std()
        np.testing.assert_array_equal(params["blocks"]["q_proj"], source["blocks"]["q_proj"])
    with pytest.raises(ConfigError, match=r"init.from=nowhere must be a folder of publis"):
        train.main(arguments(config_file, tmp_path / "b", "--config.init.source=nowhere"))


def test_error_rates_need_pronunciations(undisturbed: Path) -> None:
    with pytest.raises(
        ConfigError,
        match="must be trained on pronunciations, its data.source is chat_jsonl; score its rows w",
    ):
        evaluate.main(["pronunciations", "--workdir", str(undisturbed)])
