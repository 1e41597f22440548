"""Fenced blocks of Markdown, and the commands of a shell block, as a reader sees them.

What a block needs stands in its first line, `# needs ...`: such a block is read here and not run.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r"(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>.*)$")
_ITEM = re.compile(r" *(?:[-*+]|\d{1,9}[.)])( +|$)")
_INDENTED = re.compile(r" *(?:!!!|\?\?\?\+?|===)\+? ")  # admonitions and tabs of mkdocs-material
_MARKER = re.compile(r"# needs (?P<what>\S.*)")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_QUOTE = re.compile(r" {0,3}> ?")


class Unreadable(ValueError):
    """Text that cannot be what its author meant; says where."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      file: Path below the root of the checkout.
      line: Of the opening fence, from 1.
      language: First word behind the fence; "" where there is none.
      text: What is between the fences, without the indentation of the list that it is in.
      needs: What the marker in its first line names; "" = the block runs as it stands.
    """

    file: str
    line: int
    language: str
    text: str
    needs: str = ""

    @property
    def name(self) -> str:
        """Where it is, `file:line`."""
        return f"{self.file}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Command:
    """A simple command of a shell block.

    Attributes:
      line: Where it begins, from 1, in the block.
      words: Without quotes, redirections and leading assignments; a variable that the block does
        not set keeps its `$`.
    """

    line: int
    words: tuple[str, ...]


def read_blocks(text: str, file: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order.

    A fence may stand in a list item, an admonition, a tab or a quotation, where its indentation is
    taken away. Indented code, comments and what stands inside another fence are no blocks.

    Raises:
      Unreadable: a fence is never closed, or a block is indented less than its fence.
    """
    blocks: list[Block] = []
    offsets = [0]  # where the text of the list items begins that a line may belong to
    lines = enumerate(text.splitlines(), start=1)
    for number, line in lines:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip(" "))
        quoted = _QUOTE.match(line)
        content = line[quoted.end() :] if quoted else line.lstrip(" ")
        while indent < offsets[-1]:
            offsets.pop()
        if indent >= offsets[-1] + 4:
            continue  # indented code
        if content.startswith("<!--"):
            while "-->" not in line:
                line = next(lines, (0, "-->"))[1]
            continue
        fence = _FENCE.match(content)
        if fence and not (fence["marks"][0] == "`" and "`" in fence["info"]):
            inside = list(_until_closed(lines, fence["marks"], bool(quoted), f"{file}:{number}"))
            blocks.append(_block(file, number, fence["info"], inside, 0 if quoted else indent))
        elif item := _ITEM.match(line):
            offsets.append(item.end() if item[1] else item.end() + 1)
        elif _INDENTED.match(line):
            offsets.append(indent + 4)
    return blocks


def _until_closed(
    lines: Iterator[tuple[int, str]], marks: str, quoted: bool, where: str
) -> Iterator[str]:
    closing = re.compile(rf"\s*{marks[0]}{{{len(marks)},}}\s*$")
    for _, line in lines:
        if quoted:
            if not (quote := _QUOTE.match(line)):
                break
            line = line[quote.end() :]
        if closing.match(line):
            return
        yield line
    raise Unreadable(f"{where}: this fence is never closed")


def _block(file: str, line: int, info: str, inside: list[str], indent: int) -> Block:
    language = info.strip("{} ").split(" ")[0].removeprefix(".")
    for number, text in enumerate(inside, start=line + 1):
        if text[:indent].strip():
            raise Unreadable(f"{file}:{number}: indented less than its fence in line {line}")
    text = "".join(row[indent:] + "\n" for row in inside)
    marker = _MARKER.match(text)
    return Block(file, line, language, text, marker["what"].strip() if marker else "")


def read_commands(text: str) -> list[Command]:
    """The simple commands of a shell block, for a block that is not run.

    Continued lines, quotes, comments, here-documents, redirections, `NAME=value` and `for NAME in
    ...` are understood: a command in a loop is given once for every value. Anything else of the
    shell's language is left as it stands, since nothing here is executed.

    Raises:
      Unreadable: a quotation or here-document without an end.
    """
    commands: list[Command] = []
    known: dict[str, list[str]] = {}
    words: list[str] = []
    begin = 0
    for line, kind, word in [*_Lexer(text).tokens(), (0, "end", "")]:
        if kind == "word":
            begin = begin if words else line
            words.append(word)
            continue
        for simple in _simple(words, known):
            commands.append(Command(begin, simple))
        words = []
    return commands


def _simple(words: list[str], known: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
    """The commands that these words stand for; assignments go into `known`."""
    while words and words[0] in ("do", "then", "else", "if", "while", "until", "!", "{", "time"):
        words = words[1:]
    if words[:1] == ["for"] and words[2:3] == ["in"]:
        known[words[1]] = [value for word in words[3:] for value in _expand((word,), known)[0]]
        return
    if not words or words[0] in ("done", "fi", "}", "esac"):
        return
    leading = []
    while len(leading) < len(words) and (found := _ASSIGNMENT.fullmatch(words[len(leading)])):
        leading.append(found)
    if len(leading) < len(words):
        yield from _expand(tuple(words[len(leading) :]), known)
        return
    for found in leading:  # nothing but assignments: they hold from here on
        known[found[1]] = [_expand((found[2],), known)[0][0]]


def _expand(words: tuple[str, ...], known: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """The words with every value of the variables in them that are known."""
    variable = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
    names = {a or b for word in words for a, b in variable.findall(word)}
    used = sorted(names & known.keys())
    found = []
    for values in itertools.product(*(known[name] for name in used)):
        value = dict(zip(used, values))
        found.append(
            tuple(
                variable.sub(lambda hit: value.get(hit[1] or hit[2], hit[0]), word)
                for word in words
            )
        )
    return found


class _Lexer:
    """Words and separators of shell text."""

    def __init__(self, text: str):
        self._text = text.replace("\\\n", "\x00")  # continued: no end of line, but it is counted
        self._at = 0
        self._documents: list[tuple[str, bool]] = []

    def tokens(self) -> Iterator[tuple[int, str, str]]:
        """`(line, "word" or "end", text)`; a redirection and its target are left out."""
        redirects = False
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in " \t\x00":
                self._at += 1
            elif char == "#":
                end = self._text.find("\n", self._at)
                # A comment ends with its line, also behind a backslash.
                stop = self._text.find("\x00", self._at)
                ends = [place for place in (end, stop) if place >= 0]
                self._at = min(ends) if ends else len(self._text)
                if stop >= 0 and self._at == stop:
                    yield self._line(), "end", "\n"
            elif char == "\n":
                yield self._line(), "end", char
                self._at += 1
                self._skip_documents()
            elif char in ";&|()" and not self._text.startswith("&>", self._at):
                yield self._line(), "end", char
                self._at += 1
            elif found := re.compile(r"\d*(<<-?|&?>>?&?|<&?)").match(self._text, self._at):
                self._at = found.end()
                redirects = True
                document = found[1] if found[1].startswith("<<") else ""
            else:
                line, word = self._line(), self._word()
                if not redirects:
                    yield line, "word", word
                elif document:
                    self._documents.append((word, document == "<<-"))
                redirects = False
        if self._documents:
            raise Unreadable(f"the here-document {self._documents[0][0]} has no end")

    def _line(self) -> int:
        before = self._text[: self._at]
        return before.count("\n") + before.count("\x00") + 1

    def _skip_documents(self) -> None:
        while self._documents:
            end, tabs = self._documents[0]
            if self._at >= len(self._text):
                raise Unreadable(f"the here-document {end} has no end")
            stop = self._text.find("\n", self._at)
            stop = len(self._text) if stop < 0 else stop
            line = self._text[self._at : stop]
            self._at = min(stop + 1, len(self._text))
            if (line.lstrip("\t") if tabs else line) == end:
                self._documents.pop(0)

    def _word(self) -> str:
        parts = []
        while self._at < len(self._text) and (char := self._text[self._at]) not in " \t\n;&|()<>":
            if char == "'":
                parts.append(self._quoted("'"))
            elif char == '"':
                parts.append(re.sub(r'\\(["\\$`])', r"\1", self._quoted('"')))
            elif char == "\\":
                parts.append(self._text[self._at + 1 : self._at + 2])
                self._at += 2
            elif self._text.startswith("$(", self._at):
                parts.append(self._substitution())
            elif char == "\x00":  # a word goes on in the next line
                self._at += 1
            else:
                parts.append(char)
                self._at += 1
        return "".join(parts)

    def _quoted(self, mark: str) -> str:
        line, begin = self._line(), self._at + 1
        self._at = begin
        while self._at < len(self._text) and self._text[self._at] != mark:
            self._at += 2 if mark == '"' and self._text[self._at] == "\\" else 1
        if self._at >= len(self._text):
            raise Unreadable(f"line {line}: a quotation without an end")
        self._at += 1
        return self._text[begin : self._at - 1].replace("\x00", "\\\n" if mark == "'" else "")

    def _substitution(self) -> str:
        begin, depth = self._at, 0
        for at in range(begin + 1, len(self._text)):
            depth += {"(": 1, ")": -1}.get(self._text[at], 0)
            if depth == 0:
                self._at = at + 1
                return self._text[begin : self._at]
        raise Unreadable(f"line {self._line()}: $( without an end")


def read_spans(text: str) -> list[tuple[int, str]]:
    """Inline code of the prose, `(line, text)`; a span may go over the end of a line.

    What stands in fenced blocks is left out.
    """
    lines, fenced = text.splitlines(), set[int]()
    for block in read_blocks(text, ""):
        fenced |= set(range(block.line - 1, block.line + block.text.count("\n") + 1))
    prose = "\n".join("" if at in fenced else line for at, line in enumerate(lines))
    found = []
    for paragraph in re.finditer(r"(?:.+\n?)+", prose):
        for span in re.finditer(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", paragraph[0], re.DOTALL):
            before = prose[: paragraph.start() + span.start()]
            found.append((before.count("\n") + 1, " ".join(span[2].split())))
    return found


def documents(root: Path) -> list[Path]:
    """What a reader follows: the front page, the guides, and the launch scripts' pages."""
    pages = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("launch/**/*.md")]
    return sorted(page for page in pages if page.is_file())
