"""Which results the report knows, in the order of the questions that they answer.

It learns from the classes alone what their files, questions, answers, tables and pictures are.
"""

from voxstrata.base.result import Result
from voxstrata.early_exit.detected import DetectedLanguages
from voxstrata.early_exit.echo_result import WrongWords
from voxstrata.early_exit.result import EarlyExits
from voxstrata.early_exit.softer import SofterExits
from voxstrata.engine.bench import Bench
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
    Retrieval, ComparedRetrieval, Alignment, ComparedAlignment, Phonetics, WordComparison, EarlyExits, SofterExits,
    DetectedLanguages, WrongWords, FoundRetrieval, MinedPairs, Explanation, Drift, Bench,
)  # fmt: skip
ENCODED = "What was encoded?"  # of stores
QUESTIONS = (*(kind.question for kind in RESULTS), ENCODED)
