"""Rules that choose a method for every parameter: which one wins, what several do together, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import KFAC, SOAP, ConfigError, Mixture, Muon, Shampoo, Staggered, attach

TOGETHER = Mixture({"Conv2d": KFAC(period=4), "*.bias": "base", "4.*": "muon", "*": SOAP(start=4, period=2)})


class Wider(nn.Linear):
    pass


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), Wider(64, 8), nn.Linear(8, 8), nn.Linear(8, 5)
    )  # fmt: skip


def steps(model, engine, numbers):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        x, y = torch.randn(6, 1, 6, 6, generator=generator), torch.randint(0, 5, (6,), generator=generator)
        engine.optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        engine.optimizer.step()


def attached(method, model=None, base=torch.optim.AdamW, **options):
    model = model or net()
    return model, attach(model, base(model.parameters(), lr=1e-2), method, **options)


def verdicts(engine):
    return {row.name: row.verdict for row in engine.plan.rows}


def test_the_first_match_wins_by_name_or_by_type_of_layer():
    _, engine = attached(TOGETHER)
    found = verdicts(engine)
    assert found["0.weight"].startswith("hidden: KFAC bend with its bias")
    assert found["0.bias"] == "with 0.weight"  # its rule is that of its layer, which comes first
    assert found["3.weight"].startswith("hidden: SOAP bend until step 4, then rotate")
    assert found["3.bias"] == "base: rule '*.bias'"
    assert found["4.weight"] == "hidden: Muon bend; 0.00026 MB"[: len(found["4.weight"])]
    assert {type(method) for method in engine.parts.methods} == {KFAC, Muon, SOAP}


def test_names_of_methods_take_any_case():
    assert Mixture({"*": "SOAP"}) == Mixture({"*": "soap"}) == Mixture({"*": SOAP()})


def test_rules_are_what_the_plan_is_called_by():
    assert str(Mixture({"0.*": "base", "*": Muon()})) == f"Mixture(0.*: base, *: {Muon()})"
    assert str(attached(Muon())[1].plan).startswith(f"{Muon()} on AdamW: 4 of 8 parameters, ")


def test_parents_of_a_layer_count():
    _, engine = attached(Mixture({"Wider": SOAP(), "Linear": Muon()}))
    found = verdicts(engine)
    assert found["3.weight"].startswith("hidden: SOAP")
    assert found["4.weight"].startswith("hidden: Muon")
    assert found["0.weight"] == "base: no rule matches it"
    assert verdicts(attached(Mixture({"Linear": Muon()}))[1])["3.weight"].startswith("hidden: bend")


def test_a_bias_joins_its_layer_only_under_the_same_rule():
    _, engine = attached(Mixture({"*.bias": "base", "*": KFAC()}))
    assert all(block.bias is None for block in engine.plan.blocks)
    _, engine = attached(KFAC(), route={"base": ["3.bias"]})
    assert [block.bias is None for block in engine.plan.blocks] == [False, True, False, False]


def test_a_bias_joins_its_layer_wherever_it_stands_in_the_optimizer():
    model = net()
    engine = attach(model, torch.optim.SGD(list(model.parameters())[::-1], lr=1e-2), KFAC())
    assert engine.plan.coverage == 1
    assert verdicts(engine)["4.bias"] == "with 4.weight"


def test_a_bias_of_another_group_stays_apart():
    model = net()
    rest = [p for p in model.parameters() if p is not model[4].bias]
    engine = attach(model, torch.optim.SGD([{"params": rest}, {"params": [model[4].bias]}], lr=1e-2), KFAC())
    assert {block.name for block in engine.plan.blocks if block.bias is None} == {"4.weight"}
    assert verdicts(engine)["4.bias"].startswith("base: ")


def test_a_frozen_bias_has_its_place_in_its_block():
    model = net()
    model[4].bias.requires_grad_(False)
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=1e-2), KFAC())
    assert not [block.name for block in engine.plan.blocks if block.bias is None]
    assert verdicts(engine)["4.bias"] == "with 4.weight"


def test_the_plan_counts_by_type_of_layer():
    _, engine = attached(TOGETHER)
    assert engine.plan.by_type() == {
        "Conv2d": (2, 2, 1.0),
        "Wider": (1, 2, 512 / 520),
        "Linear": (2, 4, 104 / 117),
    }
    assert "  Wider              1 of 2  98.5 % of the elements" in str(engine.plan)


def test_equal_methods_are_one():
    (one, engine), (two, _) = attached(SOAP(start=4, period=2)), attached(SOAP(start=4, period=2))
    _, other = attached(Mixture({"3.*": SOAP(start=4, period=2), "*": SOAP(start=4, period=2)}), two := net())
    steps(one, engine, range(12))
    steps(two, other, range(12))
    assert len(other.parts.methods) == 1
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_equal_layers_of_two_methods_are_not_one_batch():
    layers = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    _, engine = attached(Mixture({"0.*": SOAP(period=2), "*": SOAP(period=8)}), layers)
    assert [[block.name for block in stack.blocks] for stack in engine.stacks] == [["0.weight"], ["1.weight"]]
    assert [unit.period for unit in engine.parts.units.schedule.units] == [2, 2, 8, 8]


@pytest.mark.parametrize(
    ("method", "layers", "batches"),
    [
        (
            KFAC(),
            lambda: [
                nn.Conv1d(4, 4, 3), nn.ConvTranspose1d(4, 4, 3, bias=False), nn.Conv1d(8, 4, 3, groups=2),
                nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3, bias=False),
            ],
            [["0", "3"], ["1"], ["2"], ["4"]],
        ),
        (SOAP(), lambda: [nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)], [["0", "2"], ["1"]]),
    ],
    ids=["layers", "roles"],
)  # fmt: skip
def test_layers_that_look_alike_are_not_one_batch(method, layers, batches):
    _, engine = attached(method, nn.Sequential(*layers()))
    assert [[block.name[0] for block in stack.blocks] for stack in engine.stacks] == batches


def test_every_method_does_its_own_work():
    model, engine = attached(TOGETHER, verify_every=1)
    before = copy.deepcopy(model.state_dict())
    steps(model, engine, range(14))
    report = engine.report
    assert report.skipped == report.undone == report.failures == 0
    assert report.verified == 14
    assert report.deviation < 1e-3
    assert (report.rotated, report.bent) == (2, 2)  # SOAP's two; K-FAC's and Muon's
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_one_method_does_does_not_depend_on_the_others():
    """Layers without common gradients: each goes as it would alone."""

    def run(method, names):
        torch.manual_seed(0)
        layers = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(5, 4)})
        _, engine = attached(method, layers, base=torch.optim.SGD)
        engine.parts.budget.spreads.clear()  # the budget of a step is common
        for number in range(12):
            generator = torch.Generator().manual_seed(number)
            engine.optimizer.zero_grad()
            for layer in layers.values():
                layer(torch.randn(8, layer.in_features, generator=generator)).square().mean().backward()
            engine.optimizer.step()
        return {name: value for name, value in layers.state_dict().items() if name[0] in names}

    mixed = run(Mixture({"a.*": KFAC(period=1, damping=0.1), "b.*": Shampoo(period=1)}), "ab")
    alone = run(Mixture({"a.*": KFAC(period=1, damping=0.1)}), "a")
    alone |= run(Mixture({"b.*": Shampoo(period=1)}), "b")
    for name, value in mixed.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-6)


def test_intervals_are_each_methods_own():
    _, engine = attached(Mixture({"Wider": SOAP(period=4), "*": SOAP(period=32)}))
    schedule = engine.parts.units.schedule
    assert sorted({unit.period for unit in schedule.units}) == [4, 32]
    for step in range(1, 400):
        schedule.due(step, 1e30)
    counts = [0] * len(schedule.units)
    for step in range(400, 464):
        for number in schedule.due(step, 1e30):
            counts[number] += 1
    assert all(count == (16 if unit.period == 4 else 2) for count, unit in zip(counts, schedule.units, strict=True))


def test_a_step_costs_no_more_than_the_strictest_spread_allows():
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    rules = {f"{n}.*": SOAP(start=2, period=4, schedule=Staggered(1.01 if n < 3 else 9.0)) for n in range(6)}
    _, engine = attached(Mixture(rules), layers)
    units = engine.parts.units.schedule.units
    for number in range(60):
        engine.optimizer.zero_grad()
        layers(torch.randn(8, 16, generator=torch.Generator().manual_seed(number))).square().mean().backward()
        engine.optimizer.step()
        solved = [
            unit.cost for unit, at in zip(units, engine.parts.units.schedule.tried, strict=True) if at == number + 1
        ]
        assert len(solved) <= 1 or sum(solved) <= 1.01 * engine.parts.budget.peak
    assert engine.report.rotated == 6


def test_resuming_equals_not_having_stopped():
    straight, engine = attached(TOGETHER)
    steps(straight, engine, range(20))
    model, engine = attached(TOGETHER)
    steps(model, engine, range(9))
    again, later = attached(TOGETHER, copy.deepcopy(model))
    later.optimizer.load_state_dict(copy.deepcopy(engine.optimizer.state_dict()))
    later.load_state_dict(engine.state_dict())
    steps(again, later, range(9, 20))
    for a, b in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Mixture({"*": "sopa"}),
            "no method 'sopa'; there are base, .*kfac, muon, shampoo, soap.*Did you mean 'soap'",
        ),
        (lambda: Mixture({"*": 3}), "3 is not a method"),
        (lambda: Mixture({"*": SOAP}), "SOAP'> is not a method"),
        (lambda: Mixture({0: SOAP()}), "0 is no key"),
        (lambda: attached(SOAP), "SOAP'> is not a method"),
        (lambda: attached("soap"), "'soap' is not a method"),
        (lambda: attached(torch.optim.SGD([torch.zeros(1)])), "method is the optimizer SGD, which stays where it is"),
        (lambda: attached(Mixture({"Module": KFAC(), "*": SOAP()})), "'Module' decides nothing: it matches no param"),
        (lambda: Mixture({}), "at least one rule"),
        (lambda: Mixture([SOAP()]), "at least one rule"),
        (lambda: attached(Mixture({"Conv3d": KFAC(), "*": SOAP()})), "'Conv3d' decides nothing: it matches no param"),
        (lambda: attached(Mixture({"*": SOAP(), "0.*": KFAC()})), r"'0.\*' decides nothing: .*went to '\*' before it"),
        (lambda: attached(Mixture({"4.*": SOAP(), "*": KFAC()}), base=torch.optim.SGD), "SOAP on SGD.*rotating SGD"),
        (lambda: attached(Mixture({"*": "base"})), "coverage is 0"),
    ],
)
def test_bad_rules_are_refused_with_the_next_move(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


RECOMMENDED = {torch.optim.AdamW: SOAP(), torch.optim.RMSprop: SOAP(), torch.optim.SGD: KFAC()}


@pytest.mark.parametrize(("base", "expected"), RECOMMENDED.items())
def test_the_method_that_is_recommended_is_taken_where_none_is_named(base, expected):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    engine = attach(model, base(model.parameters(), lr=0.01))
    assert {method for method in engine.plan.assigned.values()} == {expected}
    assert str(engine.plan).startswith(f"{expected} on {base.__name__}: ")
