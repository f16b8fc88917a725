"""voxstrata retrieve"""

from pathlib import Path
from typing import Any

import click

import voxstrata as vs
from voxstrata.cli import options
from voxstrata.cli.console import TerminalReporter, print_left_out, save_and_print
from voxstrata.cli.corpora import refuse_spaced_lists, refuse_swapped_store


@click.command(short_help="Spoken-translation retrieval, layer by layer.")
@options.stores
@options.out("Folder for the results.")
@options.outputs
@options.languages
@click.option(
    "--similarity",
    "similarities",
    multiple=True,
    shell_complete=options.completing("seqsim_f1", "seqsim_precision", "seqsim_recall", "pooled_cosine", "monotone"),
    help="Some of seqsim_f1,seqsim_precision,seqsim_recall,pooled_cosine, and monotone, which heeds the order of "
    "frames. [default: all but monotone]",
)
@click.option(
    "--pool",
    type=click.Choice(["all", "shared-first"]),
    default="all",
    show_default=True,
    help="Candidates: all recordings of the target language, or for each pair of languages the sentences that both "
    "hold, the first recording of each (the published protocol).",
)
@click.option(
    "--negatives",
    shell_complete=options.completing("sound", "length", "words"),
    help="Also recall@1 among hard negatives, beside random ones: some of sound,length,words (nearest in sound, in "
    "length, most words shared with the translation).",
)
@click.option(
    "--pool-size",
    type=options.AtLeast(2),
    default=10,
    show_default=True,
    help="With --negatives: how many candidates a query chooses from, its translation among them.",
)
@click.option(
    "--phonetics",
    type=click.Path(),
    help="With --negatives sound: folder that `voxstrata phonetics` wrote for the corpus.",
)
@click.option(
    "--neighbours",
    type=options.COUNT,
    default=10,
    show_default=True,
    help="Nearest neighbours of each sentence whose agreement between languages is measured.",
)
@options.bootstrap("groups")
@options.kernel
@options.threads
@options.overwrite
@options.as_json
def retrieve(
    stores: tuple[str, ...],
    folder: Path,
    outputs: str,
    languages: str | None,
    similarities: tuple[str, ...],
    pool: str,
    negatives: str | None,
    pool_size: int,
    phonetics: str | None,
    neighbours: int,
    bootstrap: int,
    kernel: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Spoken-translation retrieval: recall@1, @5, @10 and MRR for every output and pair of languages in STORE.

    Utterances of one `group` are translations of each other. Writes retrieval.parquet, ranks.parquet (of every query
    the rank of its translation), retrieval.md, recall_by_layer.png and languages.png, both also as PDF; every figure
    stands beside its pool size and chance. The table also holds CSLS and ratio-margin scores, hubness, and mutual
    nearest neighbours and linear CKA between languages. With --negatives, negatives.png, too.

    Several stores of one model are taken as one; no id may be in two of them. Stores of several models are compared:
    each against itself, on the utterances that all hold, figures side by side by depth (compared.parquet, compared.md,
    recall_by_depth.png).

    STORE may also be a folder that `voxstrata similarity` made. Recall then comes from its lists of the best
    candidates, and found.parquet and found.md are written.

    \b
    Example:
      voxstrata retrieve speech.zarr -o results --outputs layer_03,layer_06,final
      voxstrata retrieve speech.zarr -o hard --negatives sound,length,words --phonetics phonetics
      voxstrata retrieve speech-base.zarr speech-xlsr.zarr -o compared
      voxstrata retrieve en-es -o en-es-results
    """
    from voxstrata.retrieval.finished import is_similarity
    from voxstrata.retrieval.kernels import choose_kernel
    from voxstrata.store.several import open_by_encoder
    from voxstrata.studies import retrieve as study
    from voxstrata.studies.compared.measure import retrieve_each
    from voxstrata.studies.compared.result import ComparedRetrieval

    small: dict[str, Any] = {"negatives": negatives or (), "pool_size": pool_size, "phonetics": phonetics}
    if phonetics and "sound" not in (negatives or ""):
        raise vs.UsageError("--phonetics is of --negatives sound; add it, or leave it out")
    result: study.Retrieval | study.FoundRetrieval | ComparedRetrieval
    refuse_spaced_lists(stores, outputs=outputs, languages=languages)
    store = stores[0] if len(stores) == 1 else list(stores)
    if isinstance(store, str) and phonetics:
        refuse_swapped_store(store, phonetics, option="--phonetics")
    if isinstance(store, str) and is_similarity(store):
        if outputs != "all" or languages or similarities or kernel:
            raise vs.UsageError(f"{store}: outputs, languages, scores were chosen when `voxstrata similarity` made it")
        study.FoundRetrieval.refuse_foreign(folder)
        study.FoundRetrieval.refuse_earlier(folder, overwrite)
        result = study.evaluate_similarity(store, study.RetrievalOptions(bootstrap=bootstrap, pool=pool, **small))
        save_and_print(result, folder, as_json, store=store)
    else:
        import matplotlib  # noqa: F401  (missing: say so before minutes of work, not after)

        opened = open_by_encoder(stores)
        for one in opened:
            print_left_out(one)
        how = study.RetrievalOptions(
            bootstrap=bootstrap, kernel=choose_kernel(kernel), pool=pool, neighbours=neighbours, **small
        )
        kind = study.Retrieval if len(opened) == 1 else ComparedRetrieval
        kind.refuse_foreign(folder)
        kind.refuse_earlier(folder, overwrite)
        asked = ",".join(similarities) or None
        with TerminalReporter() as reporter:
            if len(opened) == 1:
                result = study.retrieve(opened[0], outputs, languages, asked, how, reporter)
            else:
                result = retrieve_each(opened, outputs, languages, asked, how, reporter)
            save_and_print(result, folder, as_json, reporter, store=store)
