"""AdaHessian and Sophia: the published equations, whatever the ranks; the Adam beneath stays an Adam."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F

from lightning_so import KFAC, AdaHessian, ConfigError, Sophia, attach
from lightning_so.contract.vector_method import Step
from lightning_so.linalg.vectors import Piece, Space

SAMPLES, STEPS = 8, 7
#: Two groups, whose rates and decays differ.
GROUPS: list[dict[str, Any]] = [{"lr": 0.02, "weight_decay": 0.1}, {"lr": 0.05, "weight_decay": 0.0}]
COMMON = {"betas": (0.8, 0.95), "eps": 1e-3}


def network():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3)
    return nn.Sequential(conv, nn.Tanh(), nn.Conv2d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()


def data(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(SAMPLES, 1, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (SAMPLES,), generator=generator)


def optimized(net, base=torch.optim.AdamW, grouped=True, **options):
    kernels, others = [p for p in net.parameters() if p.dim() > 1], [p for p in net.parameters() if p.dim() == 1]
    if not grouped:
        return base(net.parameters(), **{**GROUPS[0], **COMMON, **options})
    pairs = zip((kernels, others), GROUPS, strict=True)
    return base([{"params": params, **group} for params, group in pairs], **COMMON, **options)


class Loop:
    """A training of some steps; `seen` holds the gradients that the base got."""

    def __init__(self, method, base=torch.optim.AdamW, grouped=True, product="exact", shard=None):
        net = network()
        ranks = dist.get_world_size() if dist.is_initialized() and shard is not None else 1
        self.mine = slice(dist.get_rank(), None, ranks) if ranks > 1 else slice(None)
        self.model = net if ranks == 1 else shard(net)
        self.net, self.seen, self.steps = net, [], 0
        self.optimizer = optimized(self.model, base, grouped)
        self.engine = attach(self.model, self.optimizer, method, product=product)

    def train(self, steps=STEPS):
        for _ in range(steps):
            self.steps += 1
            x, y = (part[self.mine] for part in data(self.steps))
            seen = []

            def closure(x=x, y=y, seen=seen):
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.model(x), y)
                loss.backward()
                if not seen:  # What is evaluated besides may have none.
                    seen.append([p.grad.clone() for p in self.net.parameters()])
                return loss

            self.optimizer.step(closure)
            self.seen += seen
        return self

    @property
    def weights(self):
        return [p.detach().clone() for p in self.net.parameters()]


def published(method, base, space, grouped=True):
    """The equations in the papers, tensor by tensor; and the running means at the end."""
    net, moments = network(), []
    params = list(net.parameters())
    groups = [GROUPS[p.dim() == 1 and grouped] for p in params]
    means = [torch.zeros_like(p) for p in params]
    firsts, looks, clipped = [torch.zeros_like(p) for p in params], 0, 0.0
    first_beta, eps = COMMON["betas"][0], COMMON["eps"]
    for step in range(1, STEPS + 1):
        x, y = data(step)
        f = net(x)
        grads = torch.autograd.grad(F.cross_entropy(f, y), params, create_graph=True)
        if (step - 1) % method.every == 0:
            looks += 1
            z = [part.view(p.shape) for part, p in zip(space.split(space.rademacher(method.seed, step)), params)]
            if getattr(method, "curvature", None) == "gauss-newton":
                J = [torch.autograd.grad(f.flatten()[i], params, retain_graph=True) for i in range(f.numel())]
                Jz = torch.stack([sum((a * b).sum() for a, b in zip(row, z)) for row in J]).view(f.shape)
                p = f.softmax(1)
                HJz = p * (Jz - (p * Jz).sum(1, keepdim=True)) / len(f)
                h = [sum(c * row[i] for c, row in zip(HJz.flatten(), J)).detach() for i in range(len(params))]
            else:
                h = torch.autograd.grad(grads, params, z)
            for mean, vector, signs in zip(means, h, z):
                if isinstance(method, Sophia):
                    mean.mul_(method.beta).add_((1 - method.beta) * signs * vector)
                    continue
                d = signs * vector if method.estimator == "diagonal" else vector.abs()
                if d.dim() == 4 and method.average:
                    d = d.mean((2, 3), keepdim=True).expand_as(d)
                d = d if method.estimator == "diagonal" else d.square()
                kept = method.beta**method.every
                mean.mul_(kept).add_((1 - kept) * d)
        beyond = total = 0
        for w, g, m, mean, group in zip(params, grads, firsts, means, groups):
            lr, decay = group["lr"], group["weight_decay"]
            coupled = decay * w.detach() if base is torch.optim.Adam else 0.0
            m.mul_(first_beta).add_((1 - first_beta) * (g.detach() + coupled))
            if isinstance(method, Sophia):
                ratio = m / (method.gamma * mean).clamp(min=1e-12)
                beyond, total = beyond + int((ratio.abs() > 1).sum()), total + ratio.numel()
                u = ratio.clamp(-1, 1)
            else:
                s = mean.abs() / (1 - method.beta ** (method.every * looks))
                root = s.sqrt() if method.estimator == "rownorm" else s
                u = m / (1 - first_beta**step) / (root**method.power + eps)
            with torch.no_grad():
                w -= lr * (u + (decay * w if base is torch.optim.AdamW else 0.0))
        if isinstance(method, Sophia) and (step - 1) % method.every == 0:
            clipped = beyond / total
    del moments
    return [p.detach() for p in params], torch.cat([mean.flatten() for mean in means]), clipped


def close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


METHODS = {
    "rownorm": AdaHessian(beta=0.9),
    "diagonal": AdaHessian("diagonal", beta=0.9),
    "power": AdaHessian(beta=0.9, power=0.5, average=False, seed=3),
    "late": AdaHessian("diagonal", beta=0.9, power=0.5, every=3),
    "sophia": Sophia(gamma=0.5, beta=0.7, every=2, seed=1),
    "gauss-newton": Sophia(gamma=0.5, beta=0.7, every=3, curvature="gauss-newton"),
}


@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("name", METHODS)
def test_steps_are_those_of_the_papers(name, base):
    method = METHODS[name]
    loop = Loop(method, base).train()
    expected, mean, clipped = published(method, base, loop.engine.vector.space)
    tolerance = 1e-7 if name == "gauss-newton" else 1e-11  # Its products are by differences of predictions.
    close(loop.weights, expected, tolerance)
    (state,) = loop.engine.state.vectors.values()
    torch.testing.assert_close(state, mean, rtol=0, atol=tolerance)
    scalars = loop.engine.scalars()
    assert scalars["curv/age"] == (STEPS - 1) % method.every
    assert scalars["curv/failed"] == 0
    if isinstance(method, Sophia):
        assert scalars["curv/clipped"] == pytest.approx(clipped, abs=1e-12)
        assert 0.1 < clipped < 0.9


def test_one_group_is_two_alike():
    method = AdaHessian()
    close(Loop(method, grouped=False).train(2).weights, Loop(method, grouped=False).train(2).weights, 0)
    loop = Loop(method, grouped=False).train()
    close(loop.weights, published(method, torch.optim.AdamW, loop.engine.vector.space, grouped=False)[0], 1e-11)


# ------------------------------------------------------------------ what the running means are of
class Quadratic:
    """Steps of a method on `w'Hw / 2`."""

    def __init__(self, method, H, pieces=None):
        n = len(H)
        self.space = Space(pieces or (Piece("w", 0, n, n),), dtype=torch.float64)
        self.method, self.H, self.state, self.number = method, H, method.init(self.space), 0
        settings = {"lr": 0.1, "eps": 0.0}
        first = lambda corrected=True: torch.ones(n, dtype=torch.float64)  # noqa: E731
        self.moments: Any = SimpleNamespace(setting=settings.__getitem__, first=first, decay=lambda: 0.0)
        assert method.refuse(self.space, [dict.fromkeys(("betas", "eps", "amsgrad", "weight_decay"), 0)]) is None

    def step(self):
        self.number += 1
        batch: Any = SimpleNamespace(products=lambda V: V @ self.H)
        moves = self.space.zeros(2)
        return self.method.update(
            self.state, Step(self.number, self.space, self.space.zeros(), moves, 1.0, 1.0, batch, self.moments)
        )


def random_hessian(n=30):
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return A + A.mT + torch.diag(torch.linspace(-20, 20, n, dtype=torch.float64))


@pytest.mark.parametrize("method", [AdaHessian(beta=0.0), AdaHessian("diagonal"), Sophia(beta=0.0, gamma=2.0)])
def test_one_probe_gives_a_diagonal_hessian(method):
    a = torch.tensor([3.0, -2.0, 0.5, 7.0], dtype=torch.float64)
    taken = Quadratic(method, a.diag()).step()
    expected = (
        -0.1 * torch.where(a > 0, 1 / (2 * a), 1.0).clamp(max=1.0) if isinstance(method, Sophia) else -0.1 / a.abs()
    )
    torch.testing.assert_close(taken, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ["rownorm", "diagonal"])
def test_what_is_divided_by_is_the_norm_of_a_row_or_the_diagonal(estimator):
    H, beta, probes = random_hessian(), 1 - 1e-9, 2000
    loop = Quadratic(AdaHessian(estimator, beta), H)
    for _ in range(probes):
        loop.step()
    found = loop.state.vectors["s"] / (1 - beta**probes)
    if estimator == "rownorm":
        rows = H.square().sum(1).sqrt()
        ratios = found.sqrt() / rows
        assert (ratios - 1).abs().max() < 0.07
        assert float(ratios.mean()) == pytest.approx(1, abs=0.01)
        assert float((rows / H.diagonal().abs()).median()) > 1.2
    else:
        # Of one probe the variance is the rest of the row's squares.
        error = (H.square().sum(1) - H.diagonal().square()).sqrt() / probes**0.5
        assert ((found - H.diagonal()) / error).abs().max() < 4
        assert float(((found - H.diagonal()) / error).square().mean()) == pytest.approx(1, abs=0.6)


def test_kernels_share_the_mean_of_sizes_and_of_signed_numbers():
    a = torch.tensor([1.0, -3.0, 5.0, 1.0, 2.0], dtype=torch.float64)
    pieces = (Piece("kernel", 0, 4, 4, run=2), Piece("bias", 0, 1, 1))
    for estimator, expected in (("rownorm", [2.0, 2, 3, 3, 2]), ("diagonal", [1.0, 1, 3, 3, 2])):
        taken = Quadratic(AdaHessian(estimator), a.diag(), pieces).step()
        torch.testing.assert_close(taken, -0.1 / torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_without_curvature_all_denominators_are_their_mean():
    a = torch.tensor([1.0, -3.0, 5.0], dtype=torch.float64)
    taken = Quadratic(AdaHessian(curvature="constant"), a.diag()).step()
    torch.testing.assert_close(taken, torch.full_like(a, -0.1 / 3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", [AdaHessian(), Sophia(every=1)])
def test_a_product_that_is_not_finite_is_left_out(method):
    loop = Quadratic(method, torch.full((2, 2), float("nan"), dtype=torch.float64))
    first = torch.full((2,), -0.1 * isinstance(method, Sophia), dtype=torch.float64)  # No step, or that of the sign.
    torch.testing.assert_close(loop.step(), first, rtol=1e-12, atol=0)
    loop.H = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    taken = loop.step()
    loop.H = torch.full((2, 2), float("inf"), dtype=torch.float64)
    torch.testing.assert_close(loop.step(), taken, rtol=0, atol=0)
    scalars = method.scalars(loop.state)
    assert scalars["curv/failed"] == 2
    assert scalars["curv/age"] == 1


# ------------------------------------------------------------------ the base
@pytest.mark.parametrize("method", [AdaHessian(), Sophia(every=2)])
def test_the_base_stays_an_adam_and_goes_on_as_one(method):
    loop = Loop(method).train()
    shadow = network()
    optimizer = optimized(shadow)
    for grads in loop.seen:
        for param, grad in zip(shadow.parameters(), grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    mine, theirs = loop.optimizer.state_dict()["state"], optimizer.state_dict()["state"]
    for number, state in theirs.items():
        for name, value in state.items():
            assert torch.equal(mine[number][name], value)
    # Its own weights are others: the moments are those of the gradients along ours.
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(loop.weights, shadow.parameters(), strict=True))
    shadow.load_state_dict(loop.net.state_dict())
    loop.engine.detach()
    loop.train(3)
    for step in range(STEPS + 1, STEPS + 4):
        x, y = data(step)
        optimizer.zero_grad()
        F.cross_entropy(shadow(x), y).backward()
        optimizer.step()
    close(loop.weights, [p.detach() for p in shadow.parameters()], 0)


def test_what_has_no_gradient_is_left_alone():
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)]).double()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    attach(net, optimizer, AdaHessian(), product="exact")
    for used in (0, 1):
        before = copy.deepcopy(net.state_dict())

        def closure(used=used):
            optimizer.zero_grad()
            loss = net[used](torch.eye(3, dtype=torch.float64)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]) == (not name.startswith(str(used)))


# ------------------------------------------------------------------ ranks
def ranked(name, how, product):
    shards = {"ddp": nn.parallel.DistributedDataParallel, "fsdp2": fully_shard}
    loop = Loop(RANKED[name], product=product, shard=shards[how] if dist.is_initialized() else None).train()
    weights = [w.full_tensor() if hasattr(w, "full_tensor") else w for w in loop.weights]
    (vectors,) = loop.engine.state_dict()["vectors"].values()
    scalars = loop.engine.scalars()
    scalars.pop("curv/evaluations")
    return weights, list(vectors.values()), scalars


#: A small denominator makes rounding large: power 1/2 of a diagonal that changes sign, and sizes of it that do not.
RANKED = {**METHODS, "diagonal": AdaHessian("diagonal", beta=0.9, power=0.25)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how", "product"),
    [
        ("rownorm", "ddp", "exact"),
        ("rownorm", "fsdp2", "difference"),
        ("diagonal", "ddp", "exact"),
        ("diagonal", "fsdp2", "auto"),
        ("sophia", "ddp", "auto"),
        ("sophia", "fsdp2", "difference"),
        ("gauss-newton", "ddp", "difference"),
        ("gauss-newton", "fsdp2", "difference"),
    ],
)
def test_any_number_of_ranks_divides_by_the_same(two, four, name, how, product):
    alone = ranked(name, how, "difference" if how == "fsdp2" else product)
    for world in (two, four):
        for weights, vectors, scalars in world.run(ranked, name, how, product):
            close(weights, alone[0], 1e-6)
            close(vectors, alone[1], 1e-6)
            assert scalars == pytest.approx(alone[2])


def flat():
    """What FSDP1 is told, whose pieces are of flat parameters: 15 of 30 numbers end inside a kernel of 9."""
    where: dict[str, Any] = {"device_id": torch.device("cpu"), "use_orig_params": True}
    net = FullyShardedDataParallel(nn.Sequential(nn.Conv2d(1, 3, 3)), **where)
    optimizer = torch.optim.AdamW(net.parameters())
    attach(net, optimizer, AdaHessian(average=False)).detach()
    with pytest.raises(ConfigError, match=r"begin or end inside a kernel of 0.weight: use average=False, or FSDP2"):
        attach(net, optimizer, AdaHessian())
    return True


@pytest.mark.slow
def test_pieces_of_kernels_are_refused(two):
    assert two.run(flat) == [True, True]


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize("method", [AdaHessian(), Sophia()])
def test_what_is_no_adam_is_refused(method):
    def refused(base, match, **options):
        net = nn.Linear(2, 2)
        with pytest.raises(ConfigError, match=match):
            attach(net, base(net.parameters(), **options), method)

    for base in (torch.optim.SGD, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop):
        refused(base, f"{type(method).__name__} replaces the second moment .* use torch.optim.AdamW")
    refused(torch.optim.AdamW, "amsgrad=True", amsgrad=True)
    refused(torch.optim.Adam, "maximize=True", maximize=True)
    net = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    attach(net, optimizer, KFAC())
    with pytest.raises(ConfigError, match="what KFAC makes of it would be lost"):
        attach(net, optimizer, method)


def test_arguments_out_of_range_are_refused():
    for arguments, match in (
        ({"estimator": "trace"}, r"AdaHessian\(estimator='trace'\)"),
        ({"power": 2.0}, r"AdaHessian\(power=2.0\)"),
        ({"beta": 1.0}, r"AdaHessian\(beta=1.0\)"),
        ({"every": 0}, r"AdaHessian\(every=0\)"),
        ({"curvature": "hessian"}, r"AdaHessian\(curvature='hessian'\)"),
    ):
        with pytest.raises(ConfigError, match=match):
            AdaHessian(**arguments)
    with pytest.raises(ConfigError, match=r"Sophia\(curvature='measured'\)"):
        Sophia(curvature="measured")
