"""Reading a report as a parser and as a browser sees it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

PHONE = 360  # CSS pixels
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@dataclass
class Table:
    """What a page shows: title, header, and for every cell its text, and its whole value where there is one."""

    title: str
    header: list[str] = field(default_factory=list)
    rows: list[list[tuple[str, str | None]]] = field(default_factory=list)
    note: str = ""
    boxed: bool = False


class Page(HTMLParser):
    """Sections with their tables, and all that a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, list[Table]] = {}
        self.text: dict[str, str] = {}
        self.images: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._section, self._into, self._heading = "", "", ""
        self._table: Table | None = None
        self._inbody = self._boxed = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "poster")]
        if tag == "img":
            self.images.append(found["src"] or "")
        if tag in ("h1", "h2", "h3", "summary"):
            self._heading, self._into = "", tag
        if tag == "section":
            self._section = found["data-run"] or ""
        if tag == "div":
            self._boxed = found.get("class") == "box"
        if tag == "table":
            self._table, self._inbody = Table(self._heading, boxed=self._boxed), False
            self.sections.setdefault(self._section, []).append(self._table)
        if tag == "tbody":
            self._inbody = True
        if tag == "tr" and self._inbody and self._table:
            self._table.rows.append([])
        if tag in ("th", "td") and self._table:
            self._into = "cell" if self._inbody else "head"
            if self._inbody:
                self._table.rows[-1].append(("", None))
            else:
                self._table.header.append("")
        if tag == "data" and self._table:
            self._table.rows[-1][-1] = ("", found["value"])
        if tag in ("p", "ul") and found.get("class") == "note":
            self._into = "note"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3", "summary", "th", "td", "p", "ul"):
            self._into = ""
        if tag == "div":
            self._boxed = False

    def handle_data(self, data: str) -> None:
        self.text[self._section] = self.text.get(self._section, "") + data
        if self._into in ("h1", "h2", "h3", "summary"):
            self._heading += data
        elif self._into == "note" and self._table:
            self._table.note += data
        elif self._into == "cell" and self._table:
            shown, value = self._table.rows[-1][-1]
            self._table.rows[-1][-1] = (shown + data, value)
        elif self._into == "head" and self._table:
            self._table.header[-1] += data


def browse(url: Path, *options: str) -> tuple[str, list[str]]:
    """The document as the browser has it after loading, and what stands in its console."""
    assert BROWSER is not None
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root otherwise
    profile = f"--user-data-dir={url.with_name('profile')}"  # not the user's own
    command = [
        BROWSER,
        "--headless",
        "--disable-gpu",
        profile,
        *root,
        "--enable-logging=stderr",
        *options,
        "--dump-dom",
    ]
    done = subprocess.run([*command, url.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


PROBE = """
<body style="margin: 0"><iframe width="WIDTH" height="700" srcdoc="PAGE"></iframe><pre></pre><script>
const frame = document.querySelector("iframe");
frame.onload = async () => {
  const d = frame.contentDocument, say = {};
  d.querySelectorAll("details").forEach((e) => { e.open = true; });
  const images = [...d.images];
  await Promise.all(images.map((i) => i.decode()));  // rejects what cannot be drawn
  say.images = images.map((i) => [i.naturalWidth, i.naturalHeight, i.getBoundingClientRect().width]);
  say.page = [d.documentElement.clientWidth, d.documentElement.scrollWidth];
  say.links = [...d.links].map((l) => l.getBoundingClientRect().right);
  say.boxes = [...d.querySelectorAll("table")].map((t) => t.parentElement.getBoundingClientRect().right);
  say.scrolling = [...d.querySelectorAll("table")].filter((t) => t.parentElement.scrollWidth > PHONE).length;
  document.querySelector("pre").textContent = JSON.stringify(say);
};
</script>"""


# What a reader does with the first table of a section and its first picture, and what the page gives for it.
CLICKS = """
<body style="margin: 0"><iframe width="1200" height="700" srcdoc="PAGE"></iframe><pre></pre><script>
const frame = document.querySelector("iframe"), say = { saved: [], orders: [] };
frame.onload = async () => {
  const d = frame.contentDocument, w = frame.contentWindow, blobs = [];
  w.URL.createObjectURL = (blob) => "blob:" + (blobs.push(blob) - 1);
  w.HTMLAnchorElement.prototype.click = function () { say.saved.push([this.download, this.href]); };
  const section = d.querySelector('section[data-run="RUN"]'), table = section.querySelector("table");
  const sort = table.tHead.querySelectorAll("button")[COLUMN];
  for (let n = 0; n < 3; n++) {
    sort.click();
    const rows = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
    say.orders.push([sort.parentElement.getAttribute("aria-sort"), rows]);
  }
  for (const b of section.querySelectorAll(".get button")) b.click();
  const bytes = await Promise.all(blobs.map((blob) => blob.arrayBuffer()));
  say.begins = bytes.map((b) => [...new Uint8Array(b).slice(0, 3)]);
  say.texts = await Promise.all(blobs.map((blob) => blob.text()));
  document.querySelector("pre").textContent = JSON.stringify(say);
};
</script>"""
