"""The byte language model from the command line: `python -m examples.cli fit --config configs/soap_byte_lm.yaml`."""

from pytorch_lightning.cli import LightningCLI

from examples.byte_lm import ByteLM, ByteText


def main() -> None:
    """Parse the command line and the YAML, then run the chosen subcommand."""
    LightningCLI(ByteLM, ByteText, seed_everything_default=0, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
