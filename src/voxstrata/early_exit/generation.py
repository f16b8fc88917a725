"""A checkpoint's generation settings; where they are from before transformers told languages apart, completed."""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, WhisperConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from voxstrata.base.errors import InputError
from voxstrata.base.plain import counted
from voxstrata.base.progress import Reporter
from voxstrata.exporters.hub import first_line
from voxstrata.exporters.reading import read_json_object

_FILE = "generation_config.json"
_ENGLISH_VOCABULARY = 51864  # of OpenAI's .en models; the multilingual ones have more
_TASK_NAMES = ("transcribe", "translate")


def read_generation_config(folder: Path, config: WhisperConfig, reporter: Reporter) -> GenerationConfig:
    """What generation_config.json says, or config.json where there is none.

    Settings that name neither languages nor say that there are none are outdated (transformers before 4.30). Languages
    and tasks are then taken from the tokenizer's tokens, and `reporter` is warned. Where these do not tell, the
    settings stay as they are. Raises InputError for a file that is not readable.
    """
    file = folder / _FILE
    try:
        if file.is_file():
            found = GenerationConfig.from_dict(read_json_object(file))
        else:
            found = GenerationConfig.from_model_config(config)
    except InputError:
        raise
    except Exception as e:
        raise InputError(f"{file}: not usable as generation settings ({first_line(e)}); fetch it again") from e
    if getattr(found, "lang_to_id", None) or getattr(found, "is_multilingual", None) is False:
        return found
    if config.vocab_size == _ENGLISH_VOCABULARY:
        found.is_multilingual = False
        return found
    tokens = {name: i for name, i in _special_tokens(folder).items() if i < config.vocab_size}
    languages = {f"<|{code}|>": tokens[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in tokens}
    tasks = {task: tokens[f"<|{task}|>"] for task in _TASK_NAMES if f"<|{task}|>" in tokens}
    if languages and len(tasks) == len(_TASK_NAMES) and "<|notimestamps|>" in tokens:
        found.is_multilingual, found.lang_to_id, found.task_to_id = True, languages, tasks
        found.no_timestamps_token_id = tokens["<|notimestamps|>"]
        reporter.warn(
            f"{folder}: {_FILE} is missing or outdated and names no languages; {counted(len(languages), 'language')} "
            "and both tasks are taken from the tokenizer"
        )
    return found


def _special_tokens(folder: Path) -> dict[str, int]:
    """Added tokens of the tokenizer by text; none where no file lists them."""
    found: dict[Any, Any] = {}
    if (folder / "tokenizer.json").is_file():
        listed = read_json_object(folder / "tokenizer.json").get("added_tokens")
        entries = [t for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
        found = {t.get("content"): t.get("id") for t in entries}
    elif (folder / "added_tokens.json").is_file():
        found = read_json_object(folder / "added_tokens.json")
    return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, int) and v >= 0}
