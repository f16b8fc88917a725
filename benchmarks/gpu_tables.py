"""What gpu_all.sh found, as the tables of docs/devices.md and docs/gpu-retrieval.md.

    python benchmarks/gpu_tables.py FOLDER

reads the reports in FOLDER (those that are there) and writes into it: devices.md and gpu-retrieval.md, each the table
under «Measuring» of the page of that name with its last column filled, for pasting, and the reports behind it;
gpu_all.md, both after a list of the steps; gpu_all.json, steps and cells. What no report tells stays «not measured».
Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
NOT_MEASURED = "not measured"
REPORTS = ("first_ten_minutes", "seqsim_gpu", "extraction_gpu")
PAGES = {"devices": ("extraction_gpu", "first_ten_minutes"), "gpu-retrieval": ("seqsim_gpu",)}
Report = dict[str, Any]


def table_of(page: str) -> list[list[str]]:
    """Cells of the table under «Measuring», header first, without the line below it."""
    lines = (DOCS / f"{page}.md").read_text(encoding="utf-8").partition("\n## Measuring\n")[2].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rest = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in rest]
    return [rows[0], *rows[2:]]


def settings_alone(extraction: Report, changed: bool) -> list[Report]:
    """Measurements of the device alone, with the engine's own settings or with one that was changed."""
    own = {"outputs", "pool", "audio_hours_per_hour", "efficiency", "idle", "wall", "off", "bytes", "fill"}
    return [r for r in extraction["device_alone"] if bool(set(r) - own) == changed]


def three(extraction: Report) -> Report:
    return settings_alone(extraction, changed=False)[0]


def peers_ratio(extraction: Report) -> str:
    best = max(r["audio_hours_per_hour"] or 0 for r in extraction["pytorch"])
    return f"{three(extraction)['audio_hours_per_hour'] / best:.2f}"


def rates_kept(extraction: Report) -> str:
    found = [
        f"{r['outputs']} as {'means' if r['pool'] else 'frames'} {r['audio_hours_per_hour']:,.0f}, "
        f"{r['bytes'] / r['wall'] / 1e9:.2f} GB/s"
        for r in settings_alone(extraction, changed=False)
    ]
    return "; ".join(found)


def settings_changed(extraction: Report) -> str:
    own = set(three(extraction))
    found = []
    for r in settings_alone(extraction, changed=True):
        name = ", ".join(f"{k} {v}" for k, v in r.items() if k not in own)
        found.append(f"{name}: {r['efficiency']:.2f}")
    return "; ".join(found)


def share(seqsim: Report, ragged: bool, dimensions: tuple[int, ...]) -> str:
    """The first measurement of each d: later ones try other tiles."""
    found = {r["d"]: r["share"] for r in reversed(seqsim["shares"]) if r["ragged"] == ragged}
    return ", ".join(f"{found[d]:.2f}" for d in dimensions)


def beside_peers(seqsim: Report) -> str:
    found = [r for r in seqsim["peers"] if r["d"] == 1280]
    return "; ".join(f"{r['peer']} {r['seconds']:.2f}×" for r in found)


def while_packing(seqsim: Report) -> str:
    found = seqsim["while_packing"][0]
    return f"{found['compare']:.2f} × the time alone; packs {found['gigabytes_per_second']:.1f} GB/s"


# By page and the beginning of a row's first cell: the report, and what it tells. A report that lacks it raises.
CELLS: dict[str, dict[str, tuple[str, Callable[[Report], str]]]] = {
    "devices": {
        "share of the bfloat16 matrix product rate": ("extraction_gpu", lambda r: f"{three(r)['efficiency']:.2f}"),
        "× Hugging Face PyTorch": ("extraction_gpu", peers_ratio),
        "GPU idle": ("extraction_gpu", lambda r: f"{three(r)['idle']:.0%}"),
        "audio-hours per hour": ("extraction_gpu", rates_kept),
        "without fused attention": ("extraction_gpu", settings_changed),
        "pinned or pageable memory": ("extraction_gpu", lambda r: str(r["host_memory"])),
    },
    "gpu-retrieval": {
        "share of torch.mm": ("seqsim_gpu", lambda r: share(r, False, (1280,))),
        "beside flash-maxsim and": ("seqsim_gpu", beside_peers),
        "d = 1024, 512, 384": ("seqsim_gpu", lambda r: share(r, False, (1024, 512, 384))),
        "ragged lengths": ("seqsim_gpu", lambda r: share(r, True, (1280,))),
        "best tile": ("seqsim_gpu", lambda r: "; ".join(f"d = {d}: {tile}" for d, tile in r["best_tile"].items())),
        "comparing while": ("seqsim_gpu", while_packing),
    },
}


def reports_in(folder: Path) -> dict[str, Report]:
    """What was measured, by report; nothing of one that is missing, cut off, or of a CPU."""
    found: dict[str, Report] = {name: {} for name in REPORTS}
    for name in REPORTS:
        try:
            report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if report.get("settings", {}).get("device") != "cpu":
            found[name] = report.get("results") or report.get("figures") or {}
    return found


def filled(page: str, reports: dict[str, Report]) -> list[list[str]]:
    """The page's table with the last cell of each row as its report tells it."""
    header, *rows = table_of(page)
    for row in rows:
        for begin, (name, tell) in CELLS[page].items():
            if row[0].startswith(begin):
                try:
                    row[-1] = tell(reports[name]) or NOT_MEASURED
                except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
                    row[-1] = NOT_MEASURED
    return [header, *rows]


def markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    folder = p.parse_args().folder
    steps = [["step", "seconds", "result"]]
    if (folder / "steps.tsv").exists():
        steps += [line.split("\t") for line in (folder / "steps.tsv").read_text(encoding="utf-8").splitlines()]
    tables = {page: filled(page, reports_in(folder)) for page in PAGES}
    parts = ["# GPU: what was measured", markdown(steps)]
    for page, names in PAGES.items():
        behind = [folder / f"{name}.md" for name in names]
        texts = [f.read_text(encoding="utf-8").strip() for f in behind if f.exists()]
        text = "\n\n".join([markdown(tables[page]), *texts])
        (folder / f"{page}.md").write_text(text + "\n", encoding="utf-8")
        parts += [f"## docs/{page}.md", markdown(tables[page])]
    (folder / "gpu_all.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    found = json.dumps({"steps": steps, "tables": tables}, indent=1)
    (folder / "gpu_all.json").write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
