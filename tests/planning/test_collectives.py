"""Who takes part in an exchange, and how long the wires are busy, against counting by hand."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from jax_mdlm.planning.collectives import Collective, Wiring, groups_of, taken_in
from jax_mdlm.planning.topologies import Machine
from jax_mdlm.training.timing import CHIPS, find_chip

LINK = 50e9  # v5e, one direction


def wiring(shape: tuple[int, int], mesh: dict[str, int], slices: int = 1) -> Wiring:
    """v5e slices in rows of coordinates; the mesh numbers them in that order."""
    places = itertools.product(range(slices), range(shape[0]), range(shape[1]))
    devices = [SimpleNamespace(slice_index=s, coords=(x, y, 0)) for s, x, y in places]
    grid = np.array(devices).reshape(tuple(mesh.values()))
    chip = find_chip("TPU v5e")
    assert chip is not None
    machine = Machine("v5e", devices, chip, shape)
    return Wiring(machine, SimpleNamespace(devices=grid, shape=mesh, size=grid.size))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{}", {(0, 1, 2, 3, 4, 5, 6, 7)}),
        ("{{0,1,2,3},{4,5,6,7}}", {(0, 1, 2, 3), (4, 5, 6, 7)}),
        ("[4,2]<=[8]", {(0, 1), (2, 3), (4, 5), (6, 7)}),
        ("[4,2]<=[2,4]T(1,0)", {(0, 4), (1, 5), (2, 6), (3, 7)}),
        ("mesh['a'=4,'b'=2] {'b'}", {(0, 1), (2, 3), (4, 5), (6, 7)}),
        ("mesh['a'=4,'b'=2] {'a'}", {(0, 2, 4, 6), (1, 3, 5, 7)}),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", {(0, 1), (2, 3), (4, 5), (6, 7)}),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", {(0, 2), (1, 3), (4, 6), (5, 7)}),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", {(0, 1), (2, 3), (4, 5), (6, 7)}),
        ("mesh['a'=8], device_ids=(7,6,5,4,3,2,1,0) {'a'}", {(7, 6, 5, 4, 3, 2, 1, 0)}),
    ],
)
def test_groups_in_all_their_forms(text: str, groups: set[tuple[int, ...]]) -> None:
    assert set(groups_of(text, 8)) == groups


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="replica groups must have a known form, got '<8>'"):
        groups_of("<8>", 8)


def test_what_a_chip_takes_in() -> None:
    assert taken_in("all-gather", 10, 4) == 30
    assert taken_in("reduce-scatter", 40, 4) == 30
    assert taken_in("all-reduce", 40, 4) == 60
    assert taken_in("all-to-all", 40, 4) == 30
    assert taken_in("collective-permute", 40, 4) == 40


def test_rings_and_lines() -> None:
    """4x4 has open ends: one link a dimension. 16x16 closes: two."""
    open_ends = wiring((4, 4), {"fsdp": 4, "tensor": 4})
    both = open_ends.exchange(Collective("all-gather", 1000, "{}"))
    assert (both.axes, both.bytes) == ("fsdp+tensor", 15_000)
    assert both.ici_seconds == pytest.approx(15_000 / (2 * LINK))
    rows = open_ends.exchange(Collective("all-reduce", 1000, "mesh['a'=4,'b'=4] {'b'}"))
    assert (rows.axes, rows.bytes) == ("tensor", 1500)
    assert rows.ici_seconds == pytest.approx(1500 / LINK)
    closed = wiring((16, 16), {"fsdp": 16, "tensor": 16})
    ring = closed.exchange(Collective("all-gather", 1000, "mesh['a'=16,'b'=16] {'b'}"))
    assert ring.ici_seconds == pytest.approx(15_000 / (2 * LINK))


def test_all_to_all_is_bound_by_the_cut() -> None:
    """Half of the chips send half of what they have over the links in the middle."""
    line = wiring((4, 4), {"fsdp": 4, "tensor": 4})
    one = line.exchange(Collective("all-to-all", 1000, "mesh['a'=4,'b'=4] {'b'}"))
    assert one.bytes == 750
    assert one.ici_seconds == pytest.approx(2 * 1000 / 2 / LINK)
    ring = wiring((16, 16), {"fsdp": 16, "tensor": 16})
    one = ring.exchange(Collective("all-to-all", 1000, "mesh['a'=16,'b'=16] {'b'}"))
    assert one.ici_seconds == pytest.approx(8 * 1000 / 2 / (2 * LINK))


def test_a_permute_loads_a_link_per_hop() -> None:
    line = wiring((4, 4), {"fsdp": 16})
    pairs = [(chip, (chip + 1) % 16) for chip in range(16)]
    text = "{" + ",".join(f"{{{a},{b}}}" for a, b in pairs) + "}"
    one = line.exchange(Collective("collective-permute", 1000, text))
    # 12 neighbours in a row, 3 steps to the next row's begin (4 hops), one way back (6 hops).
    assert one.ici_seconds == pytest.approx(1000 * (12 + 3 * 4 + 6) / 16 / (2 * LINK))
    assert (one.axes, one.bytes, one.dcn_bytes) == ("fsdp", 1000, 0)
    still = line.exchange(Collective("collective-permute", 1000, "{{0,0},{1,1}}"))
    assert (still.bytes, still.ici_seconds) == (0, 0)


def test_slices_exchange_a_share_a_chip() -> None:
    """All-reduce over 2 slices of 16: scattered and gathered inside, shares over the network."""
    two = wiring((4, 4), {"data": 2, "fsdp": 16}, slices=2)
    across = two.exchange(Collective("all-reduce", 1600, "mesh['a'=2,'b'=16] {'a'}"))
    assert (across.axes, across.bytes, across.dcn_bytes) == ("data", 1600, 1600)
    assert across.ici_seconds == 0
    whole = two.exchange(Collective("all-reduce", 1600, "{}"))
    assert whole.axes == "data+fsdp"
    assert whole.dcn_bytes == 2 * (1600 / 16) / 2
    assert whole.bytes - whole.dcn_bytes == 2 * 1600 * 15 / 16
    gathered = two.exchange(Collective("all-gather", 100, "{}"))
    assert gathered.bytes == 31 * 100
    sent = two.exchange(Collective("send", 700, ""))
    assert (sent.axes, sent.bytes, sent.dcn_bytes, sent.ici_seconds) == ("slices", 700, 700, 0)
    inside = two.exchange(Collective("all-gather", 100, "mesh['a'=2,'b'=16] {'b'}"))
    assert (inside.axes, inside.dcn_bytes, inside.bytes) == ("fsdp", 0, 1500)


def test_chips_are_known_by_each_of_their_names() -> None:
    for chip in CHIPS:
        assert all(find_chip(kind) is chip for kind in chip.kinds)
        # The published capacity is in GiB; what a program may use is a little less.
        published = {"v4": 32, "v5e": 16, "v5p": 96, "v6e": 32}[chip.name] * 2**30
        assert 0.95 * published < chip.hbm_bytes < published
    assert find_chip("cpu") is None
    assert len({dataclasses.astuple(chip) for chip in CHIPS}) == 4
