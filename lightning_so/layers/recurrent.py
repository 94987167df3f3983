"""Recurrent layers and their cells, which have no rows."""

from torch import nn

from lightning_so.layers.registry import refuse

for kind in (nn.RNNBase, nn.RNNCellBase):
    refuse(kind, "one fused call: no rows; SOAP, Shampoo or Muon work on it")
