"""launch/gke: the JobSet, field by field; the xpk command; the image's files; mistakes."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launch.conftest import ROOT

IMAGE = "europe-docker.pkg.dev/p/mdlm/train:1"
TRAIN = ["--config", "configs/llada_ctc.py", "--workdir", "gs://b/run"]
HARD = ["a b", "it's", 'say "x"', "$(HOME) $$ `id`", "*", "two\nlines", "end\n", "", "\\n", "a\tb"]


def run(script: str, *words: str, code: int = 0, path: str = "/bin:/usr/bin") -> tuple[str, str]:
    """Output and errors of a script of launch/gke."""
    done = subprocess.run(
        ["sh", str(ROOT / "launch/gke" / script), *words],
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == code, done
    return done.stdout, done.stderr


def jobset(accelerator: str, topology: str, *options: str, train: list[str] = TRAIN) -> dict:
    chips = ["--accelerator", accelerator, "--topology", topology, "--image", IMAGE]
    return yaml.safe_load(run("jobset.sh", *chips, *options, "--", *train)[0])


def job(document: dict) -> dict:
    (slices,) = document["spec"]["replicatedJobs"]
    return slices["template"]["spec"]


def pod(document: dict) -> dict:
    return job(document)["template"]["spec"]


def container(document: dict) -> dict:
    (train,) = pod(document)["containers"]
    return train


@pytest.mark.parametrize(
    ("accelerator", "topology", "slices", "hosts", "chips", "selector"),
    [
        ("v5e", "4x4", 1, 4, 4, "tpu-v5-lite-podslice"),
        ("v5e", "2x4", 1, 1, 8, "tpu-v5-lite-podslice"),
        ("v5e", "16x16", 2, 64, 4, "tpu-v5-lite-podslice"),
        ("v6e", "4x4", 1, 4, 4, "tpu-v6e-slice"),
        ("v6e", "1x1", 1, 1, 1, "tpu-v6e-slice"),
        ("v4", "2x2x4", 1, 4, 4, "tpu-v4-podslice"),
        ("v5p", "2x2x4", 1, 4, 4, "tpu-v5p-slice"),
        ("v5p", "2x2x1", 1, 1, 4, "tpu-v5p-slice"),
        ("v5p", "4x4x8", 2, 32, 4, "tpu-v5p-slice"),
    ],
)
def test_a_topology_becomes_hosts_and_chips(
    accelerator: str, topology: str, slices: int, hosts: int, chips: int, selector: str
) -> None:
    document = jobset(accelerator, topology, "--slices", str(slices))
    assert document["spec"]["replicatedJobs"][0]["replicas"] == slices
    assert job(document)["parallelism"] == job(document)["completions"] == hosts
    assert pod(document)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": selector,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    count = {"google.com/tpu": chips}
    host = {"cpu": 16, "memory": "32Gi"}
    assert container(document)["resources"] == {"requests": host | count, "limits": count}
    assert pod(document)["hostNetwork"] is (slices > 1)


def test_the_whole_manifest() -> None:
    document = jobset(
        *["v5e", "4x4", "--name=my-run", "--restarts=7", "--grace=900"],
        *["--service-account=trainer", "--env", "LIBTPU_INIT_ARGS=--a=$(X) --b", "--env=N="],
    )
    assert document == {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": "my-run",
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "ttlSecondsAfterFinished": 86400,
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {
                "maxRestarts": 7,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": document["spec"]["replicatedJobs"],
        },
    }
    (slices,) = document["spec"]["replicatedJobs"]
    assert (slices["name"], slices["replicas"]) == ("slice", 1)
    (rule,) = job(document)["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": [1, 2]},
    }
    assert job(document)["completionMode"] == "Indexed"
    assert job(document)["backoffLimit"] == 0  # one lost host ends the job, and then all restart
    assert {name: pod(document)[name] for name in pod(document) if name != "containers"} == {
        "restartPolicy": "Never",
        "serviceAccountName": "trainer",
        "terminationGracePeriodSeconds": 900,
        "hostNetwork": False,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": pod(document)["nodeSelector"],
    }
    train = container(document)
    assert (train["name"], train["image"]) == ("train", IMAGE)
    assert train["command"] == [
        *["sh", "launch/tpu/supervise.sh", "python", "-m", "jax_mdlm.train", *TRAIN]
    ]
    assert train["env"] == [
        {"name": "RESTARTS", "value": "0"},
        {"name": "LIBTPU_INIT_ARGS", "value": "--a=$$(X) --b"},
        {"name": "N", "value": ""},
    ]
    assert [port["containerPort"] for port in train["ports"]] == [8471, 8080, 8482]


def test_arguments_arrive_as_they_are() -> None:
    """Kubernetes turns `$$` into `$` and leaves the rest of a word alone."""
    command = container(jobset("v5e", "4x4", train=[*TRAIN, *HARD]))["command"]
    assert [word.replace("$$", "$") for word in command[-len(HARD) :]] == HARD


@pytest.mark.parametrize("name", ["no", "true", "null", "y"])
def test_names_stay_strings(name: str) -> None:
    assert jobset("v5e", "4x4", "--name", name)["metadata"]["name"] == name


def test_the_node_pool_is_named() -> None:
    chips = ["--accelerator=v6e", "--topology=2x4", f"--image={IMAGE}"]
    text = run("jobset.sh", *chips, "--", *TRAIN)[0]
    assert "--machine-type=ct6e-standard-8t --tpu-topology=2x4 --num-nodes=1" in text


GOOD = {"--accelerator": "v5e", "--topology": "4x4", "--image": IMAGE}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"--topology": ""}, "--topology is needed, e.g. --topology 4x4"),
        ({"--image": ""}, "--image is needed: what launch/gke/Dockerfile builds, .*"),
        ({"--accelerator": "v3"}, "--accelerator must be v4, v5e, v5p or v6e, got v3"),
        ({"--accelerator": ""}, "--accelerator must be .* got none"),
        ({"--topology": "4x5"}, "--topology of v5e must be 1x1, .* got 4x5"),
        ({"--topology": "2x2x4"}, "--topology of v5e must be 1x1, .* got 2x2x4"),
        ({"--accelerator": "v5p"}, "--topology of v5p must be 2x2x1, .* got 4x4"),
        ({"--accelerator": "v4", "--topology": "8x4x4"}, ".* A <= B <= C, got 8x4x4"),
        ({"--accelerator": "v4", "--topology": "4x4x6"}, ".* in steps of 4 .* got 4x4x6"),
        (
            {"--accelerator": "v4", "--topology": "16x16x20"},
            "a slice of v4 has at most 4096 chips.*",
        ),
        ({"--topology": "2x4", "--slices": "2"}, "several slices must have several hosts each .*"),
        ({"--slices": "0"}, "--slices must be 1 or more, got 0"),
        ({"--grace": "long"}, "--grace must be 1 or more, got long"),
        ({"--restarts": "-1"}, "--restarts must be a number, got -1"),
        ({"--name": "My_Run"}, "--name must be a-z, .* got My_Run"),
        ({"--name": "m" * 41}, "--name must have at most 40 characters .*"),
        ({"--env": "HF_TOKEN=x"}, "--env must not carry secrets, got HF_TOKEN; .*"),
        ({"--env": "A"}, "--env must be NAME=VALUE, got A"),
        ({"--env": "1A=x"}, "--env must be NAME=VALUE, got 1A=x"),
        ({"--zone": "z"}, "--zone is no option here; known are --accelerator .*"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, str], error: str) -> None:
    options = [word for pair in (GOOD | change).items() for word in pair]
    text, said = run("jobset.sh", *options, "--", *TRAIN, code=2)
    assert re.fullmatch(f"error: {error}\n", said), said
    assert text == ""


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "the arguments of train are needed behind --, .*"),
        (["--", "--workdir", "gs://b/run"], "the arguments of train are needed behind --, .*"),
        (["--", "--config", "c"], "--workdir gs://... is needed behind --: .*"),
        (["--", "--config=c", "--workdir=/data"], "--workdir gs://... is needed behind --: .*"),
        (["--name"], "--name needs a value: --name VALUE"),
    ],
)
def test_mistakes_in_the_arguments_of_train(words: list[str], error: str) -> None:
    good = [word for pair in GOOD.items() for word in pair]
    assert re.fullmatch(f"error: {error}\n", run("jobset.sh", *good, *words, code=2)[1])


XPK = ["--cluster", "c", "--project", "p", "--zone", "z", "--image", IMAGE]


@pytest.mark.parametrize(
    ("accelerator", "topology", "device"),
    [
        ("v5e", "4x4", "v5litepod-16"),
        ("v5p", "2x2x4", "v5p-32"),
        ("v4", "2x2x4", "v4-32"),
        ("v6e", "16x16", "v6e-256"),
    ],
)
def test_the_xpk_command(tmp_path: Path, accelerator: str, topology: str, device: str) -> None:
    stub = tmp_path / "xpk"
    stub.write_text(
        f'#!/bin/sh\nfor word in "$@"; do printf \'%s\\0\' "$word"; done >{tmp_path}/said'
    )
    stub.chmod(0o755)
    chips = ["--accelerator", accelerator, "--topology", topology, "--slices", "2"]
    options = [*XPK, *chips, "--env", "A=b c", "--env=D=e", "--", *TRAIN, "a b", "it's"]
    run("xpk.sh", *options, path=f"{tmp_path}:/bin:/usr/bin")
    said = (tmp_path / "said").read_text().split("\0")[:-1]
    words = " ".join(f"'{word}'" for word in [*TRAIN, "a b", "it'\\''s"])
    train = "python -m jax_mdlm.train"
    assert said == [
        *["workload", "create", "--workload=mdlm", "--cluster=c", "--project=p", "--zone=z"],
        *[f"--tpu-type={device}", "--num-slices=2", f"--docker-image={IMAGE}"],
        *["--max-restarts=20", "--termination-grace-period-seconds=600"],
        "--restart-on-user-code-failure",
        f"--command=exec env RESTARTS=0 sh launch/tpu/supervise.sh {train} {words}",
        *["--env=A=b c", "--env=D=e"],
    ]
    printed = run("xpk.sh", "--dry-run", *options)[0]
    assert printed.startswith("xpk 'workload' 'create' '--workload=mdlm'")


def test_what_xpk_cannot_do_is_refused() -> None:
    chips = ["--accelerator", "v5e", "--topology", "4x4"]
    for word in ("$HOME", "$(id)", "two\nlines"):
        said = run("xpk.sh", *XPK, *chips, "--", *TRAIN, word, code=2)[1]
        assert said.startswith("error: xpk cannot carry $ or newlines in arguments")
    assert "--zone is needed" in run("xpk.sh", *XPK[:4], *XPK[6:], *chips, "--", *TRAIN, code=2)[1]
    assert "xpk is not installed" in run("xpk.sh", *XPK, *chips, "--", *TRAIN, code=2)[1]


def test_the_image_has_what_the_command_needs() -> None:
    """Every COPY names something of the checkout that the ignore file lets through."""
    folder = ROOT / "launch/gke"
    lines = (folder / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    allowed = re.findall("^!(.+)$", (folder / "Dockerfile.dockerignore").read_text(), re.M)
    for name in copied:
        assert (ROOT / name).exists()
        assert name.split("/")[0] in allowed
    assert {"jax_mdlm", "configs", "launch", "pyproject.toml"} <= set(copied)
    build = yaml.safe_load((folder / "cloudbuild.yaml").read_text())
    assert build["images"] == ["${_IMAGE}"]
    assert (ROOT / build["steps"][0]["args"][2]) == folder / "Dockerfile"


def test_what_is_requested_of_a_host() -> None:
    document = jobset("v5e", "4x4", "--cpu", "96", "--memory=150Gi")
    requests = container(document)["resources"]["requests"]
    assert requests == {"cpu": 96, "memory": "150Gi", "google.com/tpu": 4}


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--cpu=0", "--cpu must be 1 or more, got 0"),
        ("--memory=32G", "--memory must be a number with Ki, Mi, Gi or Ti, got 32G"),
        ("--memory=1.5Gi", "--memory must be 1 or more, got 1.5"),
    ],
)
def test_a_request_that_is_none(option: str, why: str) -> None:
    words = ["--accelerator=v5e", "--topology=4x4", f"--image={IMAGE}", option, "--", *TRAIN]
    assert run("jobset.sh", *words, code=2)[1] == f"error: {why}\n"


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_is_the_head_of_the_script(word: str) -> None:
    shown, errors = run("jobset.sh", word)
    assert errors == ""
    assert shown.startswith("Prints the JobSet of a run on GKE; README.md is the manual.\n")
    known = re.findall(r'known="(?:\$known )?([^"]*)"', (ROOT / "launch/gke/jobset.sh").read_text())
    assert all(option in shown for option in " ".join(known).split())
    assert "set -eu" not in shown
