"""Looks at reports in a real browser: console errors, labels that overlap, content wider than the screen; and pictures of them.

    python benchmarks/look_at_page.py runs/x/report.html --pictures /tmp/pictures

Every page is opened wide and narrow, in both languages, light and dark, in headless Chromium (Debian: chromium).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NARROW = 360  # headless Chromium opens no window below 500, so the page itself is made as narrow
LIMIT_BYTES = 2_000_000
# Run in the page: texts of a drawing that overlap, drawings without size, and content that sticks out to the right.
PROBE = """
<script>
addEventListener('load', () => setTimeout(() => {
  const found = {overlaps: [], wide: [], links: []};
  for (const svg of document.querySelectorAll('svg')) {
    const texts = [...svg.querySelectorAll('text')].filter(t => t.getClientRects().length)
      .map(t => [t.textContent, t.getBoundingClientRect()]);
    const frame = svg.getBoundingClientRect();
    for (let i = 0; i < texts.length; i++) {
      const [a, p] = texts[i];
      if (p.right > frame.right + 1 || p.left < frame.left - 1) found.overlaps.push([a, 'the edge']);
      for (let j = i + 1; j < texts.length; j++) {
        const [b, q] = texts[j];
        if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1)
          found.overlaps.push([a, b]);
      }
    }
  }
  const width = document.documentElement.clientWidth;
  for (const e of document.querySelectorAll('h1,h2,p,pre,svg,.card,.wide,ul'))
    if (e.getBoundingClientRect().right > width + 1) found.wide.push(e.tagName + ' ' + e.textContent.slice(0, 40));
  for (const e of document.querySelectorAll('[src],link[href]'))
    if (!(e.src || e.href).startsWith('data:')) found.links.push(e.outerHTML.slice(0, 80));
  const note = document.createElement('div');
  note.id = 'found'; note.textContent = JSON.stringify(found); document.body.append(note);
}, 50));
</script>
"""


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    sys.exit("no chromium here: apt-get install chromium")


def look(page: Path, folder: Path, width: int, language: str, dark: bool, picture: Path | None) -> list[str]:
    """What is wrong with a page on a screen of this width."""
    text = page.read_text(encoding="utf-8")
    if language == "zh":
        text = text.replace('id="en" checked', 'id="en"').replace('id="zh"', 'id="zh" checked')
    if dark:
        text = text.replace("(prefers-color-scheme:dark)", "all")
    if width < 500:
        text = text.replace("</style>", f"html{{width:{width}px}}body{{margin:0;max-width:{width}px}}</style>")
    copy = folder / "page.html"
    copy.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    common = [
        browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
        "--enable-logging=stderr", "--virtual-time-budget=2000", f"--window-size={max(width, 500)},2400",
    ]  # fmt: skip
    done = subprocess.run([*common, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120)
    wrong = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    match = re.search(r'<div id="found">(.*?)</div>', done.stdout, re.S)
    if match is None:
        return [*wrong, "the page did not load"]
    found = json.loads(match.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    wrong += [f"overlap: {a!r} and {b!r}" for a, b in found["overlaps"]]
    wrong += [f"wider than the screen: {e}" for e in found["wide"]] + [f"not in the file: {e}" for e in found["links"]]
    if picture is not None:
        subprocess.run([*common, f"--screenshot={picture}", copy.as_uri()], capture_output=True, timeout=120, check=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each view")
    options = parser.parse_args()
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    bad = 0
    for page in options.pages:
        size = page.stat().st_size
        for width, language, dark in ((1280, "en", False), (1280, "zh", True), (NARROW, "en", True), (NARROW, "zh", False)):
            name = f"{page.parent.name}-{page.stem}-{width}-{language}-{'dark' if dark else 'light'}.png"
            with tempfile.TemporaryDirectory(prefix="zenspeed-page-", ignore_cleanup_errors=True) as folder:
                wrong = look(page, Path(folder), width, language, dark, options.pictures and options.pictures / name)
            bad += len(wrong)
            print(f"{page} {width} {language} {'dark' if dark else 'light'}: {'good' if not wrong else f'{len(wrong)} faults'}")
            print("".join(f"  {line}\n" for line in wrong[:20]), end="")
        if size > LIMIT_BYTES:
            bad += 1
            print(f"{page}: {size:,} bytes, above {LIMIT_BYTES:,}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
