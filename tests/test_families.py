"""Promises of encoders beyond Whisper: time, shape and context come from the family that the card declares."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import toy_encoder as toy
from numpy.typing import NDArray

import voxstrata as vs
from voxstrata.base.progress import Progress, Reporter
from voxstrata.encoders import card as layout
from voxstrata.encoders.card import ModelCard, open_model
from voxstrata.encoders.family import Family, Step
from voxstrata.encoders.frames import encoder_frames
from voxstrata.encoders.onnx_file import cut_onnx
from voxstrata.encoders.whisper import WHISPER
from voxstrata.engine import device_rows
from voxstrata.engine.exact_encoder import ExactEncoder
from voxstrata.engine.pipeline import equal_batches
from voxstrata.store.plan import windows_of

LENGTHS = {"short": 720, "a": 16_000, "b": 16_001, "c": 16_000, "full": 32_000, "long": 100_123, "tail": 59_201}


def sound(name: str) -> NDArray[np.float32]:
    """Samples of a recording, as 16-bit files hold them."""
    i = list(LENGTHS).index(name)
    x = np.random.default_rng(i).standard_normal(LENGTHS[name]) * np.linspace(0.05, 0.2, LENGTHS[name])
    return (np.round(np.clip(x, -1, 1) * 32767) / 32768).astype(np.float32)


class Listening(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.told: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    lines = ["id\tpath\tlanguage\tgroup"]
    for i, name in enumerate(LENGTHS):
        soundfile.write(folder / f"{name}.wav", sound(name), 16_000, subtype="PCM_16")
        lines.append(f"{name}\t{name}.wav\t{'en' if i % 2 else 'es'}\tg{i // 2}")
    soundfile.write(folder / "click.wav", np.zeros(399), 16_000, subtype="PCM_16")
    (folder / "m.tsv").write_text("\n".join([*lines, "click\tclick.wav\ten\tg9"]) + "\n")
    return folder / "m.tsv"


@pytest.fixture(scope="module")
def store(model: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> vs.EmbeddingStore:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    vs.extract(clips, model, path, vs.StoreSpec(dtype="float32"), vs.Runtime(threads=2))
    return vs.open_store(path)


# the declaration


def test_whispers_time_is_that_of_its_frames() -> None:
    samples = np.arange(1_500_000, step=77)
    np.testing.assert_array_equal(WHISPER.frames(samples), [encoder_frames(int(n)) for n in samples])
    assert (WHISPER.hop, WHISPER.shortest, WHISPER.window, WHISPER.seam) == (320, 1, 480_000, 1500)


@pytest.mark.parametrize("family", [WHISPER, toy.FAMILY, replace(toy.FAMILY, overlap=2 * toy.HOP)])
def test_pieces_cover_every_frame_once_and_stay_within_the_window(family: Family) -> None:
    for samples in (
        family.shortest,
        16_000,
        family.window - 1,
        family.window,
        family.window + 1,
        7 * family.window + 5,
    ):
        windows = windows_of(0, samples, family)
        assert [w.frame for w in windows] == np.cumsum([0, *(w.frames for w in windows[:-1])]).tolist()
        assert sum(w.frames for w in windows) == family.frames(samples)
        assert max(w.samples for w in windows) <= family.window
        assert windows[-1].sample + windows[-1].samples == samples
        for w in windows:
            assert w.skip + w.frames <= family.frames(w.samples)
            assert w.frame % family.seam == 0
            assert w.sample // family.hop + w.skip == w.frame


def test_a_rest_too_short_for_a_frame_is_no_window() -> None:
    family = Family.from_dict(replace(toy.FAMILY, steps=(Step(400, 320, 80),), overlap=0).to_dict())
    first = windows_of(0, family.window, family)
    assert windows_of(0, family.window + 319, family) == first
    assert family.frames(family.window + 319) == first[0].frames == 100
    assert len(windows_of(0, family.window + 320, family)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": ()}, "sizes are 1 or more"),
        ({"steps": (Step(10, 0),)}, "sizes are 1 or more"),
        ({"steps": (Step(10, 5, -1),)}, "padding and operations 0 or more"),
        ({"window": 1 << 60}, "none above"),
        ({"window": 100}, "do not fit frames of 320"),
        ({"window": 200_000 * toy.HOP}, "a window of 64000000 samples"),
        ({"steps": (Step(400, 320, 1 << 50),)}, "frames, is not to be"),
        ({"overlap": 50 * toy.HOP}, "do not fit frames"),
        ({"overlap": 0}, "pieces of a long recording would lack frames"),
        ({"block_flops": (1, 2)}, "three numbers"),
        ({"input": "pictures"}, "input 'pictures'"),
        ({"norm": "none"}, "norm 'none'"),
        ({"outputs": ()}, "outputs and contexts are missing"),
        ({"contexts": ()}, "outputs and contexts are missing"),
    ],
)
def test_a_declaration_that_no_encoder_can_have_is_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Family.from_dict(replace(toy.FAMILY, **change).to_dict())


@pytest.mark.parametrize("change", [{"window": 32_000.0}, {"name": 3}, {"features": True}, {"prefix": [1]}])
def test_a_declaration_of_other_types_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Family.from_dict(toy.FAMILY.to_dict() | change)


# the card


def test_the_card_carries_a_family_and_whispers_does_not(model: Path) -> None:
    card = open_model(model).card
    assert card.family == toy.FAMILY
    assert not card.whisper
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    whisper = ModelCard(3, "w", None, "0", 2, 8, 2, 80, "float32", 17, ("final",), "every", {}, {}, {})
    assert "family" not in whisper.to_dict()
    again = replace(ModelCard.from_dict(whisper.to_dict()), layers=3, final_norm="final")
    assert again.family.names == ("layer_00", "layer_01", "layer_02", "layer_03", "final")
    assert again.family.output("layer_02").hidden_states == 2


def test_identity_tells_families_normalisations_and_prefixes_apart(model: Path) -> None:
    card, context = open_model(model).card, vs.Context("exact")
    changes: list[dict[str, Any]] = [
        {},
        {"name": "other"},
        {"normalisation": "by its mean"},
        {"prefix": ("language=en",)},
    ]
    found = [json.dumps(replace(card, family=replace(toy.FAMILY, **c)).identity(context)) for c in changes]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"silence": {"sha256": "0"}}, "silence cache"),
        ({"n_mels": 80}, "another width"),
        ({"family": replace(toy.FAMILY, contexts=("exact", "bucketed"))}, "a context"),
        ({"family": replace(toy.FAMILY, contexts=("trimmed",))}, "context"),
        ({"layers": 2}, "family has the outputs"),
        ({"validation": {"outputs": {}, "lengths_seconds": []}}, "as outputs"),
        ({"validation": {"outputs": dict.fromkeys(toy.OUTPUTS, 0.0)}}, "without lengths_seconds"),
    ],
)
def test_a_card_that_no_export_writes_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    toy.write_toy(tmp_path / "m", **change)
    with pytest.raises(vs.InputError, match=rf"card\.json: incomplete \(.*{message}"):
        open_model(tmp_path / "m")


def _edit(model: Path, name: str, change: Any) -> None:
    """Change a graph, and write its card's hashes anew."""
    graph = onnx.load(str(model / name), load_external_data=False)
    change(graph)
    (model / name).write_bytes(graph.SerializeToString())
    card = json.loads((model / "card.json").read_text())
    layout.write_card(model, ModelCard.from_dict({k: v for k, v in card.items() if k not in ("files", "sha256")}))


def _constant(m: onnx.ModelProto) -> None:
    node = m.graph.node.add(op_type="Constant", output=["secret"])
    value = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
    value.data_type, value.data_location = onnx.TensorProto.FLOAT, onnx.TensorProto.EXTERNAL
    value.dims.append(1)
    for key, found in (("location", "../../secret"), ("length", "4")):
        value.external_data.add(key=key, value=found)


CHANGES = {
    "features.onnx: carries another card": (layout.FEATURES, lambda m: m.ClearField("metadata_props")),
    "features.onnx: takes other inputs": (layout.FEATURES, lambda m: setattr(m.graph.input[0], "name", "sound")),
    "features.onnx: has other outputs": (
        layout.FEATURES,
        lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7),
    ),
    "encoder_model.onnx: takes other inputs": (layout.ENCODER, lambda m: m.graph.input[0].type.Clear()),
    "encoder_model.onnx: has other outputs": (layout.ENCODER, lambda m: m.graph.output.pop()),
    "encoder_model.onnx: has far more nodes": (layout.ENCODER, lambda m: m.graph.node.extend([m.graph.node[0]] * 5000)),
    "encoder_model.onnx: takes weights from elsewhere": (
        layout.ENCODER,
        lambda m: setattr(m.graph.initializer[0].external_data[0], "value", "../other"),
    ),
    "encoder_model.onnx: .*operator 'Loop'": (layout.ENCODER, lambda m: setattr(m.graph.node[0], "op_type", "Loop")),
    "encoder_model.onnx: .*a constant from another file": (layout.ENCODER, _constant),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_graph_that_no_export_writes_is_refused_before_it_is_loaded(message: str, tmp_path: Path) -> None:
    model = toy.write_toy(tmp_path / "m")
    for name in (layout.ENCODER, layout.FEATURES):
        _edit(model, name, lambda m: None)  # as it is, it is read
    open_model(model)
    _edit(model, *CHANGES[message])
    with pytest.raises(vs.InputError, match=f"{message}.*export the model again"):
        open_model(model)


def test_a_whisper_takes_no_other_familys_graphs(tiny_model: Path, tmp_path: Path) -> None:
    card = json.loads((tiny_model / "card.json").read_text()) | {"family": WHISPER.to_dict()}
    with pytest.raises(ValueError, match="no card of Whisper says so"):
        ModelCard.from_dict({k: v for k, v in card.items() if k not in ("files", "sha256")})


# encoding


def test_states_are_those_of_the_definition(model: Path) -> None:
    encoder = ExactEncoder(open_model(model), vs.StoreSpec(dtype="float32"))
    for name in ("short", "a", "b", "full"):
        for output, states in zip(encoder.outputs, encoder.run([sound(name)]), strict=True):
            np.testing.assert_allclose(states[0], toy.states_of(sound(name))[output], atol=2e-5)


def test_windows_of_one_length_in_a_batch_give_what_each_gives_alone(model: Path) -> None:
    encoder = ExactEncoder(open_model(model), vs.StoreSpec(dtype="float32"))
    audio, kept = [sound("a"), sound("c")], [(0, 40), (8, 30)]
    together = encoder.stored_rows(audio, 49, kept)
    assert together.finite == [True] * len(toy.OUTPUTS)
    for i, (skip, n) in enumerate(kept):
        for output, rows in zip(encoder.outputs, together.rows, strict=True):
            np.testing.assert_allclose(rows[i], toy.states_of(audio[i])[output][skip : skip + n], atol=2e-5)


def test_a_batch_holds_windows_of_one_exact_length(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ExactEncoder(open_model(model))
    windows = [w for u, n in enumerate(LENGTHS.values()) for w in windows_of(u, n, toy.FAMILY)]
    alone = list(equal_batches(windows, encoder.context, encoder))
    assert [len(batch) for _, batch in alone] == [1] * len(windows)  # on a CPU
    monkeypatch.setattr(ExactEncoder, "batch_size", lambda *_: 3)  # as on a GPU
    found = list(equal_batches(windows, encoder.context, encoder))
    assert sorted((w for _, batch in found for w in batch), key=astuple) == sorted(windows, key=astuple)
    assert {len(batch) for _, batch in found} == {1, 2, 3}
    for frames, batch in found:
        assert {toy.FAMILY.frames(w.samples) for w in batch} == {frames}
        assert len({w.samples for w in batch}) == 1
    assert toy.FAMILY.frames(16_000) == toy.FAMILY.frames(16_001)  # so that frames alone would put these together


@pytest.mark.parametrize("kept", [{}, {"dtype": "float32"}, {"every": 4}, {"pool": "mean"}])
def test_on_a_device_states_are_reduced_to_the_same_rows_in_memory_that_is_used_again(
    model: Path, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here with the CPU as the device."""
    made: list[int] = []
    make = device_rows.host_array
    monkeypatch.setattr(device_rows, "host_array", lambda size, dtype: made.append(size) or make(size, dtype))
    opened, spec = open_model(model), vs.StoreSpec(("layer_01", toy.OUTPUTS[-1]), **kept)
    plain, device = (ExactEncoder(opened, spec, vs.Runtime(tokens=60)) for _ in range(2))
    device._reduce_on_device()
    many = [sound("a")] * 3  # more than a batch, so for them memory is made that is not kept
    for audio, part in (([sound("a")], [(8, 30)]), ([sound("b")], [(0, 49)]), ([sound("full")], None), (many, None)):
        want = plain.stored_rows(audio, 49, part)
        monkeypatch.setattr(device, "run", None)  # which brings states to the host
        found = device.stored_rows(audio, 49, part)
        assert found.finite == want.finite == [True, True]
        for ours, theirs in zip(found.rows, want.rows, strict=True):
            for mine, other in zip(ours, theirs, strict=True):
                assert mine.dtype == other.dtype
                np.testing.assert_allclose(mine, other, rtol=2e-3, atol=1e-4)
        del found, ours, mine
    assert len(made) == 1


def test_only_the_blocks_that_the_wanted_outputs_need_are_computed(model: Path) -> None:
    opened, sessions = open_model(model), dict[str, Any]()
    shallow = ExactEncoder(opened, vs.StoreSpec("layer_01", dtype="float32"), sessions=sessions)
    whole = ExactEncoder(opened, vs.StoreSpec(dtype="float32"), sessions=sessions)
    assert len(sessions) == 3  # one for samples, and the encoder at two depths
    assert [o.name for o in sessions["encoder_model.onnx:layer_01"].get_outputs()] == ["layer_00", "layer_01"]
    graph = onnx.load_from_string(cut_onnx(model / layout.ENCODER, ("layer_00", "layer_01")))
    assert sum(node.op_type == "Tanh" for node in graph.graph.node) == 1
    assert {t.name for t in graph.graph.initializer} == {"front", "mix_0", "one"}
    assert [o.name for o in graph.graph.output] == ["layer_00", "layer_01"]
    np.testing.assert_array_equal(shallow.run([sound("a")])[0], whole.run([sound("a")])[1])
    for output in toy.OUTPUTS:  # weights are held by two of them at the most
        ExactEncoder(opened, vs.StoreSpec(output), sessions=sessions)
    assert list(sessions) == ["features.onnx", "encoder_model.onnx:layer_03", "encoder_model.onnx"]
    np.testing.assert_array_equal(shallow.run([sound("a")])[0], whole.run([sound("a")])[1])
    everything = onnx.load_from_string(cut_onnx(model / layout.ENCODER, toy.OUTPUTS))
    assert everything == onnx.load(str(model / layout.ENCODER), load_external_data=False)


def test_a_graph_that_gives_other_frames_than_its_family_declares_is_an_error(tmp_path: Path) -> None:
    steps = (*toy.FAMILY.steps[:-1], Step(2, 2, 2))
    model = toy.write_toy(tmp_path / "m", replace(toy.FAMILY, steps=steps))
    with pytest.raises(vs.InputError, match=r"layer_00 is \(1, 49, 4\) for 16000 samples, its family declares"):
        ExactEncoder(open_model(model)).run([sound("a")])


@pytest.mark.parametrize("spec", [vs.StoreSpec(dtype="float32"), vs.StoreSpec("final", pool="mean")])
def test_encode_gives_what_extract_stores(spec: vs.StoreSpec, model: Path, clips: Path, tmp_path: Path) -> None:
    speech = vs.open_model(model)
    vs.extract(clips, model, tmp_path / "s.zarr", spec)
    stored = vs.open_store(tmp_path / "s.zarr")
    for name in LENGTHS:
        found = speech.encode(sound(name), 16_000, spec=spec)
        for output, rows in found.items():
            there = stored.pooled(output, stored.indices([name]))[0] if spec.pool else stored.frames(name, output)
            np.testing.assert_array_equal(rows, there)


def test_encode_says_of_a_recording_that_is_too_short_what_is_the_shortest(model: Path) -> None:
    speech = vs.open_model(model)
    with pytest.raises(vs.InputError, match=r"recording 1: 0.0249375 s \(399 samples .* needs 0.025 s \(400 samples\)"):
        speech.encode([sound("a"), sound("a")[:399]], 16_000)
    assert speech.encode(sound("a")[:400], 16_000)["final"].shape == (1, toy.D)


# stores


def test_a_store_holds_the_states_of_each_recording_by_itself(store: vs.EmbeddingStore) -> None:
    assert store.spec.context == vs.Context("exact")
    assert store.row_seconds == 0.02
    for name in set(LENGTHS) - {"long", "tail"}:
        for output, states in toy.states_of(sound(name)).items():
            np.testing.assert_allclose(store.frames(name, output), states, atol=2e-5)


@pytest.mark.parametrize("name", ["long", "tail"])
def test_pieces_of_a_long_recording_join_without_a_seam(name: str, store: vs.EmbeddingStore) -> None:
    states = toy.states_of(sound(name))
    assert len(states["layer_00"]) > toy.FAMILY.window // toy.HOP
    for output in toy.OUTPUTS[:-1]:  # which see no further than the overlap
        np.testing.assert_allclose(store.frames(name, output), states[output], atol=2e-5)


def test_a_recording_too_short_for_a_frame_fails_alone_with_its_reason(store: vs.EmbeddingStore) -> None:
    assert store.complete
    failed = {row["id"]: row["failure"] for row in store.utterances.to_pylist() if row["status"] == "failed"}
    assert list(failed) == ["click"]
    assert (
        "399 samples at 16 kHz) are too short for a frame of toy 2.0, which needs 0.025 s (400 samples)"
        in (failed["click"])
    )


def test_audio_in_two_windows_is_counted_once(model: Path, clips: Path, tmp_path: Path) -> None:
    listening = Listening()
    report = vs.extract(clips, model, tmp_path / "s.zarr", vs.StoreSpec("final"), reporter=listening)
    extracting = [p for p in listening.told if p.stage == "extracting"]
    assert report.audio_seconds == extracting[-1].work == extracting[-1].work_total == sum(LENGTHS.values()) / 16_000


def test_means_of_neighbours_and_of_all_are_those_of_the_frames(
    store: vs.EmbeddingStore, model: Path, clips: Path, tmp_path: Path
) -> None:
    vs.extract(clips, model, tmp_path / "e.zarr", vs.StoreSpec(dtype="float32", every=4))
    vs.extract(clips, model, tmp_path / "p.zarr", vs.StoreSpec(pool="mean"))
    every, pooled = vs.open_store(tmp_path / "e.zarr"), vs.open_store(tmp_path / "p.zarr")
    for name in LENGTHS:
        for output in toy.OUTPUTS:
            frames = store.frames(name, output).astype(np.float64)
            means = [frames[i : i + 4].mean(axis=0) for i in range(0, len(frames), 4)]
            np.testing.assert_allclose(every.frames(name, output), means, atol=2e-5)
            np.testing.assert_allclose(pooled.pooled(output, pooled.indices([name]))[0], frames.mean(axis=0), atol=2e-5)
    assert every.row_seconds == 0.08


def test_threads_tokens_and_a_run_that_resumes_change_no_byte(
    store: vs.EmbeddingStore, model: Path, clips: Path, tmp_path: Path
) -> None:
    from voxstrata.engine.run import prepare

    spec, runtime = vs.StoreSpec(dtype="float32"), vs.Runtime(threads=1, tokens=7)
    run = prepare(vs.read_corpus(clips), model, tmp_path / "s.zarr", spec, runtime)
    run.extract_unit(run.order[0], run.encoder(runtime))
    assert run.pending()
    report = vs.extract(clips, model, tmp_path / "s.zarr", spec, runtime)
    assert report.resumed_units == 1
    again = vs.open_store(tmp_path / "s.zarr")
    for output in toy.OUTPUTS:
        for a, b in zip(again.units(output), store.units(output), strict=True):
            np.testing.assert_array_equal(a[1], b[1])
    from voxstrata.store.verify import verify

    assert verify(tmp_path / "s.zarr").sound


def test_append_passes_over_what_is_as_short_as_it_was(model: Path, clips: Path, tmp_path: Path) -> None:
    vs.extract(clips, model, tmp_path / "s.zarr", vs.StoreSpec("final"))
    reporter = Listening()
    assert vs.append(tmp_path / "s.zarr", clips, model, reporter=reporter).passed_over == len(LENGTHS) + 1
    assert not reporter.warnings


def test_a_store_says_what_its_family_is(model: Path, clips: Path, tmp_path: Path) -> None:
    outputs = tuple(replace(o, repeats=2 if o.name == "final" else 1) for o in toy.FAMILY.outputs)
    model = toy.write_toy(tmp_path / "m", replace(toy.FAMILY, outputs=outputs))
    vs.extract(clips, model, tmp_path / "s.zarr", vs.StoreSpec("layer_02,final", every=4))
    opened = vs.open_store(tmp_path / "s.zarr")
    about = opened.array("final").attrs
    assert about["seconds_per_row"] == 0.08
    assert about["hidden_states_index"] is None
    assert about["long_name"] == "made up: final; it has one state for 2 frames, which is there 2 times"
    assert opened.array("layer_02").attrs["hidden_states_index"] == 2
    assert opened.spec.windows == (
        "2 s windows every 1.68 s, encoded apart, the states of 0.16 s at each end inside the recording dropped, the "
        "others concatenated"
    )
    readme = (tmp_path / "s.zarr" / "README.md").read_text()
    assert "A row is 80 ms of speech." in readme
    assert "| `layer_02` | made up: layer_02 | `[2]` |" in readme


def test_another_overlap_is_another_store(model: Path, clips: Path, tmp_path: Path) -> None:
    other = toy.write_toy(tmp_path / "m", replace(toy.FAMILY, overlap=4 * toy.HOP))
    vs.extract(clips, model, tmp_path / "s.zarr", vs.StoreSpec("final"))
    with pytest.raises(vs.InputError, match=r"windows is 2 s windows every 1\.68 s.* there, 2 s windows every 1\.84 s"):
        vs.extract(clips, other, tmp_path / "s.zarr", vs.StoreSpec("final"))


# what a family has not


@pytest.mark.parametrize("mode", ["bucketed", "trimmed"])
def test_a_context_that_a_family_has_not_is_refused_by_name(
    mode: Any, model: Path, clips: Path, tmp_path: Path
) -> None:
    message = rf"toy: toy 2\.0 has no context '{mode}'; its contexts: exact"
    with pytest.raises(vs.UsageError, match=message):
        vs.extract(clips, model, tmp_path / "s.zarr", vs.StoreSpec(context=vs.Context(mode)))
    assert not (tmp_path / "s.zarr").exists()


def test_whisper_has_no_exact_context(tiny_model: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(vs.UsageError, match="Whisper has no context 'exact'; its contexts: bucketed, padded, trimmed"):
        vs.extract(clips, tiny_model, tmp_path / "s.zarr", vs.StoreSpec(context=vs.Context("exact")))


def test_means_that_would_cross_from_one_window_into_the_next_are_refused(model: Path, clips: Path) -> None:
    with pytest.raises(vs.UsageError, match="--every 3: choose a divisor of 4, like 2 or 4"):
        vs.extract(clips, model, "s.zarr", vs.StoreSpec(every=3))


def test_drift_and_tensorrt_are_refused_by_name(model: Path, clips: Path) -> None:
    with pytest.raises(vs.UsageError, match=r"drift compares the contexts of Whisper; toy 2\.0 has exact alone"):
        vs.drift(vs.read_corpus(clips), vs.open_model(model))
    for device in ("tensorrt", "cuda:bfloat16"):
        with pytest.raises(vs.UsageError, match=r"toy 2\.0 runs on cpu and cuda; TensorRT and bfloat16 are for"):
            ExactEncoder(open_model(model), runtime=vs.Runtime(vs.Device.parse(device)))
    with pytest.raises(vs.UsageError, match=r"toy 2\.0 has no silence cache"):
        open_model(model).silence()


# the commands


def _run(*args: object) -> int:
    from voxstrata.cli.app import main

    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in args])
    return int(stopped.value.code or 0)


def test_commands_take_time_and_context_from_the_family(
    model: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("info", model) == 0
    said = capsys.readouterr().out
    assert "toy 2.0, pre-norm" in said
    assert "every 20 ms, of 400 samples or more" in said
    assert _run("plan", clips, model) == 4  # one recording fails
    assert "12 of at most 2 s, exact" in capsys.readouterr().out
    assert _run("plan", clips, model, "--long", "error") == 3
    assert "over the 2 s window (2 recordings are)" in capsys.readouterr().err
    assert _run("extract", clips, model, "-o", tmp_path / "s.zarr", "--context", "bucketed") == 2
    assert "its contexts: exact" in capsys.readouterr().err
    assert _run("extract", clips, model, "-o", tmp_path / "s.zarr", "--dtype", "float32") == 4
    assert _run("verify", tmp_path / "s.zarr") == 0
    capsys.readouterr()
    assert _run("info", tmp_path / "s.zarr") == 0
    assert "exact\n" in capsys.readouterr().out
    assert _run("retrieve", tmp_path / "s.zarr", "--outputs", "layer_02", "-o", tmp_path / "r", "--bootstrap", "0") == 0


def test_the_plan_counts_the_work_of_every_piece(model: Path, clips: Path) -> None:
    from voxstrata.engine.estimating import estimate

    found = estimate(vs.read_corpus(clips), open_model(model), vs.StoreSpec("layer_01"))
    windows = [w for n in LENGTHS.values() for w in windows_of(0, n, toy.FAMILY)]
    computed = [toy.FAMILY.frames(w.samples) for w in windows]
    assert (found.windows, found.tokens) == (len(windows), sum(computed))
    assert found.flops == sum(2 * toy.SPAN * toy.D * n + 6 * toy.D**2 * n for n in computed)  # one block of three
    assert found.rows == sum(toy.FAMILY.frames(n) for n in LENGTHS.values())


def test_bench_measures_the_contexts_that_a_family_has(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxstrata.engine.measuring import bench, recorded

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime = vs.Runtime(threads=1)
    record = bench(open_model(model), "layer_01", runtime, seconds=0.1)
    assert list(record.contexts) == ["exact"]
    assert recorded(open_model(model), runtime) == record
    done = record.contexts["exact"]
    assert done.tokens * toy.D * 2 < done.stored_bytes + 1  # a row for every frame, or fewer where pieces overlap


def test_the_hash_of_an_encoder_is_of_its_settings_too_and_not_of_how_they_were_saved() -> None:
    from voxstrata.exporters.family_writing import state_sha256

    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    settings = {"model_type": "x", "encoder_config": {"heads": 4, "scale_input": True, "dtype": "float32"}}
    saved = {"transformers_version": "5.0", "architectures": ["X"], "torch_dtype": "float16", **settings}
    first = state_sha256(state, [settings, {}])
    assert state_sha256(dict(reversed(state.items())), [saved, {}]) == first
    others = [({**settings["encoder_config"], key: value}) for key, value in (("heads", 2), ("scale_input", False))]
    found = {state_sha256(state, [{**settings, "encoder_config": other}, {}]) for other in others}
    found |= {
        state_sha256(state, [settings, {"dither": 1}]),
        state_sha256({**state, "b": state["b"] * 2}, [settings, {}]),
    }
    assert len(found | {first}) == 5
