"""Which names are languages: ISO 639 codes, tags made of them, and English names."""

import re
from functools import cache

import pycountry

# Folders of these names hold a split, a format or a step of the work, though each is a language somewhere too
# (Vehes, Domung, Waka, Rawang, …).
_OTHERWISE = (
    "all asr aud big bin cut dat dev doc end etc far fin hyp img lab lib log low max mic mid min mix mp3 neg new old "
    "one out pcm pos pre raw rec ref seg set sid spk src sub tag tar tgt tmp top tts two txt utt vad val vox wav"
)
_MEANT_OTHERWISE = frozenset(_OTHERWISE.split())
# Names that are common, but not those of ISO 639.
_ALSO = {
    "cantonese": "yue", "castilian": "es", "farsi": "fa", "filipino": "fil", "flemish": "nl", "greek": "el",
    "mandarin": "cmn", "odia": "or", "pashto": "ps", "punjabi": "pa", "scots gaelic": "gd", "uyghur": "ug",
}  # fmt: skip
_VARIANTS = frozenset({"sursilv", "vallader", "valencia"})  # as Common Voice names Romansh and Catalan


def language_name(name: str) -> str | None:
    """The English name of the language that `name` is a code, a tag or the English name of; None if it is none.

    Codes are those of ISO 639-1 and 639-3 ("en", "ast"), alone or with a script of ISO 15924, a region of ISO 3166 or
    UN M.49 and Common Voice's variants behind them, as in BCP 47 and FLEURS ("pt-BR", "es_419", "cmn_hans_cn"). Names
    are those of languages with a code of two letters, and a few that are common ("English", "mandarin").
    """
    if " " not in name and (called := _name_of_code(name)):
        return called
    code = code_of_name(name)
    return _name_of_code(code) if code else None


def code_of_name(name: str) -> str | None:
    """The ISO 639 code of a language by its English name, in any case ("French" is "fr"); None if it is none."""
    return _names().get(name.lower())


@cache
def _name_of_code(tag: str) -> str | None:
    first, *rest = re.split("[-_]", tag)
    code = first.lower()
    if not re.fullmatch("[A-Za-z]{2}|[a-z]{3}", first) or (not rest and code in _MEANT_OTHERWISE):
        return None
    found = pycountry.languages.get(**{"alpha_2" if len(code) == 2 else "alpha_3": code})
    if found is None or not all(map(_is_subtag, rest)):
        return None
    return str(getattr(found, "common_name", found.name))


def _is_subtag(part: str) -> bool:
    """Whether it is a script, a region or a variant."""
    if len(part) == 4:
        return pycountry.scripts.get(alpha_4=part.title()) is not None
    if len(part) == 2:
        return pycountry.countries.get(alpha_2=part.upper()) is not None
    return bool(re.fullmatch(r"\d{3}", part)) or part.lower() in _VARIANTS


@cache
def _names() -> dict[str, str]:
    """Codes by English name in lower case."""
    found = dict(_ALSO)
    for language in pycountry.languages:
        if code := getattr(language, "alpha_2", None):
            for name in {language.name, getattr(language, "common_name", language.name)}:
                found[re.sub(r" \(.*\)", "", name).lower()] = code
    return found
