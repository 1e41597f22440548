import json

import pytest

from benchmarks import lattice


@pytest.mark.parametrize(
    ("flags", "others"),
    [
        ("--collapse merge --vocab 20", {"optax", "optax_all_classes"}),
        ("--collapse slack_only", {"optax"}),
    ],
)
def test_every_form_is_timed(flags, others, capsys):
    lattice.main(f"--frames 12 --labels 5 --batch 2 --repeats 2 {flags}".split())
    result = json.loads(capsys.readouterr().out)
    assert set(result["times_faster"]) == others
    assert set(result["median_seconds"]) == set(result["temp_bytes"]) == others | {"lattice"}
    assert all(seconds > 0 for seconds in result["median_seconds"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--labels 20 --frames 10", "--labels must be at most --frames=10, got 20"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        ("--vocab 9 --collapse slack_only", "--vocab must come with --collapse merge"),
        ("--vocab 9 --labels 9", "--vocab must be above --labels=9, got 9"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        lattice.main([*arguments.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
