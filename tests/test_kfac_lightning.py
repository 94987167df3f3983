"""K-FAC in a Trainer equals the hand loop: accumulation, clipping of raw gradients, a scaler."""

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from lightning_so import KFAC, SecondOrder, attach
from tests.test_callback import fit
from tests.test_situations import Plain, loss_of, net, same

METHOD = KFAC(period=4, damping=0.01)
BASES = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]


def by_hand(base, accumulate=1, clip=None):
    hand = net()
    optimizer = base(hand.parameters())
    engine = attach(hand, optimizer, METHOD)
    for number in range(0, 16, accumulate):
        optimizer.zero_grad()
        for i in range(accumulate):
            (loss_of(hand, number + i) / accumulate).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(hand.parameters(), clip)
        optimizer.step()
    return hand, engine


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_trainer_equals_the_hand_loop(base, accumulate, clip):
    model, ours = Plain(base), SecondOrder(METHOD)
    fit(model, [ours], accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    hand, engine = by_hand(base, accumulate, clip)
    same(model.net, hand)
    report = ours.engines[0].report
    assert (report.preconditioned, report.bent) == (engine.report.preconditioned, engine.report.bent)
    assert report.preconditioned + report.bent == 3
    if clip:
        with pytest.raises(AssertionError):
            same(model.net, by_hand(base, accumulate)[0])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_the_scale_of_a_scaler_does_not_matter(cls, fused):
    ends = []
    for scale in (64.0, 1024.0):
        model = Plain(lambda parameters: cls(parameters, lr=1e-2, fused=fused))
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))
        ours = SecondOrder(METHOD)
        fit(model, [ours], plugins=[plugin])
        ends.append(model.net)
        assert ours.engines[0].report.failures == ours.engines[0].report.skipped == 0
    same(*ends, atol=1e-3)  # what float16 rounds; with the scale in the factors it is a hundred times more
