"""Parts: precision, the generic record, subspaces, sites, pooled states."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import orthonormal, principal_angles
from rmuse_interp.maths.sphere import unit
from rmuse_interp.models.site import Site
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.gates import Contrast, Gate, LinearDiscriminant, Read, RRSAlignment
from rmuse_interp.parts.part import Part, from_record, to_record
from rmuse_interp.parts.pooled import Pooled
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.parts.subspace import Subspace


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plane(d: int = 8, k: int = 3, seed: int = 0) -> Subspace:
    return Subspace.span(random(d, k, seed=seed))


class Bag(Part):
    """A part with one argument of every kind."""

    table: Tensor | None

    def __init__(
        self,
        inner: Part,
        several: list[Part],
        keyed: dict[int, Part],
        table: Tensor | None = None,
        name: str = "x",
        sizes: list[int] | tuple[int, ...] = (),
    ):
        super().__init__()
        self.inner = inner
        self.hold_parts("several", several)
        self.hold_parts("keyed", keyed)
        self.hold(table=table)
        self.name = name
        self.sizes = list(sizes)


PARTS = [
    plane(),
    Subspace.zero(5),
    Prototypes(unit(random(4, 6))),
    Prototypes(unit(random(4, 6)), torch.arange(4), torch.tensor([0, 0, 1, 1])),
    ACS(Prototypes(unit(random(4, 6))), "frechet"),
    FixedFraction(0.25),
    Gate(RRSAlignment(plane()), Read(3, prefix="I must not"), -0.85),
    Gate(Contrast(unit(random(3, 6)), unit(random(2, 6)), random(6), top=2), Read(2, "question"), 0.1),
    Gate(LinearDiscriminant(random(6), 0.5), Read(2), scale=3.0),
    Gate(LinearDiscriminant(random(6), 0.5), Read(2))
    & ~Gate(LinearDiscriminant(random(6, seed=1), 0.1), Read(2)),
    Bag(plane(), [plane(), FixedFraction(1.0)], {5: plane(seed=2), 12: plane(seed=3)}, sizes=(1, 2)),
    Bag(plane(), [], {}, torch.tensor([1, 2]), name="y"),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_record_brings_back_every_part(part: Part, tmp_path: Path):
    tree, tensors = to_record(part)
    save_file(tensors, tmp_path / "x.safetensors")
    again = from_record(json.loads(json.dumps(tree)), load_file(tmp_path / "x.safetensors"), __name__)
    assert type(again) is type(part)
    assert again.describe() == part.describe()
    tree_again, tensors_again = to_record(again)
    assert tree_again == tree
    assert set(tensors_again) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensors_again[name], tensor), name
    state, state_again = part.state_dict(), again.state_dict()
    assert list(state) == list(state_again)


def test_record_keeps_the_kind_of_every_key():
    bag = from_record(*to_record(PARTS[-2]), allow=__name__)
    assert isinstance(bag, Bag)
    assert list(bag.keyed) == ["5", "12"]
    assert isinstance(bag.several[1], FixedFraction)
    assert bag.table is None


def test_record_refuses_what_it_does_not_know():
    tree, tensors = to_record(plane())
    for name in ("Flux", "Subspace", "rmuse_interp.parts:Flux", "rmuse_interp.parts.subspace:Subspace"):
        with pytest.raises(RMuseError, match=f"the record names '{name}'"):
            from_record({**tree, "class": name}, tensors)
    with pytest.raises(RMuseError, match="basis"):
        from_record(tree, {})
    with pytest.raises(RMuseError, match="spin"):
        from_record({**tree, "settings": {"spin": 1}}, tensors)
    with pytest.raises(RMuseError, match="'settings'"):
        from_record({"class": "Subspace"}, tensors)


def test_records_name_public_modules_so_that_files_may_move():
    names = {
        to_record(part)[0]["class"] for part in PARTS if type(part).__module__.startswith("rmuse_interp")
    }
    assert {"rmuse_interp.parts:Subspace", "rmuse_interp.parts:ACS"} <= names
    assert not any(name.startswith("rmuse_interp.parts.") for name in names)


def test_a_class_with_the_name_of_one_of_ours_never_replaces_it():
    ours = Gate(LinearDiscriminant(random(6), 0.5), Read(2))
    theirs = type("LinearDiscriminant", (LinearDiscriminant,), {"__module__": "__main__"})
    try:
        assert type(ours.at_threshold(0).scorer) is LinearDiscriminant
        assert type(from_record(*to_record(ours)).scorer) is LinearDiscriminant
        again = Gate(theirs(random(6), 0.5), Read(2)).at_threshold(1.0)
        assert type(again.scorer) is theirs
        with pytest.raises(RMuseError, match=r"the record names '__main__:LinearDiscriminant'.*allow="):
            from_record(*to_record(again))
    finally:
        del theirs


def test_parts_of_other_modules_load_where_they_are_allowed_by_name():
    bag = Bag(plane(), [], {}, name="theirs")
    record = to_record(bag)
    assert record[0]["class"] == f"{Bag.__module__}:Bag"
    for allow in ((), ("os",), Bag.__module__[:-1], (f"{Bag.__module__}.deeper",)):
        with pytest.raises(RMuseError, match=r"if you trust that module.*Plan\.load\(folder, model, allow="):
            from_record(*record, allow=allow)
    for allow in (Bag.__module__, ("os", Bag.__module__)):
        assert type(from_record(*record, allow=allow)) is Bag
    for name, said in (
        ("os:system", "that os itself defines"),
        ("os:nothing", "cannot be imported"),
        ("no_such_module:Bag", "cannot be imported"),
        (f"{Bag.__module__}:Subspace", "itself defines"),  # imported there, defined elsewhere
    ):
        with pytest.raises(RMuseError, match=said):
            from_record({**record[0], "class": name}, record[1], allow=(name.partition(":")[0],))


def test_a_part_changes_one_argument_and_keeps_the_others():
    bag = Bag(plane(), [plane()], {5: plane(seed=2)}, torch.tensor([1, 2]), sizes=(3,))
    other = bag.changed(name="y", table=None)
    assert (other.name, other.table, other.sizes) == ("y", None, [3])
    assert (bag.name, bag.table.tolist()) == ("x", [1, 2])
    assert torch.equal(other.keyed["5"].basis, bag.keyed["5"].basis)
    with pytest.raises(RMuseError, match="has no flux to change, only inner, several"):
        bag.changed(flux=1)


def test_buffers_stay_float32_whatever_the_host_becomes():
    host = nn.Sequential(nn.Linear(8, 8), ACS(Prototypes(unit(random(4, 8)), torch.arange(4)), "frechet"))
    before = {name: tensor.clone() for name, tensor in host[1].state_dict().items()}
    for change in (host.to(torch.bfloat16), host.half(), host.to("cpu", torch.float64)):
        assert change[0].weight.dtype != torch.float32
        for name, tensor in change[1].state_dict().items():
            assert tensor.dtype in (torch.float32, torch.int64)
            assert torch.equal(tensor, before[name])
    assert host.to("meta")[1].prototypes.points.is_meta


def test_parts_copy_what_they_are_given_and_hold_no_parameters():
    basis = torch.eye(4)[:, :2].clone()
    part = Subspace(basis)
    basis.zero_()
    assert part.rank == 2
    assert float(part.basis.sum()) == 2.0
    assert not list(part.parameters())
    with pytest.raises(TypeError, match="parameters"):
        part.weight = nn.Parameter(torch.zeros(1))


def test_subspace_projects_and_removes():
    U, h = plane(20, 5), random(3, 4, 20)
    assert torch.allclose(U.project(h) + U.remove(h), h)
    assert torch.allclose(U.project(U.project(h)), U.project(h), atol=1e-6)
    assert torch.allclose(U.project(U.remove(h)), torch.zeros_like(h), atol=1e-6)
    assert U.project(h.bfloat16()).dtype == torch.bfloat16
    assert (U.rank, U.d) == (5, 20)
    none = Subspace.zero(20)
    assert torch.equal(none.project(h), torch.zeros_like(h))
    assert torch.equal(none.remove(h), h)


def test_subspace_minus_is_orthogonal_to_what_it_leaves_out():
    U, V = plane(20, 5), plane(20, 4, seed=1)
    W = U.minus(V)
    assert W.rank == 5
    assert float((V.basis.T @ W.basis).abs().max()) < 1e-6
    both = orthonormal(torch.cat([U.basis, V.basis], dim=1))
    assert float(principal_angles(W.basis, both).max()) < 1e-6
    assert U.minus(U).rank == 0
    shared = Subspace.span(torch.cat([U.basis[:, :2], V.basis], dim=1))
    assert U.minus(shared).rank == 3
    assert U.minus(Subspace.zero(20)).rank == 5


def test_subspace_refuses_bad_bases_and_widths():
    for basis in (torch.ones(4, 2), 1.01 * torch.eye(4)[:, :2], torch.full((4, 1), torch.nan)):
        with pytest.raises(RMuseError, match="orthonormal"):
            Subspace(basis)
    with pytest.raises(RMuseError, match="width 8"):
        plane().project(torch.zeros(2, 9))
    with pytest.raises(RMuseError, match="width"):
        plane(8).minus(plane(9))


@pytest.mark.parametrize(
    "name", ["blocks.3.hook_resid_post", "blocks.0.hook_resid_pre", "blocks.31.hook_mlp_out"]
)
def test_sites_print_and_parse(name: str):
    assert str(Site.parse(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "blocks.3.hook_resid",
        "blocks.-1.hook_resid_post",
        "blocks.3.resid_post",
        "blocks.3.hook_resid_post ",
    ],
)
def test_sites_refuse_other_names(name: str):
    with pytest.raises(RMuseError, match="blocks"):
        Site.parse(name)
    with pytest.raises(RMuseError, match="0-based"):
        Site(-1)
    with pytest.raises(RMuseError, match="resid_post"):
        Site(1, "logits")


def test_pooled_states_are_keyed_by_id():
    states = torch.arange(12.0).reshape(3, 2, 2)
    pooled = Pooled(states, ("a", "b", "c"), (4, 6), "answer")
    assert torch.equal(pooled.at(6), states[:, 1])
    some = pooled.select(["c", "a"])
    assert (some.ids, some.layers, some.span) == (("c", "a"), (4, 6), "answer")
    assert torch.equal(some.states, states[[2, 0]])


def test_pooled_states_refuse_what_is_wrong():
    states = torch.zeros(2, 1, 3)
    with pytest.raises(RMuseError, match="one row per id"):
        Pooled(states, ("a",), (0,), "answer")
    with pytest.raises(RMuseError, match="'a' twice"):
        Pooled(states, ("a", "a"), (0,), "answer")
    broken = states.clone()
    broken[1, 0, 2] = torch.nan
    with pytest.raises(RMuseError, match=r"NaN.*1 of 2 examples \(b\)"):
        Pooled(broken, ("a", "b"), (0,), "answer")
    good = Pooled(states, ("a", "b"), (0,), "answer")
    with pytest.raises(RMuseError, match="block 7"):
        good.at(7)
    with pytest.raises(RMuseError, match="'z'"):
        good.select(["z"])
