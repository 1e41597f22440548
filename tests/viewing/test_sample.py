"""The sample command as users run it: texts, JSON, gaps, traces, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from jax_mdlm import sample
from jax_mdlm.config import ConfigError
from jax_mdlm.setup import open_setup
from jax_mdlm.viewing.prompts import encode_prompt, read_prompts


def run(capsys, workdir: Path, *words: str) -> list[str]:
    sample.main(["--workdir", str(workdir), "--config.mesh.fsdp=8", *words])
    return capsys.readouterr().out.splitlines()


def test_texts_tables_and_json(workdir, capsys):
    first, second = run(capsys, workdir, "abc", "dea")
    assert first.startswith("abc -> ")
    assert second.startswith("dea -> ")
    shown = run(capsys, workdir, "--show", "slack", "abc")
    assert [line.split()[0] for line in shown] == ["abc", "slot", "call"]
    record = json.loads(run(capsys, workdir, "--json", "--show", "slack", "abc")[0])
    assert record["response"] == first.removeprefix("abc -> ")
    assert record["prompt"] == "abc"
    assert len(record["canvas"]) == len(record["committed_at"]) == 8


@pytest.mark.parametrize(
    "settings",
    [
        ["cache=dual", "threshold=0.5"],
        ["weights=int8", "guidance=1.0"],
        ["temperature=0.7", "top_k=3", "top_p=0.9", "remask=true"],
        ["limit=16", "block_length=4", "factor=1.5", "cache=prefix", "refresh=2"],
    ],
    ids=" ".join,
)
def test_every_setting_is_reached_from_the_command_line(workdir, capsys, settings):
    """Each changes what is computed; the program runs to its end."""
    flags = [f"--config.sample.{setting}" for setting in settings]
    record = json.loads(run(capsys, workdir, "--json", "--show", "slack", *flags, "abc")[0])
    assert "░" not in record["canvas"]
    assert len(record["canvas"]) == (16 if "limit=16" in settings else 8)


# --- infilling ---


def test_gaps_are_filled_and_the_rest_is_kept(workdir, capsys):
    (line,) = run(capsys, workdir, "--json", "abc", "--response", "C [MASK*2] A B [MASK] D")
    text = json.loads(line)["response"].split()
    assert text[0] == "C"
    assert text[-1] == "D"
    assert "A B" in " ".join(text)
    assert len(text) <= 7


def test_gaps_in_token_ids(workdir):
    setup = open_setup(workdir)
    tokenizer = setup.tokenizer
    mask, end = tokenizer.ids.mask, tokenizer.ids.terminator
    (plain,) = read_prompts(["abc"], None, None)
    (filled,) = read_prompts(["abc"], None, "A [MASK*3] B C")
    (open_end,) = read_prompts(["abc"], None, "[MASK]A[MASK*2]")
    ids = encode_prompt(plain, setup).ids
    a, b, c = (tokenizer.encode(letter)[0] for letter in "ABC")
    got = encode_prompt(filled, setup)
    assert got.ids == [*ids, a, mask, mask, mask, b, c, end]
    assert got.opening == [a]
    got = encode_prompt(open_end, setup)
    assert got.ids == [*ids, mask, a, mask, mask]
    assert got.opening == []


# --- traces ---


def test_a_trace_replays_the_generation(workdir, tmp_path, capsys):
    file = tmp_path / "trace.jsonl"
    flags = ["--config.sample.threshold=0.2", "--config.sample.block_length=4"]
    lines = run(capsys, workdir, "--trace", str(file), "--json", *flags, "abc", "dea", "e")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["prompt"] for record in records] == ["abc", "dea", "e"]
    for line, record in zip(lines, records, strict=True):
        assert record["response"] == json.loads(line)["response"]
        canvas = list(record["start"])
        assert set(canvas) == {"░"}
        calls = []
        for call, slot, token in record["changes"]:
            calls.append(call)
            canvas[slot] = token
        assert canvas == record["canvas"]
        assert calls == sorted(calls)
        assert max(calls) < record["calls"]
        assert set(calls) == set(record["committed_at"])
        assert all(0 < value <= 1 for value in record["confidence"] if value is not None)
        assert sum(value is not None for value in record["confidence"]) >= 4


def test_a_trace_of_gaps_begins_with_the_text_around_them(workdir, tmp_path, capsys):
    file = tmp_path / "trace.jsonl"
    run(capsys, workdir, "--trace", str(file), "abc", "--response", "C [MASK*2] A")
    record = json.loads(file.read_text())
    assert record["start"][:3] == ["░", "░", "A"]
    assert record["committed_at"][2] == -1
    assert record["confidence"][2] is None
    assert record["template"] == "C [MASK*2] A" if "template" in record else True


# --- refusals ---


def test_prompts_from_files(workdir, tmp_path, capsys):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "abc"}\n{"messages": [{"role": "user", "content": "dea"}]}\n')
    lines = run(capsys, workdir, "--file", str(rows))
    assert [line.split(" ")[0] for line in lines] == ["abc", "dea"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt"', r"prompts.jsonl:1 is not JSON \(.* at column 10\); correct the line"),
        (
            '{"text": "x"}',
            r"prompts.jsonl:1 must have messages, prompt or question; its fields are: text; corr",
        ),
        ("[1]", r"prompts.jsonl:1 must be a JSON object, got list"),
        ("\n", r"prompts.jsonl is empty; give a file with one JSON object a line"),
    ],
)
def test_errors_of_a_file(workdir, tmp_path, text, message):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(text)
    with pytest.raises(ConfigError, match=message):
        sample.main(["--workdir", str(workdir), "--file", str(rows)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--file", "rows", "abc"], "got both; drop one"),
        (["--file", "nothing"], r"--file: no file nothing; correct the path"),
        (["abc", "--response", "no gap"], r"--response must have a gap such as \[MASK\*8\] to f"),
        (["--chat", "abc"], r"--chat asks for its prompts itself and takes no TEXT; drop one"),
        (["--chat", "--json"], r"--chat asks for its prompts itself and takes no --json; drop"),
        (["--chat"], r"--chat needs a terminal; give prompts as arguments or with --file"),
        (
            ["abc", "--output", "gs://bucket/out.jsonl"],
            r"--output must be a local file, got gs://bucket/out.jsonl; copy it afterwards",
        ),
        (
            ["abc", "--trace", "/nowhere/trace.jsonl"],
            r"--trace /nowhere/trace.jsonl must be a file that can be written, but",
        ),
        (
            ["abc", "--config.sample.top_p=0.5"],
            r"sample.top_k and sample.top_p choose among drawn tokens and need sample.temperature",
        ),
        (
            ["abc", "--config.sample.threshold=0.5", "--config.sample.factor=1"],
            r"sample.threshold=0.5 and sample.factor=1.0 are two rules for one choice; set one of",
        ),
        (["a" * 40], r"^the prompt with \d+ tokens and sample.length=8 new slots must fit"),
        (
            ["abc", "--response", "[MASK*40]"],
            r"the prompt with \d+ tokens, rounded up to \d+ by sample.block_length=8 behind its",
        ),
    ],
)
def test_refusals(workdir, words, message):
    with pytest.raises(ConfigError, match=message):
        sample.main(["--workdir", str(workdir), "--config.mesh.fsdp=8", *words])


def test_confidence_is_a_probability(workdir, tmp_path, capsys):
    """The first call's offers at T = 0 are argmaxes: at least 1 / V each."""
    file = tmp_path / "trace.jsonl"
    run(capsys, workdir, "--trace", str(file), "abc")
    values = [v for v in json.loads(file.read_text())["confidence"] if v is not None]
    assert np.min(values) > 1 / 200
