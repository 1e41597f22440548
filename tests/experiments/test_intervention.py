"""`evaluate intervention`: the command end to end on a tiny run, its arguments, what it keeps."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jax_mdlm import mdlm
from jax_mdlm.config import ConfigError
from jax_mdlm.evaluate import main
from jax_mdlm.evaluation.scores import METRICS
from jax_mdlm.evaluation.tasks import Task
from jax_mdlm.experiments.decodings import Decoded, Store, curve_of, seeds_for
from jax_mdlm.experiments.intervention import check_same_rows, parse_models
from jax_mdlm.sampling import AboveThreshold, AtRandom


def run(workdir: Path, rows_file: Path, *words: str) -> None:
    main(["intervention", "--file", str(rows_file), "--strengths", "0", "0.3", "1", *words])


def test_two_models_of_one_run_are_equal(workdir, rows_file, tmp_path, capsys):
    words = [f"--workdir={name}={workdir}" for name in ("one", "other")]
    words += ["--metric=symbols", "--seeds=2", "--json", f"--output={tmp_path / 'out'}"]
    pytest.importorskip("matplotlib")
    run(workdir, rows_file, *words)
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "out" / "intervention.json").read_text())
    assert (tmp_path / "out" / "intervention.png").stat().st_size > 10_000
    assert record["rows"] == 6
    assert record["strengths"] == [0, 0.3, 1]
    assert record["models"]["one"] == record["models"]["other"]
    assert record["models"]["one"]["training_seeds"] == 1
    rates = record["models"]["one"]["rates"]
    assert all(ends == [None, None] for _, *ends in rates)  # of six rows there is no interval
    change = record["against"]["differences"]["other"]
    assert record["against"]["model"] == "one"
    assert change["clean"] == [0, None, None]
    assert change["area_ratio"] == [1, None, None]
    assert change["p"] == [1, 1, 1]


def test_training_seeds_are_folders_of_a_model(workdir, rows_file, capsys):
    run(workdir, rows_file, f"--workdir=both={workdir},{workdir}", "--seeds=1", "--limit=3")
    text = capsys.readouterr().out
    assert "character error rate, 3 rows of" in text
    assert "\nTokens displaced to the right; 1 decoding a strength\n" in text
    assert "over rows and training seeds (1 degrees of freedom); p over rows alone" in text
    assert [line.split()[0] for line in text.splitlines()[3:]] == [
        *("strength", "0", "0.3", "1", "slope", "pearson", "area", "no")
    ]
    assert ": 3 rows, at least 25 are needed\n" in text
    assert "nan" not in text


def test_a_row_that_does_not_fit_is_wrong_at_every_strength(workdir, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a" * 40, "response": "A B"}, {"prompt": "abc", "response": "Z"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"--workdir={workdir}", "--seeds=1", "--metric=exact"]
    with pytest.raises(ConfigError, match=r"rows.jsonl:1 with 41 tokens .* with --too-long empty$"):
        run(workdir, file, *words)
    run(workdir, file, *words, "--too-long=empty", "--json")
    (model,) = json.loads(capsys.readouterr().out)["models"].values()
    assert model["too_long"] == 1
    assert [rate[0] for rate in model["rates"]] == [1, 1, 1]
    run(workdir, file, *words, "--too-long=empty")
    assert f"{workdir.name}: 1 of 2 rows are too long for the model" in capsys.readouterr().out


def test_what_was_decoded_is_kept(workdir, rows_file, capsys, monkeypatch):
    words = [f"--workdir={workdir}", "--kind=boundary", "--share=0.25", "--seeds=1"]
    run(workdir, rows_file, *words)
    first = capsys.readouterr().out

    def refuse(*args, **settings):
        raise AssertionError("nothing is decoded twice")

    with monkeypatch.context() as patch:
        patch.setattr(mdlm, "generate", refuse)
        run(workdir, rows_file, *words)
        assert capsys.readouterr().out == first
        for other in (["--share=0.5"], ["--limit=2"], ["--metric=exact"]):
            with pytest.raises(AssertionError, match="decoded twice"):
                run(workdir, rows_file, *words, *other)
        with pytest.raises(AssertionError, match="decoded twice"):
            run(workdir, rows_file, *words, "--config.sample.steps=2")


def test_a_store_survives_an_interrupted_write(tmp_path):
    from etils import epath

    store = Store(epath.Path(tmp_path), {"rows": "x"})
    made = Decoded([1.0, 0.0], [2.0, 2.0], 0.1, 0.5, 0.0, 3.0)

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(0.1, 0, fail)
    assert store.get(0.1, 0, lambda: made) == made
    assert store.get(0.1, 0, fail) == made
    with pytest.raises(KeyboardInterrupt):
        store.get(0.1, 1, fail)


def test_a_curve_is_the_mean_over_decodings():
    def one(errors):
        return Decoded(errors, [2.0, 4.0], 0, 0, 0, 0)

    decoded = [[[one([1.0, 0.0])], [one([1.0, 2.0]), one([2.0, 2.0])]]]
    curve = curve_of([0, 0.5], decoded)
    np.testing.assert_array_equal(curve.errors, [[[1, 0], [1.5, 2]]])
    np.testing.assert_allclose(curve.rates, [[1 / 6, 3.5 / 6]])


def test_nothing_random_is_decoded_once():
    from tests.sampling.test_interventions import options

    assert len(seeds_for(0.0, 5, options)) == 1
    assert len(seeds_for(0.1, 5, options)) == 5
    for strategy in (AtRandom(), AboveThreshold(0.9, order=AtRandom())):
        assert len(seeds_for(0.0, 5, dataclasses.replace(options, strategy=strategy))) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strengths", "0"], r"must be 0 and one or more probabilities, got \[0.0\]"),
        (["--strengths", "0.1", "0.5"], r"0 and one or more probabilities, got \[0.1, 0.5\]"),
        (["--strengths", "0", "1.5"], r"0 and one or more probabilities, got \[0.0, 1.5\]"),
        (["--kind=boundary", "--share=2"], "--share must be 0 or more and below 1, got 2.0"),
        (["--file=/nowhere.jsonl"], "--file: no file /nowhere.jsonl; correct the path"),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["--metric", "bleu"], "metric must be one of symbols, .* got 'bleu'"),
        (["--config.train.steps=3"], "config.train.steps cannot be changed here"),
    ],
    ids=str,
)
def test_refusals(workdir, rows_file, words, message):
    with pytest.raises(ConfigError, match=message):
        main(["intervention", "--workdir", str(workdir), "--file", str(rows_file), *words])


def test_models_have_names():
    models = parse_models(["runs/a", "b=runs/b0,runs/b1"])
    assert models == [("a", ("runs/a",)), ("b", ("runs/b0", "runs/b1"))]
    with pytest.raises(ConfigError, match="names 'a' twice; give names, NAME=DIR"):
        parse_models(["x/a", "y/a"])
    with pytest.raises(ConfigError, match="must name a folder, got 'b='"):
        parse_models(["b="])


def test_other_rows_cannot_be_compared(workdir, rows_file, tmp_path):
    """The second model's rows must be those of the first, and their scores of one metric."""
    first = Task("a", ["x"], [("1",)], METRICS["exact"])
    check_same_rows(first, Task("b", ["x"], [("1",)], METRICS["exact"]), "B")
    message = (
        "--workdir B must be decoded on the same rows and metric as the first, 1 of a by exact, "
        "got 1 of b by {}; give --file and --metric"
    )
    with pytest.raises(ConfigError, match=message.format("exact")):
        check_same_rows(first, Task("b", ["x"], [("2",)], METRICS["exact"]), "B")
    with pytest.raises(ConfigError, match=message.format("chrf")):
        check_same_rows(first, Task("b", ["x"], [("1",)], METRICS["chrf"]), "B")


def test_rows_without_an_answer_are_refused_before_anything_is_decoded(workdir, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": " "}\n')
    message = r"rows\.jsonl:2: the response is empty; there is nothing to learn, fill it; corr"
    with pytest.raises(ConfigError, match=message):
        main(["intervention", "--workdir", str(workdir), "--file", str(rows)])


def test_what_is_no_number_is_null(workdir, rows_file, capsys):
    """The first answer has no four words: repetition is 0 of 0."""
    words = [f"--workdir={workdir}", "--metric=repetition", "--seeds=1", "--limit=1", "--json"]
    run(workdir, rows_file, *words)
    text = capsys.readouterr().out
    assert "NaN" not in text
    (model,) = json.loads(text)["models"].values()
    assert model["rates_of_training_seeds"] == [[None] * 3]
    assert model["clean"] == [None, None, None]
