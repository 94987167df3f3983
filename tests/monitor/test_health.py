"""What is ill is named, layer by name; what is healthy is not; and a training that is looked at is the same."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_so.monitor.health import DEAD, LARGEST, RANK, SATURATED, WINDOW, Health
from lightning_so.monitor.illness import ill
from lightning_so.monitor.rows import places
from tests.support import nets
from tests.support.daily import daily


def look(health, net, x, often=1):
    """The numbers after some looks at the same batch."""
    for _ in range(often):
        with health.look():
            net(x)
    return health.numbers()


def illnesses(health):
    names, widths = ([of[number] for number in health.order] for of in (health.names, health.widths))
    return {(found.layer, found.kind) for found in ill(names, widths, health.numbers()[:, health.order].tolist())}


def kill(layer):
    layer.bias.data.fill_(-100.0)


def saturate(layer):
    for param in layer.parameters():
        param.data.mul_(1000.0)


def collapse(layer):
    W = layer.weight.data.flatten(1)
    torch.outer(torch.randn(len(W)), torch.randn(W.shape[1]), out=W)


def blow_up(layer):
    layer.weight.data.mul_(1e5)


@pytest.mark.parametrize(
    ("make", "data", "layer"),
    [
        (nets.MLP, nets.rows, "second"),
        (lambda: nets.sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)), nets.rows, "4"),
        (nets.CNN, nets.images, "conv2"),
        (nets.CNN, nets.images, "norm"),
        (nets.ResNet, nets.images, "norm1"),
        (lambda: nets.Transformer(F.relu), nets.tokens, "encoder.layers.1.linear1"),
        (lambda: nets.Transformer(F.gelu), nets.tokens, "encoder.layers.0.linear1"),
        (lambda: nets.Recurrent(activation=F.relu), nets.series, "dense"),
        (nets.Gated, nets.rows, "value"),
    ],
)
def test_a_dead_layer_is_named(make, data, layer):
    torch.manual_seed(0)
    net = make()
    health = Health(net)
    kill(net.get_submodule(layer))
    look(health, net, data(64, torch.Generator().manual_seed(1)), 3)
    assert illnesses(health) == {(layer, "dead")}


@pytest.mark.parametrize(
    ("make", "data", "layer"),
    [
        (lambda: nets.MLP(torch.tanh), nets.rows, "second"),
        (lambda: nets.MLP(torch.sigmoid), nets.rows, "first"),
        (lambda: nets.sequential(nn.Tanh(), nn.Dropout(0.5)), nets.rows, "4"),
        (lambda: nets.CNN(torch.tanh), nets.images, "conv2"),
        (lambda: nets.Transformer(torch.tanh), nets.tokens, "encoder.layers.0.linear1"),
        (nets.Recurrent, nets.series, "dense"),
    ],
)
def test_a_saturated_layer_is_named(make, data, layer):
    torch.manual_seed(0)
    net = make()
    health = Health(net)
    saturate(net.get_submodule(layer))
    look(health, net, data(64, torch.Generator().manual_seed(1)))
    assert illnesses(health) == {(layer, "saturated")}


@pytest.mark.parametrize(
    ("make", "data", "layer"),
    [
        (nets.MLP, nets.rows, "first"),
        (lambda: nets.MLP(F.gelu), nets.rows, "second"),
        (nets.CNN, nets.images, "conv1"),
        (nets.CNN, nets.images, "conv2"),
        (nets.Transformer, nets.tokens, "encoder.layers.1.linear1"),
        (nets.Recurrent, nets.series, "dense"),
    ],
)
def test_a_layer_of_rank_one_is_named_and_not_those_behind_it(make, data, layer):
    torch.manual_seed(0)
    net = make()
    health = Health(net)
    collapse(net.get_submodule(layer))
    look(health, net, data(64, torch.Generator().manual_seed(1)))
    assert illnesses(health) == {(layer, "rank")}


@pytest.mark.parametrize(
    ("make", "data", "layer"),
    [
        (nets.MLP, nets.rows, "second"),
        (nets.CNN, nets.images, "norm"),  # Registered behind the layer that it blows up.
        (nets.Transformer, nets.tokens, "encoder.layers.0.linear1"),
        (lambda: nets.Recurrent(activation=F.relu), nets.series, "dense"),
    ],
)
def test_of_exploding_activations_the_first_layer_is_named(make, data, layer):
    torch.manual_seed(0)
    net = make()
    health = Health(net)
    blow_up(net.get_submodule(layer))
    look(health, net, data(64, torch.Generator().manual_seed(1)))
    assert [one for one in illnesses(health) if one[1] == "largest"] == [(layer, "largest")]


@pytest.mark.parametrize("name", daily(nets.HEALTHY, "cnn"))
def test_what_is_healthy_is_not_named_fresh_or_trained(name):
    torch.manual_seed(0)
    make, data = nets.HEALTHY[name]
    generator = torch.Generator().manual_seed(1)
    net, teacher = make(), make().eval()
    health, optimizer = Health(net), torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in range(121):
        x = data(32, generator)
        with torch.no_grad():
            told = teacher(x)
        with nullcontext() if step % 20 else health.look():
            loss = F.cross_entropy(net(x), (told - told.mean(0)).argmax(1))
        if step % 20 == 0:
            assert illnesses(health) == set()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ---------------------------------------------------------------- the numbers


def test_the_numbers_are_those_of_the_definitions():
    torch.manual_seed(0)
    net = nets.MLP(F.relu)
    net.first.bias.data[:5] = -100.0
    x = torch.randn(60, 10)
    numbers = look(Health(net), net, x)
    first = net.first(x).detach()
    second = net.second(F.relu(first)).detach()
    assert numbers.shape == (4, 3)
    assert numbers.dtype is torch.float32
    assert float(numbers[DEAD, 0]) == float((first <= 0).all(0).float().mean()) == 5 / 32
    assert bool(numbers[DEAD, 2].isnan() and numbers[SATURATED].isnan().all())
    for number, output in enumerate((first, second)):
        scaled = (output - output.mean(0)) / output.std(0)
        values = torch.linalg.svdvals(scaled.double()).square()
        expected = float(values.sum() ** 2 / values.square().sum())
        assert abs(float(numbers[RANK, number]) / expected - 1) < 1e-4
        assert abs(float(numbers[LARGEST, number] / output.square().mean().sqrt()) - 1) < 1e-5


def test_saturated_units_are_counted_over_all_samples_of_a_look():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].weight.data.zero_()
    net[0].weight.data[:3] = torch.eye(3)
    health = Health(net)
    x = torch.zeros(100, 3)
    x[:96, 0], x[:94, 1], x[:50, 2], x[50:, 2] = 9.0, 9.0, 9.0, -9.0
    with health.look():  # in two micro-batches
        net(x[:50])
        net(x[50:])
    assert float(health.numbers()[SATURATED, 0]) == 0.5


def test_a_unit_is_dead_when_it_was_silent_for_the_whole_window():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net[0].weight.data.copy_(torch.eye(2))
    net[0].bias.data.zero_()
    health = Health(net)
    one, both = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    shares = [float(look(health, net, one)[DEAD, 0])]
    shares += [float(look(health, net, x)[DEAD, 0]) for x in (both, *[one] * WINDOW)]
    assert shares == [0.5, 0.0, *[0.0] * (WINDOW - 1), 0.5]


def test_what_the_network_is_given_is_no_unit():
    net = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 4))
    assert bool(look(Health(net), net, torch.zeros(8, 4).requires_grad_())[DEAD].isnan().all())


def test_units_are_those_of_the_layer_in_the_graph_and_not_of_the_one_called_before():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            a = F.relu(self.a(x))
            return self.b(x).sum() + self.c(a).sum()

    net = Branches()
    kill(net.a)
    health = Health(net)
    dead = look(health, net, torch.randn(16, 4))[DEAD]
    assert health.readers == ["c", "", ""]
    assert float(dead[0]) == 1.0
    assert bool(dead[1:].isnan().all())


def test_an_activation_in_place_on_sequences_hides_no_layer():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    net[0].bias.data[:2] = -100.0
    # Linear gives a view here, and the operation in place takes the view's node out of the graph.
    assert float(look(Health(net), net, torch.randn(4, 5, 6))[DEAD, 0]) == 0.25


@pytest.mark.parametrize("flat", [False, True])
def test_a_dead_channel_is_one_unit_also_flattened(flat):
    behind = [nn.Flatten(), nn.Linear(5 * 16, 2)] if flat else [nn.Conv2d(5, 2, 1)]
    net = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *behind)
    net[0].weight.data.abs_()
    net[0].bias.data.copy_(torch.tensor([0.0, -9.0, 0.0, -9.0, 0.0]))
    for layout in (torch.contiguous_format, torch.channels_last):
        health = Health(net.to(memory_format=layout))
        assert abs(float(look(health, net, torch.rand(16, 1, 8, 8))[DEAD, 0]) - 0.4) < 1e-6


def test_recurrent_layers_are_looked_at_themselves():
    rnn = nn.RNN(4, 8, nonlinearity="relu")
    for bias in (rnn.bias_ih_l0, rnn.bias_hh_l0):
        bias.data.fill_(-50.0)
    net = nn.ModuleList([rnn, nn.GRU(4, 6)])
    health = Health(net)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(7, 3, 4), torch.tensor([7, 5, 2]))
    with health.look():
        rnn(packed)
        net[1](packed)
    numbers = health.numbers()
    assert float(numbers[DEAD, 0]) == 1.0
    assert float(numbers[SATURATED, 1]) == 0.0


# ---------------------------------------------------------------- and changes nothing


def trained(looked, wrap=lambda net: net, steps=6):
    torch.manual_seed(0)
    net = wrap(nets.CNN())
    health = Health(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        with health.look() if looked else nullcontext():
            for _ in range(2):
                F.dropout(net(torch.rand(8, 1, 12, 12)), 0.2).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    return [*net.state_dict().values(), torch.rand(3)], health


def test_a_training_that_is_looked_at_is_the_same_bit_for_bit():
    plainly, _ = trained(False)
    watched, health = trained(True)
    assert bool(health.numbers()[RANK].isfinite().all())
    assert all(torch.equal(a, b) for a, b in zip(plainly, watched, strict=True))


class Asked(TorchDispatchMode):
    """Notes what is computed."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def test_the_host_reads_nothing_and_no_random_number_is_drawn():
    net = nets.MLP(torch.tanh)
    health, x = Health(net), torch.randn(300, 10)
    look(health, net, x)
    with Asked() as asked:
        look(health, net, x)
        health.numbers()
    assert "mm" in asked.names  # of a Gram matrix
    assert not asked.names & {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal"}
    assert not [name for name in asked.names if "rand" in name or "bernoulli" in name or "normal" in name]


def test_what_raises_inside_leaves_nothing_behind():
    net = nets.MLP()
    health = Health(net)

    def fail():
        with health.look():
            net(torch.randn(4, 10))
            raise RuntimeError("the step fails")

    with pytest.raises(RuntimeError, match="the step fails"):
        fail()
    assert not any(module._forward_hooks for module in net.modules())
    assert bool(look(health, net, torch.randn(16, 10))[LARGEST].isfinite().all())


def test_evaluation_and_passes_without_a_graph_are_not_looked_at():
    net = nets.MLP()
    health = Health(net)
    with health.look(), torch.no_grad():
        net(torch.randn(16, 10))
    assert bool(health.numbers().isnan().all())
    assert bool(look(health, net.eval(), torch.randn(16, 10)).isnan().all())


def test_a_copy_made_inside_has_no_hooks_of_ours_that_act():
    net = nets.MLP()
    health = Health(net)
    with health.look():
        teacher = copy.deepcopy(net)
        teacher(torch.randn(16, 10))
    assert bool(health.numbers().isnan().all())
    assert not any(hasattr(hook, "_heard") for hook in teacher.first._forward_hooks.values())


# ---------------------------------------------------------------- ways to run a model


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_seen_once_their_passes_are(reentrant):
    torch.manual_seed(0)
    net = nets.MLP()
    kill(net.second)
    health, x = Health(net), torch.randn(32, 10, requires_grad=True)
    with health.look():
        checkpoint(net, x, use_reentrant=reentrant).sum().backward()
    assert float(health.numbers()[DEAD, 1]) == 1.0
    assert bool(health.numbers()[LARGEST].isfinite().all())


def test_names_are_those_without_wrappers():
    plain = nets.MLP()
    wrapped = nets.MLP()
    wrapped.second = checkpoint_wrapper(wrapped.second)
    assert Health(wrapped).names == Health(plain).names == ["first", "second", "last"]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_under_autocast_ranks_are_of_full_precision(precision):
    torch.manual_seed(0)
    net = nets.MLP(torch.tanh)
    collapse(net.second)
    health, x = Health(net), torch.randn(64, 10)
    with torch.autocast("cpu", precision):
        look(health, net, x)
    assert health.numbers().dtype is torch.float32
    assert illnesses(health) == {("second", "rank")}
    assert bool(health.numbers()[SATURATED, :2].isfinite().all())


def test_compiled_modules_are_left_alone_and_no_graph_is_broken():
    torch._dynamo.reset()
    counted = []

    def backend(graph, inputs):
        counted.append(graph)
        return graph.forward

    net = nets.MLP()
    whole = torch.compile(net, backend=backend, fullgraph=True)
    assert Health(whole).names == []
    health, x = Health(net), torch.randn(16, 10)  # what is compiled cannot be told from inside
    for often in range(4):
        with health.look() if often % 2 else nullcontext():
            whole(x).sum().backward()
    assert len(counted) == 1
    assert bool(health.numbers().isnan().all())
    torch._dynamo.reset()
    other = nets.MLP()
    whole, health = torch.compile(other, backend=backend, fullgraph=True), Health(other)
    for often in range(4):  # the first pass, which compiles, is looked at: hooks are guarded, and that costs one more
        with health.look() if often % 2 == 0 else nullcontext():
            whole(x).sum().backward()
    assert len(counted) <= 3
    part = nn.Sequential(nn.Linear(10, 8), torch.compile(nets.MLP(), backend=backend), nn.Linear(4, 2))
    assert Health(part).names == ["0", "2"]


def test_inside_torch_func_nothing_is_said():
    net = nets.MLP()
    health = Health(net)
    with health.look():
        found = torch.func.vmap(lambda x: net(x))(torch.randn(5, 10))
    assert found.shape == (5, 4)
    assert bool(health.numbers().isnan().all())


@pytest.mark.parametrize(("total", "most"), [(1, 4), (64, 64), (4096, 256), (997, 256), (300, 256)])
def test_rows_are_spread_and_none_is_taken_twice(total, most):
    (found,) = places(torch.Size([total]), most, torch.device("cpu"))
    assert len(set(found.tolist())) == min(total, most)
    gaps = [b - a for a, b in pairwise(sorted(found.tolist()))]
    assert max(gaps, default=1) <= 4 * max(1, total / most)
