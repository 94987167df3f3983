"""What the site has beyond the files of docs/: pages that stand elsewhere, and help texts.

Links of a page are those of its file in the repository, so that it reads well there too. Here those to pages that the
site has elsewhere are turned to them, and those to what it has not (sources, templates) become the path alone.
"""

import inspect
import io
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Pages that stand outside of docs/, and what the site calls them.
ELSEWHERE = {
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "docker/README.md": "how-to/docker.md",
}
#: What the site has in the place of a file that it has not.
INSTEAD = {"README.md": "docs/README.md", "docs": "docs/README.md"}
#: Pictures that stand for the mermaid text of a page, which a browser would need a library from a network for.
DRAWN = {
    "explanation/one-step.md": "![One step](../pictures/step.svg)",
    "explanation/house.md": "![The rooms](../pictures/house.svg)",
    "explanation/ownership.md": "![Owners](../pictures/ownership.svg)",
}
#: Where the help of every command is put.
HELP = "<!-- help of every command -->"
LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)\s*$)", re.MULTILINE | re.DOTALL)


def slug(heading: str, separator: str) -> str:
    """What GitHub calls a heading, so that one link is right here and there.

    Args:
        heading: Its text.
        separator: What stands for a space.

    Returns:
        The anchor.
    """
    return re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]*>", "", heading).lower().strip()).replace(" ", separator)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in the pages that stand elsewhere.

    Args:
        files: Those of docs/.
        config: The site's.

    Returns:
        All of them.
    """
    for path, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to where the site has what they lead to, and put the commands' help in.

    Args:
        markdown: The page.
        page: Which it is.
        config: The site's.
        files: All of the site.

    Returns:
        The page as it is built.
    """
    here = page.file.src_uri
    stands = next((path for path, name in ELSEWHERE.items() if name == here), f"docs/{here}")
    markdown = re.sub(r"^```mermaid\n.*?^```$", lambda _: DRAWN[here], markdown, flags=re.M | re.S)
    if HELP in markdown:
        markdown = markdown.replace(HELP, commands())
    parts = FENCE.split(markdown)
    return "".join(part if FENCE.match(part) else _turned(part, Path(stands), Path(here)) for part in parts)


def _turned(text: str, stands: Path, here: Path) -> str:
    def turned(match: re.Match[str]) -> str:
        shown, said, link = match.groups()
        path, hash_, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", link):
            return match[0]
        target = os.path.normpath(stands.parent / path)
        if not (ROOT / target).exists():
            return match[0]  # A dead link, which the build complains of.
        if target in INSTEAD:
            target, anchor, hash_ = INSTEAD[target], "", ""
        inside = ELSEWHERE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if inside is None:
            return said if "`" in said else f"{said} (`{target}`)"
        return f"{shown}[{said}]({os.path.relpath(inside, here.parent)}{hash_}{anchor})"

    return LINK.sub(turned, text)


def commands() -> str:
    """The help of every command of `lightning-so`, as it prints it; without the options that are Lightning's own.

    Returns:
        Markdown.
    """
    from lightning_so.cli.__main__ import main
    from lightning_so.cli.parser import found, whole

    text = ""
    for name, function in found().items():
        said = io.StringIO()
        if whole(function):
            said.write(inspect.cleandoc(function.__doc__ or "").partition("\nArgs:")[0])
        else:
            with mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}), redirect_stdout(said):
                with suppress(SystemExit):
                    main([name, "--help"])
        text += f"## lightning-so {name}\n\n```text\n{said.getvalue().strip()}\n```\n\n"
    return text
