"""Solves that run as late as any side stream may: when whoever needs them waits, and not before."""

from unittest import mock

from lightning_so.core.solves.line import InLine


class Late(InLine):
    """Starts nothing: the work is done where it is waited for, on what is there then."""

    def start(self, work):
        found = []

        def waited():
            if not found:
                found.append(work())
            return found[0]

        return waited


def late(function, *args, **named):
    """Call a function whose engines with a lag solve late."""
    return _on(Late, function, *args, **named)


def in_line(function, *args, **named):
    """Call a function whose engines solve in line, on whatever device."""
    return _on(InLine, function, *args, **named)


def _on(line, function, *args, **named):
    with mock.patch("lightning_so.core.assembly.line_of", lambda _, lag: line() if lag else InLine()):
        return function(*args, **named)
