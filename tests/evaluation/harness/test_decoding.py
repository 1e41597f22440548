"""generation_kwargs as options, by hand."""

import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.harness.decoding import DecodingPlan, cut, plan
from jax_mdlm.sampling import SampleOptions
from tests.sampling.making import changed, make_options
from tests.sampling.standin import IDS

OPTIONS = make_options(length=8, block_length=4, steps=4, ids=IDS)
DRAWN = changed(OPTIONS, temperature=0.5, top_k=3, top_p=0.5)


def read(
    wishes: dict, options: SampleOptions = OPTIONS, fixed: tuple[str, ...] = ()
) -> DecodingPlan:
    return plan(options, wishes, fixed=frozenset(fixed), origin="task t")


def altered(**fields: object) -> SampleOptions:
    return changed(OPTIONS, **fields)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, OPTIONS),
        ({"do_sample": False, "temperature": 0.7}, OPTIONS),
        ({"temperature": "0.25"}, altered(temperature=0.25)),
        ({"do_sample": True}, altered(temperature=1.0)),
        (
            {"do_sample": True, "temperature": 0.2, "top_p": 0.95},
            altered(temperature=0.2, top_p=0.95),
        ),
        ({"do_sample": True, "top_k": -1}, altered(temperature=1.0)),
        ({"temperature": 1, "top_k": 5}, altered(temperature=1.0, top_k=5)),
        ({"temperature": 0.0, "top_p": 0.95}, OPTIONS),  # nothing is drawn
        ({"num_beams": 1, "repetition_penalty": 1.0, "min_p": None}, OPTIONS),
    ],
)
def test_what_is_drawn(wishes, expected):
    assert read(wishes) == DecodingPlan(expected, ())


def test_what_was_chosen_stays():
    wishes = {"do_sample": True, "temperature": 1.0, "top_k": 9, "top_p": 0.1, "max_gen_toks": 99}
    fixed = ("temperature", "top_k", "top_p", "length")
    assert read(wishes, DRAWN, fixed) == DecodingPlan(DRAWN, ())
    assert read({}, DRAWN) == DecodingPlan(DRAWN, ())
    greedy = changed(DRAWN, temperature=0.0, top_k=0, top_p=1.0)
    assert read({"do_sample": False}, DRAWN) == DecodingPlan(greedy, ())
    assert read({"do_sample": False}, DRAWN, ("temperature",)) == DecodingPlan(DRAWN, ())


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_the_canvas_takes_the_most_tokens_in_whole_blocks(name):
    assert read({name: 10}) == DecodingPlan(
        altered(length=12, steps=6), (), 10
    )  # half a call a slot
    assert read({name: 2}) == DecodingPlan(altered(length=4, steps=2), (), 2)


def test_every_block_has_a_call():
    few = changed(OPTIONS, length=16, steps=4)
    assert read({"max_gen_toks": 6}, few).options.settings.steps == 2


def test_a_growing_canvas_grows_to_the_most_tokens():
    growing = altered(limit=32)
    assert read({"max_gen_toks": 18}, growing) == DecodingPlan(altered(limit=20), (), 18)
    assert read({"max_gen_toks": 3}, growing) == DecodingPlan(
        altered(length=4, steps=2, limit=4), (), 3
    )


def test_the_first_name_decides():
    assert read({"max_tokens": 4, "max_gen_toks": 12}).limit == 12


@pytest.mark.parametrize(
    ("until", "expected"), [("\n", ("\n",)), (["a", "b"], ("a", "b")), (None, ()), ([], ())]
)
def test_until(until, expected):
    assert read({"until": until}).until == expected


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ((), "A B C B"),
        (("B",), "A "),
        (("C", "B"), "A "),  # the first that appears, not the first that is named
        (("D", "C"), "A B "),
        (("D",), "A B C B"),
        (("",), "A B C B"),
        (("A",), ""),
    ],
)
def test_cut(until, expected):
    assert cut("A B C B", until) == expected


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"num_beams": 10}, r"task t: .* num_beams=10, which .* cannot do; only 1 is taken"),
        ({"repetition_penalty": 1.2}, r"repetition_penalty=1.2, which .* cannot do; only 1"),
        ({"max_length": 100}, r"max_length=100, which is not known here; known are until, max_gen"),
        ({"max_gen_toks": 0}, r"max_gen_toks .* whole number of at least 1, got 0; correct"),
        ({"max_gen_toks": 2.5}, r"max_gen_toks .* whole number of at least 1, got 2.5"),
        ({"max_gen_toks": float("inf")}, r"max_gen_toks .* at least 1, got inf"),
        ({"temperature": "hot"}, r"temperature .* number of at least 0, got 'hot'"),
        ({"temperature": -1}, r"temperature .* number of at least 0, got -1"),
        ({"do_sample": True, "top_p": 2}, r"sample.top_p must lie above 0"),
    ],
)
def test_refusals(wishes, message):
    with pytest.raises(ConfigError, match=message):
        read(wishes)
