"""OWSM and OWSM-CTC give ESPnet's own states, which `espnet_models.py` stored with the models beside them.

Their weights are random: real ones were not at hand.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import soundfile

torch = pytest.importorskip("torch")
import yaml  # noqa: E402
from espnet_models import DATA, EVERY, KINDS, LENGTHS, WINDOW  # noqa: E402

import voxstrata as vs  # noqa: E402
from voxstrata.base.errors import InputError, UsageError  # noqa: E402
from voxstrata.base.progress import SILENT  # noqa: E402
from voxstrata.encoders.card import ModelFolder  # noqa: E402
from voxstrata.engine.estimating import estimate  # noqa: E402
from voxstrata.exporters.espnet_folder import CONFIG_FILE, WEIGHTS_FILE, espnet_file, is_espnet, read_espnet, read_yaml  # noqa: E402
from voxstrata.exporters.families import family_of  # noqa: E402
from voxstrata.exporters.finding import find_checkpoint  # noqa: E402
from voxstrata.exporters.original import CheckpointFiles, Original  # noqa: E402

Array = np.ndarray[Any, Any]
EXPERIMENT = Path("exp") / "s2t_train"


def loaded(folder: Path, prefix: tuple[str, ...] = (), **changed: Any) -> Original:
    """The encoder in a folder as ESPnet packs it; changed: parts of its configuration."""
    config, weights = (espnet_file(folder, kind) for kind in (CONFIG_FILE, WEIGHTS_FILE))
    found = read_espnet(config)
    for key, value in changed.items():
        found[key] = found[key] | value if isinstance(value, dict) else value
    module = family_of(found["model_type"])
    assert module is not None
    tensors = torch.load(weights, weights_only=True)
    return module.load(CheckpointFiles(folder.name, None, folder, found, {}, tensors, prefix))


class Graphs:
    """The two graphs of an encoder."""

    def __init__(self, original: Original, folder: Path, outputs: tuple[str, ...] = ()) -> None:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.outputs = outputs or original.family.names
        self.path = folder / "encoder.onnx"
        original.write_encoder(self.path, folder / "weights", self.outputs)
        onnx.checker.check_model(str(self.path))
        self.features = ort.InferenceSession(original.feature_graph(), options, ["CPUExecutionProvider"])
        self.encoder = ort.InferenceSession(self.path, options, ["CPUExecutionProvider"])

    def run(self, audio: Array) -> dict[str, Array]:
        """Of recordings [batch, samples]."""
        (features,) = self.features.run(None, {"audio": audio})
        return dict(zip(self.outputs, self.encoder.run(self.outputs, {"features": features}), strict=True))


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, Array]]:
    return {kind: dict(np.load(DATA / kind / "states.npz")) for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def original(kind: str) -> Original:
    return loaded(DATA / kind)


@pytest.fixture(scope="module")
def graphs(original: Original, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs(original, tmp_path_factory.mktemp("owsm"))


def sound_of(stored: dict[str, Array], samples: int) -> Array:
    return stored[f"audio/{samples}"].astype(np.float32) / 32768


def relative(got: Array, want: Array) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64)))


@pytest.mark.parametrize("samples", LENGTHS)
def test_graphs_and_original_give_espnets_states(
    kind: str, original: Original, graphs: Graphs, stored: dict[str, dict[str, Array]], samples: int
) -> None:
    want, audio = stored[kind], sound_of(stored[kind], samples)
    assert original.family.frames(samples) == len(want[f"exact/{samples}/final"])
    assert relative(original.features(audio)[0].numpy(), want[f"features/{samples}"]) < 1e-5
    got, again = graphs.run(audio[None]), original.hidden_states(audio)
    for name in original.family.names:
        assert relative(got[name][0], want[f"exact/{samples}/{name}"]) < 1e-5, name
        assert relative(again[name][0].numpy(), want[f"exact/{samples}/{name}"]) < 1e-5, name


@pytest.mark.parametrize("samples", LENGTHS)
def test_a_recording_padded_to_30_s_gives_espnets_states(
    kind: str, original: Original, graphs: Graphs, stored: dict[str, dict[str, Array]], samples: int
) -> None:
    audio = np.pad(sound_of(stored[kind], samples), (0, WINDOW - samples))
    got = graphs.run(audio[None])
    assert got["final"].shape[1] == original.family.frames(WINDOW)
    for name in original.family.names:
        assert relative(got[name][0, ::EVERY], stored[kind][f"padded/{samples}/{name}"]) < 1e-5, name


def test_states_depend_on_language_and_task(stored: dict[str, dict[str, Array]], tmp_path: Path) -> None:
    want = stored["owsm_ctc"]
    told = loaded(DATA / "owsm_ctc", ("<eng>", "<st_deu>"))
    assert told.family.prefix == ("language=<eng>", "task=<st_deu>", "previous=<na>")
    got = Graphs(told, tmp_path).run(sound_of(want, LENGTHS[1])[None])
    for name in told.family.names[1:]:
        assert relative(got[name][0], want[f"told/{LENGTHS[1]}/{name}"]) < 1e-5, name
        assert relative(want[f"exact/{LENGTHS[1]}/{name}"], want[f"told/{LENGTHS[1]}/{name}"]) > 1e-2, name


def test_a_recording_in_a_batch_is_itself_alone(graphs: Graphs) -> None:
    rng = np.random.default_rng(0)
    batch = (rng.standard_normal((3, 9_000)) * [[0.3], [0.001], [0.05]]).astype(np.float32)
    together = graphs.run(batch)
    for i, audio in enumerate(batch):
        for name, alone in graphs.run(audio[None]).items():
            assert relative(together[name][i : i + 1], alone) < 1e-5, name


def test_frames_are_those_of_the_graph_at_every_length(original: Original, graphs: Graphs) -> None:
    shortest, hop = original.family.shortest, original.family.hop
    assert original.family.frames(shortest - 1) == 0
    for samples in (shortest, shortest + 159, shortest + 160, shortest + hop - 1, shortest + hop, 16_000, 16_001):
        audio = np.zeros((1, samples), np.float32)
        assert {state.shape[1] for state in graphs.run(audio).values()} == {original.family.frames(samples)}


def test_a_graph_holds_no_block_after_the_last_output(original: Original, graphs: Graphs, tmp_path: Path) -> None:
    few = Graphs(original, tmp_path, ("layer_00", "layer_01"))
    audio = np.ones((1, 8_000), np.float32)
    for name, state in few.run(audio).items():
        np.testing.assert_array_equal(state, graphs.run(audio)[name])
    names = {t.name for t in onnx.load(str(few.path), load_external_data=False).graph.initializer}
    assert not any(name.startswith(("encoder.encoders.1", "ctc", "encoder.after_norm")) for name in names)


def test_the_declaration_is_sound_and_says_what_the_ctc_learned() -> None:
    owsm, ctc = (loaded(DATA / kind).family for kind in KINDS)
    for family in (owsm, ctc):
        family.check()
        assert (family.contexts, family.window) == (("padded", "exact"), WINDOW)
        assert type(family).from_dict(family.to_dict()) == family
    assert (owsm.seconds_per_frame, ctc.seconds_per_frame) == (0.04, 0.08)
    assert owsm.prefix == ()
    assert ctc.prefix == ("language=<nolang>", "task=<asr>", "previous=<na>")
    assert "transcripts alone" in ctc.output("layer_01").meaning
    assert "translations" in ctc.output("layer_02").meaning
    assert "CTC" not in owsm.output("layer_01").meaning


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("encoder_conf", {"attention_layer_type": "rel_selfattn"}, "attention_layer_type"),
        ("encoder_conf", {"input_layer": "conv2d6"}, "input_layer"),
        ("encoder_conf", {"num_blocks": 10**9}, "num_blocks"),
        ("encoder_conf", {"num_blocks": "many"}, "num_blocks"),
        ("encoder_conf", {"linear_units": 21}, "w_1"),
        ("encoder_conf", {"attention_heads": 3}, "attention_heads"),
        ("encoder_conf", {"interctc_use_conditioning": True, "interctc_layer_idx": [9]}, "interctc_layer_idx"),
        ("frontend_conf", {"fs": 8000}, "fs"),
        ("frontend_conf", {"hop_length": 128}, "hop_length"),
        ("frontend_conf", {"n_mels": 21}, "melmat"),
        ("normalize_conf", {"norm_vars": False}, "norm_vars"),
        ("preprocessor_conf", {"speech_length": None}, "speech_length"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused_by_name(
    kind: str, part: str, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=rf"{kind}.*{named}"):
        loaded(DATA / kind, **{part: change})


def test_a_normalisation_that_is_not_global_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="normalize is 'utterance_mvn'"):
        loaded(DATA / kind, normalize="utterance_mvn")


def test_of_a_hub_id_the_files_that_meta_yaml_names_are_fetched_at_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, snapshot, asked = DATA / "owsm", tmp_path / "0123abcd", list[tuple[str | None, set[str]]]()

    def list_repo_files(_: Any, repo: str, *, revision: str | None = None) -> list[str]:
        return [str(f.relative_to(held)) for f in held.rglob("*") if f.is_file()]

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((revision, set(allow_patterns)))
        for name in allow_patterns:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(held / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = find_checkpoint("someone/owsm")
    config, weights = (str(EXPERIMENT / name) for name in ("config.yaml", "valid.total_count.ave_5best.pth"))
    assert not (snapshot / weights).exists()
    found.fetch()
    assert asked == [
        (None, {"meta.yaml"}), ("0123abcd", {"meta.yaml", config}), ("0123abcd", {config, weights}),
    ]  # fmt: skip
    files = found.files(SILENT)
    assert (files.name, files.revision, files.config["model_type"]) == (
        "someone/owsm", "0123abcd", "espnet:e_branchformer",
    )  # fmt: skip
    assert "encoder.after_norm.weight" in files.tensors


def test_a_prefix_must_be_two_tokens_that_the_model_knows() -> None:
    with pytest.raises(UsageError, match="no '<xyz>'"):
        loaded(DATA / "owsm_ctc", ("<xyz>", "<asr>"))
    with pytest.raises(UsageError, match="give language and task"):
        loaded(DATA / "owsm_ctc", ("<eng>",))


def test_weights_that_lack_a_tensor_or_hold_nan_are_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DATA / kind, folder)
    file = next((folder / EXPERIMENT).glob("*.pth"))
    whole = torch.load(file, weights_only=True)
    name = "encoder.encoders.1.merge_proj.bias"
    for change in ({name: None}, {name: whole[name] * np.nan}, {"encoder.encoders.1.extra": whole[name]}):
        torch.save({k: v for k, v in (whole | change).items() if v is not None}, file)
        with pytest.raises(InputError, match=next(iter(change))):
            loaded(folder)


def test_an_experiments_folder_and_a_packed_one_are_the_same(kind: str) -> None:
    for part in (CONFIG_FILE, WEIGHTS_FILE):
        assert espnet_file(DATA / kind / EXPERIMENT, part) == espnet_file(DATA / kind, part)


def test_what_makes_a_folder_espnets(tmp_path: Path) -> None:
    assert not is_espnet(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert is_espnet(tmp_path)
    (tmp_path / "config.json").touch()
    (tmp_path / "meta.yaml").write_text("author: somebody\n")
    assert not is_espnet(tmp_path)
    (tmp_path / "meta.yaml").write_text((DATA / "owsm" / "meta.yaml").read_text())
    assert is_espnet(tmp_path)


def test_a_folder_with_two_weights_or_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("encoder: e_branchformer\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds no \.pth"):
        espnet_file(tmp_path, WEIGHTS_FILE)
    for name in ("1epoch.pth", "2epoch.pth"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"1epoch\.pth"):
        espnet_file(tmp_path, WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("../secret.pth", "outside"),
        ("/etc/passwd", "outside"),
        ("exp/absent.pth", "not there"),
        (None, "names 0 files"),
    ],
)
def test_meta_yaml_names_files_inside_of_its_folder(tmp_path: Path, named: str | None, message: str) -> None:
    (tmp_path / "config.yaml").touch()
    files = {} if named is None else {"s2t_model_file": named}
    meta = {"files": files, "yaml_files": {"s2t_train_config": "config.yaml"}}
    (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        espnet_file(tmp_path, WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "references"),
        ("!!python/object/apply:os.system [true]\n", "not readable as YAML"),
        ("[" * 100_000, "not readable as YAML"),
        ("a: [", "not readable as YAML"),
        ("- 1\n", "no YAML mapping"),
    ],
)
def test_yaml_that_runs_code_or_unfolds_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_yaml(file)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    return {kind: vs.export(str(DATA / kind), tmp_path_factory.mktemp("exported") / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def clips(kind: str, stored: dict[str, dict[str, Array]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored sounds, one past the window, and a click."""
    folder = tmp_path_factory.mktemp("clips")
    sounds = {str(samples): stored[kind][f"audio/{samples}"] for samples in LENGTHS}
    noise = np.random.default_rng(4).standard_normal(WINDOW + 77_000)
    sounds |= {"long": (500 * noise).astype(np.int16), "click": np.zeros(900, np.int16)}
    for name, audio in sounds.items():
        soundfile.write(folder / f"{name}.wav", audio, 16_000, subtype="PCM_16")
    lines = [f"{name}\t{name}.wav\ten\t{name}" for name in sounds]
    (folder / "m.tsv").write_text("\n".join(["id\tpath\tlanguage\tgroup", *lines]) + "\n")
    return folder / "m.tsv"


def test_an_exported_folder_extracts_espnets_states_padded_or_exact(
    kind: str,
    exported: dict[str, ModelFolder],
    graphs: Graphs,
    clips: Path,
    stored: dict[str, dict[str, Array]],
    tmp_path: Path,
) -> None:
    model = exported[kind]
    assert model.card.family.contexts[0] == "padded"
    for context in (None, vs.Context("exact")):
        spec = vs.StoreSpec(dtype="float32") if context is None else vs.StoreSpec(dtype="float32", context=context)
        path = tmp_path / (context.mode if context else "padded")
        report = vs.extract(clips, model.path, path, spec, vs.Runtime(threads=1))
        assert report.failed == 1
        store = vs.open_store(path)
        for samples in LENGTHS:
            exact = {name: stored[kind][f"exact/{samples}/{name}"] for name in model.card.outputs}
            audio = np.pad(sound_of(stored[kind], samples), (0, WINDOW - samples))
            want = exact if context else {name: state[0] for name, state in graphs.run(audio[None]).items()}
            for name, state in want.items():
                got = store.frames(str(samples), name)
                assert len(got) == len(exact[name])
                assert relative(got, state[: len(got)]) < 1e-5, (path, name)
    work = estimate(vs.read_corpus(clips), model)
    assert work.tokens == work.windows * model.card.family.frames(WINDOW)
    family, long = model.card.family, soundfile.read(clips.with_name("long.wav"), dtype="float32")[0]
    first, second = family.pieces(len(long))
    audio = np.pad(long[second.sample :], (0, WINDOW - second.samples))
    kept = slice(second.skip, second.skip + second.frames)
    got = vs.open_store(tmp_path / "padded").frames("long", "final")
    assert len(got) == family.frames(len(long)) == first.frames + second.frames
    assert relative(got[first.frames :], graphs.run(audio[None])["final"][0, kept]) < 1e-5


def test_a_prefix_is_of_owsm_ctc_alone_and_is_in_the_card(exported: dict[str, ModelFolder], tmp_path: Path) -> None:
    told = vs.ExportSpec(prefix=("<eng>", "<asr>"))
    with pytest.raises(UsageError, match="told nothing before the speech"):
        vs.export(str(DATA / "owsm"), tmp_path / "owsm", told)
    model, other = vs.export(str(DATA / "owsm_ctc"), tmp_path / "ctc", told), exported["owsm_ctc"]
    assert model.card.family.prefix == ("language=<eng>", "task=<asr>", "previous=<na>")
    assert model.card.weights_sha256 == other.card.weights_sha256
    assert model.card.identity(vs.Context("padded")) != other.card.identity(vs.Context("padded"))


def test_a_whisper_takes_no_prefix(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="told nothing before the speech"):
        vs.export(str(tiny_checkpoint), tmp_path / "whisper", vs.ExportSpec(prefix=("<eng>", "<asr>")))


def test_another_encoder_of_espnets_is_named_with_its_file(tmp_path: Path) -> None:
    shutil.copytree(DATA / "owsm", tmp_path / "model")
    config = tmp_path / "model" / EXPERIMENT / "config.yaml"
    config.write_text(config.read_text().replace("encoder: e_branchformer", "encoder: conformer"))
    with pytest.raises(InputError, match=r"config\.yaml: model_type is 'espnet:conformer'"):
        vs.export(str(tmp_path / "model"), tmp_path / "out")
