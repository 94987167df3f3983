"""Into which matrices parameters fall, by themselves and as users say; what is refused; files of other versions."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_so import SOAP, ConfigError, Mixture, Muon, StateError, attach
from lightning_so.comm.pieces import Pieces, within
from lightning_so.contract.block import parts
from lightning_so.core.telemetry import summary
from tests.support.page import blocks
from tests.support.stacked import SPLIT, loop, made

#: Shape of a parameter that no layer of torch holds -> verdict of Muon.
SEEN = {
    (8, 64, 128): "hidden, 8 matrices of 64x128: bend",
    (2, 4, 16, 8): "hidden, 8 matrices of 16x8: bend",
    (4, 1, 16, 8): "hidden, 4 matrices of 16x8: bend",
    # Kernels of a convolution of someone's own, experts with too few columns.
    (16, 8, 3, 3): "hidden, as a kernel: bend",
    (16, 8, 7): "hidden, as a kernel: bend",
    (6, 16, 4): "hidden, as a kernel: bend",
    # Dimensions of one entry do not count.
    (8, 64, 1): "hidden, one matrix of 8x64: bend",
    (8, 1, 64): "hidden, one matrix of 8x64: bend",
    (1, 1, 64): "base: a single row or column",
    (1, 64, 1): "base: a single row or column",
    (8, 1, 1): "base: a single row or column",
    # Positions, which are added to every sample.
    (1, 50, 32): "base: embedding: Muon bends hidden matrices only",
    (64, 128): "hidden: bend",
    (1, 64): "base: a single row or column",
    (0, 4, 4): "base: empty",
}


def holding(*shapes, **named):
    """A module that holds bare parameters."""
    holder = nn.Module()
    for number, shape in enumerate(shapes):
        setattr(holder, f"w{number}", nn.Parameter(torch.randn(shape)))
    for name, shape in named.items():
        setattr(holder, name, nn.Parameter(torch.randn(shape)))
    return holder


def attached(model, method=None, **named):
    return attach(model, torch.optim.AdamW(model.parameters()), method or Muon(), **named)


def verdicts(engine):
    return {row.name: row.verdict for row in engine.plan.rows}


def test_every_shape_and_what_it_is():
    engine = attached(holding(*SEEN))
    assert dict(zip(SEEN, verdicts(engine).values(), strict=True)) == SEEN


def test_positions_of_a_vision_transformer_are_one_matrix_that_soap_rotates():
    """timm and torchvision hold them as (1, T, d): a row a place, added to every sample."""
    engine = attached(holding(pos_embed=(1, 50, 32)), SOAP())
    (block,) = engine.plan.blocks
    assert (block.name, block.rows, block.cols, block.role) == ("pos_embed", 50, 32, "embedding")
    assert verdicts(engine)["pos_embed"].startswith("embedding, one matrix of 50x32: base until step 50, then rotate")
    engine = attached(holding(pos_embed=(1, 50, 32)), route={"hidden": ["pos_embed"]})
    assert verdicts(engine)["pos_embed"] == "hidden, one matrix of 50x32: bend"


@pytest.mark.parametrize("wrap", [lambda conv: conv, weight_norm], ids=["plain", "parametrized"])
def test_weights_of_convolutions_are_one_matrix_whatever_their_kernel(wrap):
    net = nn.ModuleDict(
        {"long": wrap(nn.Conv1d(9, 8, 15)), "up": nn.ConvTranspose2d(4, 8, 9), "own": nn.Bilinear(9, 10, 4)}
    )
    engine = attached(net)
    found = {block.parameter: (block.rows, block.cols) for block in engine.plan.blocks}
    convolutions = [shape for name, shape in found.items() if name.startswith(("long", "up"))]
    assert convolutions == [(8, 135), (4, 8 * 81)]
    assert verdicts(engine)["own.weight"] == "hidden, 4 matrices of 9x10: bend"


def test_a_weight_is_split_as_the_user_says():
    shapes = {"qkv": (24, 8), "gate_up": (4, 20, 8), "kernel": (16, 8, 9, 9), "pos": (1, 12, 8), "point": (12, 4, 1, 1)}
    split = {"qkv": 3, "gate_up": 8, "kernel": 1, "pos": 2, "point": 3}
    engine = attached(holding(**shapes), route={"split": split, "hidden": ["pos"]})
    assert verdicts(engine) == {
        "qkv": "hidden, 3 matrices of 8x8: bend",
        "gate_up": "hidden, 8 matrices of 10x8: bend",
        "kernel": "hidden, as a kernel: bend",
        "pos": "hidden, 2 matrices of 6x8: bend",
        "point": "hidden, 3 matrices of 4x4: bend",
    }
    whole = torch.arange(4 * 20 * 8.0).view(4, 20, 8)
    sixteen = [block for block in engine.plan.blocks if block.parameter == "gate_up"]
    expected = whole.view(8, 10, 8)
    for tensor in (whole, whole.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(torch.stack(parts(tensor, sixteen)), expected)
        for block in sixteen:
            (part,) = parts(tensor, [block])
            assert part._base is not None  # a view
            assert torch.equal(part.flatten(), whole.flatten()[slice(*block.span)])


REFUSED = [
    ({"*.qkv": 3}, r"'\*\.qkv': 3.* matches no parameter; names are like"),
    ({"qkv": 5}, r"qkv has the shape 24x8, whose rows do not divide into 5 equal parts"),
    ({"qkv": 24}, r"qkv has the shape 24x8, whose 24 parts are single rows or columns"),
    ({"qkv": 192}, r"single rows or columns"),
    ({"qkv": 1}, r"24x8 and is one matrix already"),
    ({"qkv": 0}, r"'qkv': 0.*must be an integer, 2 or more"),
    ({"qkv": -3}, r"must be an integer"),
    ({"qkv": 3.0}, r"'qkv': 3\.0.*must be an integer"),
    ({"qkv": True}, r"must be an integer"),
    ({"qkv": "3"}, r"must be an integer"),
    ({"bias": 3}, r"bias has the shape 24, which is no matrix"),
    ({"experts": 2}, r"experts has the shape 4x20x8, 4 matrices of 20x8: give a multiple of 4"),
    ({"experts": 12}, r"do not divide into 12 equal parts"),
    (["qkv"], r"give globs and counts, such as"),
    (3, r"give globs and counts"),
]


@pytest.mark.parametrize(("split", "message"), REFUSED)
def test_what_cannot_be_split_is_refused_by_name(split, message):
    with pytest.raises(ConfigError, match=message):
        attached(holding(qkv=(24, 8), bias=(24,), experts=(4, 20, 8)), route={"split": split})


def test_a_role_with_counts_is_refused():
    with pytest.raises(ConfigError, match=r"the role must be one of base, hidden, embedding, head.*'split'"):
        attached(holding(qkv=(24, 8)), route={"hidden": {"qkv": 3}})


def test_of_two_globs_the_later_one_says():
    engine = attached(holding(qkv=(24, 8)), route={"split": {"*": 2, "q*": 3}})
    assert len(engine.plan.blocks) == 3


def test_a_split_weight_on_the_base_stays_there():
    engine = attached(
        holding(qkv=(24, 8), w=(8, 8)), Mixture({"qkv": "base", "*": Muon()}), route={"split": {"qkv": 3}}
    )
    assert verdicts(engine)["qkv"] == "base: rule 'qkv'"


def test_pieces_of_ranks_within_a_part():
    """Spans 0..7, 7..9 and 9..20, and a part from 5 to 10: cut through a matrix, as FSDP1 and ZeRO do."""
    found = within([(0, 7), (7, 9), (9, 20), (20, 20)], 5, 10)
    assert found == ((0, 2), (2, 4), (4, 5), (5, 5))
    assert [*Pieces(found, 0).sources] == [0, 1, 2]
    assert within([(0, 7), (7, 9)], 8, 9) == ((0, 0), (0, 1))


def test_the_example_of_the_page_says_what_the_page_says(capsys):
    page = Path(__file__).parents[2] / "docs" / "explanation" / "plan.md"
    (example,) = blocks(page.read_text(encoding="utf-8"))
    exec(compile(example.code, str(page), "exec"), {})
    plan = capsys.readouterr().out
    for matrices in ("3 matrices of 32x32", "8 matrices of 32x64", "16 matrices of 64x32"):
        assert f"hidden, {matrices}: bend until step 50, then rotate" in plan
        assert matrices in page.read_text(encoding="utf-8")


# ---------------------------------------------------------------- states


def test_a_state_of_folded_experts_goes_on_as_it_was_and_nowhere_else():
    """Before stacks of matrices a parameter of three dimensions was one."""
    folded = SPLIT["split"] | {"experts.*": 1}
    model, state = made(), {}
    optimizer = torch.optim.AdamW(model.parameters())
    engine = attach(model, optimizer, SOAP(start=2, period=2), route={"split": folded})
    loop(model, optimizer, range(6))
    state = copy.deepcopy(engine.state_dict())
    assert set(state["blocks"]) == {
        "experts.w1",
        "experts.w2",
        *(f"third.qkv.weight[{n}]" for n in range(3)),
        "head.weight",
    }
    engine.detach()
    engine = attach(model, optimizer, SOAP(start=2, period=2), route=SPLIT)
    before = copy.deepcopy(engine.state_dict())
    with pytest.raises(StateError, match=r"experts.w1: matrices in the state 1, in this run 5.*'experts.w1': 1"):
        engine.load_state_dict(state)
    assert engine.state_dict()["blocks"].keys() == before["blocks"].keys()
    engine.detach()
    engine = attach(model, optimizer, SOAP(start=2, period=2))
    with pytest.raises(StateError, match=r"third.qkv.weight: matrices in the state 3, in this run 1.*weight': 3"):
        engine.load_state_dict({**state, "blocks": {k: v for k, v in state["blocks"].items() if "experts" not in k}})
    engine.detach()
    engine = attach(model, optimizer, SOAP(start=2, period=2), route={"split": folded})
    engine.load_state_dict(state)
    assert engine.report.step == 6


def test_a_state_that_lacks_a_parameter_says_how_to_leave_it_alone():
    """Places (1, T, d) were once left to the base."""
    engine = attached(holding(w=(8, 8), pos=(1, 12, 8)), SOAP(), route={"base": ["pos"]})
    state = engine.state_dict()
    engine = attached(holding(w=(8, 8), pos=(1, 12, 8)), SOAP())
    with pytest.raises(StateError, match=r"only in this run: \['pos'\].*route=\{'base': \[\.\.\.\]\} leaves alone"):
        engine.load_state_dict(state)


def test_one_without_gradients_is_told_once_and_by_the_parameters_name():
    holder = holding(w=(8, 8), experts=(4, 8, 8))
    optimizer = torch.optim.AdamW(holder.parameters())
    engine = attach(holder, optimizer, Muon())
    holder.w.square().sum().backward()
    optimizer.step()
    assert summary(engine).endswith("never a gradient: experts")
