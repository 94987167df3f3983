"""The documentation site: it builds strictly, has every page, and loads nothing from a network when it is read."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_so

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
def test_every_public_name_is_told_once(site: Path) -> None:
    told = [name for path in site.rglob("*.html") for name in re.findall(r'id="lightning_so\.(\w+)"', path.read_text())]
    assert sorted(told) == sorted({*lightning_so.__all__} - {"__version__"})


@pytest.mark.slow
def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    found = [
        (path.name, match[0])
        for path in site.rglob("*")
        if path.suffix in (".html", ".css")
        for match in LOADED.finditer(path.read_text())
    ]
    assert found == []
    # The theme would load a library from a network for each of these.
    assert [path.name for path in site.rglob("*.html") if re.search("class=.?mermaid", path.read_text())] == []


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with api.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["methods/muon.html", "reference/api.html"])
def test_a_page_in_a_browser(site: Path, browser, name: str, size: tuple[int, int]) -> None:
    complaints = []
    context = browser.new_context(viewport=dict(zip(("width", "height"), size)), color_scheme="light")
    tab = context.new_page()
    tab.on("console", lambda said: complaints.append(said.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("requestfailed", lambda asked: complaints.append(asked.url))
    tab.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
    tab.goto((site / name).as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]

    colour = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(colour)
    tab.locator("label[for=__palette_1]").click()
    tab.wait_for_function(f"{colour} !== '{light}'")

    if size[0] < 1000:
        tab.locator("label[for=__search].md-header__button").click()
    tab.locator(".md-search__input").click()
    tab.keyboard.type("SOAP")
    tab.locator(".md-search-result__item").first.wait_for()
    assert "SOAP" in tab.locator(".md-search-result__item").first.inner_text()
    context.close()
    assert complaints == []


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
