"""The problems of `benchmarks.anywhere`: they build, train under AdamW and K-FAC, and are what they say they are."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from benchmarks.anywhere import cartpole, equations, identifiers, images, recurrent, text
from benchmarks.anywhere.molecules import molecular_graphs
from benchmarks.anywhere.problems import PROBLEMS, TUNED, load, read_tuned
from benchmarks.shared.methods import Settings, build, hidden_weights
from examples import molecules, smiles
from tests.support.daily import one_in


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """What is trained first is trained for two steps, and kept where the tests' files are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(text, "BEFORE", 2)
        yield


def generator(seed):
    return torch.Generator().manual_seed(seed)


def loss_after_a_step(problem, method):
    model = problem.model(0)
    contender, batch = build(method, model, Settings(1e-3)), problem.batch(generator(0))
    loss = problem.loss(model, batch)
    contender.observe(loss)
    loss.backward()
    before = [p.detach().clone() for p in model.parameters()]
    contender.step()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before))
    return problem.loss(model, batch).item()


# Its table of positions is used without its layer, and K-FAC says that it leaves it alone.
@pytest.mark.filterwarnings("default:position.weight has a gradient")
@pytest.mark.parametrize("method", ["adamw", "kfac_sgd"])
@pytest.mark.parametrize("name", one_in(2, PROBLEMS))
def test_a_step_leaves_a_finite_loss(name, method):
    assert math.isfinite(loss_after_a_step(load(name), method))


@pytest.mark.parametrize("name", PROBLEMS)
def test_data_and_models_depend_on_the_seed_alone(name):
    one, two = load(name), load(name)
    for parts in zip(
        tree_leaves((one.held, one.batch(generator(3)))), tree_leaves((two.held, two.batch(generator(3))))
    ):
        assert torch.equal(*parts)
    for p, q in zip(one.model(5).state_dict().values(), two.model(5).state_dict().values()):
        assert torch.equal(p, q)
    if name not in ("poisson", "deep_linear"):
        others = zip(tree_leaves(one.batch(generator(3))), tree_leaves(one.batch(generator(4))))
        assert not all(p.shape == q.shape and torch.equal(p, q) for p, q in others)


def test_every_problem_has_tuned_rates_inside_of_what_was_tried():
    assert read_tuned().keys() == {(name, method) for name in PROBLEMS for method in ("adamw", "sgd")}, TUNED


@pytest.mark.parametrize(
    ("mean", "total", "terms"), [("classify_mean", "classify_sum", 512), ("squares_mean", "squares_sum", 32 * 32 * 32)]
)
def test_the_sum_is_the_mean_written_otherwise(mean, total, terms):
    one, other = load(mean), load(total)
    model, batch = one.model(0), one.batch(generator(0))
    assert other.loss(model, batch).item() == pytest.approx(terms * one.loss(model, batch).item(), rel=1e-4)
    assert one.steps == other.steps
    part = [tuple(t[:8] for t in batch)]
    scores = [problem.__class__(**{**vars(problem), "held": part}).validation(model) for problem in (one, other)]
    assert scores[0] == scores[1]


def test_an_unknown_problem_is_refused_with_the_names_of_all():
    with pytest.raises(KeyError, match="no problem 'nothing'; there are: classify_mean, "):
        load("nothing")


# ---------------------------------------------------------------- what they say they are


def test_pixels_that_are_told_score_zero():
    problem = images.bernoulli_pixels()
    told = lambda pixels: pixels.flatten(1).logit(1e-6)  # noqa: E731
    assert problem.score(told, problem.held[0]).item() == pytest.approx(0, abs=1e-3)
    assert problem.score(lambda pixels: told(pixels) + 1, problem.held[0]) > 1


def test_the_solution_of_poissons_equation_has_no_residual():
    assert equations.poisson().validation(Sines()) == pytest.approx(0, abs=1e-6)


class Sines(nn.Module):
    def forward(self, x):
        return torch.sin(math.pi * x).prod(1, keepdim=True)


def test_the_deep_linear_network_starts_near_a_saddle():
    problem = equations.deep_linear()
    model, (whole, _) = problem.model(0), problem.held[0]
    nothing = whole.flatten(1).square().sum(1).mean().item()
    assert problem.validation(model) == pytest.approx(nothing, rel=0.01)
    left = torch.linalg.svdvals(whole.flatten(1))[32:].square().sum().item() / len(whole)
    assert left < 0.04 * nothing


def test_half_of_the_names_are_in_less_than_one_function_of_300():
    table, modules = identifiers.functions()
    assert (table.mean(0) < 1 / 300).float().mean() > 0.5
    assert modules.unique().tolist() == list(range(identifiers.MODULES))


def test_the_cart_moves_as_in_barto_sutton_and_anderson():
    pushed = cartpole.moved(torch.zeros(1, 4), torch.ones(1))
    assert torch.allclose(pushed, torch.tensor([[0.0, 0.19512, 0.0, -0.29268]]), atol=1e-5)
    # A pole that leans falls on. Pushes to both sides take each other's place: what is left is the weight's.
    state = torch.tensor([[0.0, 0.0, 0.1, 0.0]])
    both = (cartpole.moved(state, torch.ones(1)) + cartpole.moved(state, torch.zeros(1))) / 2
    twist = 9.8 * math.sin(0.1) / (0.5 * (4 / 3 - 0.1 * math.cos(0.1) ** 2 / 1.1))
    assert both[0, 3].item() == pytest.approx(0.02 * twist, rel=1e-5)


def test_a_pole_that_has_fallen_stays_down_and_is_counted():
    policy = nn.Linear(4, 1)
    states, _, stood = cartpole.tried(policy, cartpole.starts(64, 100, generator(0)))
    assert (stood.diff(dim=0) <= 0).all()
    assert ((states[:, :, 2].abs() < cartpole.ANGLE) | ~stood.bool())[1:].all()
    assert cartpole.lost(policy, cartpole.starts(64, 100, generator(0))).item() == pytest.approx(
        1 - stood.mean().item()
    )


def test_reinforce_is_the_gradient_of_what_is_gained():
    problem = cartpole.policy_gradient()
    model = problem.model(0)
    held = cartpole.starts(4096, 60, generator(1))
    before = cartpole.lost(model, held)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    for seed in range(4):
        optimizer.zero_grad()
        cartpole.reinforce(model, cartpole.starts(256, 60, generator(seed))).backward()
        optimizer.step()
    assert cartpole.lost(model, held) < before - 0.005


def test_what_is_trained_first_is_trained_once_and_kept(monkeypatch):
    first = text.pretrained()
    monkeypatch.setattr(text, "trained", lambda *_: pytest.fail("it was kept"))
    again = text.pretrained()
    assert all(torch.equal(first[name], again[name]) for name in first)
    problem = text.fine_tuning()
    assert all(torch.equal(p, again[name]) for name, p in problem.model(4).state_dict().items())


# ---------------------------------------------------------------- molecules


def test_aspirin_is_read():
    atoms, bonds = smiles.parsed("CC(=O)Oc1ccccc1C(=O)O")
    assert len(atoms) == len(bonds) == 13
    assert [bond[2] for bond in bonds].count(":") == 6
    assert [bond[2] for bond in bonds].count("=") == 2
    ring = {bond[:2] for bond in bonds if bond[2] == ":"}
    assert ring == {(4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (4, 9)}


def test_atoms_in_brackets_are_read():
    atoms, bonds = smiles.parsed("C[N+](C)(C)CC(=O)[O-]")
    assert [atom.charge for atom in atoms] == [0, 1, 0, 0, 0, 0, 0, -1]
    assert bonds[1:4] == [(1, 2, "-"), (1, 3, "-"), (1, 4, "-")]
    atoms, bonds = smiles.parsed("c1cc[nH]c1C#N")
    assert (atoms[3].element, atoms[3].aromatic, atoms[3].hydrogen) == ("N", True, True)
    assert bonds[-1] == (5, 6, "#")
    assert smiles.parsed("C1CC%12CC1C%12")[1].count((2, 5, "-")) == 1
    with pytest.raises(ValueError, match="no atom of a SMILES string"):
        smiles.parsed("C?C")


def test_bonds_are_in_pairs_that_lead_both_ways():
    for graph in molecules.molecules()[0]:
        assert torch.equal(graph.begins.view(-1, 2).flip(1), graph.ends.view(-1, 2))
        assert torch.equal(graph.bonds[::2], graph.bonds[1::2])
        assert (graph.atoms[:, : len(molecules.ELEMENTS)].sum(1) == 1).all()


def test_molecules_side_by_side_do_not_see_each_other():
    model = molecular_graphs().model(0)
    alone = torch.cat([model(molecules.joined([i])) for i in (7, 3, 90)])
    assert torch.allclose(model(molecules.joined([7, 3, 90])), alone, atol=1e-6)


def test_a_message_does_not_go_back_the_bond_that_it_came_by():
    # Ethane's two bonds are each other's way back: with no way on, further rounds change nothing.
    model, batch = molecules.MessagePassing(), molecules.joined([0])
    graph = molecules.molecule("CC")
    two = batch._replace(graph=graph, owner=torch.zeros(2, dtype=torch.long), logp=torch.zeros(1))
    other = copy.deepcopy(model)
    nn.init.zeros_(other.pass_on.weight)
    assert torch.allclose(model(two), other(two), atol=1e-6)


# ---------------------------------------------------------------- torch's Muon on them


def test_hidden_weights_are_those_of_recurrent_and_attention_layers_too():
    lstm, transformer = recurrent.ByteLSTM(), images.VisionTransformer(64)
    assert {id(p) for p in hidden_weights(lstm)} == {id(lstm.cells.weight_ih_l0), id(lstm.cells.weight_hh_l0)}
    hidden = {id(p) for p in hidden_weights(transformer)}
    assert id(transformer.blocks[0].self_attn.in_proj_weight) in hidden
    assert id(transformer.blocks[0].self_attn.out_proj.weight) in hidden
    assert id(transformer.head.weight) not in hidden


@pytest.mark.parametrize("name", ["lstm", "residual"])
def test_torchs_muon_at_adamws_rate_moves_as_far_as_adamw(name):
    problem = load(name)
    model = problem.model(0)
    contender = build("torch_muon_adamw", model, Settings(1e-3))
    # Of AdamW's updates it takes the root mean square to be .2 of the rate; the warm-up's first step is a twentieth.
    # Five rounds of its iteration leave directions behind whose gradients are small.
    hidden = hidden_weights(model)
    before = [p.detach().clone() for p in hidden]
    problem.loss(model, problem.batch(generator(0))).backward()
    contender.step()
    for p, q in zip(hidden, before):
        assert 0.5 < (p - q).square().mean().sqrt().item() / (0.2 * 1e-3 / 20) < 1.2


def test_torchs_muon_does_without_adamw_where_all_weights_are_hidden():
    problem = load("deep_linear")
    assert len(build("torch_muon_adamw", problem.model(0), Settings(1e-3)).optimizers) == 1
