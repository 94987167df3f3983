"""Mixtures: rules that choose a method for every parameter, the first match wins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.optim import Optimizer

from lightning_so.contract.known import KNOWN
from lightning_so.contract.method import Method
from lightning_so.contract.vector_method import VectorMethod
from lightning_so.errors import ConfigError, nearest

#: The rule value that leaves a parameter alone.
BASE = "base"


@dataclass(frozen=True)
class Mixture:
    """Several methods in one training: each parameter goes to the first rule that matches it.

    A rule's key is a glob on the parameter's full name ("encoder.*.weight") or on the type of the layer that holds it
    ("Conv2d", "*Norm"; parents count, so that "Linear" is a subclass of it too). Its value is a method, the name of one
    with its defaults ("soap"), or "base". A parameter that no rule matches stays on the base.

    Attributes:
        rules: Keys and values, in order.

    Raises:
        ConfigError: If there is no rule, a key is no text, or a value is no method.

    Example:
        >>> from torch import nn
        >>> from lightning_so import KFAC, Mixture
        >>> Mixture({"Conv2d": KFAC(period=10), "*": "soap"}).choose("net.0.weight", nn.Conv2d(3, 4, 3)).period
        10
    """

    rules: Mapping[str, Method | str]

    def __post_init__(self) -> None:
        """Put methods where their names are: the same name, or an equal method, is one method."""
        if not isinstance(self.rules, Mapping) or not self.rules:
            raise ConfigError(f"Mixture(rules={self.rules!r}): give at least one rule, such as {{'*': 'soap'}}.")
        methods: list[Method] = []
        wrong = [glob for glob in self.rules if not isinstance(glob, str)]
        if wrong:
            raise ConfigError(f"Mixture: {wrong[0]!r} is no key: give a glob as text, such as '0.*' or 'Conv2d'.")
        found = {glob: _method(glob, value, methods) for glob, value in self.rules.items()}
        object.__setattr__(self, "rules", found)

    @classmethod
    def of(cls, method: "Method | Mixture") -> "Mixture":
        """The rules themselves, or the one rule of a method.

        Args:
            method: Either.

        Returns:
            The rules.

        Raises:
            ConfigError: If it is neither.
        """
        if isinstance(method, type) or not isinstance(method, Method | Mixture):
            if isinstance(method, Optimizer):
                raise ConfigError(
                    f"method is the optimizer {type(method).__name__}, which stays where it is: in "
                    "configure_optimizers, or before the method in attach(model, optimizer, method). Use SOAP(), "
                    "KFAC() or another method."
                )
            vector = isinstance(method, VectorMethod) and not isinstance(method, type)
            way = (
                f"put it into MatrixFree({method!r})"
                if vector
                else "use SOAP(), KFAC(), EKFAC(), Shampoo() or Muon(), or a Mixture"
            )
            what = "works on the whole parameter vector" if vector else "is not a method"
            raise ConfigError(f"method={method!r} {what}; {way}.")
        return method if isinstance(method, Mixture) else _Single({"*": method})

    def key(self, name: str, module: nn.Module | None) -> str | None:
        """The first rule that matches a parameter, by its key; None if none does."""
        names = [name, *(kind.__name__ for kind in type(module).__mro__ if kind not in (nn.Module, object))]
        return next((glob for glob in self.rules if any(fnmatchcase(text, glob) for text in names)), None)

    def choose(self, name: str, module: nn.Module | None) -> Method | None:
        """The method of a parameter, or None if it stays on the base.

        Args:
            name: Its full name.
            module: The module that holds it.

        Returns:
            The method of the first rule that matches.
        """
        value = self.rules.get(self.key(name, module) or "")
        return None if isinstance(value, str) else value

    def each(self, change: Callable[[Method], Method]) -> "Mixture":
        """The same rules with other methods.

        Args:
            change: Gives the method in the place of one.

        Returns:
            The rules.
        """
        kept = {glob: value if isinstance(value, str) else change(value) for glob, value in self.rules.items()}
        return type(self)(kept)

    def check(self, parameters: Mapping[str, nn.Module | None]) -> None:
        """Refuse a rule that decides nothing.

        Args:
            parameters: The modules that hold the model's parameters, by full name of the parameter.

        Raises:
            ConfigError: If no parameter matches it first.
        """
        used = {self.key(name, module) for name, module in parameters.items()}
        for glob in self.rules:
            if glob in used:
                continue
            taken = next((self.key(n, m) for n, m in parameters.items() if Mixture({glob: BASE}).key(n, m)), None)
            kinds = sorted({type(module).__name__ for module in parameters.values()})
            reason = f"what it matches went to {taken!r} before it" if taken else "it matches no parameter"
            raise ConfigError(
                f"Mixture: the rule {glob!r} decides nothing: {reason}. Names are like {list(parameters)[:3]}, layer "
                f"types {', '.join(kinds)}."
            )

    def __str__(self) -> str:
        """The rules, as the plan and checkpoints call them."""
        return "Mixture(" + ", ".join(f"{glob}: {value}" for glob, value in self.rules.items()) + ")"


class _Single(Mixture):
    """One method for everything, which is called by its own name."""

    def __str__(self) -> str:
        return str(self.rules["*"])


def _method(glob: str, value: Method | str, methods: list[Method]) -> Method | str:
    """The method that a rule means; equal ones are one object, so that they work as one."""
    if isinstance(value, str):
        if value == BASE:
            return value
        if value.lower() not in KNOWN:
            there = ", ".join([BASE, *sorted(KNOWN)])
            meant = nearest(value, [BASE, *KNOWN])
            raise ConfigError(f"Mixture: {glob!r}: there is no method {value!r}; there are {there}.{meant}")
        value = KNOWN[value.lower()]()
    if isinstance(value, type) or not isinstance(value, Method):  # a class has all that its objects have
        raise ConfigError(f"{glob!r}: {value!r} is not a method; use an object such as SOAP(), KFAC() or Muon().")
    for method in methods:
        if method == value:
            return method
    methods.append(value)
    return value
