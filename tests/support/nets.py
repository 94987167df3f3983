"""Small networks of many kinds, with data that they can learn: healthy ones, and parts to make ill."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Three layers, with an activation that is a function or a module."""

    def __init__(self, activation=F.relu, width=32):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(10, width), nn.Linear(width, width), nn.Linear(width, 4)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.second(self.activation(self.first(x)))))


class CNN(nn.Module):
    """Convolutions, normalised or not, pooled, flattened."""

    def __init__(self, activation=F.relu, norm=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dense, self.last = nn.Linear(16 * 9, 24), nn.Linear(24, 4)
        self.activation = activation

    def forward(self, x):
        x = F.max_pool2d(self.activation(self.norm(self.conv1(x))), 2)
        x = F.max_pool2d(self.activation(self.conv2(x)), 2)
        return self.last(self.activation(self.dense(x.flatten(1))))


class ResNet(nn.Module):
    """A residual block with its activation behind the sum, and a global average."""

    def __init__(self, channels=16):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.last = nn.Linear(channels, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.last(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Transformer(nn.Module):
    """torch's own encoder layers on embedded tokens."""

    def __init__(self, activation=F.gelu, dropout=0.1, norm_first=True):
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 32), nn.Embedding(12, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, activation, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        x = self.encoder(self.tokens(x) + self.places(torch.arange(x.shape[1])))
        return self.last(x.mean(1))


class Recurrent(nn.Module):
    """A recurrent layer whose last output is classified."""

    def __init__(self, kind=nn.LSTM, activation=torch.tanh, **named):
        super().__init__()
        self.recurrent = kind(6, 24, batch_first=True, **named)
        self.dense, self.last = nn.Linear(24 * (1 + self.recurrent.bidirectional), 24), nn.Linear(24, 4)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.dense(self.recurrent(x)[0][:, -1])))


class Gated(nn.Module):
    """A gate of a sigmoid, and a product with it, as in squeeze and excitation or a GLU."""

    def __init__(self):
        super().__init__()
        self.value, self.gate, self.last = nn.Linear(10, 32), nn.Linear(10, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.last(torch.sigmoid(self.gate(x)) * F.relu(self.value(x)))


def sequential(*between, width=32, norm=None):
    """Two hidden layers with modules between them."""
    norm = norm or (lambda width: nn.Identity())
    return nn.Sequential(
        nn.Linear(10, width), norm(width), *between, nn.Linear(width, width), norm(width), *between, nn.Linear(width, 4)
    )


def rows(n, generator):
    return torch.randn(n, 10, generator=generator)


def one_hot(n, generator):
    """One of five, and features that are never anything but zero."""
    chosen = F.one_hot(torch.randint(5, (n,), generator=generator), 7).float()
    return torch.cat([chosen, torch.rand(n, 3, generator=generator)], 1)


def images(n, generator):
    """A few bright pixels of many dark ones, with a dark border."""
    x = torch.rand(n, 1, 12, 12, generator=generator).pow(3)
    x[..., :2, :] = 0
    return x


def tokens(n, generator):
    return torch.randint(20, (n, 12), generator=generator)


def series(n, generator):
    """Sequences that are padded with zeros behind their ends."""
    x = torch.randn(n, 9, 6, generator=generator)
    ends = torch.randint(4, 10, (n,), generator=generator)
    return x * (torch.arange(9) < ends[:, None])[..., None]


def signals(n, generator):
    """One number an instant, with a level of its own."""
    time = torch.linspace(0, 1, 32) + torch.rand(n, 1, generator=generator)
    return torch.sin(2 * math.pi * 3 * time)[:, None] + torch.randn(n, 1, 1, generator=generator)


#: What is healthy: a network, and what it is given.
HEALTHY = {
    "mlp relu": (MLP, rows),
    "mlp tanh": (lambda: MLP(torch.tanh), rows),
    "mlp gelu": (lambda: sequential(nn.GELU(), nn.Dropout(0.3)), rows),
    "mlp relu in place": (lambda: sequential(nn.ReLU(inplace=True), nn.Dropout(0.5)), rows),
    "mlp relu6": (lambda: sequential(nn.ReLU6()), one_hot),
    "mlp leaky": (lambda: sequential(nn.LeakyReLU(), norm=nn.BatchNorm1d), one_hot),
    "mlp sigmoid": (lambda: sequential(nn.Sigmoid(), nn.Dropout(0.2)), rows),
    "mlp silu": (lambda: sequential(nn.SiLU(), norm=nn.LayerNorm), rows),
    "mlp narrow input": (
        lambda: nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)),
        lambda n, generator: torch.randn(n, 1, generator=generator),
    ),
    "mlp large feature": (MLP, lambda n, generator: rows(n, generator) * torch.tensor([300.0] + [1.0] * 9)),
    "cnn": (CNN, images),
    "cnn plain": (lambda: CNN(norm=False), images),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 16, 5),
            nn.ReLU(),
            nn.AvgPool1d(2),
            nn.Conv1d(16, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 12, 4),
        ),
        signals,
    ),
    "resnet": (ResNet, images),
    "transformer": (Transformer, tokens),
    "transformer relu": (lambda: Transformer(F.relu, norm_first=False), tokens),
    "lstm": (Recurrent, series),
    "gru": (lambda: Recurrent(nn.GRU, F.relu, num_layers=2, bidirectional=True, dropout=0.2), series),
    "rnn": (lambda: Recurrent(nn.RNN), series),
    "gated": (Gated, rows),
}
