"""w2v-BERT's and Seamless's graphs give what transformers' encoders give for its own extractor's features."""

import numpy as np
import pytest
import torch
import transformers
from conformers import LENGTHS, TOLERANCE, Graphs, checkpoint, difference, loaded, randomised, sounds
from transformers import (
    SeamlessM4TConfig,
    SeamlessM4TFeatureExtractor,
    SeamlessM4Tv2Config,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertModel,
)
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TSpeechEncoder
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

from voxstrata.base.errors import InputError
from voxstrata.exporters.families import family_of

_W2V = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
_SEAMLESS = {f"speech_encoder_{k}": v for k, v in (("layers", 3), ("attention_heads", 4), ("intermediate_size", 48))}
_SEAMLESS["hidden_size"] = 32


def w2v_bert(**more):
    return randomised(Wav2Vec2BertModel(Wav2Vec2BertConfig(**{**_W2V, **more})))


def seamless(version=2, **more):
    config = {1: SeamlessM4TConfig, 2: SeamlessM4Tv2Config}[version](**{**_SEAMLESS, **more})
    return randomised({1: SeamlessM4TSpeechEncoder, 2: SeamlessM4Tv2SpeechEncoder}[version](config))


MODULES = {
    "w2v-BERT": w2v_bert,
    "w2v-BERT with adapters": lambda: w2v_bert(
        add_adapter=True, num_adapter_layers=2, use_intermediate_ffn_before_adapter=True, adapter_act="gelu"
    ),
    "Seamless v2": seamless,
    "Seamless v2 without adapter": lambda: seamless(add_adapter=False),
    "Seamless v1": lambda: seamless(1),
}


def extracted(audio):
    """The extractor's features of recordings, and which of their frames are valid."""
    made = SeamlessM4TFeatureExtractor()(list(audio), sampling_rate=16_000, return_tensors="pt")
    return made["input_features"], made["attention_mask"]


def alone(module, audio):
    """transformers' hidden states and last hidden state of one recording, without the frame that is padded."""
    features, mask = extracted([audio])
    with torch.inference_mode():
        made = module(features[:, : int(mask.sum())], output_hidden_states=True)
    return made.hidden_states, made.last_hidden_state


@pytest.fixture(params=MODULES, scope="module")
def made(request, tmp_path_factory):
    module = MODULES[request.param]()
    original = loaded(module)
    return module, original, Graphs(original, tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("more", LENGTHS)
def test_every_output_is_transformers_at_every_length_alone_and_in_a_batch(made, more):
    module, original, graphs = made
    family, samples = original.family, max(560 + more, more)
    batch = sounds(samples)
    together = graphs.states(batch)
    tied = transformers.__version__ >= "5" and isinstance(module, SeamlessM4Tv2SpeechEncoder | SeamlessM4TSpeechEncoder)
    for row, audio in enumerate(batch):
        states, last = alone(module, audio)
        mine = graphs.states(audio[None])
        for output in family.outputs:
            got = mine[output.name]
            assert got.shape == (1, family.frames(samples), 32)
            assert difference(together[output.name][row : row + 1], got) < 1e-5
            if output.hidden_states is not None and not (tied and output.hidden_states == 3):
                assert difference(got, states[output.hidden_states]) < TOLERANCE
            if output.name == "final" and output.repeats == 1:
                assert difference(got, last) < TOLERANCE


def test_the_originals_own_states_are_transformers(made):
    module, original, _ = made
    audio = sounds(40_000)[0]
    states, last = alone(module, audio)
    named = original.hidden_states(audio)
    assert tuple(named) == original.family.names
    for k in range(3):
        assert torch.equal(named[f"layer_{k:02d}"], states[k])
    if original.family.output("final").repeats == 1:
        assert torch.equal(named["final"], last)


def test_the_frames_are_those_that_the_extractor_counts():
    family = loaded(w2v_bert()).family
    for samples in (560, 719, 720, 880, 16_000, 16_159, 16_160, 48_013):
        _, mask = extracted([np.ones(samples, np.float32)])
        assert family.frames(samples) == int(mask.sum())
    assert family.frames(559) == 0
    assert family.shortest == 560
    assert family.seconds_per_frame == 0.02


@pytest.mark.parametrize("name", ["w2v-BERT", "Seamless v2 without adapter"])
def test_transformers_masked_batch_of_other_lengths_has_the_same_valid_states(name, tmp_path):
    module = MODULES[name]()
    graphs = Graphs(loaded(module), tmp_path)
    recordings = [sounds(n)[0] for n in (16_160, 40_000, 25_000)]
    features, mask = extracted(recordings)
    with torch.inference_mode():
        padded = module(features, attention_mask=mask).last_hidden_state
    for audio, states, valid in zip(recordings, padded, mask, strict=True):
        assert difference(graphs.states(audio[None])["final"][0], states[: int(valid.sum())]) < TOLERANCE


@pytest.mark.parametrize("samples", [8 * 320, 8 * 320 + 240, 30_000])
def test_an_adapters_frame_stands_where_the_frames_are_that_it_was_made_of(samples, tmp_path):
    module = seamless()
    final = Graphs(loaded(module), tmp_path).states(sounds(samples)[:1])["final"][0]
    _, last = alone(module, sounds(samples)[0])
    for i, state in enumerate(final):
        seen = [j for j in range(last.shape[1]) if 8 * j - 4 <= i < 8 * j + 4]  # the convolution's frames
        (j,) = seen or [last.shape[1] - 1]
        assert difference(state, last[0, j]) < TOLERANCE


def test_two_layers_of_an_adapter_use_all_its_frames_in_order(tmp_path):
    module = MODULES["w2v-BERT with adapters"]()
    final = Graphs(loaded(module), tmp_path).states(sounds(33_000)[:1])["final"][0]
    _, last = alone(module, sounds(33_000)[0])
    assert len(final) == 102
    for i, state in enumerate(final):
        assert difference(state, last[0, i // 4]) < TOLERANCE


def test_pieces_of_a_recording_past_the_window_are_each_transformers(tmp_path):
    module = w2v_bert(num_hidden_layers=1, hidden_size=16)
    original = loaded(module)
    graphs = Graphs(original, tmp_path, ("final",))
    audio = sounds(41 * 16_000 + 77)[0]
    frames = 0
    for piece in original.family.pieces(len(audio)):
        part = audio[piece.sample : piece.sample + piece.samples]
        assert difference(graphs.states(part[None])["final"], alone(module, part)[1]) < TOLERANCE
        assert piece.frame == frames
        frames += piece.frames
    assert frames == original.family.frames(len(audio))


@pytest.mark.parametrize("outputs", [("layer_00",), ("layer_01", "layer_03")])
def test_outputs_may_be_chosen(outputs, tmp_path):
    original = loaded(seamless())
    audio = sounds(9000)
    few = Graphs(original, tmp_path, outputs).states(audio)
    (tmp_path / "all").mkdir()
    every = Graphs(original, tmp_path / "all").states(audio)
    for name in outputs:
        np.testing.assert_allclose(few[name], every[name], atol=1e-6)


def test_a_fine_tuned_model_is_its_encoder(tmp_path):
    whole = randomised(Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**_W2V, vocab_size=5, mask_time_prob=0.05)))
    got = Graphs(loaded(whole), tmp_path).states(sounds(20_000)[:1])["final"]
    assert difference(got, alone(whole.wav2vec2_bert, sounds(20_000)[0])[1]) < TOLERANCE


def test_a_whole_seamless_model_is_its_speech_encoder(tmp_path):
    module = seamless()
    files = checkpoint(module)
    others = {"text_encoder.layers.0.fc1.weight": torch.ones(2, 2)}
    tensors = {f"speech_encoder.{k}": v for k, v in files.tensors.items()} | others
    original = family_of("seamless_m4t_v2").load(type(files)(**{**vars(files), "tensors": tensors}))
    assert torch.equal(original.hidden_states(sounds(9000)[0])["layer_00"], alone(module, sounds(9000)[0])[0][0])


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (w2v_bert, {"position_embeddings_type": "rotary"}, "position_embeddings_type is 'rotary'"),
        (w2v_bert, {"position_embeddings_type": None}, None),  # left out: it is what released models have
        (w2v_bert, {"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
        (w2v_bert, {"num_hidden_layers": 2}, "num_hidden_layers is 2, they have 3"),
        (w2v_bert, {"num_hidden_layers": 10**12}, "they have 3"),
        (w2v_bert, {"add_adapter": True}, "is missing"),
        (w2v_bert, {"intermediate_size": "48"}, "intermediate_size is '48'"),
        (lambda: w2v_bert(add_adapter=True, output_hidden_size=16), {}, "output_hidden_size is 16"),
        (seamless, {"position_embeddings_type": "rotary"}, "position_embeddings_type is 'rotary'"),
        (seamless, {"speech_encoder_chunk_size": 8}, "speech_encoder_chunk_size is 8"),
        (seamless, {"speech_encoder_layers": 4}, "speech_encoder_layers is 4, they have 3"),
        (w2v_bert, {"num_attention_heads": 0}, "config"),
        (seamless, {"left_max_position_embeddings": 3}, "distance_embedding"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(make, settings, message):
    module = make()
    if message is None:
        assert loaded(module, **settings).layers == 3
        return
    with pytest.raises(InputError, match=message):
        loaded(module, **settings)


def test_another_extractor_is_refused():
    files = checkpoint(w2v_bert())
    with pytest.raises(InputError, match="stride is 1, the encoder takes 2"):
        family_of("wav2vec2-bert").load(type(files)(**{**vars(files), "preprocessor": {"stride": 1}}))


def test_a_window_is_no_longer_than_a_chunk_of_attention():
    assert loaded(seamless(speech_encoder_chunk_size=1000)).family.window == 1000 * 320
    assert loaded(seamless()).family.window == 2000 * 320
