"""`benchmarks.buckets` on a tiny model: the figures are there and add up."""

import json
from pathlib import Path

import pytest

from benchmarks import buckets

TINY = "--template plain --batch 8 --length 64 --buckets 16,32,64 --end-padding 4 --vocab 300"
MODEL = "--embed 8 --layers 1 --heads 1 --mlp 8 --steps 1"


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Two thirds short, one third long."""
    lines = [
        json.dumps({"prompt": f"say {i}", "response": str(i) * (1 + i % 3 // 2 * 9)})
        for i in range(90)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return f"--source chat_jsonl --files {path} {TINY} {MODEL}"


def test_padding_is_counted_over_an_epoch(rows: str, capsys: pytest.CaptureFixture) -> None:
    buckets.main([*rows.split(), "--rounds", "0"])
    found = json.loads(capsys.readouterr().out)
    full, bucketed = found["epoch"]["full"], found["epoch"]["buckets"]
    assert full["steps_on"] == {"64": -(-found["rows"] // 8)}
    assert sum(bucketed["steps_on"].values()) == bucketed["steps"] < full["steps"]
    assert 0 < bucketed["padding"] < full["padding"] < 1
    ratio = (1 - bucketed["padding"]) / (1 - full["padding"])
    assert found["tokens_per_slot"] == pytest.approx(ratio, rel=1e-2)
    assert "times_full" not in found


@pytest.mark.slow
def test_rates_follow_from_steps_and_seconds(rows: str, capsys: pytest.CaptureFixture) -> None:
    buckets.main([*rows.split(), "--rounds", "1"])
    found = json.loads(capsys.readouterr().out)
    for name, epoch in found["epoch"].items():
        assert found["programs"][name] == len(epoch["steps_on"])
        seconds = found["seconds_per_step"][name]
        assert seconds.keys() == epoch["steps_on"].keys()
        assert min(seconds.values()) > 0
    rates = found["tokens_per_second"]
    assert found["times_full"] == pytest.approx(rates["buckets"] / rates["full"], rel=0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--buckets a,64", "--buckets must be numbers with commas between, got 'a,64'"),
        ("--steps 0", "--steps must be at least 1"),
    ],
)
def test_wrong_flags(rows: str, flags: str, message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        buckets.main([*rows.split(), *flags.split()])
    assert message in capsys.readouterr().err
