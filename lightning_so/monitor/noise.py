"""The gradient noise scale: how large a batch must be for its gradient to be more signal than noise."""

#: How much of what was seen before counts at the next look: the ratio is of means, since single ones are noise.
MEMORY = 0.9


class NoiseScale:
    """`B_noise = tr(Sigma) / |G|^2`, from gradients g and h of two batches of b samples each at the same weights.

        |G|^2 ~ <g, h>,    tr(Sigma) / b ~ (|g|^2 + |h|^2) / 2 - <g, h>

    Both are unbiased. The two batches are those of two steps that follow each other, between which the weights have
    moved by one step. Signal and noise are averaged over looks, each by itself.

    Source: McCandlish, Kaplan, Amodei et al. 2018, arXiv 1812.06162, appendix A.1, whose two sizes of batches are here
    one batch and two.

    Attributes:
        weight: How much has been seen, from 0 to 1.
    """

    def __init__(self) -> None:
        """Nothing is known."""
        self._signal = self._noise = self.weight = 0.0

    def add(self, first: float, second: float, cross: float) -> None:
        """Take two gradients in.

        Args:
            first: `|g|^2`.
            second: `|h|^2`.
            cross: `<g, h>`.
        """
        self._signal = MEMORY * self._signal + (1 - MEMORY) * cross
        self._noise = MEMORY * self._noise + (1 - MEMORY) * ((first + second) / 2 - cross)
        self.weight = MEMORY * self.weight + 1 - MEMORY

    @property
    def batches(self) -> float | None:
        """The noise scale in batches of b samples; None before there is any, and while noise hides the signal."""
        return self._noise / self._signal if self.weight > 0 and self._signal > 0 else None
