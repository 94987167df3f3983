"""Writes docs/report.png, a report as Chromium shows it. `python -m tests.support.report_picture`."""

import shutil
import sys
import tempfile
from pathlib import Path

from lightning_so.report.page import page
from lightning_so.report.run import Run
from tests.support import recorded

PICTURE = Path(__file__).parents[2] / "docs" / "report.png"
SIZE = {"width": 1180, "height": 1250}
#: Colours of the picture: enough for a page, and a third of the bytes.
COLOURS = 128


def run() -> Run:
    """Made-up numbers of four ranks: one layer dies, and an epoch has wrong labels."""
    recordings = recorded.healthy(4, 2000, seed=3)
    recorded.units(recordings, "dead", "blocks.1.mlp.0", 0.93)
    recorded.lossy(recordings, lambda step, loss: loss + 2.0 if 1200 <= step < 1300 else loss)
    return Run("an example", recordings)


def main() -> None:
    """Draw it.

    Raises:
        SystemExit: If there is no Chromium.
    """
    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("there is no chromium: make chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        path, raw = Path(folder) / "report.html", Path(folder) / "report.png"
        path.write_text(page([run()]), encoding="utf-8")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport=SIZE, color_scheme="light")
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]")
        tab.screenshot(path=raw)
        browser.close()
        Image.open(raw).convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
