"""The same without Lightning: `attach` once, then the loop you already have. `python -m examples.plain_loop`."""

import argparse

import torch
from torch.utils.data import DataLoader

from examples.byte_lm import ByteTransformer, Windows, corpus, next_byte_loss
from lightning_so import SOAP, attach


def main() -> None:
    """Train the byte transformer for `--steps` steps and print the loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    text, _ = corpus()
    model = ByteTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    engine = attach(model, optimizer, SOAP())
    print(engine.plan)

    for step, batch in enumerate(DataLoader(Windows(text, context=64, count=16 * steps, seed=0), batch_size=16), 1):
        optimizer.zero_grad()
        loss = next_byte_loss(model, batch)
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps:
            print(f"step {step:4d}   loss {loss.item():.3f}   solves {engine.report.solves}")
    engine.detach()


if __name__ == "__main__":
    main()
