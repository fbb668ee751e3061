"""Looks at a report in a headless Chromium: light and dark, on a desk and on a phone.

    python tools/check_report.py build/bench/report.html --pictures build/bench

For each of them: the page is as wide as the window and no wider, no text overlaps the edge of its
chart, text is large enough to read, the background is as light or dark as asked for, and our curve
is in the picture in its colour. Exit status 1 if something is wrong, 3 without a browser. Needs
Pillow; Debian's package is called chromium.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = {"desk": 1280, "phone": 390}
HEIGHT = 4000
SMALLEST_TEXT_PX = 9.0
SCHEMES = {"dark": 0, "light": 1}  # as Chromium numbers them
CURVE = {"light": (0x0B, 0x72, 0x85), "dark": (0x4C, 0xC9, 0xDC)}
# What the page says about itself once it is laid out, as the first text of its body.
PROBE = """
<script>
addEventListener("load", () => {
  const wrong = [];
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) wrong.push(`the page is ${wide} px wider than the window`);
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        wrong.push(`"${text.textContent}" leaves its chart (${svg.getAttribute("aria-label")})`);
      if (box.height < SMALLEST) wrong.push(`"${text.textContent}" is ${box.height} px high`);
    }
  }
  const note = document.createElement("pre");
  note.id = "probe";
  note.hidden = true;
  const charts = document.querySelectorAll("svg").length;
  note.textContent = JSON.stringify({ wrong, charts });
  document.body.append(note);
});
</script>
"""


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def browse(browser: str, page: Path, width: int, scheme: str, *arguments: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=5000",
            f"--user-data-dir={profile}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--window-size={width},{HEIGHT}",
            *arguments,
            page.resolve().as_uri(),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if result.returncode:
        raise RuntimeError(f"{browser} failed: {result.stderr[-500:]}")
    return result.stdout


def layout(browser: str, page: Path, width: int) -> dict:
    """What the page found wrong with itself."""
    probed = page.read_text().replace("</body>", PROBE.replace("SMALLEST", str(SMALLEST_TEXT_PX)))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "probed.html"
        copy.write_text(probed)
        dom = browse(browser, copy, width, "light", "--dump-dom")
    found = re.search(r'<pre id="probe"[^>]*>(.*?)</pre>', dom, re.DOTALL)
    if found is None:
        return {"wrong": ["the page did not load"], "charts": 0}
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


def picture_faults(path: Path, scheme: str) -> list[str]:
    from PIL import Image

    with Image.open(path) as picture:
        pixels = picture.convert("RGB")
        red, green, blue = pixels.getpixel((2, 2))
        colours = {colour: count for count, colour in pixels.getcolors(1 << 24) or []}
    light = (red + green + blue) / 3
    faults = []
    if (light > 200) != (scheme == "light") or 60 < light < 200:
        faults.append(f"the background of the {scheme} page is ({red}, {green}, {blue})")
    if colours.get(CURVE[scheme], 0) < 100:
        faults.append(f"no curve of ours in the colour {CURVE[scheme]}")
    return faults


def check(page: Path, browser: str, pictures: Path) -> list[str]:
    """Everything that is wrong, with where."""
    pictures.mkdir(parents=True, exist_ok=True)
    faults = []
    for name, width in WIDTHS.items():
        found = layout(browser, page, width)  # the same in both schemes
        if found["charts"] == 0:
            found["wrong"].append("there is no chart")
        faults += [f"{name}: {fault}" for fault in found["wrong"]]
        for scheme in SCHEMES:
            target = pictures / f"{page.stem}-{scheme}-{name}.png"
            browse(browser, page, width, scheme, f"--screenshot={target.resolve()}")
            faults += [f"{scheme}, {name}: {fault}" for fault in picture_faults(target, scheme)]
    return faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--pictures", type=Path, default=Path("."), help="folder for screenshots")
    arguments = parser.parse_args(argv)
    browser = find_browser()
    if browser is None:
        print(f"check_report: no browser ({', '.join(BROWSERS)}): the page was not looked at")
        return 3
    faults = check(arguments.page, browser, arguments.pictures)
    print("\n".join(faults) or f"{arguments.page}: legible, light and dark, at {WIDTHS}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
