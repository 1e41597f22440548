"""`evaluate repeats`: end to end on a tiny run, the rows that it writes, what it refuses."""

import json
import re
from pathlib import Path

import pytest

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.numbers import load_numbers
from jax_mdlm.data.rows import read_files
from jax_mdlm.evaluate import main
from jax_mdlm.experiments.repeats import print_repeats, show


def test_a_table_and_its_json(workdir, rows_file, capsys) -> None:
    words = ["repeats", "--file", str(rows_file), f"--workdir={workdir}"]
    main([*words, f"--workdir=twice={workdir},{workdir}", "--json"])
    record = json.loads(capsys.readouterr().out)
    one, twice = record["models"].values()
    assert list(record["models"]) == [workdir.name, "twice"]
    assert (one["rows"], one["training_seeds"], twice["training_seeds"]) == (6, 1, 2)
    assert one["exact"] == twice["exact"]
    value, low, high = one["exact"]
    assert low <= value <= high
    # "A B" has no equal neighbours, and neither has "E E": the space stands between
    assert one["rows_with"] == 0
    assert one["lost"] is None
    main([*words, "--limit=3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3 rows of {rows_file}, 0 of them with a repeat; %, 95 % intervals"
    assert re.split(r"  +", lines[1].strip()) == [
        *("exact match", "with repeats", "without", "lost repeats", "gained", "lost runs")
    ]
    assert lines[2].split()[0] == workdir.name


def test_numbers_of_the_table(capsys) -> None:
    one = {
        "rows": 2000,
        "too_long": 3,
        "rows_with": 1200,
        "exact": [0.5, 0.4, 0.6],
        "exact_with": [0.25, 0.2, 0.3],
        "exact_without": None,
        "lost": [0.125, 0.1, 0.15],
        "gained": [0.0, None, None],
        "no_interval": {"gained": "3 rows, at least 25 are needed"},
        "lost_runs": 0.1,
        "lost_examples": [{"reference": "100", "decoded": "10"}],
    }
    print_repeats({"split": "test", "models": {"merge": one}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2,000 rows of test, 1,200 of them with a repeat")
    cells = ["merge", "50.0 [40.0, 60.0]", "25.0 [20.0, 30.0]", "-", "12.5 [10.0, 15.0]"]
    assert re.split(r"  +", lines[2]) == [*cells, "0.0 [no interval]", "10.0"]
    assert lines[3] == "merge, gained: no interval: 3 rows, at least 25 are needed"
    assert lines[4] == (
        "merge: 3 of 2,000 rows are too long for the model: empty answers, counted as wrong"
    )
    assert lines[5] == "merge read 100 as 10"
    assert show(None) == "-"


def test_a_row_that_does_not_fit(workdir, rows_file, tmp_path: Path, capsys) -> None:
    """It is refused by its place, or counted as wrong and said so; the others stay as they are."""
    lines = rows_file.read_text().splitlines(keepends=True)
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join([*lines[:2], '{"prompt": "%s", "response": "A"}\n' % ("a" * 40), *lines[2:]])
    )
    words = ["repeats", f"--workdir={workdir}", "--json"]
    with pytest.raises(ConfigError, match=r"rows.jsonl:3 with 41 tokens .* with --too-long empty$"):
        main([*words, "--file", str(file)])
    main([*words, "--file", str(file), "--too-long=empty"])
    (found,) = json.loads(capsys.readouterr().out)["models"].values()
    main([*words, "--file", str(rows_file)])
    (whole,) = json.loads(capsys.readouterr().out)["models"].values()
    assert (found["rows"], found["too_long"], whole["too_long"]) == (7, 1, 0)
    assert found["exact"][0] * 7 == pytest.approx(whole["exact"][0] * 6)


def test_rows_are_written_for_other_models(tmp_path: Path, capsys) -> None:
    file = tmp_path / "rows.jsonl"
    main(["repeats", f"--write={file}", "--limit=20"])
    assert capsys.readouterr().out == f"20 test rows in {file}\n"
    rows = read_files(DataConfig(files=str(file))).examples
    expected = load_numbers("test")[:20]
    assert [(user.content, said.content) for user, said in rows] == [
        (row.chat_prompt, row.response) for row in expected
    ]


def test_what_is_refused(workdir, tmp_path: Path) -> None:
    for words in ([], [f"--workdir={workdir}", f"--write={tmp_path / 'rows.jsonl'}"]):
        with pytest.raises(ConfigError, match="needs either --workdir or --write FILE; give one"):
            main(["repeats", *words])
    message = r"must be trained on numbers, its data\.source is chat_jsonl; give rows with --file "
    with pytest.raises(ConfigError, match=message):
        main(["repeats", f"--workdir={workdir}"])
