"""A gcloud that reaches no cloud: it records its arguments and plays what a test has written.

A test puts it first on the PATH. Everything is in the folder $STUB:

- `calls`: one JSON list of arguments per call, appended here.
- `states`: what `queued-resources describe` answers, a line for each call; the last one stays.
  `STATE|INITIATOR|MESSAGE`, or `!TEXT`: TEXT on stderr and exit code 1.
- `refuse`: words; a call that has one of them as an argument ends with 1 and a line on stderr.
- `workers`: number of workers of every slice. Each has a home, `NODE/N`; ssh really executes the
  command there in sh, scp really copies. Where the file is absent, ssh and scp do nothing.
- `unreachable`: lines `NODE/N`; ssh to these ends with 255.
"""

import json
import os
import sys
from pathlib import Path

STUB = Path(os.environ["STUB"])


def lines(name: str) -> list[str]:
    file = STUB / name
    return file.read_text().splitlines() if file.exists() else []


def option(words: list[str], name: str) -> str:
    return next(word.split("=", 1)[1] for word in words if word.startswith(f"--{name}="))


def describe() -> int:
    states = lines("states")
    if len(states) > 1:
        (STUB / "states").write_text("\n".join(states[1:]) + "\n")
    if states[0].startswith("!"):
        print(states[0][1:], file=sys.stderr)
        return 1
    print(states[0])
    return 0


def homes(node: str, which: str) -> list[Path]:
    count = int((lines("workers") or ["0"])[0])
    numbers = range(count) if which == "all" else [int(which)] if count else []
    found = [STUB / node / str(number) for number in numbers]
    for home in found:
        home.mkdir(parents=True, exist_ok=True)
    return found


def ssh(words: list[str]) -> int:
    found = homes(words[0], option(words, "worker"))
    if not found:
        return 0
    import subprocess  # here: most calls start no process, and a test makes many calls
    from concurrent.futures import ThreadPoolExecutor

    unreachable = lines("unreachable")

    def execute(home: Path) -> int:
        if str(home.relative_to(STUB)) in unreachable:
            print(f"ssh: worker {home.name}: connection timed out", file=sys.stderr)
            return 255
        command = ["sh", "-c", option(words, "command")]
        return subprocess.run(command, cwd=home, env={**os.environ, "HOME": str(home)}).returncode

    with ThreadPoolExecutor() as pool:
        return next((code for code in pool.map(execute, found) if code), 0)


def scp(words: list[str]) -> int:
    import shutil

    node, target = words[1].split(":")
    for home in homes(node, option(words, "worker")):
        shutil.copy(words[0], home / target)
    return 0


def main(words: list[str]) -> int:
    with (STUB / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    if set(lines("refuse")) & set(words):
        print("ERROR: (gcloud) quota exhausted", file=sys.stderr)
        return 1
    if words[:4] == ["compute", "tpus", "queued-resources", "describe"]:
        return describe()
    if words[:4] == ["compute", "tpus", "tpu-vm", "ssh"]:
        return ssh(words[4:])
    if words[:4] == ["compute", "tpus", "tpu-vm", "scp"]:
        return scp(words[4:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
