"""launch/tpu/pod.sh against a stub gcloud: what it asks for, how it waits, what it says."""

import re
import subprocess

import pytest

from tests.launch.conftest import Pod

DESCRIBE = [
    *["compute", "tpus", "queued-resources", "describe", "n", "--project=p", "--zone=z"],
    '--format=value[separator="|"](state.state,state.stateInitiator,state.failedData.error.message)',
]
CREATE = [
    *["compute", "tpus", "queued-resources", "create", "n", "--project=p", "--zone=z"],
    *["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"],
]
DELETE = [
    *["compute", "tpus", "queued-resources", "delete", "n", "--project=p", "--zone=z"],
    *["--force", "--quiet"],
]
ABSENT = "!ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such resource"


def ssh(node: str, worker: str, command: str) -> list[str]:
    at = ["--project=p", "--zone=z", f"--worker={worker}", f"--command={command}"]
    return ["compute", "tpus", "tpu-vm", "ssh", node, *at]


def test_create_asks_for_chips_and_waits_for_them(pod: Pod) -> None:
    pod.states(ABSENT, "ACCEPTED|USER|", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE|SERVICE|")
    done = pod("create")
    assert pod.calls() == [DESCRIBE, [*CREATE, "--node-id=n"], *[DESCRIBE] * 4]
    said = re.findall(r"pod: n is (\w+)", done.stderr)
    assert said == ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


@pytest.mark.parametrize(
    ("words", "release", "flags"),
    [
        (["--spot"], [], ["--node-id=n", "--spot"]),
        (["--reserved"], [], ["--node-id=n", "--reserved"]),
        (["--best-effort"], ["alpha"], ["--node-id=n", "--best-effort"]),
        (["--node-count", "2"], [], ["--node-count=2", "--node-prefix=n"]),
        (["--node-count=2", "--spot"], [], ["--node-count=2", "--node-prefix=n", "--spot"]),
    ],
)
def test_kinds_of_capacity(
    pod: Pod, words: list[str], release: list[str], flags: list[str]
) -> None:
    pod.states(ABSENT, "ACTIVE")
    pod("create", *words)
    assert pod.calls("create") == [[*release, *CREATE, *flags]]


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-32", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_each_generation_has_its_software(pod: Pod, accelerator: str, runtime: str) -> None:
    pod.states(ABSENT, "ACTIVE")
    pod(f"TYPE={accelerator}", "create")
    (call,) = pod.calls("create")
    assert f"--accelerator-type={accelerator}" in call
    assert f"--runtime-version={runtime}" in call


def test_other_settings_reach_gcloud(pod: Pod) -> None:
    pod.states(ABSENT, "ACTIVE")
    pod("RUNTIME=mine", "VALID_FOR=6h", 'CREATE_FLAGS="--network=a --internal-ips"', "create")
    (call,) = pod.calls("create")
    assert call[8:] == [
        *["--runtime-version=mine", "--node-id=n", "--valid-until-duration=6h"],
        *["--network=a", "--internal-ips"],
    ]
    pod("SSH_FLAGS=--internal-ip --plain", "stop")
    assert pod.calls("ssh")[0][-2:] == ["--internal-ip", "--plain"]


def test_create_again_only_waits(pod: Pod) -> None:
    pod.states("PROVISIONING", "ACTIVE")
    pod("create")
    assert pod.calls() == [DESCRIBE, DESCRIBE]


@pytest.mark.parametrize(
    ("states", "error"),
    [
        ([ABSENT, "ACCEPTED", "FAILED|SERVICE|no v5e in z"], "n is FAILED: no v5e in z; mend it"),
        ([ABSENT, "FAILED"], "n is FAILED: no reason given; mend it"),
        (
            [ABSENT, "PROVISIONING", "SUSPENDED|SERVICE|"],
            r"n is SUSPENDED \(by SERVICE\): .* resume",
        ),
        ([ABSENT, "SUSPENDING|USER|"], r"n is SUSPENDING \(by USER\)"),
        ([ABSENT, "ACCEPTED", ABSENT], "n is ABSENT: somebody deleted it; begin again with create"),
        (["SUSPENDED"], "n exists and is SUSPENDED; get new chips by: .* resume"),
        (["!ERROR: permission denied"], "could not describe n: ERROR: permission denied"),
        ([ABSENT, "!ERROR: no network"], "could not describe n five times: ERROR: no network"),
    ],
)
def test_create_ends_with_the_reason(pod: Pod, states: list[str], error: str) -> None:
    pod.states(*states)
    done = pod("create", code=2)
    assert re.fullmatch(f"error: .*{error}.*", done.stderr.splitlines()[-1])


def test_a_hiccup_of_the_network_does_not_end_the_wait(pod: Pod) -> None:
    hiccup = "!ERROR: connection reset"
    pod.states(ABSENT, *[hiccup] * 4, "ACCEPTED", hiccup, "ACTIVE")  # five in all, never in a row
    pod("create")


def test_a_refused_request_is_an_error(pod: Pod) -> None:
    pod.states(ABSENT)
    (pod.stub / "refuse").write_text("create\n")
    done = pod("create", code=2)
    assert "quota exhausted\nerror: gcloud refused to create n" in done.stderr
    assert not (pod.checkout / "runs/tpu/n/created").exists()


@pytest.mark.parametrize("name", ["PROJECT", "ZONE", "NAME", "TYPE", "WORKDIR"])
def test_a_missing_setting_has_a_remedy(pod: Pod, name: str) -> None:
    lines = pod.settings.read_text().splitlines()
    pod.settings.write_text("\n".join(line for line in lines if not line.startswith(name)))
    command = ["run", "--config", "c"] if name == "WORKDIR" else ["create"]
    done = pod(*command, code=2)
    assert re.fullmatch(
        rf"error: {name} is not set: .+; put {name}=... into launch/tpu/pod.env .*\n", done.stderr
    )
    pod.states("ACTIVE")
    pod(*command, **{name: "gs://b/run" if name == "WORKDIR" else "v5p-8"})  # from the environment


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "a command is needed: create, setup, .*"),
        (["launch"], "launch is no command; use create, .*"),
        (
            ["--spot", "create"],
            "--spot is no option of pod.sh; options of a command stand behind it.*",
        ),
        (["--settings", "no.env", "create"], "settings file no.env does not exist; .*"),
        (["--settings"], "--settings needs a file: .*"),
        (["TIPE=v4-32", "create"], "command line: TIPE is no setting; known are PROJECT .*"),
        (["TYPE=v3-8", "create"], "TYPE must begin with v4-, .* got v3-8.*"),
        (["NAME=My_Pod", "create"], "NAME must be a-z, .* got My_Pod"),
        (["NODE_COUNT=0", "create"], "NODE_COUNT must be 1 .* got 0"),
        (["CAPACITY=free", "create"], "CAPACITY must be on-demand, .* got free"),
        (["create", "--node-count", "two"], "NODE_COUNT must be .* got two"),
        (["create", "--cheap"], "create takes --spot, .* got --cheap"),
        (["status", "now"], "status takes no arguments, got now"),
        (["logs", "first"], "logs takes a worker's number or all, .* got first"),
        (["logs", "--lines", "few"], "--lines must be a number, got few"),
        (["logs", "--slice", "1"], r"--slice must be below NODE_COUNT \(1\), got 1"),
        (["run"], "run needs the arguments of train, .*"),
        (["WORKDIR=/data", "run", "--config", "c"], "--workdir must be a gs:// path: .*"),
        (["resume"], "no run of n was started from this checkout; use create, setup, run"),
        (["PASS_ENV=HF_TOKEN", "run"], "PASS_ENV must not name secrets, got HF_TOKEN; .*"),
        (["SOURCE=https://me:pw@host/x", "setup"], "SOURCE must not carry a user or token; .*"),
    ],
)
def test_mistakes_are_one_line(pod: Pod, words: list[str], error: str) -> None:
    done = pod(*words, code=2)
    assert re.fullmatch(f"error: {error}\n", done.stderr), done.stderr
    assert pod.calls() == []


def test_a_line_of_the_settings_file_that_is_no_setting(pod: Pod) -> None:
    pod.settings.write_text("PROJECT=p\nexport ZONE\n")
    assert "pod.env: a line must be SETTING=VALUE" in pod("create", code=2).stderr
    pod.settings.write_text("# mine\n\nPORJECT=p\n")
    assert "pod.env: PORJECT is no setting" in pod("create", code=2).stderr


def test_which_source_of_a_setting_wins(pod: Pod) -> None:
    """Environment, then the file, then words; CREATE_FLAGS is in no file here."""
    other = pod.checkout / "other.env"
    other.write_text('PROJECT="p q"\nZONE=there\n# a comment\nNAME=m\nTYPE=v4-8')
    words = ["--dry-run", "--settings", str(other), "TYPE=v4-16", "create"]
    printed = pod(*words, PROJECT="e", TYPE="v4-64", CREATE_FLAGS="--labels=a=b").stdout
    assert printed.splitlines()[1].split("create ")[1] == (
        "m '--project=p q' --zone=there --accelerator-type=v4-16 "
        "--runtime-version=tpu-ubuntu2204-base --node-id=m --labels=a=b"
    )


def test_the_example_of_settings_has_every_setting(pod: Pod) -> None:
    text = (pod.checkout / "launch/tpu/pod.env.example").read_text()
    script = (pod.checkout / "launch/tpu/settings.sh").read_text()
    known = re.search(r'SETTINGS="([^"]*)"', script)
    assert known
    assert sorted(re.findall(r"^([A-Z_]+)=", text, re.M)) == sorted(
        known[1].replace("\\", "").split()
    )
    pod.settings.write_text(text)
    assert "PROJECT is not set" in pod("create", code=2).stderr


def test_a_dry_run_prints_what_would_be_called(pod: Pod) -> None:
    printed = pod("--dry-run", "create", "--spot").stdout.splitlines()
    assert printed[1] == "gcloud " + " ".join([*CREATE, "--node-id=n", "--spot"])
    done = pod("--dry-run", "run", "--config", "c d")
    assert done.stderr == ""
    assert done.stdout.startswith(
        "gcloud compute tpus tpu-vm ssh n --project=p --zone=z --worker=all"
    )
    for command in (["setup"], ["status"], ["logs"], ["stop"], ["delete"]):
        assert pod("--dry-run", *command).stdout.startswith("gcloud compute tpus ")
    assert pod.calls() == []
    assert not (pod.checkout / "runs").exists()


def test_setup_without_git_names_the_remedy(pod: Pod) -> None:
    subprocess.run(["rm", "-rf", str(pod.checkout / ".git")], check=True)
    done = pod("setup", code=2, GIT_CEILING_DIRECTORIES=str(pod.checkout.parent))
    assert "is no git checkout; clone the repository, or set SOURCE" in done.stderr


def test_setup_from_a_git_url(pod: Pod) -> None:
    pod("SOURCE=https://host/a b.git", "REVISION=v1", "setup")
    (call,) = pod.calls()
    line = call[-1]
    assert "git fetch --quiet --depth 1 'https://host/a b.git' v1 && " in line
    assert line.endswith(" && sh jax_mdlm/launch/tpu/worker.sh install")


def test_a_failing_worker_fails_the_command(pod: Pod) -> None:
    (pod.stub / "workers").write_text("2")
    (pod.stub / "unreachable").write_text("n-1/1\n")
    done = pod("NODE_COUNT=2", "stop", code=2)
    assert "ssh: worker 1: connection timed out" in done.stderr
    assert "error: stop failed on n-1 - see above which worker" in done.stderr
    assert len(pod.calls("ssh")) == 2  # the other slice was asked nevertheless
    assert "error: no log of worker 0 of n could be read" in pod("logs", code=2).stderr


def test_logs_of_a_worker(pod: Pod) -> None:
    pod("logs", "3", "--lines", "7", "--follow")
    pod("NODE_COUNT=2", "logs", "all", "--slice", "1")
    log = "sh jax_mdlm/launch/tpu/worker.sh log"
    assert pod.calls() == [ssh("n", "3", f"{log} 7 follow"), ssh("n-1", "all", f"{log} 50 ")]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("SUSPENDED|SERVICE|", "n: SUSPENDED\npod: ask for new chips by: .* resume\n"),
        (
            "FAILED||out of v5e",
            "n: FAILED \\(out of v5e\\)\npod: ask for new chips by: .* resume\n",
        ),
        (ABSENT, "n: ABSENT\npod: create it by: .* create\n"),
        ("PROVISIONING", "n: PROVISIONING\n"),
    ],
)
def test_status_without_chips_asks_no_worker(pod: Pod, state: str, words: str) -> None:
    pod.states(state)
    done = pod("status")
    assert re.fullmatch(words, done.stdout + done.stderr)
    assert pod.calls() == [DESCRIBE]


CREATED = "TYPE=v5litepod-16\nRUNTIME=\nNODE_COUNT=2\nCAPACITY=spot\nVALID_FOR=\nCREATE_FLAGS=\n"
STARTED = (
    "env 'LIBTPU_INIT_ARGS=--a --b' .venv/bin/python -m jax_mdlm.train "
    "--workdir gs://b/run --config c\n"
)


def test_what_was_created_and_started_is_remembered(pod: Pod) -> None:
    pod.states(ABSENT, "ACTIVE")
    pod("create", "--spot", "--node-count", "2")
    pod("run", "--config", "c", LIBTPU_INIT_ARGS="--a --b")
    assert (pod.checkout / "runs/tpu/n/created").read_text() == CREATED
    assert (pod.checkout / "runs/tpu/n/run").read_text() == STARTED
    start = f"cd jax_mdlm && sh launch/tpu/worker.sh start {STARTED.strip()}"
    assert sorted(pod.calls("ssh")) == [ssh(node, "all", start) for node in ("n-0", "n-1")]
    (pod.stub / "unreachable").write_text("n-1/0\n")
    (pod.stub / "workers").write_text("1\n")
    said = pod("run", "--config", "other", code=2).stderr
    assert (
        "error: run failed on n-0 n-1 - see above which worker; mend it, stop the workers" in said
    )
    assert (pod.checkout / "runs/tpu/n/run").read_text() == STARTED  # what failed is not repeated


@pytest.mark.parametrize(
    ("states", "asked"),
    [
        (["SUSPENDED", "ACCEPTED", "ACTIVE"], ["delete", "create"]),
        (["SUSPENDING", "SUSPENDED", "ACTIVE"], ["delete", "create"]),
        (["FAILED", "ACTIVE"], ["delete", "create"]),
        ([ABSENT, "PROVISIONING", "ACTIVE"], ["create"]),
        (["WAITING_FOR_RESOURCES", "ACTIVE"], []),
        (["ACTIVE"], []),
    ],
)
def test_resume_gets_chips_where_they_are_gone(
    pod: Pod, states: list[str], asked: list[str]
) -> None:
    memory = pod.checkout / "runs/tpu/n"
    memory.mkdir(parents=True)
    (memory / "created").write_text(CREATED)
    (memory / "run").write_text(STARTED)
    pod.states(*states)
    pod("TYPE=v6e-32", "resume")  # other chips than before, the rest as it was
    verbs = [call[3] for call in pod.calls("queued-resources") if call[3] != "describe"]
    assert verbs == asked
    if "create" in asked:
        (call,) = pod.calls("create")
        assert call[7:9] == ["--accelerator-type=v6e-32", "--runtime-version=v2-alpha-tpuv6e"]
        assert call[9:] == ["--node-count=2", "--node-prefix=n", "--spot"]
    if "delete" in asked:
        assert pod.calls("delete") == [DELETE]
    remote = [call[-1] for call in pod.calls("ssh") if call[4] == "n-0"]
    steps = [re.findall(r"worker.sh (stop|idle|install|start)", line) for line in remote]
    assert steps == [["stop"], ["idle", "install"], ["start"]]
    assert remote[-1].endswith(f"worker.sh start {STARTED.strip()}")


def test_delete_ends_the_bill(pod: Pod) -> None:
    pod.states(ABSENT, "ACTIVE")
    pod("create")
    pod("delete")
    assert pod.calls()[-1] == DELETE
    assert not (pod.checkout / "runs/tpu/n/created").exists()
    (pod.stub / "refuse").write_text("delete\n")
    assert "error: gcloud could not delete n" in pod("delete", code=2).stderr


def test_help_lists_the_commands(pod: Pod) -> None:
    text = pod("--help").stdout
    for command in ("create", "setup", "run", "logs", "status", "stop", "resume", "delete"):
        assert re.search(rf"^  {command}\b", text, re.M)
