"""The printed plan of many parameters: what is alike but for a number is one line, and a small plan stays as it is."""

import torch
from torch import nn

from lightning_so import SOAP, attach
from lightning_so.core.plan.folding import FEW, Line, folded


def lines(blocks, shape=lambda n: (4, 8)):
    return [
        line
        for n in range(blocks)
        for line in (
            Line(f"blocks.{n}.up.weight", shape(n), "hidden", 100, (n % 2,)),
            Line(f"blocks.{n}.up.bias", (4,), f"with blocks.{n}.up.weight"),
        )
    ]


def test_few_lines_stay_as_they_are():
    few = lines(FEW // 2)
    assert folded(few) == few


def test_lines_that_differ_by_one_number_become_one():
    assert folded(lines(32)) == [
        Line("blocks.0-31.up.weight", (4, 8), "hidden", 100, (0, 1), 32),
        Line("blocks.0-31.up.bias", (4,), "with blocks.0-31.up.weight", None, (), 32),
    ]


def test_what_differs_in_shape_stands_by_itself():
    found = folded(lines(32, lambda n: (4, 16) if n in (7, 9) else (4, 8)))
    assert [(line.name, line.shape, line.count) for line in found if line.size] == [
        ("blocks.0-6,8,10-31.up.weight", (4, 8), 30),
        ("blocks.7,9.up.weight", (4, 16), 2),
    ]


def test_names_of_several_numbers_are_folded_by_each():
    many = [Line(f"blocks.{n}.experts.{k}.w", (4, 8), "hidden") for n in range(12) for k in range(8)]
    assert [(line.name, line.count) for line in folded(many)] == [("blocks.0-11.experts.0-7.w", 96)]
    part = [line for line in many if line.name != "blocks.3.experts.5.w"]
    assert sum(line.count for line in folded(part)) == 95


def test_a_number_that_begins_another_is_not_taken_for_it():
    many = [Line(f"b.{n}.w", (4,), f"with b.{n}1.w") for n in range(50)]
    assert folded(many) == many


def plan(layers):
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(layers)))
    return str(attach(model, torch.optim.AdamW(model.parameters()), SOAP()).plan)


def test_a_deep_model_is_printed_in_a_few_lines_and_a_small_one_whole():
    deep = plan(FEW + 8).splitlines()
    (line,) = [line for line in deep if f"0-{FEW + 7}.weight" in line]
    assert f"{FEW + 8} x 8x8" in line
    assert line.endswith(" each")
    small = plan(5).splitlines()
    assert [line.split()[0] for line in small[1:6]] == [f"{n}.weight" for n in range(5)]
