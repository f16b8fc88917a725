"""Which results the report knows. It learns from the classes alone what their files, tables and pictures are."""

from voxstrata.base.result import Result
from voxstrata.early_exit.detected import DetectedLanguages
from voxstrata.early_exit.echo_result import WrongWords
from voxstrata.early_exit.result import EarlyExits
from voxstrata.early_exit.softer import SofterExits
from voxstrata.studies.align.result import Alignment
from voxstrata.studies.compared.result import ComparedAlignment, ComparedRetrieval
from voxstrata.studies.drift.result import Drift
from voxstrata.studies.explain.result import Explanation
from voxstrata.studies.mine.result import MinedPairs
from voxstrata.studies.phonetics.result import Phonetics
from voxstrata.studies.retrieve.found import FoundRetrieval
from voxstrata.studies.retrieve.result import Retrieval
from voxstrata.studies.words.result import WordComparison

RESULTS: tuple[type[Result], ...] = (
    Retrieval, FoundRetrieval, ComparedRetrieval, MinedPairs, Alignment, ComparedAlignment, Phonetics,
    WordComparison, Explanation, EarlyExits, SofterExits, DetectedLanguages, WrongWords, Drift,
)  # fmt: skip
