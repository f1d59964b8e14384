"""The report in a real browser, on a phone and on a desk."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hf_kdnas.report.render import report_html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (320, 390, 1280)

# A frame's width is what a page in it takes for the screen's.
FRAMES = """<!DOCTYPE html><body><script>
addEventListener("load", () => {
  const looks = [...document.querySelectorAll("iframe")].map(frame => {
    const view = frame.contentWindow, page = view.document;
    const pictures = [...page.querySelectorAll("svg, img")].map(each => each.getBoundingClientRect());
    const texts = [...page.querySelectorAll("svg text")].map(each => each.getBoundingClientRect().height);
    return {
      width: view.innerWidth,
      needs: page.documentElement.scrollWidth,
      pictures: pictures.map(each => each.width / Math.min(view.innerWidth, 500)),
      smallest: Math.min(...texts),
      requests: view.performance.getEntriesByType("resource").map(each => each.name),
    };
  });
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify(looks);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
@pytest.mark.parametrize("workflow", ["search", "distill"])
def test_it_fits_the_screen_and_asks_nobody(tmp_path: Path, results: dict[str, Any], workflow: str) -> None:
    results |= {"workflow": workflow, "name": "a-name-that-goes-on-" * 5}
    results["task"]["dataset"] = "/a/path/without/any/spaces/in/it" * 5
    page = html.escape(report_html(results).replace("<details>", "<details open>"))
    frame = f'<iframe style="width: WIDTHpx; border: 0" srcdoc="{page}"></iframe>'
    frames = "".join(frame.replace("WIDTH", str(width), 1) for width in WIDTHS)
    (tmp_path / "frames.html").write_text(FRAMES + frames, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", (tmp_path / "frames.html").as_uri()]
    done = subprocess.run([str(BROWSER), *options], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    looks = json.loads(html.unescape(found[1]))
    assert [look["width"] for look in looks] == list(WIDTHS)
    for look in looks:
        assert look["needs"] <= look["width"]
        assert look["requests"] == []
        assert look["smallest"] >= 8  # pixels
        assert len(look["pictures"]) == (3 if workflow == "search" else 1)
        assert all(0.8 < width < 1.3 for width in look["pictures"])
