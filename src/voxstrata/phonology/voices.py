"""Which espeak-ng voice speaks a language: ISO 639 codes, BCP-47-like tags, FLEURS names (`en_us`), English names."""

from collections.abc import Collection
from dataclasses import dataclass

from voxstrata.corpus.languages import code_of_name


@dataclass(frozen=True)
class Speaker:
    """A made-up speaker: an espeak-ng variant, its speed and its pitch, alike in every language."""

    name: str  # ends the speaker's name: "fi-m"
    variant: str
    rate: int  # words per minute
    pitch: int  # 0 to 99, 50 is the variant's own


VOICES = (Speaker("m", variant="m3", rate=150, pitch=45), Speaker("f", variant="f2", rate=165, pitch=55))

# ISO 639-2/B and 639-3 codes (and those of the individual language meant by a macrolanguage) of espeak-ng's voices
_THREE_LETTERS = {
    "af": "afr", "am": "amh", "an": "arg", "ar": "ara arb", "as": "asm", "az": "aze azj", "ba": "bak", "be": "bel",
    "bg": "bul", "bn": "ben", "bs": "bos", "ca": "cat", "chr": "chr", "cmn": "zh zho chi", "cs": "ces cze", "cv": "chv",
    "cy": "cym wel", "da": "dan", "de": "deu ger", "el": "ell gre", "en": "eng", "eo": "epo", "es": "spa",
    "et": "est ekk", "eu": "eus baq", "fa": "fas per pes", "fi": "fin", "fo": "fao", "fr": "fra fre", "ga": "gle",
    "gd": "gla", "gn": "grn gug", "gu": "guj", "he": "heb iw", "hi": "hin", "hr": "hrv", "ht": "hat", "hu": "hun",
    "hy": "hye arm", "ia": "ina", "id": "ind", "io": "ido", "is": "isl ice", "it": "ita", "ja": "jpn", "jbo": "jbo",
    "ka": "kat geo", "kk": "kaz", "kl": "kal", "kn": "kan", "ko": "kor", "kok": "gom", "ku": "kur kmr", "ky": "kir",
    "la": "lat", "lb": "ltz", "lt": "lit", "lv": "lav lvs", "mi": "mri mao", "mk": "mkd mac", "ml": "mal", "mr": "mar",
    "ms": "msa may zsm", "mt": "mlt", "my": "mya bur", "nb": "no nor nob", "ne": "nep npi", "nl": "nld dut",
    "om": "orm gaz", "or": "ori ory", "pa": "pan", "pl": "pol", "pt": "por", "qu": "que", "ro": "ron rum", "ru": "rus",
    "sd": "snd", "si": "sin", "sk": "slk slo", "sl": "slv", "sq": "sqi alb als", "sr": "srp", "sv": "swe",
    "sw": "swa swh", "ta": "tam", "te": "tel", "th": "tha", "ti": "tir", "tk": "tuk", "tn": "tsn", "tr": "tur",
    "tt": "tat", "ug": "uig", "uk": "ukr", "ur": "urd", "uz": "uzb uzn", "vi": "vie",
}  # fmt: skip
_PRIMARY = {other: code for code, others in _THREE_LETTERS.items() for other in others.split()}
_DEFAULT = {"en": "en-us", "fr": "fr-fr"}  # languages whose voices all carry a region


def primary_code(code: str) -> str:
    """espeak-ng's code of a language for an ISO 639-2 or -3 code ("spa" is "es"); any other comes back as it is."""
    return _PRIMARY.get(code, code)


def voice_of(language: str, voices: Collection[str]) -> str | None:
    """The code among `voices` for a language name, None where espeak-ng has none.

    Case and "_" or "-" do not matter. A tag names its own voice ("pt-br", "es_419"); otherwise the longest part of it
    that is a voice counts, so `ru_ru` is "ru" and `cmn_hans_cn` is "cmn". A language's English name is its code.

    >>> voice_of("en_us", ["en-gb", "en-us"]), voice_of("French", ["fr-fr"]), voice_of("ceb_ph", ["en-us"])
    ('en-us', 'fr-fr', None)
    """
    primary, *rest = (code_of_name(language) or language).lower().replace("_", "-").split("-")
    primary = primary_code(primary)
    known = {voice.lower(): voice for voice in voices}
    for end in range(len(rest), -1, -1):
        tag = "-".join([primary, *rest[:end]])
        if tag in known:
            return known[tag]
    for region in rest:  # past a script: zh-Hant-TW, en-Latn-GB
        if f"{primary}-{region}" in known:
            return known[f"{primary}-{region}"]
    return known.get(_DEFAULT.get(primary, ""))
