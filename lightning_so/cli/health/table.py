"""The doctor's table, by rich where it is installed."""

import importlib.util
from collections.abc import Sequence

from lightning_so.cli.health.finding import GOOD, Finding


def shown(found: Sequence[Finding], title: str) -> None:
    """Print findings, and below them what to do about those that are not good.

    Args:
        found: The findings.
        title: Of whom.
    """
    if importlib.util.find_spec("rich") is None:
        print(f"lightning-so doctor: {title}")
        print(*(f"  {each.state:7}{each.check:18}{each.seen}" for each in found), sep="\n")
    else:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"lightning-so doctor: {title}", title_justify="left", box=SIMPLE_HEAD, show_header=False)
        for each in found:
            colour = "green" if each.state == GOOD else "red"
            table.add_row(Text(each.state, colour), each.check, Text(each.seen))
        Console().print(table)
    # Not in the table, which breaks lines: what is to be copied stays in one piece.
    for each in found:
        if each.remedy:
            print(f"{each.check}: {each.seen}\n    -> {each.remedy}", flush=True)
