"""Export: checkpoint in, validated model folder out, or nothing.

This module needs no torch, which takes seconds to import: what is wrong with the arguments is found before.
"""

import dataclasses
from pathlib import Path

from voxstrata.base.errors import naming_extras
from voxstrata.base.folders import check_vacant
from voxstrata.base.heap import large_blocks_returned
from voxstrata.base.progress import SILENT, Reporter
from voxstrata.corpus import read_corpus
from voxstrata.encoders.card import ENGINES, FAMILY_FILES, MODEL_FILES, ModelFolder, open_model
from voxstrata.exporters.hub import check_source
from voxstrata.exporters.spec import ExportSpec


@naming_extras()
@large_blocks_returned()
def export(
    source: str,
    out: str | Path,
    spec: ExportSpec | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> ModelFolder:
    """Export the encoder of `source` (see `load_checkpoint`) into the new folder `out`.

    The folder appears only when every graph agrees with PyTorch. `reporter` hears of steps, and is warned of recordings
    that cannot serve calibration. overwrite: an earlier model in `out` is replaced, if nothing else is in the
    folder.

    Raises InputError for an unusable checkpoint or calibration corpus, an `out` that exists, a failed validation, or
    where the extra `export` is not installed; UsageError for unknown outputs or dtype.
    """
    spec, target = spec or ExportSpec(), Path(out)
    spec.check()
    replaced = (*MODEL_FILES, *FAMILY_FILES, *ENGINES) if overwrite else ()  # in order: it is known by the first
    check_vacant(target, replaced)
    check_source(source, revision)
    corpus = None if spec.calibrate is None else read_corpus(spec.calibrate)

    from voxstrata.exporters.checkpoint import load_openai, tower_checkpoint
    from voxstrata.exporters.families import described_encoder
    from voxstrata.exporters.family_writing import check_options, check_prefix, write_family
    from voxstrata.exporters.finding import find_checkpoint
    from voxstrata.exporters.towers import Tower
    from voxstrata.exporters.writing import write_model

    reporter.step(f"loading {source}")
    if Path(source).is_file():
        check_prefix(spec, "Whisper", ())
        write_model(load_openai(Path(source)), target, spec, corpus, reporter, replaced)
        return open_model(target)
    found = find_checkpoint(source, revision)
    encoder = described_encoder(found.description, found.config)
    if isinstance(encoder, Tower):
        check_prefix(spec, "Whisper", ())
        if not encoder.known:
            reporter.warn(
                f"{found.folder}: what {encoder.around} does with its encoder is not known here, and none of its code "
                "is run; the states are those of Whisper's encoder with its weights"
            )
        found.fetch()
        checkpoint = tower_checkpoint(found, encoder, found.tensors(reporter))
        write_model(checkpoint, target, spec, corpus, reporter, replaced)
    else:
        check_options(encoder.TITLE, spec)
        found.fetch()
        files = found.files(reporter, spec.prefix)
        original = encoder.load(files)
        files = dataclasses.replace(files, tensors={})  # which hold the whole file in memory
        write_family(original, files, target, spec, reporter, replaced)
    return open_model(target)
