"""Where numbers are: pieces found by the access are those of each framework's whole tensors, and what its steps use."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_so import ConfigError
from lightning_so.comm.access.fsdp1 import FlatAccess
from lightning_so.comm.access.whole import Access, private
from lightning_so.comm.access.zero import refuse
from lightning_so.comm.choose import access_of
from tests.support import access_ranks as on
from tests.support import noted
from tests.support.peers import needs_deepspeed
from tests.support.world import World

HALF = {"bf16": {"enabled": True}}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=SLOW)])
def world(request):
    world = World(request.param)
    yield world
    world.close()


@functools.cache
def alone(base, groups, many, **how):
    """The weights of one process, trained once for all tests."""
    return on.alone(base, groups, many, **how)


def assembled(looks, what, shards, key=None):
    """A whole tensor from the pieces of the ranks; replicas hold the same."""
    numel = torch.Size(looks[0].shape).numel()
    whole = torch.full((numel,), torch.nan)
    for look in looks[:shards]:
        piece = getattr(look, what) if key is None else getattr(look, what).get(key, torch.empty(0))
        start, stop = look.span
        assert piece.numel() == (0 if key and key not in look.state else stop - start)
        whole[start : start + piece.numel()] = piece.reshape(-1).float()
    return whole.view(looks[0].shape)


def check(answers, base, groups, many, *, shards, exact=True, **how):
    """Pieces are the framework's whole tensors, and training with changed pieces is training with changed tensors.

    Args:
        answers: What the ranks found before each step, and the weights at the end.
        base: Base optimizer.
        groups: Parameter groups.
        many: Micro-batches a step.
        shards: Ranks that share a parameter; others are replicas of them.
        exact: Whether the steps are those of one process.
        how: Of the training in one process.
    """
    for step in range(on.STEPS):
        for number, full in enumerate(answers[0][0][step][1] or [None] * 6):
            looks = [answer[0][step][0][number] for answer in answers]
            for rank, look in enumerate(looks):
                assert look.shape == tuple(answers[0][1][number].shape)
                assert look.span == looks[rank % shards].span
                assert look.span[0] == (looks[rank % shards - 1].span[1] if rank % shards else 0)
            assert looks[shards - 1].span[1] == torch.Size(looks[0].shape).numel()
            assert all(bool(look.state) is (step > 0) for look in looks if look.span[0] < look.span[1])
            if full is not None:
                weight, grad, state = full
                assert torch.equal(assembled(looks, "weight", shards), weight)
                assert torch.equal(assembled(looks, "grad", shards), grad.float())
                for key, value in state.items():
                    assert torch.equal(assembled(looks, "state", shards, key), value)
    if exact:
        for answer in answers:
            for found, expected in zip(answer[1], alone(base, groups, many, **how), strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# Every day one of each; the other bases and groups when there is time.
HOWS = [("AdamW", 2, 2), pytest.param("SGD", 1, 1, marks=SLOW), pytest.param("AdamW", 1, 1, marks=SLOW)]


@pytest.mark.parametrize(("base", "groups", "many"), HOWS)
@pytest.mark.parametrize("sharded", ["all", "some"])
def test_fsdp2(world, sharded, base, groups, many):
    shards = len(world.pipes) // (1 if sharded == "all" else 2)
    answers = world.run(on.fsdp2, base, groups, many, sharded=sharded)
    check(answers, base, groups, many, shards=shards)


@pytest.mark.parametrize(("base", "groups", "many"), HOWS)
@pytest.mark.parametrize("strategy", on.STRATEGIES)
def test_fsdp1(world, strategy, base, groups, many):
    ranks = len(world.pipes)
    shards = {"HYBRID_SHARD": ranks // 2, "NO_SHARD": 1}.get(strategy, ranks)
    if strategy == "HYBRID_SHARD" and shards == 1:
        pytest.skip("HYBRID_SHARD of one rank a group is NO_SHARD in torch, and does not average gradients")
    check(world.run(on.fsdp1, base, groups, many, strategy=strategy), base, groups, many, shards=shards)


@needs_deepspeed
@pytest.mark.parametrize(("base", "groups", "many"), [("AdamW", 1, 2), *HOWS[1:]])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero(world, stage, base, groups, many):
    # Small parameters are not kept whole on every rank, so that stage 3 has none of them between steps.
    options = {"stage3_param_persistence_threshold": 0} if stage == 3 else None
    answers = world.run(on.zero, stage, base, groups, many, options=options)
    check(answers, base, groups, many, shards=len(world.pipes))


@needs_deepspeed
@pytest.mark.parametrize(
    ("stage", "calls", "options"),
    [
        (1, [[1, 3, 5], [0, 2, 4]], {}),
        (2, [[1, 3, 5], [0, 2, 4]], {}),
        (3, [[1, 3, 5], [0, 2, 4]], {}),
        pytest.param(3, None, {"sub_group_size": 8}, marks=SLOW),
        pytest.param(2, [[1, 3, 5], [0, 2, 4]], {"round_robin_gradients": True}, marks=SLOW),
        pytest.param(2, [[1, 3, 5], [0, 2, 4]], {"parameter_alignment": True}, marks=SLOW),
        pytest.param(1, [[1, 3, 5], [0, 2, 4]], {"contiguous_gradients": False}, marks=SLOW),
        pytest.param(2, [[1, 3, 5], [0, 2, 4]], {"overlap_comm": True, "reduce_scatter": True}, marks=SLOW),
        pytest.param(3, [[1, 3, 5], [0, 2, 4]], {"overlap_comm": True, "reduce_scatter": True}, marks=SLOW),
    ],
)
def test_zero_finishes_group_by_group_in_the_hook_after_the_clients_step(world, stage, calls, options):
    config = {"after": True, "full": False, "options": options, "gradient_clipping": 0.5, "scale": 8.0}
    answers = world.run(on.zero, stage, "AdamW", 2, 2, **config)
    # Gradients that the hook sees are clipped, and without the loss scale; those before the step have both.
    check(answers, "AdamW", 2, 2, shards=len(world.pipes), clip=0.5, after=True)
    for _, _, summary in answers:
        assert summary["scale"] == 8.0
        assert summary["calls"] == [[0.02, 0.05]] * len(summary["groups"])
        assert summary["users"] == [([1, 3, 5], 0.02), ([0, 2, 4], 0.05)]
        if calls:
            assert summary["groups"] == calls
        else:
            assert [number for group in summary["groups"] for number in group] == [1, 3, 5, 0, 2, 4]
            assert len(summary["groups"]) > 2


@needs_deepspeed
@SLOW
@pytest.mark.parametrize(("stage", "grads"), [(1, None), (2, None), (2, "fp32"), (3, None), (3, "fp32")])
def test_zero_in_half_precision_has_fp32_masters(world, stage, grads):
    config = {**HALF, **({"data_types": {"grad_accum_dtype": grads}} if grads else {})}
    answers = world.run(on.zero, stage, "SGD", 1, 2, **config)
    check(answers, "SGD", 1, 2, shards=len(world.pipes), exact=False)
    for found, ends, _ in answers:
        assert all(look.weight.dtype is torch.float32 for look in found[0][0])
        held = [look for look in found[0][0] if look.span[0] < look.span[1]]
        assert all(look.grad.dtype is (torch.float32 if grads else torch.bfloat16) for look in held)
        for end, expected in zip(ends, alone("SGD", 1, 2), strict=True):
            torch.testing.assert_close(end.float(), expected, rtol=0, atol=2e-2)


@needs_deepspeed
@SLOW
@pytest.mark.parametrize("stage", [1, 3])
def test_zero_says_which_parameters_are_not_its_own(world, stage):
    for without, other in world.run(on.unstepped, stage):
        assert "Pass engine=" in without
        assert "shape (2, 3) is none of the 6" in other


@needs_deepspeed
@SLOW
def test_engines_that_are_not_supported_are_refused_by_name(world):
    for zero, half, wide, adagrad in world.run(on.whole_engine):
        assert zero == "Access"
        assert "at ZeRO stage 0 is not supported: stages 1 to 3 are" in half
        assert "BF16_Optimizer at ZeRO stage 1" in wide
        assert "left Adagrad 1 of 2 parameter groups" in adagrad
    noted.refused(half, strategy="DeepSpeed ZeRO-0", precision="bf16-mixed")
    noted.refused(wide, strategy="DeepSpeed ZeRO-1", precision="bf16-mixed", option="grad_accum_dtype fp32")
    noted.refused(adagrad, base="Adagrad", strategy="DeepSpeed ZeRO-2", option="parameter groups")


def engine(**changes):
    zero = SimpleNamespace(bit16_groups=[], single_partition_of_fp32_groups=[])
    fields = {"zero_optimization_stage": lambda: 1, "zero_use_cpu_optimizer": lambda: False, "has_moe_layers": False}
    fields["zero_offload_param"] = lambda: None
    return SimpleNamespace(**{"optimizer": zero, **fields, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zero_use_cpu_optimizer": lambda: True}, "offload_optimizer is not supported.*Take it out"),
        ({"zero_offload_param": lambda: SimpleNamespace(device="cpu")}, "offload_param is not supported.*Take it out"),
        ({"has_moe_layers": True}, "mixture-of-experts layers are not supported"),
        ({"optimizer": SimpleNamespace()}, "SimpleNamespace at ZeRO stage 1 is not supported"),
        ({"zero_optimization_stage": lambda: 0}, "at ZeRO stage 0 is not supported"),
    ],
)
def test_what_keeps_its_numbers_elsewhere_is_refused(changes, said):
    refuse(engine())
    with pytest.raises(ConfigError, match=said) as error:
        refuse(engine(**changes))
    if changes.get("has_moe_layers"):
        noted.refused(error, strategy="DeepSpeed", option="mixture-of-experts layers")


def test_placements_that_are_no_range_of_rows_are_refused(world):
    ranks = len(world.pipes)
    for rank, found in enumerate(world.run(on.placements)):
        rows = 10 * ranks // (ranks // 2)
        assert found["rows"] == (10 * rank, 10 * rank + 10)
        assert found["replicas"] == (rows * (rank % (ranks // 2)), rows * (rank % (ranks // 2)) + rows)
        assert found["whole"] == found["alone"] == found["plain"] == (0, 10 * ranks)
        for name in ("columns", "twice", "tensor parallel", "column parallel", "strided", "partial"):
            assert f"a parameter of shape ({2 * ranks}, 5) is placed" in found[name], name
            assert "fully_shard without tensor parallelism" in found[name]
        assert "Shard(dim=1)" in found["columns"]
        assert "('replicate', 'shard')" in found["twice"]
        assert "(Shard(dim=0),) on the mesh ('tensor_parallel',)" in found["column parallel"]
        assert "(_StridedShard(dim=0, sf=2),) on the mesh" in found["strided"]
    noted.refused(found["tensor parallel"], strategy="tensor parallelism")
    noted.refused(found["columns"], strategy="fully_shard along another dimension than the first")


def test_flat_parameters_that_cannot_be_told_apart_are_refused(world):
    for flat, unknown, mixed, parallel, inner in world.run(on.flat_refusals):
        assert all("use_orig_params=False" in said for said in (flat, unknown, mixed))
        assert "FSDP1 with tensor parallelism" in parallel
        assert inner == "FlatAccess"
    noted.refused(flat, strategy="FSDP1", option="use_orig_params=False")
    noted.refused(parallel, strategy="FSDP1", option="tensor parallelism")


def test_ranks_agree_which_parameters_have_a_gradient(world):
    assert world.run(on.frozen) == [[True, False] * 3] * len(world.pipes)


def test_plain_parameters_are_whole():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    access = access_of(model.parameters(), model)
    assert type(access) is Access
    assert access.span(model.weight) == (0, 6)
    assert access.grad(model.weight) is None
    assert access.state(optimizer, model.weight) == {}
    with pytest.raises(ConfigError, match="no module of Linear is wrapped"):
        FlatAccess(model)


def test_what_another_version_does_not_have_is_named():
    with pytest.raises(ConfigError, match=r"^torch 2.*: Linear has no _handle, .*Tested with torch"):
        private(nn.Linear(1, 1), "_handle")
