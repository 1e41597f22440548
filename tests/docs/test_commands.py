"""What the documents tell a reader to type works: it is run, or where it cannot be, parsed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import parsing, shell
from tests.docs.commands import (
    Block,
    Command,
    Unreadable,
    documents,
    read_blocks,
    read_commands,
    read_spans,
)
from tests.docs.parsing import ROOT, Refused
from tests.docs.prepared import Documents, all_blocks, runs, shared
from tests.training.forks import forking

PLAIN = ("", "text", "json", "yaml")  # output, trees and files: shown, not run
RUN = [block for block in all_blocks() if runs(block)]
MARKED = [block for block in all_blocks() if block.needs]
PAGES = [page.relative_to(ROOT).as_posix() for page in documents(ROOT)]


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Documents]:
    with forking(*shell.IMPORTS) as forks:
        yield Documents(forks, shared(tmp_path_factory.getbasetemp()))


def words(text: str) -> list[tuple[str, ...]]:
    return [command.words for command in read_commands(text)]


# What is run.


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_block_runs_as_it_stands(pages: Documents, block: Block) -> None:
    result = pages.result(block)
    assert not result.failed, "\n".join([block.name, *result.failed, result.output[-3000:]])


def test_what_is_put_behind_a_command_are_flags_of_it() -> None:
    for begin, end in shell.SHORTER.items():
        if begin == ("train",):
            for word in end:
                parsing.check_setting(word.removeprefix("--config.").replace("{data}", "d"))
            continue
        known = parsing.flags()[" ".join(begin)]
        assert {word.partition("=")[0] for word in end if word.startswith("--")} <= known
    data = Path("d")
    assert shell.shorter("evaluate", ["slack", "--json"], data) == ["--limit", "4"]
    assert shell.shorter("sample", ["--workdir", "runs/quickstart"], data) == []
    assert "--config.data.data_dir=d" in shell.shorter("train", ["--config", "numbers"], data)
    typed = ["sweep", "--runs", "experiments/paper", "--folder", "a", "--output", "b"]
    sweep = shell.shorter("evaluate", typed, data)
    assert sweep[sweep.index("--only") + 1] == "ce,slack_ce"


@pytest.mark.slow
def test_a_block_that_fails_is_told(pages: Documents) -> None:
    """A mistake behind a pipe or in the background fails the block like any other."""
    sh = pages.shell("failing")
    for text, why in [
        (
            "python -m jax_mdlm.train --confg pronounce | cat",
            "train --confg pronounce: exit code 2",
        ),
        ("python -m jax_mdlm.sample --workdir nowhere a & wait", "nowhere a: exit code 2"),
        ("pip install 'jax-mdlm[all]'", "no extra all"),
        ("sh launch/nothing.sh", "no file launch/nothing.sh"),
        ("no_such_program", "the block: exit code 127"),
        ("python -m jax_mdlm.convert import hf://A/B runs/b", "runs/b: exit code 2"),
        ("false", "the block: exit code 1"),
    ]:
        result = sh.run(text)
        assert why in "\n".join(result.failed), (text, result)
    failed = sh.run("raise SystemExit(3)", "python").failed
    assert "exit code 3" in failed[0]
    well = sh.run("export WORD=said\necho '{\"a\": 1}' | python -c 'print(input())' >out\ncat out")
    assert well.failed == []
    assert well.output == '{"a": 1}\n'


# What is marked, and what is said in prose.


@pytest.mark.parametrize("block", MARKED, ids=lambda block: block.name)
def test_what_a_marked_block_types_is_taken(block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.name, "exec")
        return
    assert block.language == "sh", f"{block.name}: only sh and python blocks are marked"
    for command in read_commands(block.text):
        try:
            parsing.check(command)
        except Refused as refused:
            pytest.fail(f"{block.file}:{block.line + command.line}: {refused}")


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_settings_in_prose_exist(page: str) -> None:
    wrong = []
    for line, span in read_spans((ROOT / page).read_text()):
        try:
            parsing.check_span(span)
        except Refused as refused:
            wrong.append(f"{page}:{line}: {refused}")
    assert wrong == []


def test_every_block_says_what_it_is() -> None:
    for block in all_blocks():
        assert block.language in ("sh", "python", *PLAIN), (
            f"{block.name}: {block.language!r} is none of sh, python, json, yaml, text"
        )
        # Commands in a block of output would never be looked at. `[...]` is a summary of usage.
        typed = [
            line for line in block.text.splitlines() if re.match(r"\$ |(python|pip|sh) ", line)
        ]
        if block.language in PLAIN:
            assert all("[" in line for line in typed), f"{block.name}: write ```sh, got {typed}"
    assert len(RUN) > 10
    assert len(MARKED) > 5


def test_what_installs_everything_is_run_by_continuous_integration() -> None:
    lines = [line.split()[:2] for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    for script in shell.RUN_BY_CI:
        assert ["sh", script] in lines


# How documents are read.

PAGE = """\
# Title
```sh
one
```
- item
  ~~~~ {.python title="a"}
  ~~~
  indented
      more
  ~~~~
1. numbers

   ```sh
   # needs a TPU, and time
   three
   ```

text with ```no fence``` in it, and

    ```sh
    indented code
    ```

!!! note
    ````json
    ```sh
    ```
    ````
<!-- a comment
```sh
hidden
```
-->
> ```text
> quoted
> ```
```sh extra `ticks` make it none
```
last
```
"""


def test_blocks_are_found_where_a_reader_sees_them() -> None:
    found = read_blocks(PAGE, "a.md")
    assert [(block.line, block.language, block.text) for block in found] == [
        (2, "sh", "one\n"),
        (6, "python", "~~~\nindented\n    more\n"),
        (13, "sh", "# needs a TPU, and time\nthree\n"),
        (25, "json", "```sh\n```\n"),
        (34, "text", "quoted\n"),
        (38, "", "last\n"),
    ]
    assert [block.needs for block in found] == ["", "", "a TPU, and time", "", "", ""]
    assert found[0].name == "a.md:2"


@pytest.mark.parametrize("text", ["#needs a TPU", "# needs", "\n# needs a TPU", "x # needs a TPU"])
def test_a_marker_is_a_first_line_of_its_own(text: str) -> None:
    assert read_blocks(f"```sh\n{text}\n```\n", "a.md")[0].needs == ""


def test_blocks_that_cannot_be_read() -> None:
    with pytest.raises(Unreadable, match=r"a\.md:1: this fence is never closed"):
        read_blocks("```sh\nls\n", "a.md")
    with pytest.raises(Unreadable, match=r"a\.md:1: this fence is never closed"):
        read_blocks("````sh\nls\n```\n", "a.md")
    with pytest.raises(Unreadable, match=r"a\.md:1: this fence is never closed"):
        read_blocks("> ```sh\n> ls\n\n```\n", "a.md")
    with pytest.raises(Unreadable, match=r"a\.md:3: indented less than its fence in line 2"):
        read_blocks("- item\n  ```sh\nls\n  ```\n", "a.md")


def test_commands_are_read_as_a_shell_reads_them() -> None:
    assert words('a \'b  c\' "d \\" # e" f\\ g h#i # j') == [("a", "b  c", 'd " # e', "f g", "h#i")]
    assert words("a \\\n  b\\\nc # d \\\ne") == [("a", "bc"), ("e",)]
    assert words("a && b | c; (d) &\ne || f") == [(name,) for name in "abcdef"]
    assert words("a >b 2>&1 <c 3 4>>d &>e") == [("a", "3")]
    assert words("a <<'END' >b\npip install x\nEND\nc") == [("a",), ("c",)]
    assert words("a <<-END\n\tx\n\tEND\nb") == [("a",), ("b",)]
    assert words("x=1 y='2 3'\na $x \"${y}\" $z") == [("a", "1", "2 3", "$z")]
    assert words("x=1 a $x") == [("a", "$x")]
    assert words("for x in p q:r; do\n  a --b=$x\ndone") == [("a", "--b=p"), ("a", "--b=q:r")]
    assert words('eval "$(a; b)"; c $(d (e) f)') == [("eval", "$(a; b)"), ("c", "$(d (e) f)")]
    assert words("while sleep 1; do\n if a; then b; else c; fi\ndone") == [
        ("sleep", "1"),
        *[(name,) for name in "abc"],
    ]
    assert [one.line for one in read_commands("a\\\n b\n\nc; d \\\n e\nf")] == [1, 4, 4, 6]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a 'b\n", "line 1: a quotation without an end"),
        ('a\nb "c', "line 2: a quotation without an end"),
        ("a <<END\nb\n", "the here-document END has no end"),
        ("a <<END", "the here-document END has no end"),
        ("a\nb $(c", r"line 2: \$\( without an end"),
    ],
)
def test_commands_that_cannot_be_read(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read_commands(text)


def test_inline_code_may_go_over_a_line_and_not_over_a_paragraph() -> None:
    text = "a `b\nc` ``d ` e``\n\n```sh\n`f`\n```\n`g\n\n`h` i`\n"
    assert read_spans(text) == [(1, "b c"), (2, "d ` e"), (9, "h")]


# What is refused.


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("python -m jax_mdlm.trian --config pronounce", "no command trian; known are train,"),
        ("python -m jax_mdlm.train --config pronounc", "config file 'pronounc' was not found"),
        ("python -m jax_mdlm.train --config pronounce:no", "preset of pronounce must be"),
        ("python -m jax_mdlm.train --conf pronounce --steps 3", "arguments: --steps 3"),
        (
            "python3 -m jax_mdlm.train --config numbers --config.train.step=3",
            "did you mean train.steps",
        ),
        ("python -m jax_mdlm.train --config numbers ...", "unrecognized arguments: ..."),
        (
            "python -m jax_mdlm.evaluate pronunciation --workdir a",
            "invalid choice: 'pronunciation'",
        ),
        ("python -m jax_mdlm.evaluate pronunciations", "arguments are required: --workdir"),
        (
            "python -m jax_mdlm.evaluate harness --workdir a --tasks b --preset c",
            "invalid choice: 'c'",
        ),
        (
            "python -m jax_mdlm.evaluate sweep --runs experiments/no --folder a --output b",
            "config file 'experiments/no' was not found",
        ),
        (
            "python -m jax_mdlm.evaluate judge report --benchmark mt_bench --judgments a "
            "--config.sample.steps=1",
            "judge report has no settings of a run",
        ),
        (
            "python -m jax_mdlm.sample --workdir runs/llada --config.train.steps=4",
            "train.steps cannot be changed here",
        ),
        (
            "python -m jax_mdlm.sample --workdir runs/quickstart --config.sample.steps=0",
            "sample.steps must",
        ),
        ("X=1 python -m jax_mdlm.plan --config llada_ctc", "required: --topology"),
        ("python -m jax_mdlm.convert import a", "arguments are required: workdir"),
        ("python -m benchmarks.nothing", "no command benchmarks.nothing"),
        ("python -m benchmarks.loss --fast", "unrecognized arguments: --fast"),
        ("python examples/none.py", "no file examples/none.py"),
        (".venv/bin/python -m pytest tests/none.py", "no file tests/none.py"),
        ("pytest tests/none.py::test_a", "no file tests/none.py"),
        ("pip install -e '.[cpu]'", "no extra cpu; known are demo, tpu,"),
        ("uv pip install 'jax-mdlm[demo,tpus]>=1'", "no extra tpus"),
        ("pip install 'jax-mdlm[tpus] @ file:///a.whl'", "no extra tpus"),
        ("pip install 'jax-mdlm[demo]'", "the package is on no index"),
        ("pip install jax-mdlm", "the package is on no index"),
        ("sh launch/tpu/none.sh create", "no file launch/tpu/none.sh"),
        ("sh launch/tpu/pod.sh --dryrun create", "launch/tpu/pod.sh has no flag --dryrun"),
        ("sh launch/tpu/pod.sh run --config llada", "config file 'llada' was not found"),
        ("sh launch/gke/jobset.sh --image A -- --confg b", "required: --config"),
    ],
)
def test_commands_that_would_not_work_are_refused(typed: str, why: str) -> None:
    (command,) = read_commands(typed)
    with pytest.raises(Refused, match=re.escape(why)):
        parsing.check(command)


def test_commands_of_others_pass() -> None:
    for typed in ("gcloud auth login", "X=1", "pip install -e . xpk", "python -m jax_mdlm"):
        parsing.check(Command(1, tuple(typed.split())))


def test_a_script_that_no_shell_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.sh").write_text("if true; then\n")
    monkeypatch.setattr(parsing, "ROOT", tmp_path)
    with pytest.raises(Refused, match="half.sh: .*yntax error"):
        parsing.check(Command(1, ("sh", "half.sh")))


@pytest.mark.parametrize(
    "span",
    [
        "--limt",
        "--config.data.lenght",
        "--config.train.steps=many",
        "objective.colapse",
        "train.keep_evry=3",
        "python -m jax_mdlm.evaluate pronunciation",
        "mesh.fsdp=8 mesh.tensors=2",
    ],
)
def test_names_that_nothing_has_are_refused(span: str) -> None:
    with pytest.raises(Refused):
        parsing.check_span(span)


@pytest.mark.parametrize(
    "span",
    [
        "--limit 4",
        "--config.sample.NAME=VALUE",
        "--config.model.*",
        "--config.init.from=~/models/a",
        "mesh.fsdp=8 mesh.tensor=2",
        "train.jsonl",
        "model.apply(params)",
        "python -m jax_mdlm.evaluate TASK",
        "python -m jax_mdlm.train",
    ],
)
def test_names_that_something_has_pass(span: str) -> None:
    parsing.check_span(span)
