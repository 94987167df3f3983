"""Has doctests of docstrings shown as code: our sections are headed "Example", griffe knows "Examples"."""

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Renames the sections."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename those of one docstring.

        Args:
            obj: What has the docstring.
            **_: What else is handed over.
        """
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
