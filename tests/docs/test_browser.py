"""The site as a browser draws it: nothing wider than the screen, no broken link.

Needs the extra `docs` and Debian's `chromium`. Every page stands in a frame as wide as
a screen, and all frames in one page, which writes what it measured into itself.
"""

import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from urllib.parse import unquote, urldefrag

import pytest

pytestmark = pytest.mark.slow
DESKTOP, PHONE = 1400, 390  # the widths
HEIGHT = 900
ALL_PAGES = "/all_pages.html"

MEASURE = """
const scrolls = box => box && box.tagName !== "ARTICLE" && (
  /auto|scroll/.test(getComputedStyle(box).overflowX) || scrolls(box.parentElement));
const name = x => `${x.tagName} ${x.className} ${x.textContent.trim().slice(0, 40)}`;
const wide = x => x.scrollWidth > x.clientWidth + 1;
const measure = frame => {
  const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
  const all = [...page.querySelectorAll("article *")].filter(x => x.checkVisibility());
  const out = x => x.getBoundingClientRect().right > width + 1;
  return {
    url: frame.contentWindow.location.href,
    width: width,
    page_width: page.scrollingElement.scrollWidth,
    outside: all.filter(x => out(x) && !scrolls(x.parentElement)).map(name),
    cut: [...page.querySelectorAll(".doc-signature code")].filter(wide).map(name),
    broken: [...page.images].filter(x => !x.naturalWidth).map(x => x.src),
    pictures: [...page.querySelectorAll("article img")].filter(
      x => x.checkVisibility()).map(x => x.getBoundingClientRect().bottom),
    links: [...page.links].map(x => x.href),
    ids: [...page.querySelectorAll("[id]")].map(x => x.id),
  };
};
window.onload = () => {
  const measured = [...document.querySelectorAll("iframe")].map(measure);
  const pre = document.createElement("pre");
  pre.id = "measured";
  pre.textContent = JSON.stringify(measured);
  document.body.replaceChildren(pre);
};
"""


class Pages(http.server.SimpleHTTPRequestHandler):
    """A server of the site and of one page of all pages, which is no file: other tests
    read the folder meanwhile. No line for every request."""

    def __init__(self, *args, all_pages, **options):
        self.all_pages = all_pages.encode()
        super().__init__(*args, **options)

    def do_GET(self):
        if self.path != ALL_PAGES:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.all_pages)))
        self.end_headers()
        self.wfile.write(self.all_pages)

    def log_message(self, *args):
        pass


def chromium():
    """The browser; without it the tests are skipped, but not in the gate."""
    found = shutil.which("chromium")
    if found is None:
        word = "no chromium here: apt-get install chromium"
        if os.environ.get("OPTAX_SAM_BROWSER") == "required":
            pytest.fail(word)
        pytest.skip(word)
    return found


def frames(folder):
    """A page of all pages, in both widths."""
    names = sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*.html"))
    pages = [name.removesuffix("index.html") for name in names]
    shown = "".join(
        f'<iframe src="/{page}" width="{width}" height="{HEIGHT}" style="border:0">'
        "</iframe>"
        for width in (DESKTOP, PHONE)
        for page in pages
    )
    return f"<!doctype html><script>{MEASURE}</script><body>{shown}"


@pytest.fixture(scope="module")
def measured(site, once, tmp_path_factory):
    """What `measure` says of each page in each width."""
    profile = tmp_path_factory.mktemp("chromium")

    def write(path):
        path.write_text(measured_by(chromium(), site, profile), encoding="utf-8")

    return json.loads(once("measured.json", write).read_text(encoding="utf-8"))


def measured_by(browser, site, profile):
    """The JSON that the page of all pages writes into itself."""
    handler = functools.partial(Pages, directory=site, all_pages=frames(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shown = subprocess.run(
            [
                browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--user-data-dir={profile}",
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}{ALL_PAGES}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        server.shutdown()
    found = re.search(r'<pre id="measured">(.*?)</pre>', shown.stdout, re.DOTALL)
    return html.unescape(found[1])


def test_every_page_was_drawn_in_both_widths(site, measured):
    pages = len(list(site.rglob("*.html")))
    assert [page["width"] for page in measured] == [DESKTOP] * pages + [PHONE] * pages
    assert all("search" in " ".join(page["ids"]) for page in measured)


def test_nothing_is_wider_than_the_screen(measured):
    wide = {
        (page["url"], page["width"]): (page["page_width"], page["outside"])
        for page in measured
        if page["outside"] or page["page_width"] > page["width"]
    }
    assert wide == {}


def test_signatures_are_not_cut(measured):
    signatures = [page["cut"] for page in measured if page["width"] == DESKTOP]
    assert [cut for cut in signatures if cut] == []


def test_pictures_are_drawn(measured):
    assert [source for page in measured for source in page["broken"]] == []


def test_the_home_page_shows_its_picture_at_once(measured):
    home = min(measured, key=lambda page: (len(page["url"]), page["width"] == PHONE))
    assert home["width"] == DESKTOP
    assert 0 < home["pictures"][0] <= HEIGHT


def test_no_link_inside_the_site_is_broken(measured):
    anchors = {page["url"]: {"", *page["ids"]} for page in measured}
    start = re.match(r"http://[^/]+/", measured[0]["url"])[0]
    inside = [
        (page["url"], *urldefrag(link))
        for page in measured
        for link in page["links"]
        if link.startswith(start)
    ]
    assert len(inside) > 100
    broken = [
        (source, url, anchor)
        for source, url, anchor in inside
        if unquote(anchor) not in anchors.get(url, ())
    ]
    assert broken == []
