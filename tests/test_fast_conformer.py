"""FastConformer's graphs give what transformers' encoder gives for its own extractor's features."""

import contextlib
import io
import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers
from conformers import LENGTHS, TOLERANCE, Graphs, checkpoint, difference, loaded, randomised, sounds
from test_filter_bank import parakeet

from voxstrata.base.errors import InputError
from voxstrata.exporters.families import family_of

with contextlib.redirect_stdout(io.StringIO()):  # transformers 4 prints a notice
    from transformers import ParakeetEncoder, ParakeetEncoderConfig

_V5 = transformers.__version__ >= "5"
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "subsampling_conv_channels": 6,
}
CANARY = {"num_mel_bins": 128, "scale_input": False}  # as Canary's and Cohere's encoders are


def encoder(**more):
    return randomised(ParakeetEncoder(ParakeetEncoderConfig(**{**_SMALL, **more})))


MODULES = {
    "Parakeet": encoder,
    "Canary": lambda: encoder(**CANARY),
    "without biases": lambda: encoder(attention_bias=False, **({"convolution_bias": False} if _V5 else {})),
}


def extracted(module, audio):
    """The extractor's features of recordings, and which of their frames are valid."""
    made = parakeet(module.config.num_mel_bins)(list(audio), sampling_rate=16_000)
    return made["input_features"], made["attention_mask"]


def alone(module, audio):
    """transformers' hidden states of one recording, without the frame that is masked."""
    features, mask = extracted(module, [audio])
    with torch.inference_mode():
        made = module(features[:, : int(mask.sum())], output_hidden_states=True)
    assert torch.equal(made.hidden_states[-1], made.last_hidden_state)
    return made.hidden_states


@pytest.fixture(params=MODULES, scope="module")
def made(request, tmp_path_factory):
    module = MODULES[request.param]()
    original = loaded(module)
    return module, original, Graphs(original, tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("more", LENGTHS)
def test_every_output_is_transformers_at_every_length_alone_and_in_a_batch(made, more):
    module, original, graphs = made
    family, samples = original.family, max(320 + more, more)
    batch = sounds(samples)
    together = graphs.states(batch)
    for row, audio in enumerate(batch):
        states, mine, named = alone(module, audio), graphs.states(audio[None]), original.hidden_states(audio)
        assert tuple(named) == family.names == ("layer_00", "layer_01", "final")
        for output in family.outputs:
            got = mine[output.name]
            assert got.shape == (1, family.frames(samples), 32)
            assert difference(together[output.name][row : row + 1], got) < 1e-5
            assert difference(got, states[output.hidden_states]) < TOLERANCE
            assert torch.equal(named[output.name], states[output.hidden_states])


def test_the_frames_are_those_that_the_extractor_and_the_encoder_count():
    module = encoder()
    family = loaded(module).family
    for samples in (320, 1279, 1280, 1440, 2560, 2720, 16_000, 20_480, 20_640, 48_013):
        _, mask = extracted(module, [np.ones(samples, np.float32)])
        assert family.frames(samples) == int(module._get_subsampling_output_length(mask.sum(-1)))
    assert family.seconds_per_frame == 0.08


def test_one_frame_of_features_is_too_short_since_it_has_no_variance():
    family = loaded(encoder()).family
    assert (family.frames(319), family.frames(320), family.shortest) == (0, 1, 320)
    np.testing.assert_array_equal(family.frames(np.array([0, 160, 319, 320, 1600])), [0, 0, 0, 1, 2])
    features, mask = extracted(encoder(), [np.ones(319, np.float32)])
    assert int(mask.sum()) == 1
    assert features.isnan().all()


def test_transformers_masked_batch_of_other_lengths_has_the_same_valid_states(tmp_path):
    module = encoder()
    graphs = Graphs(loaded(module), tmp_path)
    recordings = [sounds(n)[0] for n in (20_480, 40_000, 25_000)]
    features, mask = extracted(module, recordings)
    with torch.inference_mode():
        padded = module(features, attention_mask=mask).last_hidden_state
    for audio, states in zip(recordings, padded, strict=True):
        got = graphs.states(audio[None])["final"][0]
        assert difference(got, states[: len(got)]) < TOLERANCE


@pytest.mark.skipif(_V5, reason="transformers 5 masks with a number where transformers 4 has -inf")
def test_torchs_own_graph_gives_nan_for_a_padded_row_and_ours_has_no_padded_row(tmp_path):
    module = encoder()
    recordings = [sounds(n)[0] for n in (20_480, 10_240)]
    features, mask = extracted(module, recordings)

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = module

        def forward(self, features, mask):
            return self.encoder(features, attention_mask=mask).last_hidden_state

    file = tmp_path / "torch.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Masked().eval(), (features, mask), file, input_names=["features", "mask"], dynamo=False)
    (theirs,) = ort.InferenceSession(file).run(None, {"features": features.numpy(), "mask": mask.numpy()})
    assert np.isnan(theirs[1]).all(), "8 frames of the shorter recording are valid"
    graphs = Graphs(loaded(module), tmp_path)
    for audio in recordings:
        assert difference(graphs.states(audio[None])["final"], alone(module, audio)[-1]) < TOLERANCE


def test_pieces_of_a_recording_past_the_window_are_each_transformers(tmp_path):
    module = encoder(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, max_position_embeddings=500)
    original = loaded(module)
    graphs = Graphs(original, tmp_path, ("final",))
    assert original.family.window == 500 * 1280, "transformers 4 takes no more"
    audio = sounds(41 * 16_000 + 77)[0]
    frames = 0
    for piece in original.family.pieces(len(audio)):
        part = audio[piece.sample : piece.sample + piece.samples]
        assert difference(graphs.states(part[None])["final"], alone(module, part)[-1]) < TOLERANCE
        assert piece.frame == frames
        frames += piece.frames
    assert frames == original.family.frames(len(audio))


@pytest.mark.parametrize("outputs", [("layer_00",), ("layer_01",)])
def test_outputs_may_be_chosen(outputs, tmp_path):
    original, audio = loaded(encoder()), sounds(9000)
    got = Graphs(original, tmp_path, outputs).states(audio[:1])
    want = original.hidden_states(audio[0])
    assert {name: difference(got[name], want[name]) < TOLERANCE for name in got} == dict.fromkeys(outputs, True)


def whole(kind, module, prefix="encoder.", **config):
    """A checkpoint of a whole model around the encoder. config: more of encoder_config, None for what it leaves out."""
    inner = {**module.config.to_dict(), **config}
    inner = {k: v for k, v in inner.items() if v is not None}
    files = checkpoint(module)
    tensors = {prefix + name: value for name, value in files.tensors.items()} | {"head.weight": torch.ones(2)}
    return type(files)(**{**vars(files), "config": {"model_type": kind, "encoder_config": inner}, "tensors": tensors})


@pytest.mark.parametrize(
    ("kind", "prefix", "name"),
    [
        ("parakeet_ctc", "encoder.", "Parakeet"),
        ("parakeet_tdt", "encoder.", "Parakeet"),
        ("canary", "model.encoder.", "Canary"),
        ("cohere_asr", "model.encoder.", "Cohere Transcribe"),
    ],
)
def test_a_whole_model_is_its_encoder(kind, prefix, name):
    module = encoder(**CANARY)
    original = family_of(kind).load(whole(kind, module, prefix))
    assert original.family.name == name
    audio = sounds(9000)[0]
    assert torch.equal(original.hidden_states(audio)["final"], alone(module, audio)[-1])


def test_what_a_configuration_leaves_out_is_what_transformers_5_takes():
    module = encoder(**CANARY)
    audio = sounds(9000)[0]
    for kind in ("canary", "cohere_asr"):
        original = family_of(kind).load(whole(kind, module, scale_input=None, num_mel_bins=None))
        assert torch.equal(original.hidden_states(audio)["final"], alone(module, audio)[-1])


@pytest.mark.skipif(not _V5, reason="needs transformers 5's own configurations")
@pytest.mark.parametrize("kind", ["canary", "cohere_asr"])
def test_the_defaults_are_transformers_5s(kind):
    from voxstrata.exporters.families.fast_conformer import _DEFAULTS

    config = {"canary": "CanaryConfig", "cohere_asr": "CohereAsrConfig"}[kind]
    theirs = getattr(transformers, config)().encoder_config.to_dict()
    ours = ParakeetEncoderConfig(**_DEFAULTS[kind]).to_dict()
    training = {"dropout", "dropout_positions", "layerdrop", "activation_dropout", "attention_dropout"}
    assert {k: v for k, v in theirs.items() if k not in training} == {
        k: v for k, v in ours.items() if k not in training
    }


@pytest.mark.skipif(not _V5, reason="needs transformers 5's own models")
@pytest.mark.parametrize("kind", ["CohereAsr", "Canary"])
def test_a_model_that_transformers_5_saved_is_its_encoder(kind, tmp_path):
    import json

    from safetensors.torch import load_file

    inner = {**_SMALL, **CANARY}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text |= {"vocab_size": 20, "head_dim": 16}
    decoder = {"decoder_config": text, "vocab_size": 20} if kind == "Canary" else text
    config = getattr(transformers, f"{kind}Config")(encoder_config=inner, **decoder)
    model = randomised(getattr(transformers, f"{kind}ForConditionalGeneration")(config))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    files = type(checkpoint(encoder()))("saved", None, tmp_path, saved, {}, tensors)
    audio = sounds(9000)[0]
    original = family_of(saved["model_type"]).load(files)
    assert torch.equal(original.hidden_states(audio)["final"], alone(model.model.encoder, audio)[-1])


def test_nemos_own_names_are_known():
    module = encoder(**CANARY)
    names = {
        "subsampling.layers.": "pre_encode.conv.",
        "subsampling.linear.": "pre_encode.out.",
        "self_attn.q_proj": "self_attn.linear_q",
        "self_attn.k_proj": "self_attn.linear_k",
        "self_attn.v_proj": "self_attn.linear_v",
        "self_attn.o_proj": "self_attn.linear_out",
        "self_attn.relative_k_proj": "self_attn.linear_pos",
        "self_attn.bias_": "self_attn.pos_bias_",
        "conv.norm.": "conv.batch_norm.",
    }
    files = whole("cohere_asr", module)
    tensors = files.tensors
    for ours, nemos in names.items():
        tensors = {name.replace(ours, nemos): value for name, value in tensors.items()}
    assert not tensors.keys() & {k for k in files.tensors if "bias_" in k or "subsampling" in k}
    audio = sounds(9000)[0]
    original = family_of("cohere_asr").load(type(files)(**{**vars(files), "tensors": tensors}))
    assert torch.equal(original.hidden_states(audio)["final"], alone(module, audio)[-1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
        ({"subsampling_factor": 6}, "subsampling by 6"),
        ({"subsampling_factor": 4}, "more encoder tensors|is \\(32, 60\\)"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, they have 2"),
        ({"max_position_embeddings": 100}, "max_position_embeddings is 100"),
        ({"conv_kernel_size": 8}, "config|depthwise_conv"),
        ({"conv_kernel_size": 7}, "depthwise_conv"),
        ({"num_mel_bins": 128}, "subsampling.linear.weight"),
        ({"scale_input": "yes"}, "scale_input is 'yes', not true or false"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        loaded(encoder(), **settings)


def test_another_extractor_is_refused():
    files = checkpoint(encoder())
    with pytest.raises(InputError, match="feature_size is 128, the encoder takes 80"):
        family_of("parakeet_encoder").load(type(files)(**{**vars(files), "preprocessor": {"feature_size": 128}}))


def test_a_whole_model_without_its_encoders_configuration_is_refused():
    files = checkpoint(encoder())
    with pytest.raises(InputError, match="encoder_config is None, not an object"):
        family_of("canary").load(type(files)(**{**vars(files), "config": {"model_type": "canary"}}))
