"""The DeepSpeed strategy: on two CPU ranks it trains as one process does, and says no by name."""

import importlib
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.strategies import StrategyRegistry

from lightning_so import SOAP, ConfigError, SecondOrder
from lightning_so.errors import MissingError
from lightning_so.strategies.deepspeed_config import checked
from lightning_so.strategies.names import LIGHTNINGS
from tests.support import noted
from tests.support.deepspeed_script import CASES, SGD, STEPS, STOCK
from tests.support.peers import PEERS
from tests.support.problems import Net, batch
from tests.together.test_examples import run


@pytest.fixture
def deepspeed(monkeypatch):
    """The strategy's module, where deepspeed is installed."""
    monkeypatch.setattr("sys.path", [*sys.path, str(PEERS)])
    pytest.importorskip("deepspeed")
    return importlib.import_module("lightning_so.strategies.deepspeed")


def one_process(many, lr=SGD["lr"]):
    """A plain loop over the global batches, `many` micro-batches a step."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), **{**SGD, "lr": lr})
    for index in range(STEPS):
        x, y = batch(index)
        (torch.nn.functional.cross_entropy(net(x), y) / many).backward()
        if (index + 1) % many == 0:
            optimizer.step()
            optimizer.zero_grad()
    return net


def error(found, net):
    return max((found[name] - value).abs().max().item() for name, value in net.named_parameters())


@pytest.mark.slow
def test_two_ranks_equal_one_process(deepspeed, tmp_path):
    """Pitfalls 6, 7, 17, 18 and 25; each where it says so."""
    compiled = tmp_path / "extensions"
    path = os.pathsep.join(part for part in (os.environ.get("PYTHONPATH"), str(PEERS)) if part)
    run("-m", "tests.support.deepspeed_script", str(tmp_path), PYTHONPATH=path, TORCH_EXTENSIONS_DIR=str(compiled))
    one = {many: one_process(many) for many in (1, 2)}
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        for case, (_, _, many) in CASES.items():
            if case != STOCK:
                assert error(found[case], one[many]) < 1e-6, case
        assert not found["eager"]
        # 18: told that its device is -1, an engine takes itself for the only one. The weights would be a rank's own.
        assert found["world"] == (2, rank)
        # 6, without the correction: half the learning rate.
        assert error(found[STOCK], one[2]) > 1e-2
        assert error(found[STOCK], one_process(2, lr=SGD["lr"] / 2)) < 1e-6
        x, y = (part[rank::2] for part in batch(0))
        loss = torch.nn.functional.cross_entropy(one[2](x), y)
        torch.testing.assert_close(found["validated"], loss, rtol=0, atol=1e-5, check_dtype=False)
        # 7: asked at every micro-batch, it steps at the boundaries alone.
        # 25: hooks that a validation took away come back.
        assert found["first"] == found["second"]
        assert found["first"][0] == STEPS // 2
        assert found["first"][1] > 0
        assert not found["first"][2]
    # 17: a run that is killed while it compiles leaves a lock on which all later ones wait.
    assert not compiled.exists()


REFUSED = {
    "managed_gradient_accumulation": {"managed_gradient_accumulation": False},
    "offload_optimizer": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
    "offload_param": {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
    "zero_quantized_gradients": {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
    "zero_allow_untested_optimizer": {"zero_allow_untested_optimizer": False},
    "amp": {"amp": {"enabled": True}},
    "torch_autocast": {"torch_autocast": {"enabled": True, "dtype": "torch.float16"}},
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_is_refused_by_name(option):
    with pytest.raises(ConfigError, match=rf"{option}=.*: .*\. [A-Z]") as said:
        checked(REFUSED[option])
    noted.refused(said, strategy="DeepSpeed", option=option)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"managed_gradient_accumulation": True, "zero_allow_untested_optimizer": True},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}},
        {"amp": {"enabled": False}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        {"torch_autocast": {"enabled": False, "dtype": "float16"}, "fp16": {"enabled": True}},
    ],
)
def test_other_options_are_kept_and_what_is_needed_is_added(config):
    before = dict(config)
    assert checked(config) == {**config, "zero_allow_untested_optimizer": True}
    assert config == before


@pytest.mark.slow
def test_refusals_come_when_the_strategy_is_made(deepspeed):
    for cls in deepspeed.CLASSES.values():
        with pytest.raises(ConfigError, match="offload_optimizer"):
            cls(offload_optimizer=True)
        with pytest.raises(ConfigError, match="offload_param"):
            cls(offload_parameters=True)
        for option, config in REFUSED.items():
            with pytest.raises(ConfigError, match=option):
                cls(config=config)
        config = {"zero_optimization": {"stage": 1}}
        assert cls(config=config).config["zero_allow_untested_optimizer"] is True
        assert config == {"zero_optimization": {"stage": 1}}
        assert cls(stage=0).config["zero_optimization"]["stage"] == 0


@pytest.mark.slow
def test_half_precision_without_a_known_scale_is_refused(deepspeed):
    class Engine:
        optimizer, half = torch.optim.SGD(Net().parameters(), lr=0.1), True

        def fp16_enabled(self):
            return self.half

    engine = Engine()
    with pytest.raises(ConfigError, match="fp16 with SGD"):
        deepspeed._check_scale(engine)
    engine.half = False
    deepspeed._check_scale(engine)
    engine.half, engine.optimizer.loss_scale = True, 2.0**16
    deepspeed._check_scale(engine)


@pytest.mark.slow
def test_a_trainer_on_cpu_where_deepspeed_chose_a_gpu_is_refused(deepspeed, monkeypatch):
    class Chosen:
        def device_name(self):
            return "cuda"

    strategy = deepspeed.SecondOrderDeepSpeedStrategy(parallel_devices=[torch.device("cpu")] * 2)
    monkeypatch.setattr(type(strategy), "root_device", torch.device("cpu"))
    monkeypatch.setattr(deepspeed.deepspeed.accelerator, "get_accelerator", Chosen)
    with pytest.raises(ConfigError, match="DS_ACCELERATOR=cpu"):
        strategy.setup_environment()


@pytest.mark.slow
def test_names_are_registered_for_every_import_name(deepspeed):
    assert set(LIGHTNINGS) == set(deepspeed.CLASSES) == {"pytorch_lightning", "lightning.pytorch"}
    for lightning in LIGHTNINGS:
        registry = importlib.import_module(lightning).strategies.StrategyRegistry
        for stage in (1, 2, 3):
            strategy = registry.get(f"deepspeed_so_stage_{stage}")
            assert type(strategy) is deepspeed.CLASSES[lightning]
            assert isinstance(strategy, importlib.import_module(lightning).strategies.DeepSpeedStrategy)
            assert strategy.config["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize("lightning", LIGHTNINGS)
def test_second_order_is_refused_under_the_stock_strategy_in_one_process_too(lightning):
    cls = importlib.import_module(lightning).strategies.DeepSpeedStrategy
    trainer = SimpleNamespace(strategy=cls.__new__(cls), world_size=1, callbacks=[])
    match = r"with SecondOrderDeepSpeedStrategy, .* the Trainer has DeepSpeedStrategy\."
    with pytest.raises(ConfigError, match=match) as said:
        SecondOrder(SOAP()).setup(trainer, Net(), "fit")
    noted.refused(said, strategy="Lightning's own DeepSpeedStrategy")


def test_without_deepspeed_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.delitem(sys.modules, "lightning_so.strategies.deepspeed", raising=False)
    for kind in (MissingError, ConfigError, ImportError):
        with pytest.raises(kind, match=r"pip install '\.\[deepspeed\]' in a clone"):
            StrategyRegistry.get("deepspeed_so_stage_2")
