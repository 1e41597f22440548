"""`evaluate slack`: end to end on a tiny run: text, JSON, figure."""

import json

import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluate import main


def test_text_json_and_figure(workdir, rows_file, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    words = ["slack", f"--workdir={workdir}", f"--file={rows_file}"]
    figure = tmp_path / "slack.png"
    main([*words, "--json", f"--figure={figure}", "--bins=5"])
    record = json.loads(capsys.readouterr().out)
    target, decoded = record["target"], record["decoded"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert figure.stat().st_size > 20_000
    assert record["run"] == "tiny"
    assert (target["rows"], decoded["rows"]) == (6, 6)
    for one in (target, decoded):
        assert len(one["position"]) == 5
        assert one["slack_share"] == pytest.approx(sum(one["position"]) / 5, abs=1e-5)
        assert sum(one["runs"]) == pytest.approx(1 if one["slack_share"] else 0)
    assert target["timing"] is None
    assert sum(decoded["timing"]["text"]) == pytest.approx(1)
    # "A B", "B", "C D E", "A", "E E", "B C D": gaps after the start, and before the end
    assert target["after_token"]["(start)"]["gaps"] == 6
    assert target["before_token"]["(end)"]["gaps"] == 6
    assert target["after_token"]["B"]["gaps"] == 3
    assert target["per_gap"]["equal"] >= 1, "merge: equal neighbours are separated"

    main([*words, "--limit=2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"2 rows of {rows_file}, 1 training steps"
    assert lines[1].split() == ["target", "decoded"]
    shares = next(line for line in lines if line.startswith("slack in a gap between equal tokens"))
    assert shares.split()[-2] == "-", "no such gap in two rows"


def test_a_row_that_does_not_fit_is_named(workdir, tmp_path) -> None:
    """There is no flag to leave it empty: an empty answer has no slack that could be placed."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": prompt, "response": "A B"} for prompt in ("a", "a" * 40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"rows.jsonl:2 with 41 tokens .* lower sample.length$"):
        main(["slack", "--workdir", str(workdir), "--file", str(file)])
