"""Every option against the Python loop: alone, and in pairs that touch each other.

Each is crossed with temperature 0 and 0.7, both collapse maps, batches of 1 and 3, rows that are
padded, rows that are not, and rows that only fill a batch up. A program takes half a second to
compile, so the default run takes two programs of each option, which differ in all three, and the
crowds, in which many options meet; the slow run takes all others.
"""

import functools
import itertools
from typing import Any

import numpy as np
import pytest

from jax_mdlm.sampling import (
    AboveThreshold,
    AtRandom,
    ByEntropy,
    ByFactor,
    ByMargin,
    Canvas,
    SampleOptions,
    make_canvas,
)
from tests.sampling import oracle, standin
from tests.sampling.making import make_options
from tests.sampling.standin import IDS

M = IDS.mask
SEEDS = (0, 5)  # with both, everything that the last tests ask for occurs
GROWTH = {"length": 6, "limit": 18, "steps": 4}
INFILL = {"infill": True}  # of the prompts, not of the options

ALONE: dict[str, dict[str, Any]] = {
    "confidence": {},
    "entropy": {"strategy": ByEntropy()},
    "margin": {"strategy": ByMargin()},
    "random": {"strategy": AtRandom()},
    "threshold": {"strategy": AboveThreshold(0.4)},
    "factor": {"strategy": ByFactor(1.2)},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.6},
    "guidance": {"guidance": 1.5},
    "suppress_eos": {"suppress_eos": True},
    "defer_eos": {"defer_eos": True},
    "remask": {"remask": True},
    "early_stop": {"early_stop": True},
    "growth": GROWTH,
    "infill": INFILL,
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "refresh": {"cache": "dual", "refresh": 2},
    "trace": {"trace": True},
}
PAIRS: dict[str, dict[str, Any]] = {
    "threshold random": {"strategy": AboveThreshold(0.4, order=AtRandom())},
    "threshold entropy": {"strategy": AboveThreshold(0.4, order=ByEntropy())},
    "threshold margin": {"strategy": AboveThreshold(0.4, order=ByMargin())},
    "factor random": {"strategy": ByFactor(1.2, order=AtRandom())},
    "factor entropy": {"strategy": ByFactor(1.2, order=ByEntropy())},
    "threshold early_stop": {"strategy": AboveThreshold(0.4), "early_stop": True},
    "threshold prefix": {"strategy": AboveThreshold(0.4), "cache": "prefix"},
    "factor dual": {"strategy": ByFactor(1.2), "cache": "dual"},
    "factor refresh": {"strategy": ByFactor(1.2), "cache": "prefix", "refresh": 1},
    "top_k top_p": {"top_k": 4, "top_p": 0.8},
    "top_p guidance": {"top_p": 0.8, "guidance": 0.5},
    "guidance prefix": {"guidance": 1.5, "cache": "prefix"},
    "guidance dual": {"guidance": 1.5, "cache": "dual"},
    "guidance infill": {"guidance": 1.5, **INFILL},
    "guidance growth": {"guidance": 1.5, **GROWTH},
    "suppress_eos defer_eos": {"suppress_eos": True, "defer_eos": True},
    "suppress_eos growth": {"suppress_eos": True, **GROWTH},
    "defer_eos threshold": {"defer_eos": True, "strategy": AboveThreshold(0.4)},
    "defer_eos factor": {"defer_eos": True, "strategy": ByFactor(1.2)},
    "defer_eos early_stop": {"defer_eos": True, "early_stop": True},
    "remask entropy": {"remask": True, "strategy": ByEntropy()},
    "remask margin": {"remask": True, "strategy": ByMargin()},
    "remask random": {"remask": True, "strategy": AtRandom()},
    "remask early_stop": {"remask": True, "early_stop": True},
    "remask defer_eos": {"remask": True, "defer_eos": True},
    "remask dual": {"remask": True, "cache": "dual"},
    "remask infill": {"remask": True, **INFILL},
    "remask growth": {"remask": True, **GROWTH},
    "growth threshold": {**GROWTH, "strategy": AboveThreshold(0.4)},
    "growth early_stop dual": {**GROWTH, "early_stop": True, "cache": "dual"},
    "growth early_stop prefix": {**GROWTH, "early_stop": True, "cache": "prefix", "refresh": 2},
    "infill early_stop": {**INFILL, "early_stop": True},
    "infill prefix": {**INFILL, "cache": "prefix"},
    "infill dual": {**INFILL, "cache": "dual"},
    "infill threshold": {**INFILL, "strategy": AboveThreshold(0.4), "early_stop": True},
    "trace remask growth": {**GROWTH, "trace": True, "remask": True, "early_stop": True},
    "trace infill dual": {**INFILL, "trace": True, "cache": "dual", "guidance": 0.5},
}
CROWDS: dict[str, dict[str, Any]] = {
    "growing": {
        **GROWTH,
        "early_stop": True,
        "cache": "dual",
        "refresh": 3,
        "guidance": 0.5,
        "top_p": 0.9,
        "remask": True,
        "trace": True,
    },
    "filling": {
        **INFILL,
        "strategy": AboveThreshold(0.4),
        "early_stop": True,
        "cache": "prefix",
        "guidance": 0.5,
        "top_k": 5,
        "trace": True,
    },
    "revising": {
        **INFILL,
        "strategy": ByEntropy(),
        "remask": True,
        "defer_eos": True,
        "early_stop": True,
        "cache": "dual",
    },
    "running": {
        **GROWTH,
        "strategy": ByFactor(1.2),
        "early_stop": True,
        "suppress_eos": True,
        "defer_eos": True,
        "cache": "prefix",
        "refresh": 2,
    },
}
PROMPTS = {
    "even": [[1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 0, 1], [2, 2, 7, 8, 4, 4]],
    "padded": [[1, 2, 3, 4, 5, 6], [0], [2, 2]],
}
GAPS = {
    "even": [
        [1, 2, 3, 4, 5, 0, M, M, 3, M, M, M, M, 4, 4, M, M, M],
        [0, 1, 0, 1, 0, 1, M, 5, M, M, 1, 1, M, M, M, M, M, 2],
        [2, 2, 3, 3, 4, 4, M, M, M, M, M, M, 0, M, M, M, 1, M],
    ],
    "padded": [
        [1, 2, 3, 4, 5, 0, M, M, M, 1, 1, M, M, M, 2, M, M, M],
        [M, M, 3, M],
        [2, 2, M, 0, M, M, M, M, M, 1],
    ],
}


def options_with(collapse: str, temperature: float, changes: dict[str, Any]) -> SampleOptions:
    # 7 calls on two blocks of 6 slots: 4 calls (2, 2, 1, 1 commits), then 3 (2, 2, 2).
    plain = {"length": 12, "block_length": 6, "steps": 7, "ids": IDS}
    changes = {name: value for name, value in changes.items() if name != "infill"}
    return make_options(**{**plain, "collapse": collapse, "temperature": temperature, **changes})


def canvases(options: SampleOptions, batch: int, infill: bool) -> dict[str, Canvas]:
    """Of one shape: rows without padding, with it, and one prompt in a batch that it does not fill.

    A single row is padded at the left, in infilling at both sides.
    """
    rows = GAPS if infill else PROMPTS
    make = functools.partial(make_canvas, options=options, max_length=64, bucket=lambda n: 6)
    if batch == 1:
        # Of the gaps the last one: its region is two blocks long, too.
        padded = rows["padded"][2:] if infill else rows["padded"][1:2]
        return {"even": make(rows["even"][:1]), "padded": make(padded)}
    made = {kind: make(prompts) for kind, prompts in rows.items()}
    return made | {"filled": make(rows["padded"][:1], rows=batch)}


def check(canvas: Canvas, options: SampleOptions, seed: int) -> None:
    table = standin.tables(seed)
    got = oracle.run_jax(table, canvas, options, seed)
    want = oracle.run_reference(table, canvas, options, seed)
    np.testing.assert_array_equal(got.canvas, want.canvas)
    np.testing.assert_array_equal(got.committed_at, want.committed_at)
    assert got.step == want.calls
    assert got.done.all()
    assert (got.trace is not None) == options.trace
    if got.trace is not None:
        part = np.s_[:, canvas.region.start :]
        frames, confidence = np.asarray(got.trace.frames), np.asarray(got.trace.confidence)
        for call, frame in enumerate(want.trajectory):
            np.testing.assert_array_equal(frames[call], frame[part])
        for call in range(want.calls):
            np.testing.assert_allclose(
                confidence[call], want.confidence[call][part], rtol=2e-5, atol=1e-7
            )
        assert not frames[want.calls + 1 :].any()
        assert not confidence[want.calls :].any()


def grid() -> list[Any]:
    cases = []
    for name, changes in (ALONE | PAIRS | CROWDS).items():
        # Without noise top-k and top-p would change nothing: the options refuse it.
        drawn = "top_k" in changes or "top_p" in changes
        for temperature in (0.7,) if drawn else (0.0, 0.7):
            for collapse in ("merge", "slack_only"):
                for batch in (1, 3):
                    case = (temperature, collapse, batch)
                    quick = case == (0.7, "merge", 3) and name not in PAIRS
                    quick |= case == (0.0, "slack_only", 1) and name in ALONE
                    cases.append(
                        pytest.param(
                            changes,
                            temperature,
                            collapse,
                            batch,
                            marks=[] if quick else [pytest.mark.slow],
                            id=f"{name}-{temperature}-{collapse}-{batch}",
                        )
                    )
    return cases


@pytest.mark.parametrize(("changes", "temperature", "collapse", "batch"), grid())
def test_equals_the_python_loop(changes, temperature, collapse, batch):
    options = options_with(collapse, temperature, changes)
    shapes = set()
    for canvas in canvases(options, batch, "infill" in changes).values():
        shapes.add((canvas.tokens.shape, canvas.region))
        for seed in SEEDS:
            check(canvas, options, seed)
    assert len(shapes) == 1, "one program"


# --- the grid is worth something only if in it every option changes what happens ---


@functools.cache
def outcome(name: str, temperature: float, collapse: str, kind: str, seed: int):
    changes = (ALONE | PAIRS)[name]
    options = options_with(collapse, temperature, changes)
    canvas = canvases(options, 3, "infill" in changes)[kind]
    return oracle.run_reference(standin.tables(seed), canvas, options, seed)


def rows_that_differ(name: str, other: str, temperature: float) -> int:
    count = 0
    for kind in PROMPTS:
        for seed in SEEDS:
            one = outcome(name, temperature, "merge", kind, seed)
            two = outcome(other, temperature, "merge", kind, seed)
            count += (one.canvas != two.canvas).any(axis=1).sum()
    return count


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("entropy", "confidence"),
        ("margin", "confidence"),
        ("random", "confidence"),
        ("threshold", "confidence"),
        ("factor", "threshold"),
        ("guidance", "confidence"),
        ("suppress_eos", "confidence"),
        ("defer_eos", "confidence"),
        ("remask", "confidence"),
        ("early_stop", "confidence"),
        ("prefix", "confidence"),  # what the cache holds is stale
        ("dual", "prefix"),
        ("refresh", "dual"),
    ],
)
def test_an_option_changes_what_comes_out(name, other, temperature):
    assert rows_that_differ(name, other, temperature)


@pytest.mark.parametrize("name", ["top_k", "top_p"])
def test_a_cut_changes_a_token(name):
    """Up to the first difference both see one canvas and draw one noise: it is an offered token."""
    assert rows_that_differ(name, "confidence", 0.7)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_grid_meets_what_it_should(temperature):
    """The mask would win, repeats merge, commits are taken back, some rows grow and others not."""
    mask_wins, merged, grown, revised, deferred = 0, 0, set(), 0, 0
    for seed in SEEDS:
        for kind in PROMPTS:
            here = (temperature, "merge", kind, seed)
            plain = outcome("confidence", temperature, "slack_only", kind, seed)
            denoiser = standin.InNumpy(standin.tables(seed), plain.canvas != IDS.pad, 6)
            for frame in plain.trajectory[:-1]:
                logits, _ = denoiser.full(frame, frame.shape[1])
                mask_wins += ((logits.argmax(axis=-1) == M) & (frame == M)).sum()
            merged += (plain.canvas != outcome("confidence", *here).canvas).any()
            frames = outcome("remask", *here).trajectory
            revised += sum(
                ((old != M) & (new == M)).any() for old, new in itertools.pairwise(frames)
            )
            grown |= set((outcome("growth", *here).committed_at >= 0).sum(axis=1))
            late = outcome("defer_eos", *here)
            closing = np.isin(late.canvas, [IDS.eos, IDS.terminator]) & (late.committed_at >= 0)
            deferred += closing.any()
    assert mask_wins
    assert merged
    assert revised
    assert grown == {6, 12, 18}, "no block appended, one, and all up to the limit"
    assert deferred
