"""The documentation site: it builds strictly, has every page, and loads nothing from a network when it is read."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[2]
#: Attributes and CSS by which a browser loads something, as opposed to a link that a reader follows.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)[^>]*?\bsrc=["']?(?:https?:)?//[^"'>\s]*"""
    r"""|<link[^>]*?rel=["']?(?:stylesheet|preconnect|icon|preload)[^>]*?href=["']?(?:https?:)?//[^"'>\s]*"""
    r"""|<link[^>]*?href=["']?(?:https?:)?//[^"'>\s]*["']?[^>]*?rel=["']?(?:stylesheet|preconnect|icon|preload)"""
    r"""|url\(["']?(?:https?:)?//[^)]*|@import ["']?(?:https?:)?//[^;]*""",
    re.IGNORECASE,
)


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(out)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once a test run and worker."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_every_page_is_there(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    named = [path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html") for path in pages]
    assert [str(path) for path in named if not (site / path).exists()] == []
    assert (site / "search" / "search_index.json").stat().st_size > 100_000
    assert "usage: lightning-so" in (site / "reference" / "cli.html").read_text()


@pytest.mark.slow
def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    found = [
        (path.name, match[0])
        for path in site.rglob("*")
        if path.suffix in (".html", ".css")
        for match in LOADED.finditer(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        '<script async src="https://x.y/a.js">',
        "<img alt='' src=//x.y/a.png>",
        '<link rel="stylesheet" href="https://fonts.x/css">',
        '<link href="https://fonts.x" rel="preconnect">',
        "a { background: url(https://x.y/z) }",
        '@import "https://x.y";',
    ],
)
def test_what_is_loaded_is_found(text: str) -> None:
    assert LOADED.search(text)
    assert not LOADED.search('<a href="https://x.y">, <link rel="canonical" href="https://x.y"> <img src="a/b.png">')


@pytest.mark.slow
def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    for name in ("docs", "mkdocs.yml"):
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / name)
    config = (tmp_path / "mkdocs.yml").read_text()
    # A small site of two pages, with the same rules.
    config = re.sub(r"^plugins:.*?(?=^markdown_extensions)", "", config, flags=re.M | re.S)
    config = re.sub(r"^hooks:.*\n", "", config, flags=re.M).split("\nnav:")[0] + "\nnav: [README.md, b.md]\n"
    (tmp_path / "mkdocs.yml").write_text(config)
    shutil.rmtree(tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b.md").write_text("# B\n\n## There\n")
    results = {}
    for link in ("b.md#there", "b.md#gone", "gone.md"):
        (tmp_path / "docs" / "README.md").write_text(f"# A\n\n[x]({link})\n")
        results[link] = build(tmp_path / "mkdocs.yml", tmp_path / "out").returncode
    assert results == {"b.md#there": 0, "b.md#gone": 1, "gone.md": 1}
