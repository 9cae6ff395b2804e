"""The page in a real browser, 375 pixels wide: nothing planted runs, nothing scrolls sideways, a picture is drawn."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.runs.run_history import open_arms
from tests.pipeline.report.fabricated import page_of
from tests.pipeline.report.planted import NAME, OTHER, planted

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=375,2000",
]
MEASURE = """
document.querySelectorAll("details").forEach((one) => { one.open = true; });
const wide = [...document.querySelectorAll("body *")].filter((one) => !one.closest(".wide, svg"));
const reach = Math.ceil(Math.max(...wide.map((one) => one.getBoundingClientRect().right)));
parent.postMessage([reach, document.documentElement.scrollWidth, window.innerWidth].join(" "), "*");
"""
FRAME = """<!doctype html><iframe src="measured-%s" width="375" height="2000" style="border:0"></iframe><script>
addEventListener("message", (event) => { document.body.dataset.measured = event.data; });
</script>"""
"""A window that prints its elements is 500 wide at least; a frame in it may be narrower."""

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run and that of two, and of each a copy that measures itself when everything is unfolded."""
    run = planted(tmp_path_factory.mktemp("chromium"))
    planted(run.root, OTHER, 0.1)
    for name, runs in (("page.html", [NAME]), ("arms.html", [NAME, OTHER])):
        arms = open_arms(run.root / "runs", runs)
        html = page_of(arms)
        (run.root / name).write_text(html)
        allowed = base64.b64encode(hashlib.sha256(MEASURE.encode()).digest()).decode()
        copy = html.replace("script-src ", f"script-src &#39;sha256-{allowed}&#39; ")
        (run.root / f"measured-{name}").write_text(copy.replace("</body>", f"<script>{MEASURE}</script></body>"))
        (run.root / f"frame-{name}").write_text(FRAME % name)
    return run.root


def chromium(folder: Path, name: str, *flags: str) -> str:
    """Open a page of `folder`; return what is printed."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, (folder / name).as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_nothing_planted_runs_and_the_filter_does(made: Path) -> None:
    dom = chromium(made, "page.html", "--dump-dom")
    root = dom[: dom.index("<head>")]
    assert "<html" in root and "planted" not in root
    assert dom.count("<script") == 1 and "<img" not in dom
    assert re.search(r'<output id="matching">36 of 36</output>', dom)  # written by the page's own script


def test_nothing_planted_in_names_runs_where_arms_are_compared(made: Path) -> None:
    dom = chromium(made, "arms.html", "--dump-dom")
    root, top = dom[: dom.index("<head>")], dom[dom.index("<header>") : dom.index("</header>")]
    assert "planted" not in root and dom.count("<script") == 1 and "<img" not in dom
    assert "Each arm against &lt;img" in top and "n=2, detectable" in top and top.count("<svg") == 3


@pytest.mark.parametrize("name", ["page.html", "arms.html"])
def test_nothing_scrolls_sideways_on_a_phone(made: Path, name: str) -> None:
    dom = chromium(made, f"frame-{name}", "--virtual-time-budget=3000", "--dump-dom")
    measured = re.search(r'data-measured="(\d+) (\d+) (\d+)"', dom)
    assert measured, dom
    reach, scroll, inner = map(int, measured.groups())
    assert inner == 375 and scroll == 375 and reach <= 375


@pytest.mark.parametrize("name", ["page.html", "arms.html"])
@pytest.mark.parametrize("scheme", [1, 0])
def test_a_picture_is_drawn_light_and_dark(made: Path, scheme: int, name: str) -> None:
    from PIL import Image

    out = made / f"{scheme}.png"
    chromium(made, name, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={out}")
    with Image.open(out) as image:
        assert image.size == (375, 2000)
        colours: Any = image.convert("RGB").getcolors(1 << 20) or []
    paper = max(colours)[1]
    assert len(colours) > 100 and (min(paper) > 240 if scheme else max(paper) < 40)
