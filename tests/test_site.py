"""The documentation site: built as `make docs` does, and looked at as a reader's browser does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest
from report_pages import BROWSER, browse

import voxstrata as vs
from voxstrata.cli.app import main

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs", reason="needs the extra `docs`")
pytestmark = pytest.mark.long  # the tutorial is run while the site is built


class Links(HTMLParser):
    """What a page loads, where it leads, and which anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.terms: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
            self.terms += [found["href"]] if found.get("class") == "term" else []
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(found["href"])
        elif tag != "a" and "src" in found:
            self.loaded.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Links]:
    return {path.relative_to(site).as_posix(): Links(path) for path in site.rglob("*.html")}


def test_every_link_of_the_built_pages_leads_to_a_place(site: Path, pages: dict[str, Links]) -> None:
    dead = []
    for name, page in pages.items():
        if name == "404.html":  # its links are from the root of wherever the site lies
            continue
        for link in {*page.links, *page.loaded}:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = os.path.normpath(Path(name).parent / unquote(parts.path)) if parts.path else name
            anchors = pages[target].anchors if target in pages else None
            if not (site / target).exists() or (parts.fragment and unquote(parts.fragment) not in (anchors or ())):
                dead.append(f"{name}: {link}")
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Links]) -> None:
    assert [(name, url) for name, page in pages.items() for url in page.loaded if urlsplit(url).netloc] == []
    sheets = "\n".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"@import|url\([\"']?https?:", sheets) == []


def test_every_page_of_the_docs_is_on_the_site(pages: dict[str, Links]) -> None:
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= pages.keys()
    assert {"index.html", "changelog.html", "contributing.html", "security.html"} <= pages.keys()


def options(command: click.Command, context: click.Context, path: str) -> list[tuple[str, str]]:
    found = [(path, option) for p in command.params if isinstance(p, click.Option) for option in p.opts]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            assert sub is not None
            found += options(sub, context, f"{path} {name}")
    return found


def test_the_reference_has_every_option_and_every_public_name(site: Path, pages: dict[str, Links]) -> None:
    text = unescape(re.sub(r"<[^>]+>", "", (site / "reference-cli.html").read_text(encoding="utf-8")))
    found = re.findall(r"^(voxstrata[\w -]*)¶\s(.*?)(?=^voxstrata[\w -]*¶|\Z)", text, re.M | re.S)
    sections = dict(found)
    with click.Context(main) as context:
        wanted = options(main, context, "voxstrata")
    assert len(wanted) > 100
    assert [(path, option) for path, option in wanted if option not in sections.get(path, "")] == []
    names = re.sub(r"<[^>]+>", "", (site / "reference-api.html").read_text(encoding="utf-8"))
    assert [name for name in vs.__all__ if name != "__version__" and f"vs.{name}" not in names] == []


def test_the_tutorial_was_run(site: Path) -> None:
    page = (site / "tutorial.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img [^>]*src="(tutorial_files/[^"]+\.png)"', page)
    assert len(pictures) == 2
    assert all((site / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "120 recordings, 40 sentences" in page
    cells = json.loads((site / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [n for n, cell in enumerate(code, 1) if cell["execution_count"] != n] == []


def test_a_term_is_linked_where_a_page_uses_it_first(pages: dict[str, Links]) -> None:
    for page in pages.values():
        assert len(page.terms) == len(set(page.terms))
    assert "glossary.html#recall1-recallk" in pages["tutorial.html"].terms
    assert "glossary.html#rtfx" in pages["benchmarks.html"].terms
    assert pages["glossary.html"].terms == []
    linked = {term for page in pages.values() for term in page.terms}
    assert len(linked) > 30


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH")
@pytest.mark.parametrize("page", ["index", "tutorial", "align", "reference-cli", "reference-api"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_fits_its_screen(page: str, width: int, site: Path, tmp_path: Path) -> None:
    """Nothing but boxes that scroll by themselves is wider than the screen, and every picture is drawn."""
    probe = tmp_path / "probe.html"
    probe.write_text(FRAME.replace("WIDTH", str(width)).replace("PAGE", escape((site / f"{page}.html").as_uri())))
    dom, _ = browse(probe, "--allow-file-access-from-files", "--window-size=1600,1000", "--virtual-time-budget=5000")
    said = json.loads(unescape(dom.split("<pre>")[1].split("</pre>")[0]))
    assert said["page"][1] <= said["page"][0] <= width
    assert all(natural > 0 for natural in said["images"])


FRAME = """
<body style="margin: 0"><iframe width="WIDTH" height="900" style="border: 0" src="PAGE"></iframe><pre></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const d = frame.contentDocument;
  const images = [...d.images].map((i) => i.naturalWidth);
  const say = {page: [d.documentElement.clientWidth, d.documentElement.scrollWidth], images};
  document.querySelector("pre").textContent = JSON.stringify(say);
};
</script>"""
