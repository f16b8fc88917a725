"""Speech from text by espeak-ng, through the shared library that the pip package espeakng-loader carries.

The functions and constants used are those of espeak-ng's `speak_lib.h` and `espeak_ng.h` (release 1.52).
"""

import ctypes
import shutil
import threading
from _ctypes import dlclose as _unload
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from voxstrata.base.errors import InputError, UsageError
from voxstrata.base.folders import scratch_folder

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback before espeak_Synth returns
_DONT_EXIT = 0x8000  # espeak_Initialize returns an error instead of ending the process
_RATE, _VOLUME, _PITCH = 1, 2, 3  # espeak_PARAMETER
_CHARS_UTF8 = 1
_RATES = range(80, 451)  # words per minute, what espeak-ng accepts
_PITCHES = range(100)
_HEADROOM_VOLUME = 70  # at the default of 100, espeak-ng's gain control cuts in to hold the peaks under int16

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_one_at_a_time = threading.Lock()  # the library keeps everything in globals


def speak(text: str, voice: str, rate: int = 160, pitch: int = 50) -> tuple[npt.NDArray[np.int16], int]:
    """Speak one sentence; the same arguments give the same samples, whatever was spoken before.

    text: in the voice's language and spelling. voice: espeak-ng's language code, optionally with a variant ("fi+m3").
    Any code that espeak-ng's list of voices gives will do, also one that is no voice's name ("fr-fr", "en-gb").
    rate: words per minute, 80 to 450. pitch: 0 to 99, relative to the variant's own; 50 leaves that as it is.

    Returns mono samples (samples,) int16, with the silence that espeak-ng puts around speech, and their rate per second
    (22 050 for every voice of espeak-ng 1.52). Raises UsageError for a rate or pitch out of range; InputError when
    espeakng-loader is not installed or its library does not start, for an unknown voice, and for text without a sound.
    """
    if rate not in _RATES:
        raise UsageError(f"rate {rate}: give {_RATES[0]} to {_RATES[-1]} words per minute")
    if pitch not in _PITCHES:
        raise UsageError(f"pitch {pitch}: give {_PITCHES[0]} to {_PITCHES[-1]}")
    library_path, data_path = _locate()
    code, plus, variant = voice.partition("+")
    # espeak-ng itself takes an unknown variant in silence and speaks with the default one.
    if plus and variant not in {file.name for file in (data_path / "voices" / "!v").iterdir()}:
        raise InputError(f"voice {voice!r}: espeak-ng has no variant {variant!r}; m1 to m8 and f1 to f5 are some")

    blocks: list[bytes] = []

    def collect(wav: int | None, samples: int, events: int | None) -> int:
        if wav is not None and samples > 0:
            blocks.append(ctypes.string_at(wav, samples * 2))
        return 0  # go on

    callback = _SynthCallback(collect)  # held in a name: C keeps no reference to it
    with _one_at_a_time, _fresh(library_path, data_path) as (library, sample_rate):
        library.espeak_SetSynthCallback(callback)
        names = (voice, f"{_file_of(code, data_path)}{plus}{variant}")
        if all(library.espeak_SetVoiceByName(name.encode()) != 0 for name in names):
            raise InputError(f"voice {voice!r}: espeak-ng has no such voice; give a language code such as 'en' or 'fi'")
        # espeak_Initialize seeds the breath noise from the clock.
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        for parameter, value in ((_RATE, rate), (_VOLUME, _HEADROOM_VOLUME), (_PITCH, pitch)):
            library.espeak_SetParameter(parameter, value, 0)
        encoded = ctypes.create_string_buffer(text.encode())
        size = ctypes.c_size_t(len(encoded))
        if library.espeak_Synth(encoded, size, 0, 0, 0, _CHARS_UTF8, None, None) != 0:
            raise InputError(f"espeak-ng failed on voice {voice!r}, text {text!r}")
    samples = np.frombuffer(b"".join(blocks), dtype=np.int16)
    if not samples.any():
        raise InputError(f"voice {voice!r} makes no sound of the text {text!r}; give words of that language")
    return samples, sample_rate


def _locate() -> tuple[Path, Path]:
    """The shared library and the folder espeak-ng-data."""
    try:
        import espeakng_loader
    except ImportError:
        raise InputError("speaking needs the package espeakng-loader: pip install 'voxstrata[demo]'") from None
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


@cache
def _file_of(code: str, data_path: Path) -> str:
    """The file whose voice speaks a language, such as "roa/fr" for "fr-fr"; the code itself where none says so.

    espeak_SetVoiceByName knows files and names, not the codes of languages in them.
    """
    folder = data_path / "lang"
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        lines = map(str.split, file.read_text("utf-8").splitlines())
        if any(line[:2] == ["language", code] for line in lines):
            return str(file.relative_to(folder))
    return code


@contextmanager
def _fresh(library_path: Path, data_path: Path) -> Iterator[tuple[ctypes.CDLL, int]]:
    """The library newly loaded and started, and its sample rate; unloaded at the end.

    Loading costs a few ms. It is what resets the pitch flutter and the gain control, which live in static
    variables that espeak_Terminate and espeak_Initialize leave alone. A copy is loaded: others in the process
    (phonemizer) may keep the file itself loaded, and then it would never be loaded anew.
    """
    try:
        with scratch_folder("espeak") as folder:
            library = ctypes.CDLL(str(shutil.copy(library_path, folder)))
    except OSError as error:
        raise InputError(f"{library_path}: cannot be loaded ({error}); reinstall espeakng-loader") from error
    try:
        sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data_path).encode(), _DONT_EXIT)
        if sample_rate <= 0:
            raise InputError(f"{data_path}: espeak-ng cannot read its data; reinstall espeakng-loader")
        try:
            yield library, sample_rate
        finally:
            library.espeak_Terminate()
    finally:
        _unload(library._handle)
