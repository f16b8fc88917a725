"""Language names find their espeak-ng voice, texts become IPA, and IPA given by the user is read as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from voxstrata import InputError, UsageError, read_corpus
from voxstrata.cli.app import main
from voxstrata.phonology.ipa import choose_voices, read_ipa, transcribe, voices
from voxstrata.phonology.voices import voice_of

pytest.importorskip("phonemizer")

# the language folders of google/fleurs
FLEURS = """
af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cmn_hans_cn cs_cz cy_gb da_dk
de_de el_gr en_us es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in ha_ng he_il hi_in hr_hr hu_hu hy_am
id_id ig_ng is_is it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz km_kh kn_in ko_kr ky_kg lb_lu lg_ug ln_cd lo_la lt_lt
luo_ke lv_lv mi_nz mk_mk ml_in mn_mn mr_in ms_my mt_mt my_mm nb_no ne_np nl_nl nso_za ny_mw oc_fr om_et or_in pa_in
pl_pl ps_af pt_br ro_ro ru_ru sd_in sk_sk sl_si sn_zw so_so sr_rs sv_se sw_ke ta_in te_in tg_tj th_th tr_tr uk_ua
umb_ao ur_pk uz_uz vi_vn wo_sn xh_za yo_ng yue_hant_hk zu_za"""
# languages for which espeak-ng 1.52 has no voice, as docs/phonetics.md lists them
LACKING = """
ast_es ceb_ph ckb_iq ff_sn fil_ph gl_es ha_ng ig_ng jv_id kam_ke kea_cv km_kh lg_ug ln_cd lo_la luo_ke mn_mn
nso_za ny_mw oc_fr ps_af sn_zw so_so tg_tj umb_ao wo_sn xh_za yo_ng zu_za"""


def test_every_language_of_fleurs_has_a_voice_or_is_listed_as_lacking() -> None:
    assert len(FLEURS.split()) == 102
    assert [name for name in FLEURS.split() if voice_of(name, voices()) is None] == LACKING.split()
    page = (Path(__file__).parents[1] / "docs" / "phonetics.md").read_text(encoding="utf-8")
    assert " ".join(f"`{name}`" for name in LACKING.split()) in " ".join(page.split())


@pytest.mark.parametrize(
    ("language", "voice"),
    [
        ("en", "en-us"), ("en_us", "en-us"), ("en-GB", "en-gb"), ("eng", "en-us"), ("en_nz", "en-us"),
        ("fr", "fr-fr"), ("fra", "fr-fr"), ("fr-CA", "fr-fr"), ("fr_ch", "fr-ch"),
        ("es", "es"), ("es_419", "es-419"), ("spa", "es"), ("pt_br", "pt-br"), ("por", "pt"),
        ("zh", "cmn"), ("cmn_hans_cn", "cmn"), ("zh-Hant-TW", "cmn"), ("yue_hant_hk", "yue"),
        ("no", "nb"), ("nb_no", "nb"), ("deu", "de"), ("ger", "de"), ("swh", "sw"), ("ekk", "et"), ("iw", "he"),
        ("English", "en-us"), ("french", "fr-fr"), ("Mandarin", "cmn"), ("Norwegian", "nb"), ("Farsi", "fa"),
        ("Lao", None), ("tlh-x-none", None), ("xx", None), ("", None),
    ],
)  # fmt: skip
def test_codes_tags_and_names_find_their_voice(language: str, voice: str | None) -> None:
    assert voice_of(language, voices()) == voice


def test_text_becomes_ipa_without_stress_punctuation_or_language_flags() -> None:
    hello, quoted, none = transcribe(["Hello, world!", "  the\nother  ", "..."], "en-us")
    assert hello.ipa == "həloʊ wɜːld"
    assert quoted.ipa == "ðɪ ʌðəɹ"  # espeak-ng's ɚ, which PanPhon does not know, in two segments
    assert none.ipa == ""
    assert transcribe(["Maria"], "en-us")[0].ipa == "məɹiːə"  # and one ɹ where espeak-ng writes ɚɹ
    (russian,) = transcribe(["Скажи Google."], "ru")
    assert "(" not in russian.ipa
    assert russian.others == ("en",)


def test_japanese_with_kanji_is_refused_since_espeak_cannot_read_it() -> None:
    assert transcribe(["こんにちは"], "ja")[0].ipa
    with pytest.raises(InputError, match="kana"):
        transcribe(["こんにちは", "世界"], "ja")


def test_languages_without_a_voice_are_all_named_with_the_ways_out() -> None:
    with pytest.raises(InputError, match=r"'ceb_ph', 'xx'.*--ipa.*--voice ceb_ph=CODE"):
        choose_voices(["en", "ceb_ph", "xx"])
    assert choose_voices(["en", "ceb_ph"], {"ceb_ph": "id"}) == {"en": "en-us", "ceb_ph": "id"}
    with pytest.raises(UsageError, match="no voice 'klingon'"):
        choose_voices(["en"], {"en": "klingon"})
    with pytest.raises(UsageError, match=r"given for 'de', in which no text is to be read.*read in: en"):
        choose_voices(["en"], {"de": "de"})


def test_an_error_names_the_voices_that_are_spelt_alike_and_how_to_list_all() -> None:
    with pytest.raises(InputError) as e:
        choose_voices(["englisch", "klingon", "xx"])
    assert "en-us (English (America)), piqd (Klingon)" in str(e.value)
    assert f"`voxstrata phonetics --voices` lists all {len(voices())} voices" in str(e.value)
    assert len(str(e.value)) < 400  # it was a wall of all of them
    with pytest.raises(UsageError, match=r"no voice 'en'\. Near in spelling: en-us \(English"):
        choose_voices(["en"], {"en": "en"})
    with pytest.raises(UsageError, match=r"no voice 'qqqq'\. `voxstrata"):
        choose_voices(["en"], {"en": "qqqq"})


def test_all_voices_are_listed_by_code_and_name() -> None:
    listed = CliRunner().invoke(main, ["phonetics", "--voices"]).output.splitlines()
    assert len(listed) == 1 + len(voices())
    assert next(line for line in listed if line.startswith("sw ")).split() == ["sw", "Swahili"]


class TestGivenIpa:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("t.tsv", 'id\tipa\n007\tpa "ta\nb\t\n'),
            ("t.csv", 'id,ipa\n007,"pa ""ta"\nb,\n'),
            ("t.jsonl", '{"id": "007", "ipa": "pa  \\"ta"}\n{"id": "b", "ipa": null}\n'),
            ("m.tsv", 'path\tlanguage\tipa\n007.wav\ten\tpa "ta\nb.wav\ten\t\n'),
        ],
    )
    def test_tables_of_every_kind(self, name: str, content: str, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        assert read_ipa(path) == {"007": 'pa "ta'}

    def test_ids_of_a_manifest_without_are_those_the_corpus_has(self, tmp_path: Path) -> None:
        """Paths written in other ways, and two recordings that differ in their suffix alone."""
        path = tmp_path / "m.jsonl"
        names = ["./a.wav", "x/../b.wav", "c.wav", "c.flac"]
        lines = [json.dumps({"path": name, "language": "en", "ipa": f"pa{n}"}) for n, name in enumerate(names)]
        path.write_text("\n".join(lines), encoding="utf-8")
        ids = read_corpus(path).table["id"].to_pylist()
        assert ids == ["a", "b", "c.wav", "c.flac"]
        assert read_ipa(path) == {name: f"pa{n}" for n, name in enumerate(ids)}

    def test_parquet(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"id": ["a"], "ipa": ["bɚ"]}), tmp_path / "t.parquet")
        assert read_ipa(tmp_path / "t.parquet") == {"a": "bəɹ"}

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("t.tsv", "id\tsound\na\tpa\n", "no column 'ipa'"),
            ("t.tsv", "ipa\npa\n", "1 of 1 rows have no id"),
            ("t.tsv", "id\tipa\na\t\n", "its column ipa is empty"),
            ("t.tsv", "id\tipa\na\tpa\tta\n", "line 2: 3 fields where 2 are expected"),
            ("t.tsv", "id\tipa\na\tpa\na\tta\n", "ids occur twice: a"),
            ("t.parquet", "no parquet", "not a parquet table"),
            ("t.txt", "id ipa", "not a table"),
        ],
    )
    def test_unusable_tables_name_the_file(self, name: str, content: str, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message) as error:
            read_ipa(tmp_path / name)
        assert name in str(error.value)
