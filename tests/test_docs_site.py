"""The pages of docs/ as a site: it builds strictly, is complete, needs nothing from elsewhere, and fits a phone."""

import functools
import html
import html.parser
import http.server
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import FOR_EVER, ROOT

import ebm_jax
from ebm_jax import methods, shipped
from ebm_jax.tasks import TASKS

pytestmark = pytest.mark.whole
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390  # CSS pixels wide
LOADS = {
    "img": "src",
    "script": "src",
    "link": "href",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "audio": "src",
}
MEASURE = """<script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const broken = [...page.images].filter(image => !image.naturalWidth).map(image => image.src);
    found[frame.getAttribute("src")] = {width: page.documentElement.scrollWidth, broken,
      inside: frame.contentWindow.innerWidth, text: page.querySelector("article").innerText.length};
  }
  const pre = document.createElement("pre"); pre.id = "found"; pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script>"""


class Page(html.parser.HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.anchors.add(attrs["id"])
        if attrs.get(LOADS.get(tag)) and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(attrs[LOADS[tag]])
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])


def words_of(text):
    """A text without its marks: tags of HTML, and backticks."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).replace("`", "").split())


def build(folder):
    """The words of a strict build of the documentation in `folder`, and its exit status."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=FOR_EVER)
    return ended.returncode, re.sub(r"\x1b\[[0-9;]*m", "", ended.stdout + ended.stderr)


def copied(folder):
    for part in ("docs", "ebm_jax"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    return folder


@pytest.fixture(scope="module")
def site():
    """The built pages, of a copy of what they are made of."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("needs zensical: requirements-docs.txt")
    with tempfile.TemporaryDirectory() as folder:
        status, words = build(copied(Path(folder)))
        assert status == 0, words
        yield Path(folder) / "site"


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html")) if path.stem != "404"
    }


def test_a_link_to_no_page_and_one_to_no_anchor_end_a_build(site, tmp_path):
    del site  # skips where there is no zensical
    folder = copied(tmp_path)
    with (folder / "docs" / "start.md").open("a") as start:
        start.write("\n[a](no_page.md) [b](methods.md#no-anchor)\n")
    status, words = build(folder)
    assert status != 0
    assert "page does not exist" in words
    assert "anchor does not exist" in words


def test_every_page_of_docs_is_built_and_in_the_navigation(site):
    named = set(re.findall(r"^ +- [^\n]*: ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == written
    assert {name.replace(".md", ".html") for name in written} <= {
        path.relative_to(site).as_posix() for path in site.rglob("*.html")
    }


def test_every_config_and_task_is_in_the_gallery(pages):
    assert set(shipped.names()) | set(TASKS) <= pages["gallery.html"].anchors


def test_every_public_name_has_its_entry_and_its_words(pages, site):
    assert {f"ebm_jax.{name}" for name in ebm_jax.__all__} <= pages["api/index.html"].anchors
    everywhere = set().union(*(page.anchors for page in pages.values()))
    for module, names in {
        "ebm_jax.sampling.kernel": ["Kernel", "run", "run_stages", "scheduled", "unit_box"],
        "ebm_jax.models.energy": [
            "conjunction",
            "disjunction",
            "weighted",
            "negation",
            "tempered",
            "bridge",
            "clamped",
        ],
        "ebm_jax.applications": ["generate", "inpaint", "restore", "classify", "film"],
    }.items():
        assert {f"{module}.{name}" for name in names} <= everywhere
    assert {f"{made.__module__}.{made.__name__}" for made in methods.METHODS.values()} <= everywhere
    modules = {"metrics": "metrics", "methods": "methods", "sampling": "samplers"}
    for package, page in modules.items():
        names = {path.stem for path in (ROOT / "ebm_jax" / package).glob("*.py")} - {"__init__"}
        assert {f"ebm_jax.{package}.{name}" for name in names} <= pages[f"api/{page}.html"].anchors
    text = words_of((site / "api" / "index.html").read_text())
    for name in set(ebm_jax.__all__) - {"__version__"}:
        first = words_of(inspect.getdoc(getattr(ebm_jax, name)).split("\n")[0]).split()[:4]
        assert " ".join(first) in text, name


def test_pages_load_and_link_only_what_is_there(pages, site):
    foreign, missing = [], []
    for name, page in pages.items():
        for target in page.loads + [link for link in page.links if not link.startswith(("http", "mailto:"))]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                foreign.append((name, target))
                continue
            file = (site / name).parent / unquote(parts.path) if parts.path else site / name
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                missing.append((name, target))
            elif parts.fragment and file.suffix == ".html" and not parts.fragment.startswith("__"):
                other = pages[file.resolve().relative_to(site.resolve()).as_posix()]
                if unquote(parts.fragment) not in other.anchors:
                    missing.append((name, target))
    assert (foreign, missing) == ([], [])


def test_style_sheets_load_nothing_from_elsewhere(site):
    sheets = {path.name: path.read_text() for path in site.rglob("*.css")}
    assert sheets
    for name, text in sheets.items():
        assert not re.findall(r"@import|url\([\"']?(?:https?:)?//[^)]*", text), name


def test_in_a_browser_as_wide_as_a_phone_every_page_shows_its_text_and_does_not_scroll_sideways(site, pages):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    frames = "".join(f'<iframe src="{name}" style="width: {PHONE}px; height: 800px"></iframe>' for name in pages)
    (site / "probe.html").write_text(f"<body>{MEASURE}<style>iframe {{ border: 0 }}</style>{frames}</body>")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append((self.path, int(code)))

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/probe.html"
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", address]
        dom = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FOR_EVER).stdout
        server.shutdown()
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1].replace("&amp;", "&"))
    assert set(found) == set(pages)
    assert {name: page["width"] for name, page in found.items() if page["width"] > PHONE} == {}
    assert {name: page["broken"] for name, page in found.items() if page["broken"]} == {}
    assert {name for name, page in found.items() if page["text"] < 200 or page["inside"] != PHONE} == set()
    assert [path for path, status in asked if status >= 400 and path != "/favicon.ico"] == []
