"""The book, as a reader sees it: every page in headless Chromium, drawn in full, without a request to anywhere else.

Needs the built site (``make book``) and Chromium; skipped where one of them is missing.
"""

import functools
import http.server
import json
import os
import queue
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "_book" / "html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-default-apps --disable-extensions"
    " --disable-domain-reliability --no-pings"
).split()

pytestmark = [
    pytest.mark.skipif(not BOOK.is_dir(), reason="the book is not built: make book"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]

# Opened beside the pages, not part of them: shows one in a frame and sends what came out.
PROBE = """<!doctype html><iframe id="page" width="1200" height="900" src="PAGE"></iframe><script>
document.getElementById("page").onload = async (event) => {
  const view = event.target.contentWindow, doc = view.document;
  const pictures = [...doc.querySelectorAll("article img")];
  pictures.forEach((picture) => { picture.loading = "eager"; });
  await Promise.all(pictures.map((picture) => picture.decode().catch(() => null)));
  await view.MathJax?.startup?.promise;
  const size = (element) => element.getBoundingClientRect();
  const drawn = (element) => size(element).width > 3 && size(element).height > 3;
  const maths = [...doc.querySelectorAll("article mjx-container > svg")];
  const words = doc.createTreeWalker(doc.querySelector("article"), NodeFilter.SHOW_TEXT);
  const raw = [];
  while (words.nextNode()) {
    const node = words.currentNode, inside = node.parentElement.closest("pre, code, mjx-container");
    if (!inside && /[$][^$]*[\\\\^_][^$]*[$]|\\\\[([]/.test(node.data)) raw.push(node.data.trim().slice(0, 80));
  }
  fetch("/report", {method: "POST", body: JSON.stringify({
    pictures: pictures.length, broken: pictures.filter((p) => !(p.naturalWidth > 50)).map((p) => p.src),
    maths: maths.length, flat: maths.filter((m) => !drawn(m)).map((m) => m.parentElement.textContent.slice(0, 60)),
    errors: doc.querySelectorAll("article [data-mjx-error], article mjx-container [fill=red]").length, raw,
    requests: view.performance.getEntriesByType("resource").map((entry) => entry.name),
  })});
};
</script>"""


# Chromium itself calls on these at times, whatever page it shows; what a *page* asks of them is in its own report.
ITS_OWN = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com")


class Recorder(http.server.SimpleHTTPRequestHandler):
    """Serves the book, and stands in as the proxy to the rest of the world: what asks for that is written down."""

    outside: list[str]
    reports: queue.SimpleQueue

    def note(self, host: str):
        if not host.split(":")[0].endswith(ITS_OWN):
            self.outside.append(self.path)
        self.send_error(403)

    def do_GET(self):
        if self.path.startswith("http"):
            self.note(self.path.split("/")[2])
        elif self.path.startswith("/probe"):
            page = PROBE.replace("PAGE", self.path.split("?")[1]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page)
        else:
            super().do_GET()

    def do_POST(self):
        if self.path.startswith("http"):
            return self.note(self.path.split("/")[2])
        self.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def do_CONNECT(self):
        self.note(self.path)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    """(address, list of everything asked for elsewhere)."""
    Recorder.outside, Recorder.reports = [], queue.SimpleQueue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Recorder, directory=BOOK))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", Recorder.outside
    server.shutdown()


def pages():
    found = [*BOOK.glob("[0-9]*.html"), *BOOK.glob("appendix_*.html"), *BOOK.glob("exercises/[0-9]*.html")]
    return sorted(path.relative_to(BOOK).as_posix() for path in found)


def opened(site, page, profile) -> dict:
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", f"--proxy-server={site[0]}"]
    command += ["--proxy-bypass-list=127.0.0.1", f"http://{site[0]}/probe?/{page}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            return Recorder.reports.get(timeout=120)
        finally:
            browser.terminate()


@pytest.mark.parametrize("page", pages())
def test_a_page_is_drawn_in_full_and_asks_nobody_else(site, page, tmp_path):
    address, outside = site
    found = opened(site, page, tmp_path)
    article = (BOOK / page).read_text(encoding="utf-8").split("<article")[1].split("</article>")[0]
    assert found["maths"] == article.count('class="math notranslate') > 20
    assert found["pictures"] > 1
    assert found["broken"] == found["flat"] == found["raw"] == []
    assert found["errors"] == 0
    assert all(name.startswith((f"http://{address}/", "data:")) for name in found["requests"])
    assert outside == []


def test_the_recorder_would_have_noticed(site, tmp_path):
    """A page with a script from elsewhere is seen by the recorder: the test above can fail."""
    _, outside = site
    page = BOOK / "_static" / f"probe-{os.getpid()}.html"
    page.write_text('<article>$x^2$</article><script src="http://example.org/mathjax.js"></script>')
    try:
        found = opened(site, f"_static/{page.name}", tmp_path)
    finally:
        page.unlink()
    assert found["raw"] == ["$x^2$"]
    assert any("example.org" in name for name in outside)
    outside.clear()


def test_every_notebook_and_every_lesson_has_its_page_and_the_index_names_it():
    index = (BOOK / "index.html").read_text(encoding="utf-8")
    wanted = [p for folder in ("", "exercises") for p in (ROOT / "notebooks" / folder).glob("*.ipynb")]
    for path in wanted:
        name = path.relative_to(ROOT / "notebooks").with_suffix(".html").as_posix()
        assert (BOOK / name).is_file()
        assert f'href="{name}"' in index
    assert len(pages()) == len(wanted)


def test_no_page_names_anything_elsewhere_that_a_browser_would_load():
    for page in BOOK.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="(https?:[^"]+)"', text)
        assert loads == [], page.name
