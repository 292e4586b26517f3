"""Pictures of the report on a lake's newest run: `python tests/screenshots.py curator-demo/lake FOLDER`.

light.png and dark.png are as wide as a page, phone.png as a phone, of the whole report; weights.png is of the charts
of domain weights, as in the README.
"""

import sys
import tempfile
from pathlib import Path

import chromium

import curator

SHOTS = {
    "light": {"width": 1100},
    "dark": {"width": 1100, "scheme": "dark"},
    "phone": {"width": 390, "height": 844},
}


def main(lake_url: str, folder: Path) -> None:
    program = chromium.find()
    if program is None:
        sys.exit("no Chromium: make chromium, or set CHROMIUM")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch, "report.html")
        with curator.open_lake(lake_url) as lake:
            lake.run("latest").report(page)
        with chromium.browser(program, Path(scratch, "profile")) as browser:
            for name, shown in SHOTS.items():
                browser.open(page, **shown)
                (folder / f"{name}.png").write_bytes(browser.screenshot())
            browser.open(page, width=1100, height=610)
            browser.evaluate("document.querySelector('#weights').scrollIntoView()")
            (folder / "weights.png").write_bytes(browser.screenshot(whole=False))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
