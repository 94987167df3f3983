"""HTML and JSON for a page whose strings are of others: whatever they hold, they stay text."""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

#: What would end a script, begin a comment or a tag, or a line of JavaScript, in JSON as it has them too.
UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
CODE = re.compile(r"`([^`]+)`")


def text(value: object) -> str:
    """A value as text of a page.

    Args:
        value: Anything.

    Returns:
        HTML; control signs, which would be no HTML, are boxes.

    Example:
        >>> text("<script>alert('1')</script>")
        '&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;'
    """
    return escape("".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in str(value)))


def prose(value: object) -> str:
    """Text of a page, of which what stands between backticks is code."""
    return CODE.sub(r"<code>\1</code>", text(value))


def data(value: Any) -> str:
    r"""A value as JSON inside a script of a page.

    Args:
        value: Dicts, lists, strings, numbers.

    Returns:
        JSON that neither ends the script nor begins another.

    Example:
        >>> data({"</script>": "&"})
        '{"\\u003c/script\\u003e":"\\u0026"}'
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).translate(UNSAFE)


def listing(items: Iterable[str], kind: str = "") -> str:
    """A list of HTML."""
    return f'<ul class="{kind}">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], differs: Sequence[int] = ()) -> str:
    """A table whose first cells are heads of their rows.

    Args:
        head: Of the columns.
        rows: Texts.
        differs: Numbers of the rows whose cells differ.

    Returns:
        HTML, in a box of its own that scrolls and that the keyboard reaches.
    """
    tops = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = []
    for number, (first, *others) in enumerate(rows):
        kind = ' class="differs"' if number in differs else ""
        cells = "".join(f"<td{kind}>{text(cell)}</td>" for cell in others)
        body.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
    inner = f"<table><thead><tr>{tops}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(head[0] or "table")}">{inner}</div>'
