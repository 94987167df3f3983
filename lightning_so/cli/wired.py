"""LightningCLI with one key more, `second_order`: the callback, which a configuration need not list."""

import importlib
import re
import traceback
from argparse import ArgumentError
from pathlib import Path
from typing import Any, final

from lightning_so.callbacks.matrix_free import MatrixFree
from lightning_so.callbacks.second_order import SecondOrder
from lightning_so.contract.known import called
from lightning_so.contract.method import Method
from lightning_so.core.plan.mixture import Mixture
from lightning_so.errors import ConfigError

#: Where our own code is.
OURS = str(Path(__file__).parents[1])
#: How methods that a name does not give are asked for.
ELSE = (
    " Those with arguments are {class_path: lightning_so.SOAP, init_args: {period: 20}}; those on the whole vector go "
    "into lightning_so.MatrixFree, among trainer.callbacks."
)
#: Of what jsonargparse says, the lines that name types of Python instead of what is wrong.
TYPES = re.compile(r"^(Does not validate against|Subtypes:|Errors:|Given value|- Expected a <class)")


@final  # jsonargparse takes the arguments of such a class without a class_path.
class Named(SecondOrder):
    """`SecondOrder`, whose method may be a name: `second_order: {method: soap, max_overhead: 0.1}`."""

    def __init__(self, method: Method | Mixture | str | None = None, **options: Any) -> None:
        """Find the method.

        Args:
            method: Of `SecondOrder`, or the name of one with its defaults ("soap").
            **options: Of `SecondOrder`.
        """
        super().__init__(
            called(method, f"second_order.method={method!r}", ELSE) if isinstance(method, str) else method, **options
        )


#: What jsonargparse calls it.
NAMED = f"{Named.__module__}.{Named.__qualname__}"


def cli(name: str) -> Any:
    """The LightningCLI of one import name, with the key `second_order`.

    Args:
        name: "pytorch_lightning" or "lightning.pytorch".

    Returns:
        A class, to be used as LightningCLI is.
    """
    base: Any = importlib.import_module(f"{name}.cli").LightningCLI

    class CLI(base):
        """Wires the callback in."""

        #: What a configuration without the key means: with the recommended method, or without.
        wanted = True

        def add_arguments_to_parser(self, parser: Any) -> None:
            """Add the key."""
            parser.add_argument(
                "--second_order",
                type=Named | bool,
                default=self.wanted,
                help="Arguments of lightning_so.SecondOrder, whose method may be a name (soap); true for the "
                "recommended method; false for none.",
            )

        def parse_arguments(self, parser: Any, args: Any) -> None:
            """Parse, without the warning that sys.argv has arguments too: they are ours."""
            self.config = parser.parse_args(args)

        def instantiate_classes(self) -> None:
            """Make everything; what cannot be made is the configuration's fault."""
            try:
                super().instantiate_classes()
            except ConfigError:
                raise
            except Exception as error:
                said = line(error) or type(error).__name__
                raise ConfigError(f"the configuration does not build: {said}{_place(error)}") from error

        def callbacks(self) -> list[Any]:
            """Those of the Trainer: ours first, unless the configuration lists one."""
            listed = self._get(self.config_init, "trainer").get("callbacks") or []
            listed = listed if isinstance(listed, list) else [listed]
            wanted = self._get(self.config_init, "second_order")
            ours = [type(each).__name__ for each in listed if isinstance(each, SecondOrder | MatrixFree)]
            if ours and isinstance(wanted, SecondOrder):
                raise ConfigError(
                    f"the configuration has a {ours[0]} among trainer.callbacks, and second_order besides: one of them "
                    "must go (--second_order=true leaves what is listed)."
                )
            if ours or wanted is False:
                return listed
            return [wanted if isinstance(wanted, SecondOrder) else SecondOrder(), *listed]

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            """Make the Trainer."""
            return super().instantiate_trainer(**kwargs, callbacks=self.callbacks())

    return CLI


def _place(error: BaseException) -> str:
    """Where in the user's own code it was raised; nothing, where in none."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    places = [each for each in traceback.extract_tb(error.__traceback__)
              if "site-packages" not in each.filename and not each.filename.startswith(OURS)]  # fmt: skip
    return f" ({places[-1].filename}:{places[-1].lineno})" if places else ""


def line(error: Exception) -> str:
    r"""What jsonargparse says, in one line.

    Args:
        error: Its exception.

    Returns:
        The line.

    Example:
        >>> text = "Parser key 'a':\n  Does not validate against any of the Union subtypes\n  Errors:\n    - Not 'b'"
        >>> line(ArgumentError(None, text))
        "Parser key 'a': Not 'b'"
    """
    said = error.message if isinstance(error, ArgumentError) else str(error)
    lines = [each.strip() for each in said.splitlines()]
    return " ".join(each.removeprefix("- ") for each in lines if each and not TYPES.match(each))
