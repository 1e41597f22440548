"""Rows prepared and opened: against the tokenizer alone, and for two sizes of one set.

Two-turn chats are put together from a file of questions and answers. The tokenizer is a byte-level
BPE that is trained on some of them. What its own `encode_batch` reaches on the same texts, on all
cores, is measured before and after the preparation; both are rates of rows. Opening is a process of
its own: seconds until the first batch is there, and the anonymous memory (RssAnon: mapped files do
not count) that this took, for all rows and for a tenth of them.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from benchmarks.printing import print_result
from jax_mdlm.config import TokenizerConfig
from jax_mdlm.data.tokenizer import Tokenizer, load_tokenizer

_SAMPLE = 20_000  # rows that the tokenizer is trained on, and timed with
_LENGTH = 1024
_OPEN = """
import contextlib, re, sys, time
from etils import epath
from jax_mdlm import command
from jax_mdlm.data.corpus import load_corpus
from jax_mdlm.sharding import Share

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3

config = command.parse_config("chat", sys.argv[2:])
import grain, jax.numpy, tokenizers  # what a run has loaded before it opens its data
jax.numpy.zeros(1).block_until_ready()
before, start = anonymous(), time.perf_counter()
corpus = load_corpus(config, epath.Path(sys.argv[1]))
with contextlib.closing(corpus.batches(config, 0, Share())) as batches:
    next(batches)
    seconds = time.perf_counter() - start
    for _ in range(50):
        next(batches)
print(seconds, anonymous() - before)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its result, one JSON object, on stdout."""
    print_result("data", __doc__, add_flags, run, argv)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Gives the parser this benchmark's flags."""
    parser.add_argument("--file", required=True, help="JSONL with question and answer")
    parser.add_argument("--rows", type=int, default=1_000_000, help="two-turn chats (1,000,000)")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens of the BPE (4096)")
    parser.add_argument("--buckets", default="256,512,1024", help="data.buckets; empty = none")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk to measure")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures preparation and opening."""
    if arguments.rows < 10 * _SAMPLE:
        parser.error(f"--rows must be at least {10 * _SAMPLE}, got {arguments.rows}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        return _measure(Path(folder), arguments)


def _measure(place: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"rows": arguments.rows}
    texts: list[str] = []
    for count in (arguments.rows // 10, arguments.rows):
        with open(place / f"{count}.jsonl", "w") as file:
            for row in _chats(Path(arguments.file), count):
                file.write(json.dumps(row) + "\n")
    with open(place / f"{arguments.rows}.jsonl") as file:
        for _, line in zip(range(_SAMPLE), file, strict=False):
            texts += [message["content"] for message in json.loads(line)["messages"]]
    for count in (arguments.rows // 10, arguments.rows):
        kind = TokenizerConfig("bpe", vocab_size=arguments.vocab)
        prepared = place / f"prepared-{count}"
        tokenizer = load_tokenizer(kind, epath.Path(prepared) / "tokenizer", lambda: texts)
        settings = _settings(place / f"{count}.jsonl", arguments)
        words = [sys.executable, "-m", "jax_mdlm.prepare", "--config", "chat", *settings]
        rates = [_rate_alone(tokenizer, texts)]
        seconds, peaks = _watch([*words, "--output", str(prepared)])
        rates.append(_rate_alone(tokenizer, texts))
        own = [sys.executable, "-c", _OPEN, str(place / f"run-{count}"), *settings]
        opened = [
            tuple(
                map(
                    float,
                    subprocess.check_output(
                        [*own, f"--config.data.prepared={prepared}"], text=True
                    ).split(),
                )
            )
            for _ in range(3)
        ]
        size = (place / f"{count}.jsonl").stat().st_size / 1e6
        alone = statistics.mean(rates)
        result[f"{count} rows"] = {
            "megabytes": round(size),
            "prepare": {
                "seconds": round(seconds, 1),
                "rows_per_second": round(count / seconds),
                "megabytes_per_second": round(size / seconds, 2),
                "encode_batch_rows_per_second": round(alone),
                "share_of_encode_batch": round(count / seconds / alone, 3),
                "peak_rss_mb": [round(peak) for peak in sorted(peaks, reverse=True)],
            },
            "open": {
                "seconds_to_first_batch": round(statistics.median(o[0] for o in opened), 2),
                "anonymous_mb": round(statistics.median(o[1] for o in opened), 1),
            },
        }
    return result


def _chats(file: Path, count: int) -> Iterator[dict[str, Any]]:
    """Chats of two questions each; a number keeps any two apart."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rng = random.Random(0)
    for number in range(count):
        first, second = rng.choice(rows), rng.choice(rows)
        contents = (
            f"{first['question']} ({number})",
            first["answer"],
            *map(second.get, ("question", "answer")),
        )
        roles = ("user", "assistant") * 2
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        yield {"messages": messages}


def _settings(file: Path, arguments: argparse.Namespace) -> list[str]:
    return [
        f"--config.{setting}"
        for setting in (
            "data.source=chat_jsonl",
            f"data.files={file}",
            "data.template=llada",
            f"data.length={_LENGTH}",
            f"model.max_length={_LENGTH}",
            "data.max_labels=512",
            "data.tokenizer.kind=bpe",
            f"data.tokenizer.vocab_size={arguments.vocab}",
            f"data.buckets={arguments.buckets}",
        )
    ]


def _rate_alone(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Rows a second of `encode_batch`, on all cores; nothing is done with the ids."""
    backend: Any = tokenizer.backend  # pyright: ignore[reportAttributeAccessIssue]
    start = time.perf_counter()
    for begin in range(0, len(texts), 8192):
        backend.encode_batch_fast(list(texts[begin : begin + 8192]), add_special_tokens=False)
    return len(texts) / 4 / (time.perf_counter() - start)


def _watch(words: Sequence[str]) -> tuple[float, list[float]]:
    """Seconds of a command, and the peak memory of each of its processes in MB."""
    start = time.perf_counter()
    peaks: dict[str, float] = {}
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        watcher = threading.Thread(target=_sample, args=(process, peaks))
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - start
        watcher.join()
    if code:
        raise RuntimeError(f"{' '.join(words)} ended with {code}")
    return seconds, list(peaks.values())


def _sample(process: "subprocess.Popen[bytes]", peaks: dict[str, float]) -> None:
    while process.poll() is None:
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        try:
            pids = [str(process.pid), *Path(children).read_text().split()]
            for pid in pids:
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                if found:  # one that ends has none
                    peaks[pid] = int(found[1]) / 1e3
        except OSError:
            continue
        time.sleep(0.1)


if __name__ == "__main__":
    main()
