"""Verdicts of creative writing pairs: a winner and one to five pluses per criterion.

The judge replies with JSON, criterion -> `"A0493++"`; the labels and the sums are those of
`core/elo_helpers_cw.py` in https://github.com/EQ-bench/creative-writing-bench (commit e7ab009),
the wording is ours. `creative_writing` writes what is found here into its rows.
"""

import json
from typing import Any

A, B = "A0493", "A0488"  # what the two writers are called
CRITERIA = {
    "character_authenticity_insight": "believable characters, seen into",
    "interesting_original": "interest and originality",
    "writing_quality": "quality of the prose",
    "coherence": "a plot, choices and images that hold together",
    "instruction_following": "doing what the prompt asks",
    "world_and_atmosphere": "world and atmosphere",
    "avoids_cliches": "freedom from cliches",
    "avoids_verbosity": "freedom from wordiness and showy vocabulary",
    "avoids_poetic_overload": "freedom from needless metaphors",
}
# The official sum also takes the pluses of these from the loser: they count twice.
_TWICE = ("avoids_poetic_overload", "coherence", "avoids_verbosity")
_MOST = 5 * len(CRITERIA)  # pluses, each counted once: what margins are divided by

INSTRUCTION = (
    f"Two writers, {A} and {B}, answered the same writing prompt. Compare them on each of these "
    "criteria and name the better one every time, there are no draws: "
    + "; ".join(f"{name} ({meaning})" for name, meaning in CRITERIA.items())
    + ". A text may end in the middle because it was cut; that is no fault. Reply with one JSON "
    'object that has the field "reasons", your reasons in a few sentences, and a field for each '
    f'criterion by its name: the better writer with one to five pluses, for example "{A}++" or '
    f'"{B}+".'
)


def read_pluses(reply: str) -> tuple[int, int] | None:
    """Pluses of A and B, weighted as officially; None where the reply holds no criterion."""
    begin, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[begin : end + 1])
    except ValueError:
        return None
    verdicts = {name: found[name] for name in CRITERIA if isinstance(found.get(name), str)}
    if not any(label in verdict for verdict in verdicts.values() for label in (A, B)):
        return None
    sums = {A: 0, B: 0}
    for name, verdict in verdicts.items():
        winner = A if A in verdict else B if B in verdict else None
        if winner:
            sums[winner] += verdict.count("+")
            if name in _TWICE:
                sums[B if winner == A else A] -= verdict.count("+")
    return sums[A], sums[B]


def outcome_fields(reply: str, *, first_is_a: bool) -> dict[str, Any]:
    """The fields of a comparison that say who won.

    Args:
      reply: The judge's.
      first_is_a: Whether the measured model was A.
    """
    order = f"{A}:test / {B}:other" if first_is_a else f"{A}:other / {B}:test"
    common = {"order": order, "judge_response": {"reply": reply}}
    sums = read_pluses(reply)
    if sums is None:
        # What the official tool writes, whose solver leaves rows with an error out.
        neutral = {"outcome_for_test_model": 0.5, "plus_for_test": 0, "plus_for_other": 0}
        error = "no verdict in the judge's reply"
        return common | neutral | {"error": error, "fraction_for_test": 0.5}
    own, other = sums if first_is_a else sums[::-1]
    outcome = 0.5 if own == other else float(own > other)
    share = abs(own - other) / _MOST
    margin = (0.5 + share / 2) if outcome != 0.5 else 0.5
    return common | {
        "outcome_for_test_model": outcome,
        "plus_for_test": own,
        "plus_for_other": other,
        "plus_diff": abs(own - other),
        "plus_diff_normalized": share,
        "plus_diff_blended": share,
        "fraction_for_test": margin if outcome >= 0.5 else 1 - margin,
    }
