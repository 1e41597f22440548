"""`sample --file` on rows that people have: with answers, too long, with odd characters."""

import io
import json
import sys
from pathlib import Path

import pytest

from jax_mdlm import sample
from jax_mdlm.config import ConfigError
from jax_mdlm.data.jsonl import to_line
from jax_mdlm.viewing.player import page
from jax_mdlm.viewing.prompts import read_prompts
from jax_mdlm.viewing.show import read_traces

LONG = "a" * 40
USER, ASSISTANT = {"role": "user", "content": "abc"}, {"role": "gpt", "content": "A B"}


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(to_line(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(workdir: Path, *words: str) -> None:
    sample.main(["--workdir", str(workdir), "--config.mesh.fsdp=8", *words])


def records(capsys, workdir: Path, *words: str) -> list[dict]:
    run(workdir, "--json", *words)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# A row's own answer.


def test_the_last_answer_is_no_part_of_the_prompt(workdir, tmp_path, capsys):
    whole = {"id": 7, "messages": [USER, ASSISTANT, USER, ASSISTANT]}
    cut = {"messages": whole["messages"][:-1]}
    file = write(tmp_path / "rows.jsonl", whole, cut, {"messages": [ASSISTANT]})
    prompts = read_prompts([], file, None)
    assert prompts[0].conversation == prompts[1].conversation
    assert [len(prompt.conversation) for prompt in prompts] == [3, 3, 0]
    assert [prompt.reference for prompt in prompts] == ["A B", None, "A B"]
    run(workdir, "--file", file, "--json")
    out, err = capsys.readouterr()
    first, second, third = map(json.loads, out.splitlines())
    assert err.splitlines() == [
        "2 of 3 rows end with an answer of the assistant, which is left out of the prompt"
    ]
    assert first["response"] == second["response"]
    assert first == whole | {"reference": "A B", "response": first["response"]}
    assert "reference" not in second
    assert third["reference"] == "A B"


def test_an_answer_of_a_row_is_kept_as_reference(workdir, tmp_path, capsys):
    rows = [
        {"prompt": "abc", "response": "A B", "x": None},
        {"question": "abc", "answer": "A B"},
        {"prompt": "abc"},
        {"prompt": "abc", "response": "an older answer", "reference": "C"},
        {"prompt": "abc", "response": "A [MASK*2] B", "template": 3},
        {"prompt": "abc", "response": "r", "error": "of an older output", "canvas": []},
    ]
    got = records(capsys, workdir, "--file", write(tmp_path / "rows.jsonl", *rows))
    response = got[0]["response"]
    assert got[0] == rows[0] | {"response": response, "reference": "A B"}
    assert got[1] == rows[1] | {"response": response, "reference": "A B"}
    assert got[2] == rows[2] | {"response": response}
    assert got[3] == rows[3] | {"response": response}
    assert got[4] == {"prompt": "abc", "template": "A [MASK*2] B", "response": got[4]["response"]}
    assert got[5] == {"prompt": "abc", "reference": "r", "response": response}


def test_an_output_can_be_asked_again(workdir, tmp_path):
    """And goes on where it stopped, whatever its rows hold."""
    rows = [
        {"prompt": "abc", "response": "A", "id": "\ud83d", "note": "a\u2028b\x85c"},
        {"messages": [USER, ASSISTANT], "score": 1.5},
    ]
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    run(workdir, "--file", write(tmp_path / "rows.jsonl", *rows), "--output", str(first))
    whole = first.read_bytes()
    assert whole.count(b"\n") == 2
    first.write_bytes(whole[: whole.index(b"\n") + 1])
    run(workdir, "--file", str(tmp_path / "rows.jsonl"), "--output", str(first))
    assert first.read_bytes() == whole
    for _ in range(2):
        run(workdir, "--file", str(first), "--output", str(again), "--show", "slack")
    got, before = ([json.loads(line) for line in file.open()] for file in (again, first))
    assert [row["reference"] for row in got] == ["A", "A B"]
    assert [row["response"] for row in got] == [row["response"] for row in before]


def test_the_page_shows_what_was_asked(workdir, tmp_path):
    file, trace = write(tmp_path / "rows.jsonl", {"messages": [USER, ASSISTANT]}), tmp_path / "t"
    run(workdir, "--file", file, "--trace", str(trace))
    assert '"shown":"abc"' in page({"a": read_traces(str(trace))})


# Rows that cannot be answered.


def test_a_row_that_does_not_fit_keeps_no_other_back(workdir, tmp_path, capsys):
    rows = [{"prompt": "abc"}, {"prompt": LONG, "response": "A", "id": 2}, {"prompt": "dea"}]
    rows += [{"prompt": "a?b"}, {"prompt": "cab"}]
    file = write(tmp_path / "shop.jsonl", *rows)
    run(workdir, "--file", file, "--json")
    out, err = capsys.readouterr()
    got = [json.loads(line) for line in out.splitlines()]
    long = f"{file}:2 with 41 tokens and sample.length=8 new slots must fit model.max_length=32"
    unknown = f"{file}:4: text 'a?b' holds '?', which the tokenizer does not know"
    assert got[1]["error"].startswith(long)
    assert (got[1]["response"], got[1]["reference"], got[1]["id"]) == (None, "A", 2)
    assert got[3]["error"].startswith(unknown)
    lines = err.splitlines()
    assert [line.startswith(f"error: {file}:") for line in lines] == [True, True, False]
    assert lines[2] == "2 of 5 prompts were not answered"
    # The others get what they get where all of a list fit: a row draws by its number.
    noise = ["--config.sample.temperature=0.8", "--config.sample.batch_size=2"]
    got = records(capsys, workdir, "--file", file, *noise)
    rows[1], rows[3] = {"prompt": "e"}, {"prompt": "e"}
    other = records(capsys, workdir, "--file", write(tmp_path / "other.jsonl", *rows), *noise)
    for number in (0, 2, 4):
        assert got[number] == other[number]


def test_text_says_it_on_the_terminal_only(workdir, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text(f"abc\n\n{LONG}\n")
    run(workdir, "--file", str(file))
    out, err = capsys.readouterr()
    assert [line.split(" ")[0] for line in out.splitlines()] == ["abc"]
    assert err.splitlines()[0].startswith(f"error: {file}:3 with ")
    assert err.splitlines()[1:] == ["1 of 2 prompts was not answered"]
    run(workdir, "abc", LONG)
    assert capsys.readouterr().err.startswith("error: prompt 2 with 41 tokens and sample.length=8")


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_list_with_errors_goes_on(workdir, tmp_path, kept):
    rows = [{"prompt": "abc"}, {"prompt": LONG}, {"prompt": "dea"}, {"prompt": "bad"}]
    file, output = write(tmp_path / "rows.jsonl", *rows), tmp_path / "out.jsonl"
    more = ["--trace", str(tmp_path / "trace.jsonl"), "--config.sample.batch_size=2"]
    run(workdir, "--file", file, "--output", str(output), *more)
    whole, traces = output.read_text(), (tmp_path / "trace.jsonl").read_text()
    assert len(traces.splitlines()) == 3
    output.write_text("".join(whole.splitlines(keepends=True)[:kept]))
    run(workdir, "--file", file, "--output", str(output), *more)
    assert output.read_text() == whole
    assert (tmp_path / "trace.jsonl").read_text() == traces


def test_where_none_can_be_answered_the_command_fails(workdir, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^the prompt with 41 tokens and .* lower sample.length$"
    ):
        run(workdir, LONG)
    file = write(tmp_path / "rows.jsonl", {"prompt": LONG}, {"prompt": LONG})
    output = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match=r"rows.jsonl:1 with .* \(and so with all 2 prompts\)$"):
        run(workdir, "--file", file, "--output", str(output))
    assert not output.exists()


@pytest.mark.parametrize("gap", ["[MASK*0]", f"[MASK*{'9' * 5000}]", "[MASK*99999999]"])
def test_gaps_that_cannot_be(workdir, gap):
    with pytest.raises(ConfigError, match=r"gap must have at least one slot|must fit model"):
        run(workdir, "abc", "--response", gap)


# Where prompts come from.


def test_stdin_is_read_as_a_file_is(workdir, tmp_path, monkeypatch, capsys):
    for text, shown in [
        (b'\xef\xbb\xbf{"messages": [{"role": "human", "content": "abc"}]}\n', ["abc"]),
        (b"abc\r\n\ndea", ["abc", "dea"]),
    ]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        run(workdir)
        assert [line.split(" ")[0] for line in capsys.readouterr().out.splitlines()] == shown
    for text, message in [
        (b"prompt,response\na,b\n", "stdin must have a prompt or a JSON object a line, it is CSV;"),
        (b"\n", "stdin is empty; give a file with one prompt a line"),
        (b'{"prompt": null}', "stdin:1: prompt must be a string, got null; correct the line"),
        (b"ab\n\xff", r"stdin:2 is not UTF-8 \(invalid start byte\)"),
    ]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        with pytest.raises(ConfigError, match=message):
            run(workdir)


def test_several_files(workdir, tmp_path, capsys):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", {"prompt": name})
    run(workdir, "--file", f"{tmp_path}/*.jsonl")
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]
    with pytest.raises(ConfigError, match=r"--file: .* is a folder; write .*/\*.jsonl"):
        run(workdir, "--file", str(tmp_path))
