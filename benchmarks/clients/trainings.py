"""One small training of each package, on data that come with Python or scikit-learn, or that the package makes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

#: Steps of a run.
STEPS = 60
QUIET = {
    "accelerator": "cpu",
    "max_steps": STEPS,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
#: Some drugs, solvents and amino acids; their logP is what RDKit computes (Wildman and Crippen 1999).
MOLECULES = """
CCO CCCO CCCCO CC(C)O CC(=O)O CCC(=O)O CC(=O)C CCOC(=O)C c1ccccc1 Cc1ccccc1 Oc1ccccc1 Nc1ccccc1 Clc1ccccc1 c1ccncc1
c1ccc2ccccc2c1 C1CCCCC1 C1CCOC1 CN(C)C=O CS(C)=O ClCCl ClC(Cl)Cl CC#N NCC(=O)O CC(N)C(=O)O CC(C)C(N)C(=O)O
OCC(N)C(=O)O NC(CS)C(=O)O NC(Cc1ccccc1)C(=O)O CC(=O)Oc1ccccc1C(=O)O CC(=O)Nc1ccc(O)cc1 CC(C)Cc1ccc(cc1)C(C)C(=O)O
Cn1cnc2c1c(=O)n(C)c(=O)n2C CN1CCCC1c1cccnc1 NC(=O)N OCC(O)CO CCN(CC)CC CCCCCC CCCCCCCC C=CC=C C#CC CCS CCBr FC(F)F
O=C(O)c1ccccc1 COc1ccccc1 O=Cc1ccccc1 CCc1ccccc1 Brc1ccccc1
""".split()


class Training(NamedTuple):
    """A module and its data, in the way of a package."""

    what: str
    base: str
    #: Trains with these callbacks.
    fit: Callable[[list[Any]], Any]


class Module(pl.LightningModule):
    """A network and its loss."""

    def __init__(self, net: nn.Module, loss: Callable[[nn.Module, Any], Tensor], make: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.loss, self.make = net, loss, make

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.loss(self.net, batch)

    def configure_optimizers(self) -> Any:
        return self.make(self.net)


def adamw(rate: float) -> Callable[[nn.Module], Any]:
    """AdamW of all parameters."""
    return lambda net: torch.optim.AdamW(net.parameters(), lr=rate)


def fitted(module: Any, loader: Any, trainer: Any = pl.Trainer, **options: Any) -> Callable[[list[Any]], Any]:
    """Fits with callbacks."""
    return lambda callbacks: trainer(callbacks=callbacks, **{**QUIET, **options}).fit(module, loader)


def digits(size: int, **options: Any) -> DataLoader:
    """scikit-learn's digits, images of (1, size, size) from 0 to 1 and their classes."""
    found: Any = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    x = F.interpolate(x, size=(size, size), mode="bilinear")
    return DataLoader(TensorDataset(x, torch.tensor(found.target)), 64, shuffle=True, **options)


def pina() -> Training:
    from pina import Trainer
    from pina.model import FeedForward
    from pina.optim import TorchOptimizer
    from pina.problem.zoo import Poisson2DSquareProblem
    from pina.solver import PINN

    problem: Any = Poisson2DSquareProblem()
    problem.discretise_domain(128, "random", domains="D")
    problem.discretise_domain(32, "random", domains="boundary")
    optimizer = TorchOptimizer(torch.optim.AdamW, lr=5e-3)
    solver = PINN(problem, FeedForward(2, 1, inner_size=20), optimizer=optimizer)
    options = {**QUIET, "max_epochs": STEPS, "max_steps": -1}
    return Training(
        "PINN of Poisson's equation, FeedForward",
        "AdamW 5e-3",
        lambda c: Trainer(solver, callbacks=c, **options).train(),
    )


def monai() -> Training:
    from monai.data.meta_tensor import MetaTensor
    from monai.losses.dice import DiceLoss
    from monai.networks.nets.unet import UNet

    def noisy(samples: list[Any]) -> tuple[Any, Any]:
        x = torch.stack([sample[0] for sample in samples])
        return MetaTensor(x + 0.3 * torch.randn_like(x)), MetaTensor((x > 0.5).float())

    net = UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 16, 32), strides=(2, 2))
    dice = DiceLoss(sigmoid=True)
    module = Module(net, lambda net, batch: dice(net(batch[0]), batch[1]).as_tensor(), adamw(3e-3))
    return Training(
        "UNet with DiceLoss on MetaTensor, noisy digits", "AdamW 3e-3", fitted(module, digits(16, collate_fn=noisy))
    )


def transformers() -> Training:
    import inspect

    from transformers import GPT2Config, GPT2LMHeadModel

    text = torch.tensor(list(inspect.getsource(inspect).encode()))
    rows = text[: len(text) // 65 * 65].view(-1, 65)
    config = GPT2Config(vocab_size=256, n_positions=65, n_embd=48, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0)
    module = Module(GPT2LMHeadModel(config), lambda net, b: net(input_ids=b[0], labels=b[0]).loss, adamw(3e-3))
    loader = DataLoader(TensorDataset(rows), 16, shuffle=True)
    return Training("GPT-2 of two blocks, bytes of Python's `inspect`", "AdamW 3e-3", fitted(module, loader))


def timm() -> Training:
    import timm
    from timm.optim import create_optimizer_v2

    net = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=48,
        depth=2,
        num_heads=3,
    )
    module = Module(
        net,
        lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        lambda net: create_optimizer_v2(net, opt="adamw", lr=2e-3, weight_decay=0.05),
    )
    return Training("ViT of two blocks, digits", "timm's AdamW 2e-3, decay by group", fitted(module, digits(16)))


def chemprop() -> Training:
    from chemprop import data, models
    from chemprop import nn as parts
    from lightning.pytorch import Trainer
    from rdkit import Chem
    from rdkit.Chem.Crippen import MolLogP

    y = torch.tensor([[MolLogP(Chem.MolFromSmiles(smiles))] for smiles in MOLECULES])
    y = ((y - y.mean()) / y.std()).numpy()
    points = [data.MoleculeDatapoint.from_smi(smiles, value) for smiles, value in zip(MOLECULES, y, strict=True)]
    loader = data.build_dataloader(data.MoleculeDataset(points), batch_size=16)
    module = models.MPNN(
        parts.BondMessagePassing(d_h=32),
        parts.MeanAggregation(),
        parts.RegressionFFN(input_dim=32, hidden_dim=32),
        init_lr=1e-3,
        max_lr=5e-3,
        final_lr=1e-3,
    )
    options = {"max_epochs": STEPS * 16 // len(MOLECULES), "max_steps": -1}  # Its schedule asks for the epochs.
    what = f"MPNN of logP, {len(MOLECULES)} molecules; a metric is the loss"
    return Training(what, "its own Adam and schedule to 5e-3", fitted(module, loader, Trainer, **options))


def geometric() -> Training:
    from torch_geometric.datasets import KarateClub
    from torch_geometric.nn import GCNConv

    class GCN(nn.Module):
        def __init__(self, graph: Any) -> None:
            super().__init__()
            self.graph = graph
            self.one, self.two = GCNConv(graph.num_features, 16), GCNConv(16, 4)

        def forward(self) -> Tensor:
            return self.two(self.one(self.graph.x, self.graph.edge_index).relu(), self.graph.edge_index)

    graph: Any = KarateClub()[0]
    module = Module(GCN(graph), lambda net, _: F.cross_entropy(net(), graph.y), adamw(1e-2))
    return Training("GCN of Zachary's karate club", "AdamW 1e-2", fitted(module, DataLoader(range(STEPS), 1)))


def forecasting() -> Training:
    from lightning.pytorch import Trainer
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.data.examples import generate_ar_data
    from pytorch_forecasting.metrics import QuantileLoss

    data = generate_ar_data(seasonality=10.0, timesteps=60, n_series=12, seed=0)
    series = TimeSeriesDataSet(
        data,
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        max_encoder_length=20,
        max_prediction_length=5,
        time_varying_unknown_reals=["value"],
    )
    module = TemporalFusionTransformer.from_dataset(
        series, hidden_size=8, attention_head_size=1, loss=QuantileLoss(), learning_rate=1e-2, optimizer="adamw"
    )
    loader = series.to_dataloader(train=True, batch_size=32)
    return Training("TemporalFusionTransformer, its made series", "its AdamW 1e-2", fitted(module, loader, Trainer))


def lightly() -> Training:
    import copy

    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    class BYOL(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
            self.online = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), BYOLProjectionHead(32, 64, 32))
            self.head, self.teacher = BYOLPredictionHead(32, 64, 32), copy.deepcopy(self.online)
            deactivate_requires_grad(self.teacher)

    def step(net: Any, batch: Any) -> Tensor:
        update_momentum(net.online, net.teacher, m=0.99)
        a, b = (batch[0] + 0.2 * torch.randn_like(batch[0]) for _ in range(2))
        far = NegativeCosineSimilarity()
        with torch.no_grad():
            of_a, of_b = net.teacher(a), net.teacher(b)
        return (far(net.head(net.online(a)), of_b) + far(net.head(net.online(b)), of_a)) / 2

    return Training(
        "BYOL with a momentum teacher, noisy digits", "AdamW 3e-3", fitted(Module(BYOL(), step, adamw(3e-3)), digits(8))
    )


def segmentation() -> Training:
    import segmentation_models_pytorch as smp

    net = smp.Unet("resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(32, 16, 8), in_channels=1)
    dice = smp.losses.DiceLoss("binary")

    def step(net: nn.Module, batch: Any) -> Tensor:
        x = batch[0]
        return dice(net(x + 0.3 * torch.randn_like(x)), (x > 0.5).float())

    return Training(
        "U-Net on ResNet-18's first three stages, noisy digits",
        "AdamW 1e-3",
        fitted(Module(net, step, adamw(1e-3)), digits(32)),
    )


#: By package: what trains it.
CLIENTS: dict[str, Callable[[], Training]] = {
    "pina-mathlab": pina,
    "monai": monai,
    "transformers": transformers,
    "timm": timm,
    "chemprop": chemprop,
    "torch-geometric": geometric,
    "pytorch-forecasting": forecasting,
    "lightly": lightly,
    "segmentation-models-pytorch": segmentation,
}
