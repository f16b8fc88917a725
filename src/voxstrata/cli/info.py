"""voxstrata info"""

import shlex
from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.base.plain import counted, size_in_words
from voxstrata.base.tables import terminal_width
from voxstrata.cli import options
from voxstrata.cli.console import FAILURES_SHOWN, aligned, clock, print_json
from voxstrata.cli.saying import say, say_wrapped

RANGES_SHOWN = 12


@click.command()
@click.argument("path", type=click.Path())
@options.as_json
def info(path: str, as_json: bool) -> None:
    """Say what is in a model folder or a store.

    \b
    Example:
      voxstrata info speech.zarr
    """
    from voxstrata.encoders.card import CARD

    if "://" not in path and not Path(path).exists():
        raise vs.InputError(
            f"{path}: no such model folder or store; `voxstrata export` makes the one, `extract` the other"
        )
    is_model = "://" not in path and (Path(path) / CARD).exists()
    about = vs.open_model(path).card.to_dict() | {"kind": "model"} if is_model else _store(vs.open_store(path))
    if as_json:
        print_json(about)
    else:
        (_print_model if is_model else _print_store)(path, about)


def _store(store: Any) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    from voxstrata.store.writer import DONE, STATUS

    table, done = store.table(["seconds", "failure"]), np.flatnonzero(store.status == DONE)
    language, names = store.codes("language")
    counted = (
        np.bincount(language, minlength=len(names) + 1),
        np.bincount(language[done], table["seconds"].to_numpy()[done], len(names) + 1),
        np.bincount(language[done], minlength=len(names) + 1),
    )
    languages: dict[str, dict[str, Any]] = {}
    rows = zip(*(values.tolist() for values in counted), strict=True)
    for name, row in zip([*names.to_pylist(), None], rows, strict=True):
        if row[0]:  # what is empty is as what is null
            own = languages.setdefault(name or "(none)", dict.fromkeys(("utterances", "seconds", "done"), 0))
            own |= {key: own[key] + value for key, value in zip(own, row, strict=True)}
    numbers = np.bincount(store.status, minlength=len(STATUS)).tolist()
    first = sorted((int(np.argmax(store.status == n)), n) for n in range(len(STATUS)) if numbers[n])
    failures: dict[str, str] = {}
    if table["failure"].null_count < len(table):
        failed = pa.array(np.flatnonzero(table["failure"].is_valid().to_numpy()))
        ids, reasons = (column.take(failed).to_pylist() for column in (store.table(["id"])["id"], table["failure"]))
        failures = dict(zip(ids, reasons, strict=True))
    row_bytes = store.model.d_model * store.spec.stored_dtype.itemsize
    return {
        "kind": "store",
        "complete": store.complete,
        "status": {STATUS[n]: numbers[n] for _, n in first},
        "languages": languages,
        "failures": failures,
        "bytes_per_output": int(store.length[store.status == 1].sum()) * row_bytes,
        "missing": None if store.complete else _missing(store),
        **store.about,
    }


def _missing(store: Any) -> dict[str, Any]:
    """The units that are to be done: which, who is at them where that is known, and what brings them."""
    from voxstrata.store.claims import Claims

    units = store.pending_units
    claimed = Claims(store.files).holders(units)
    return {
        "units": len(units),
        "of": len(store.unit_bounds),
        "ranges": _ranges(units),
        "claimed": {str(unit): who for unit, who in claimed.items()},
        "command": _command(store),
    }


def _ranges(units: list[int]) -> str:
    """Rising numbers in short: "0, 3-7"."""
    ranges: list[list[int]] = []
    for unit in units:
        if ranges and unit == ranges[-1][1] + 1:
            ranges[-1][1] = unit
        else:
            ranges.append([unit, unit])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:RANGES_SHOWN]]
    return ", ".join(shown) + (f", … to {units[-1]}" if len(ranges) > RANGES_SHOWN else "")


def _command(store: Any) -> str:
    """The command that goes on with a store; what the store does not know is in capitals."""
    spec, model = store.spec, store.model
    if made := store.about.get("spans"):
        from voxstrata.alignments.grouping import SPAN_GROUPS

        words = ["voxstrata", "spans", made["store"], "ALIGNMENTS", "-o", store.files.root, "--tier", made["tier"]]
        words += ["--outputs", ",".join(spec.outputs), *(["--frames"] if made["pool"] == "frames" else [])]
        return shlex.join([*words, "--group" if made["group"] in SPAN_GROUPS else "--meanings", made["group"]])
    words = ["voxstrata", "extract", "CORPUS", "MODEL", "-o", store.files.root]
    if tuple(spec.outputs) != tuple(model.outputs):
        words += ["--outputs", ",".join(spec.outputs)]
    if spec.context.mode != model.family.contexts[0]:
        words += ["--context", spec.context.mode]
    if spec.dtype != "float16":
        words += ["--dtype", spec.dtype]
    if spec.pool:
        words.append("--pooled")
    if spec.every != 1:
        words += ["--every", str(spec.every)]
    if spec.arithmetic != model.dtype and spec.arithmetic != "float32":
        words += ["--device", "tensorrt" if spec.arithmetic == "float16" else "cuda:bfloat16"]
    if (lengths := store.about.get("lengths", "headers")) != "headers":
        words += ["--lengths", lengths]
    return shlex.join(words)


def _print_model(path: str, card: dict[str, Any]) -> None:
    measured, family = card["validation"], card.get("family")
    worst = max(max(found.values()) for name, found in measured.items() if name.startswith("outputs"))
    size = f"{counted(card['layers'], 'layer')}, d = {card['d_model']}, {counted(card['heads'], 'head')}"
    size += f", {card['n_mels']} mel bins" if family is None else ""
    rows = [
        ("checkpoint", card["checkpoint"] + (f" @ {card['revision']}" if card["revision"] else "")),
        ("encoder SHA-256", card["weights_sha256"]),
        ("encoder", size),
        ("dtype, opset", f"{card['dtype']}, {card['opset']}"),
        ("outputs", ", ".join(card["outputs"])),
        *(_whisper_rows(card) if family is None else _family_rows(family)),
        ("worst difference", f"{worst:.1e} relative L2 from PyTorch"),
        ("made with", ", ".join(f"{k} {v}" for k, v in card["tools"].items())),
    ]
    _print_rows(f"{path}: exported encoder", rows)


def _whisper_rows(card: dict[str, Any]) -> list[tuple[str, str]]:
    s = card["silence"]
    keys = f"{counted(s['groups'], 'key')} per head" if s["groups"] else "one key per position"
    keys += f" in each of {counted(len(s['buckets']), 'bucket')}" if "buckets" in s else ""
    source = f"after {s['before']}" if "before" in s else f"log-mel {s.get('pad_level')}"
    if s["kind"] == "calibrated":
        source = counted(len(s["recordings"]), "recording")
    return [
        ("final LayerNorm", "on every output" if card["final_norm"] == "every" else "on `final`"),
        ("silence cache", f"{s['kind']} ({source}), {keys}"),
    ]


def _family_rows(declared: dict[str, Any]) -> list[tuple[str, str]]:
    from voxstrata.encoders.family import Family

    family = Family.from_dict(declared)
    width = "" if family.input == "samples" else f" of {family.features}"
    rows = [
        ("family", f"{family.name}, {family.norm}-norm"),
        ("frames", f"every {1000 * family.seconds_per_frame:g} ms, of {family.shortest} samples or more"),
        ("input", f"{family.input.replace('_', ' ')}{width}; {family.normalisation}"),
        ("context", ", ".join(family.contexts)),
        ("longer ones", family.cutting),
        ("masks", family.masks),
    ]
    return rows + ([("prefix tokens", ", ".join(family.prefix))] if family.prefix else [])


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    """In lines of the terminal's width; a hash that is longer, which no line may break, is cut there."""
    width = terminal_width()
    say(title)
    for name, value in rows:
        if width and " " not in value and len(value) > width - 19:
            value = f"{value[:16]}… (whole with --json)"
        say_wrapped(f"  {name:<17}{value}", indent=" " * 19)


def _print_store(path: str, about: dict[str, Any]) -> None:
    spec, model, context = about["spec"], about["model"], about["spec"]["context"]
    stored = "one mean vector per utterance, float32"
    if not spec["pool"]:
        stored = f"frames, {spec['dtype']}, one row per {about['samples_per_row'] / 16:g} ms"
    detail = f", tail {context['tail'] * 0.02:g} s" if "tail" in context else ""  # of Whisper's frames
    kind = model["silence"].get("kind")  # a store that others made may not say
    silence = f", {kind} silence" if context["mode"] == "bucketed" and kind else ""
    rows = [
        (
            "model",
            f"{model['checkpoint']}, {counted(model['layers'], 'layer')}, d = {model['d_model']}, {model['dtype']}",
        ),
        ("family", model.get("family", {}).get("name", "Whisper")),
        ("encoder SHA-256", model["weights_sha256"]),
        ("outputs", ", ".join(spec["outputs"])),
        ("stored", f"{stored}; {size_in_words(about['bytes_per_output'])} per output"),
        ("context", context["mode"] + detail + silence),
        ("utterances", ", ".join(f"{n:,} {s}" for s, n in about["status"].items())),
        ("complete", "yes" if about["complete"] else "no"),
    ]
    if spans := about.get("spans"):
        rows.append(("spans", f"{spans['tier']} of {spans['store']}, grouped by {spans['group']}"))
    if about.get("relabelled"):
        rows.append(("relabelled", f"changes: {about['relabelled']}; what they replaced is in {path}/history"))
    if missing := about["missing"]:
        claimed = missing["claimed"]
        rows.append(("missing", f"{missing['units']:,} of {counted(missing['of'], 'unit')}: {missing['ranges']}"))
        who = [f"unit {unit}: {name}" for unit, name in list(claimed.items())[:FAILURES_SHOWN]]
        more = f", and {len(claimed) - len(who)} more" if len(claimed) > len(who) else ""
        rows.append(("at work", "; ".join(who) + more if who else "nobody that is known of"))
        rows.append(("go on with", missing["command"]))
    _print_rows(f"{path}: store of embeddings", rows)
    by_language = sorted(about["languages"].items())
    table = [[name, f"{e['utterances']:,}", f"{e['done']:,}", clock(e["seconds"])] for name, e in by_language]
    say("\n" + aligned(["language", "utterances", "done", "audio done"], table))
    for name, reason in list(about["failures"].items())[:FAILURES_SHOWN]:
        say_wrapped(f"failed: {name}: {reason}", indent="  ")
    if len(about["failures"]) > FAILURES_SHOWN:
        say_wrapped(f"… and {len(about['failures']) - FAILURES_SHOWN} more, all in {path}/utterances.parquet")
