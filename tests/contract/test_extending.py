"""docs/how-to/extending.md: its examples are taken from the page, run, and do what the package's own do."""

import ast
import re
from types import ModuleType

import pytest
import torch
from torch import nn

from lightning_so import EKFAC, KFAC, SOAP, ConfigError, Mixture, Muon, SecondOrder, Shampoo, attach, curvature
from lightning_so.comm import Access, access_of
from lightning_so.contract.method import Method, ObservesGradients, Rotates, Solves
from tests.callbacks.test_second_order import fit, module
from tests.contract.test_contract import LAYERS, made, refused
from tests.support import contract, extending, noted, page, problems
from tests.support.daily import daily

METHOD_LINES = 60
SAME = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(scope="module")
def modules():
    with page.modules() as found:
        yield found


@pytest.fixture(autouse=True)
def _untold():
    """The page's method is not in the table of what goes together."""
    yield
    noted.taken()


@pytest.fixture
def method(modules):
    return modules.one_sided.OneSided(period=2)


def shaped(layer, *shape):
    layer.shape = shape
    return layer


# ---------------------------------------------------------------- the page


def test_every_block_is_run(modules, capsys):
    found = page.blocks()
    assert [block.name for block in found if block.name] == ["one_sided", "group_linear", "cut"] == list(vars(modules))
    for block in found:
        if not block.name:
            block.run(ModuleType("example"))
    assert "onesided" not in capsys.readouterr().err.lower()


def test_a_method_fits_a_page():
    (block,) = (block for block in page.blocks() if block.name == "one_sided")
    (cls,) = (node for node in ast.parse(block.code).body if getattr(node, "name", "") == "OneSided")
    lines = block.code.splitlines()[cls.decorator_list[0].lineno - 1 : cls.end_lineno]
    assert sum(bool(line.strip()) for line in lines) <= METHOD_LINES
    assert max(len(line) for block in page.blocks() for line in block.code.splitlines()) <= 120


def test_what_the_page_names_is_there():
    text = page.PAGE.read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:lightning_so|tests)/[\w/.]*)`", text))
    assert len(paths) > 20
    assert [path for path in paths if not (page.ROOT / path).exists()] == []


def test_a_broken_page_is_told_by_its_line():
    block = page.blocks()[0]
    broken = block._replace(code=block.code.replace("eigenroots, inverse_root, root_cost", "no_root"))
    with pytest.raises(ImportError, match="no_root") as told:
        broken.run(ModuleType("broken"))
    (line,) = (number for number, text in enumerate(page.PAGE.read_text().splitlines()) if "import eigenroots" in text)
    assert told.traceback[-1].lineno == line


# ---------------------------------------------------------------- a method


def test_its_kinds(method):
    for kind in (Method, ObservesGradients, Solves):
        assert isinstance(method, kind)
    assert not isinstance(method, Rotates)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_the_method_keeps_the_contract(method, check, name):
    if refused(name, method):
        with pytest.raises(ConfigError, match="fewer than two dimensions"):
            contract.attached(made(name), method)
    else:
        check(made(name), method)


@pytest.mark.parametrize("wrong", [2.5, True, 0.5, -1])
def test_the_methods_counts_are_integers(modules, wrong):
    contract.counts_are_integers_in_a_range(modules.one_sided.OneSided, wrong)


def test_the_method_is_its_equation(modules):
    """By hand, on two alike layers, one stack, of which the second has a gradient at every other step alone."""
    torch.manual_seed(0)
    layers, lr = nn.ModuleList(nn.Linear(6, 4, bias=False) for _ in range(2)).double(), 0.1
    optimizer = torch.optim.SGD(layers.parameters(), lr=lr)
    engine = attach(layers, optimizer, modules.one_sided.OneSided(period=1, epsilon=1e-3))
    assert len(engine.stacks) == 1
    by_hand = [(layer.weight.detach().clone(), torch.zeros(4, 4).double()) for layer in layers]
    for step in range(12):
        optimizer.zero_grad()
        for number, layer in enumerate(layers[: 1 + (step % 2 == 0)]):
            x, y, (W, L) = torch.randn(8, 6).double(), torch.randn(8, 4).double(), by_hand[number]
            (layer(x) - y).square().mean().backward()
            G = 2 * (x @ W.T - y).T @ x / 32
            L = 0.95 * L + 0.05 * G @ G.T
            values, Q = torch.linalg.eigh(L + 1e-3 * L.diagonal().max() * torch.eye(4))
            P = (Q / values.sqrt()) @ Q.T @ G
            by_hand[number] = W - lr * P * G.norm() / P.norm(), L
        optimizer.step()
        for layer, (W, _) in zip(layers, by_hand, strict=True):
            torch.testing.assert_close(layer.weight.detach(), W, **SAME, msg=lambda m, n=step: f"step {n}: {m}")


@pytest.mark.parametrize("base", extending.BASES)
def test_the_loss_falls(method, base):
    model, (cls, arguments) = problems.Net(), extending.BASES[base]
    optimizer = cls(model.parameters(), **arguments)
    engine = attach(model, optimizer, method)
    for _ in range(40):
        losses = problems.train(model, optimizer, range(4))
    first = problems.train(problems.Net(), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), range(4))
    assert sum(losses) < 0.5 * sum(first)
    assert engine.report.bent + engine.report.preconditioned == 3


@pytest.mark.parametrize("base", extending.BASES)
def test_the_method_on_two_ranks_equals_one_process(two, base):
    one, many = extending.replicated(base, shard=False), two.run(extending.replicated, base)
    for weights, _ in many:
        torch.testing.assert_close(weights, one[0], **SAME)
    assert sum(report.solved_here for _, report in many) == one[1].solves > 0
    assert all(report.solved_here for _, report in many)


def test_the_method_in_a_mixture_by_its_name_and_as_an_object(modules, method):
    model = problems.Net()
    mixture = Mixture({"conv.*": "onesided", "tall.*": method, "*": SOAP(start=4, period=2)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine = attach(model, optimizer, mixture)
    problems.train(model, optimizer, range(8))
    plan = str(engine.plan)
    for verdict in ("OneSided bend by the root of 4x4", "OneSided bend by the root of 6x6"):
        assert verdict in plan
    assert (engine.report.bent, engine.report.rotated) == (2, 1)


def test_the_method_is_saved_and_resumed(method, tmp_path):
    ends = []
    for state, tolerance in (("full", 0), ("compact", 1e-4)):  # Roots are found again from newer factors.
        whole, first, again = module(), module(), module()
        fit(whole, [SecondOrder(method, print_plan=False)], max_epochs=2)
        trainer = fit(first, [SecondOrder(method, print_plan=False, state=state)])
        trainer.save_checkpoint(tmp_path / f"{state}.ckpt")
        ours = SecondOrder(method, print_plan=False, state=state)
        fit(again, [ours], ckpt_path=tmp_path / f"{state}.ckpt", max_epochs=2)
        assert (ours.engines[0].report.bent, ours.engines[0].report.step) == (3, 32)
        torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=tolerance)
        ends.append(again.state_dict())
    assert any(not torch.equal(*pair) for pair in zip(*(end.values() for end in ends), strict=True))


# ---------------------------------------------------------------- a layer type


LAYERWISE = [KFAC(period=2), KFAC(period=1, exact=True, cap=4), EKFAC(start=4, period=2), SOAP(start=4, period=2)]


def short(method):
    return f"{type(method).__name__}-{method.period}" if hasattr(method, "period") else type(method).__name__


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8)], ids=["", "sequence"])
@pytest.mark.parametrize("method", [*LAYERWISE, Muon(), Shampoo(period=2)], ids=short)
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_the_layer_keeps_the_contract(modules, check, method, shape):
    torch.manual_seed(0)
    check(shaped(modules.group_linear.GroupLinear(8, 6, groups=2), *shape), method)


@pytest.mark.parametrize("base", extending.BASES)
@pytest.mark.parametrize("method", LAYERWISE[:3], ids=short)
def test_the_layer_equals_the_packages_own(modules, method, base):
    """A grouped convolution of one position is the same layer."""
    cls, arguments = extending.BASES[base]
    ours, theirs = modules.group_linear.GroupLinear(8, 6, groups=2).double(), nn.Conv1d(8, 6, 1, groups=2).double()
    theirs.load_state_dict({"weight": ours.weight[..., None], "bias": ours.bias})
    for layer in (ours, theirs):
        optimizer = cls(layer.parameters(), **arguments)
        engine, generator = attach(layer, optimizer, method), contract.seeded()
        for _ in range(12):
            x, y = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (8, 6))
            found = layer(x) if layer is ours else layer(x[..., None])[..., 0]
            optimizer.zero_grad()
            (found - y).square().mean().backward()
            optimizer.step()
        assert engine.report.solves > 0
    torch.testing.assert_close(ours.weight, theirs.weight[..., 0], **SAME)
    torch.testing.assert_close(ours.bias, theirs.bias, **SAME)


def test_the_layers_factors_are_the_dense_truth(modules):
    """Per group the mean of a a' and of g g', g that of one sample's loss."""
    torch.manual_seed(0)
    layer = modules.group_linear.GroupLinear(8, 6, groups=2).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    engine = attach(layer, optimizer, KFAC())
    x, y = torch.randn(16, 8).double(), torch.randn(16, 6).double()
    g = 2 * (layer(x) - y).detach()
    (layer(x) - y).square().sum(1).mean().backward()
    optimizer.step()
    found = curvature(engine)["weight"]
    for group, (a, s) in enumerate(zip(x.chunk(2, 1), g.chunk(2, 1), strict=True)):
        a = torch.cat([a, torch.ones(16, 1)], 1)
        torch.testing.assert_close(found.inputs[group], a.T @ a / 16, **SAME)
        torch.testing.assert_close(found.outputs[group], s.T @ s / 16, **SAME)


# ---------------------------------------------------------------- a strategy


@pytest.mark.parametrize(
    ("name", "base"),
    daily(
        [("soap", "adamw"), ("kfac", "sgd"), ("kfac", "adamw"), ("onesided", "sgd"), ("onesided", "adamw")],
        *(("soap", "adamw"), ("kfac", "sgd"), ("onesided", "adamw")),
    ),
)
def test_pieces_on_two_ranks_equal_one_process(two, name, base):
    one, held, state = extending.cut(name, base, several=False)
    many = two.run(extending.cut, name, base)
    for weights, _, theirs in many:
        torch.testing.assert_close(weights, one, **SAME)
        # Roots are in the units of 1 / |g|, some thousand.
        torch.testing.assert_close(theirs["blocks"], state["blocks"], rtol=1e-9, atol=1e-10)
    assert sum(piece for _, piece, _ in many) == held
    assert max(piece for _, piece, _ in many) < 0.6 * held


@pytest.mark.parametrize("name", ["soap", "kfac"])
def test_a_trainer_knows_the_strategy_by_its_name(two, name):
    one, _ = extending.fitted(name, "adamw", "auto")
    for weights, strategy in two.run(extending.fitted, name, "adamw"):
        assert strategy == "CutStrategy"
        torch.testing.assert_close(weights, one, **SAME)


def test_an_access_is_registered_and_asked_for_before_others(modules):
    model = nn.Linear(3, 2)
    assert type(access_of(model.parameters())) is Access
    model.weight.cut = torch.Size([2, 6]), (0, 6)
    found = access_of(model.parameters(), model)
    assert isinstance(found, modules.cut.CutAccess)
    assert (found.shape(model.weight), found.span(model.weight)) == (torch.Size([2, 6]), (0, 6))
    assert (found.shape(model.bias), found.span(model.bias)) == (torch.Size([2]), (0, 2))
    with pytest.raises(ConfigError, match="parameters are held by CutAccess: take 'exact'"):
        access_of(model.parameters(), model, sharding="local")


def test_an_access_that_is_registered_again_takes_its_place(modules):
    from lightning_so.comm import choose

    asked = []
    before = len(choose._REGISTERED)
    try:
        choose.register(modules.cut.CutAccess, lambda params, model: asked.append(model))
        model = nn.Linear(3, 2)
        assert type(access_of(model.parameters(), model)) is Access
        assert asked == [model]
        assert len(choose._REGISTERED) == before
    finally:
        choose.register(modules.cut.CutAccess, lambda params, model: None)


def test_what_the_page_has_registered_is_gone_afterwards():
    sizes = [len(registered) for registered in page.REGISTERED]
    with page.modules():
        pass
    assert sizes == [len(registered) for registered in page.REGISTERED]
