"""voxstrata mine"""

from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, print_left_out, save_and_print
from voxstrata.cli.similarity import chosen_ids


class _Threshold(click.ParamType):  # type: ignore[type-arg]
    name = "NUMBER|best"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "best" else click.FLOAT.convert(value, param, ctx)


@click.command(short_help="Pairs of likely translations, thresholded, as miners make them.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path())
@options.out("Folder for pairs.parquet, curve.parquet, mine.md and mined.png.")
@options.outputs
@click.option("--x", "x_languages", help="Languages of the first set, e.g. en,es. [default: all]")
@click.option("--y", "y_languages", help="Languages of the second set. [default: all of a second store]")
@click.option("--x-ids", type=options.PATH, help="File naming the first set's utterances, one id a line.")
@click.option("--y-ids", type=options.PATH, help="The same for the second set.")
@click.option(
    "--score",
    type=click.Choice(["ratio_margin", "csls", "raw"]),
    default="ratio_margin",
    help="What pairs are chosen by: similarity over, or less, that of both neighbourhoods, or itself.",
)
@click.option("--neighbours", type=options.COUNT, help="k of the score. [default: 4; of csls 10]")
@click.option(
    "--strategy",
    type=click.Choice(["intersection", "max"]),
    default="intersection",
    help="Pairs of which either is the best of the other, or the best pairs first, each utterance once.",
)
@click.option(
    "--threshold",
    type=_Threshold(),
    help="Leave out pairs of a lower score; `best`: the one of highest F1 on half of the known groups, figures of the "
    "other half. [default: keep all]",
)
@options.bootstrap("groups")
@options.threads
@options.overwrite
@options.as_json
def mine(
    sources: tuple[str, ...],
    folder: Path,
    outputs: str,
    x_languages: str | None,
    y_languages: str | None,
    x_ids: Path | None,
    y_ids: Path | None,
    score: str,
    neighbours: int | None,
    strategy: str,
    threshold: float | str | None,
    bootstrap: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Mine pairs of likely translations of two sets, or of one set with itself.

    SOURCE is a store, or two: pairs are then mined by the cosine of mean-pooled states, all compared. Or it is a folder
    that `voxstrata similarity` made, or several of them: pairs are mined by SeqSim from its lists. Where
    groups are known, precision and recall stand beside chance, by threshold.

    \b
    Example:
      voxstrata mine speech.zarr --outputs layer_06 --x en --y es -o mined
      voxstrata similarity speech.zarr --outputs layer_06 --x en --y es -o en-es
      voxstrata mine en-es -o mined-seqsim --threshold 1.06
    """
    import matplotlib  # noqa: F401  (missing: say so before the work, not after)

    from voxstrata.retrieval.finished import similarity_folders
    from voxstrata.studies.mine.result import MinedPairs

    how = vs.MiningOptions(score, neighbours, strategy, threshold, bootstrap)
    made = [bool(similarity_folders(source)) for source in sources]
    sets = (x_languages, y_languages, x_ids, y_ids)
    if any(made) and (not all(made) or outputs != "all" or any(sets)):
        raise vs.UsageError(
            f"{sources[made.index(True)]}: outputs and sets were chosen when `voxstrata similarity` made it; give such "
            "folders alone"
        )
    if not any(made) and len(sources) > 2:
        raise vs.UsageError(
            f"more than two stores ({len(sources)}): give one, or two whose utterances are to be paired"
        )
    MinedPairs.refuse_foreign(folder)
    MinedPairs.refuse_earlier(folder, overwrite)
    with TerminalReporter() as reporter:
        if any(made):
            result = vs.mine_similarity(sources, how, reporter)
        else:
            stores = [vs.open_store(source) for source in sources]
            for store in stores:
                print_left_out(store)
            x = vs.select(stores[0], x_languages, chosen_ids(x_ids))
            second = len(stores) == 2 or y_languages is not None or y_ids is not None
            y = vs.select(stores[-1], y_languages, chosen_ids(y_ids)) if second else None
            result = vs.mine(x, y, outputs, how, reporter)
        save_and_print(result, folder, as_json, reporter, sources=list(sources))
