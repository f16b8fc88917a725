"""What failed, once more: units in which a recording failed that can be decoded by now are pending again."""

from voxstrata.audio.decode import decode_to_slice, probe
from voxstrata.audio.segments import SegmentReader
from voxstrata.base.errors import UnreachableError, refuse_fault_here
from voxstrata.base.plain import counted
from voxstrata.base.progress import SILENT, Progress, Reporter
from voxstrata.store.plan import Plan
from voxstrata.store.writer import StoreWriter


def reopen_failed(writer: StoreWriter, reporter: Reporter = SILENT) -> None:
    """Make those units of a store pending again in which a recording failed that can be decoded now.

    Whoever works on the store then does them again: the rows of all others come out the same. A recording that failed
    when its header was read has no place in the plan, so nothing brings it into this store: the reporter is told.
    Raises UnreachableError where this machine cannot read a recording now.
    """
    plan = writer.plan
    failed = [u for u in sorted(writer.failures(writer.done())[0]) if plan.probed.info(u) is not None]
    placeless = [u for u in sorted(plan.probed.failures) if _has_frames(plan, u)]
    if placeless:
        name = plan.corpus.table["id"][placeless[0]].as_py()
        reporter.warn(
            f"{writer.files.root}: {counted(len(placeless), 'recording')}, e.g. {name!r}, can be read now, but not "
            "when the plan was made, which has no place for what failed; extract the corpus into a new store"
        )
    units: dict[int, None] = {}
    with SegmentReader() as segments:
        for done, u in enumerate(failed, 1):
            unit = int(plan.start[u]) // plan.unit_rows
            if unit not in units and _decodes(plan, u, segments):
                units[unit] = None
            reporter.progress(Progress("looking at what failed", done, len(failed), "recordings"))
    for unit in units:
        writer.reopen(unit)
    reporter.step(f"to do again, since recordings in them can be read now: {counted(len(units), 'unit')}")


def _decodes(plan: Plan, utterance: int, segments: SegmentReader) -> bool:
    info = plan.probed.info(utterance)
    assert info is not None
    try:
        decode_to_slice(plan.corpus.recording(utterance), info, segments, None)
    except Exception as e:  # what failed by a decoder's bug fails so again
        return _refuse_or_false(plan, utterance, e)
    return True


def _has_frames(plan: Plan, utterance: int) -> bool:
    """Whether a recording's header can be read, and says that it is long enough."""
    try:
        return bool(plan.family.frames(probe(plan.corpus.recording(utterance)).samples))
    except Exception as e:
        return _refuse_or_false(plan, utterance, e)


def _refuse_or_false(plan: Plan, utterance: int, error: Exception) -> bool:
    """False for an error that is the recording's own. Raises UnreachableError for another."""
    if isinstance(error, UnreachableError):
        raise error
    refuse_fault_here(error, plan.corpus.recording(utterance).source.name)
    return False
