import json
import math

import jax
import pytest

from benchmarks import loss
from jax_mdlm.config import ObjectiveConfig
from jax_mdlm.diffusion.logits import Parts


def test_loss_needs_less_than_a_quarter_of_the_dense_form(capsys):
    """Compiled value-and-gradient with respect to hidden states and head, nothing is run."""
    loss.main([])
    result = json.loads(capsys.readouterr().out)
    sizes = {"vocab": 126464, "length": 1024, "labels": 512, "batch": 1, "embed": 256}
    assert {name: result[name] for name in sizes} == sizes
    assert result["temp_bytes"]["dense"] > 4 * 1024 * 126464  # at least the logits
    assert result["compact_to_dense"] < 0.25
    ratio = result["temp_bytes"]["compact"] / result["temp_bytes"]["dense"]
    assert ratio == pytest.approx(result["compact_to_dense"], abs=1e-4)


@pytest.mark.parametrize("collapse", ["merge", "slack_only"])
def test_no_array_holds_all_logits_or_one_hot_labels(collapse):
    vocab, length, labels, batch = 1009, 64, 24, 2
    config = ObjectiveConfig(loss_tile=2 * 64 * 64, collapse=collapse)
    functions, shapes = loss.loss_programs(vocab, length, labels, batch, 32, config)

    def large(name):
        text = str(jax.make_jaxpr(functions[name])(*shapes))
        return [f"[{batch},{n},{vocab}]" in text for n in (length, labels, labels + 1)]

    assert large("compact") == [False, False, False]
    parts = Parts.of(vocab, batch * length, config.loss_tile).number
    tile = f"[{batch},{length},{math.ceil(vocab / parts)}]"
    assert tile in str(jax.make_jaxpr(functions["compact"])(*shapes))
    assert math.prod(json.loads(tile)) <= config.loss_tile
    if collapse == "merge":
        assert large("dense")[:2] == [True, True]


def test_benchmark_can_time_both_forms(capsys):
    arguments = "--vocab 40 --length 12 --labels 5 --batch 2 --embed 8 --time --repeats 2"
    loss.main(arguments.split())
    result = json.loads(capsys.readouterr().out)
    assert set(result["median_seconds"]) == {"compact", "dense"}
    assert all(seconds > 0 for seconds in result["median_seconds"].values())


def test_benchmark_of_slack_only_has_no_dense_form(capsys):
    arguments = "--vocab 40 --length 12 --labels 5 --embed 8 --collapse slack_only"
    loss.main(arguments.split())
    result = json.loads(capsys.readouterr().out)
    assert set(result["temp_bytes"]) == {"compact"}
    assert "compact_to_dense" not in result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--labels 20 --length 10", "--labels must be at most --length=10, got 20"),
        ("--vocab 6", "--vocab must be at least 7, got 6"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        ("--repeats 0", "--repeats must be at least 1, got 0"),
        ("--length x", "invalid int value"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        loss.main(arguments.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
