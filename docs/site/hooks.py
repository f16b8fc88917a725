"""What the site has beyond docs/*.md, made while it is built.

- Pages of the repository's root and of benchmarks/ (README, changelog, ...), with links that lead to the site's pages.
- The reference: every command and option from click, every public name from its docstring.
- The tutorial, executed: what its cells print and draw, and the notebook to take along.
- Terms of the glossary, linked where a page uses them first.
"""

import posixpath
import re
import tempfile
from collections.abc import Collection
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click
import jupytext
import nbclient
import nbconvert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.app import main

ROOT = Path(__file__).parents[2]
# files outside docs/, and what they are called on the site
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmark-scripts.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE",
}
_REPOSITORY = {there: here for here, there in OUTSIDE.items()}
# objects that public functions give, which have no public name of their own
GIVEN = {
    "The store": "voxstrata.store.reader.EmbeddingStore",
    "An utterance of a store": "voxstrata.store.one.StoredUtterance",
    "A model": "voxstrata.engine.model.SpeechModel",
    "A corpus": "voxstrata.corpus.table.Corpus",
    "What a study found": "voxstrata.base.result.Result",
}
UNLINKED = ("glossary.md", "changelog.md", "reference-cli.md", "reference-api.md")  # pages without links to terms
# words of the glossary that prose uses in other senses, too: not linked
COMMON = {"Claim", "Commit", "Loop", "Mark", "Part", "Plan", "State", "Store", "Final", "Recall", "Tail"}
NOT_HERE = {"contexts.md": {"Group"}, "decisions.md": {"Group"}}  # groups of keys
# uses of a term's word that are not the term
ELSEWHERE = {
    "Block": r"(?<!in )(?<!by )block(?! of| by)",
    "Chance": r"(?<!by )chance",
    "Exit": r"exit(?! code| status| with)",
    "Family": r"famil(?:y(?! \d)|ie(?=s))",
    "Unit": r"unit(?! length| row| vector)",
}
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
_ITEM = re.compile(r"(?:-|1\.) ")
_GOES_ON = re.compile(r"(?:-|\d+\.| ) *")  # an item, or a line that belongs to one
_FENCE = re.compile(r"^ *(```|~~~)")


def on_files(files: Files, config: Any) -> Files:
    def add(name: str, content: str | bytes) -> None:
        if old := files.get_file_from_path(name):
            files.remove(old)
        files.append(File.generated(config, name, content=content))

    for source, name in OUTSIDE.items():
        add(name, (ROOT / source).read_text(encoding="utf-8"))
    add("reference-cli.md", cli_page())
    add("reference-api.md", api_page())
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for name, content in tutorial(text, config.extra["run_tutorial"]).items():
        add(name, content)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between files of the repository become links between pages of the site; a list gets the empty line before
    it that CommonMark does not ask for, and Python's Markdown does."""
    here = posixpath.dirname(_REPOSITORY.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def moved(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        place = posixpath.normpath(posixpath.join(here, target))
        name = OUTSIDE.get(place, place.removeprefix("docs/"))
        return f"]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    fenced, lines = False, []
    for line in markdown.splitlines():
        fenced ^= bool(_FENCE.match(line))
        if not fenced and _ITEM.match(line) and lines and lines[-1] and not _GOES_ON.match(lines[-1]):
            lines.append("")
        lines.append(line if fenced else _LINK.sub(moved, line))
    return "\n".join(lines)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    name = page.file.src_uri
    if name == "reference-cli.md":
        html = html.replace("<code>Sentinel.UNSET</code>", "")  # of options without a default
        html = re.sub(rf"between (<code>\d+</code>) and <code>{options.COUNT.max}</code>", r"\1 and above", html)
    for public, own in vs._ALIASES.items() if name == "reference-api.md" else ():
        html = html.replace(f">{own}<", f">{public}<")
    return html if name in UNLINKED else with_terms(html, page.url, NOT_HERE.get(name, ()))


# --- the reference ---


def cli_page() -> str:
    with click.Context(main) as context:
        for command in _commands(main, context):
            command.help = _as_markdown(cleandoc(command.help or ""))
    text = "Every command with its options, as `--help` has them. [Commands](commands.md) has an example of each."
    block = (
        "::: mkdocs-click\n    :module: voxstrata.cli.app\n    :command: main\n    :prog_name: voxstrata\n    :depth: 1"
    )
    return f"# Command line\n\n{text}\n\n{block}\n    :style: table\n"


def _commands(command: click.Command, context: click.Context) -> list[click.Command]:
    found = [command]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if sub := command.get_command(context, name):
                found += _commands(sub, context)
    return found


def _as_markdown(text: str) -> str:
    """Click keeps the lines of a paragraph that begins with \\b as they are: here they are code, but for a first
    line that ends in a colon."""
    made = []
    for part in text.split("\n\n"):
        if not part.lstrip().startswith("\b"):
            made.append(part)
            continue
        lines = part.replace("\b\n", "").splitlines()
        if lines[0].endswith(":"):
            made.append(lines.pop(0).strip())
        made.append("\n".join(f"    {line.strip()}" for line in lines))
    return "\n\n".join(made)


def api_page() -> str:
    """Every name that docs/api.md lists, in its order; then what they give."""
    listed = re.findall(r"^\| \[?`vs\.(\w+)`", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    parts = ["# Every public name", "From the docstrings. [From Python](api.md) has an example of each."]
    for name in listed:
        if name in vs._PLACES:
            where = f"voxstrata.{vs._PLACES[name]}.{vs._ALIASES.get(name, name)}"
            parts.append(f"::: {where}\n    options:\n      heading: vs.{name}\n      toc_label: {name}")
    parts.append("Objects that these give:")
    parts += [f"::: {where}\n    options:\n      heading: {title}" for title, where in GIVEN.items()]
    return "\n\n".join(parts)


# --- the tutorial ---


@cache
def tutorial(text: str, run: bool) -> dict[str, str | bytes]:
    """The tutorial's page and the notebook: content by name. run: with what its cells give, and its pictures."""
    notebook = jupytext.reads(text, fmt="md")
    if run:
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    for cell in (cell for cell in notebook.cells if cell["cell_type"] == "code"):
        # what libraries warn of stays out, and titles within a cell are none of the page's
        cell["outputs"] = [out for out in cell["outputs"] if out.get("name") != "stderr"]
        for out in cell["outputs"]:
            if shown := out.get("data", {}).get("text/html"):
                shown = re.sub(r"<(/?)h[23]>", lambda tag: "</strong></p>" if tag[1] else "<p><strong>", shown)
                out["data"]["text/html"] = f'<div class="output">{shown}</div>'
    page, found = nbconvert.MarkdownExporter().from_notebook_node(
        notebook, {"output_files_dir": "tutorial_files", "unique_key": "tutorial"}
    )
    ran = " that was run when the site was built" if run else ""
    taken = f"*This page is a notebook{ran}: [tutorial.ipynb](tutorial.ipynb).*"
    title, _, rest = page.partition("\n\n")
    return {
        "tutorial.md": f"{title}\n\n{taken}\n\n{rest}",
        "tutorial.ipynb": nbconvert.exporters.NotebookExporter().from_notebook_node(notebook)[0],
        **found["outputs"],
    }


# --- the glossary ---


@cache
def glossary() -> dict[str, tuple[str, str]]:
    """By term: the page with its anchor, and the first sentence of what it means. A heading may name several."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    found = {}
    for heading, body in re.findall(r"^### (.+)\n\n((?:.+\n)+)", text, re.M):
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", " ".join(body.split()))
        first = re.split(r"(?<=[.:]) (?=[A-Z])", plain)[0]
        for term in sorted({*heading.split(", ")} - COMMON):
            found[term] = f"glossary.html#{anchor}", first
    return found


@cache
def _any_term() -> re.Pattern[str]:
    terms = sorted(glossary(), key=len, reverse=True)
    one_of = "|".join(f"({ELSEWHERE.get(term, re.escape(term))}s?)" for term in terms)
    return re.compile(rf"(?<![\w@-])(?:{one_of})(?![\w-])", re.I)


def with_terms(html: str, url: str, without: Collection[str] = ()) -> str:
    """A page's HTML with a link to the glossary where each of its terms stands first, outside headings, code, links."""
    terms, within = sorted(glossary(), key=len, reverse=True), []
    linked = {glossary()[term][0] for term in without}

    def link(match: re.Match[str]) -> str:
        place, meaning = glossary()[terms[match.lastindex - 1]]
        if place in linked:
            return match[0]
        linked.add(place)
        title = meaning.replace("&", "&amp;").replace('"', "&quot;")
        return f'<a class="term" href="{get_relative_url(place, url)}" title="{title}">{match[0]}</a>'

    parts = []
    for part in re.split(r"(<[^>]*>)", html):
        if tag := re.match(r"<(/?)(a|code|pre|h[1-6]|table|script|style)\b", part):
            within = within[:-1] if tag[1] else [*within, tag[2]]
        elif part and not part.startswith("<") and not within:
            part = _any_term().sub(link, part)
        parts.append(part)
    return "".join(parts)
