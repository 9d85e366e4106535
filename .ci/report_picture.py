"""Make docs/figures/report.png from the report of the demonstration: gaps to Retrain and the score table under them.

    expunge demo --output demo
    python .ci/report_picture.py demo/report.html chromium

A Chromium without a window draws a copy of the page in which everything else is hidden; Pillow cuts the margins.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "report.png"
#: The section of the demonstration in which a class is forgotten.
SECTION = "s1"
SHOWN = ("h2", f"#{SECTION}-gaps", f"#{SECTION}-gaps + p", f"[aria-labelledby={SECTION}-gaps]",
         f"#{SECTION}-scores", f"[aria-labelledby={SECTION}-scores]")  # fmt: skip
STYLE = (
    f"<style>nav, .top, footer, main > :not(#{SECTION}), "
    f"#{SECTION} > {''.join(f':not({one})' for one in SHOWN)} {{ display: none !important }} "
    f".frame {{ display: block !important }} #{SECTION} {{ border: 0 !important; margin: 0 !important }}</style></head>"
)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
           "--disable-background-networking", "--disable-component-update", "--window-size=1440,2200")  # fmt: skip
MARGIN = 16


def main(report: Path, browser: str) -> None:
    """Draw the picture of a report."""
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        page.write_text(report.read_text(encoding="utf-8").replace("</head>", STYLE, 1), encoding="utf-8")
        command = [browser, *OPTIONS, f"--user-data-dir={folder}/user", f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        image = Image.open(shot).convert("RGB")
    blank = Image.new("RGB", image.size, image.getpixel((0, 0)))
    box = ImageChops.difference(image, blank).getbbox()
    if box is None:
        raise SystemExit("the page is blank")
    left, top, right, bottom = box
    width, height = image.size
    box = (max(0, left - MARGIN), max(0, top - MARGIN), min(width, right + MARGIN), min(height, bottom + MARGIN))
    image.crop(box).quantize(64).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
