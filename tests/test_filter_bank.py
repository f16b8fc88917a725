"""Filter banks as graphs give what transformers' feature extractors give, for any length, level and neighbour."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor, SequenceFeatureExtractor, Speech2TextFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from voxstrata.exporters.filter_bank import kaldi_filter_bank, kaldi_mel_filters, nemo_filter_bank, standardised
from voxstrata.exporters.graph import GraphBuilder

LENGTHS = (560, 1600, 1759, 16_000, 16_001, 480_000, 560_077)


def run(nodes, audio, mels):
    """The graph whose nodes `nodes(builder)` adds, on audio [batch, samples]."""
    b = GraphBuilder()
    inputs = [b.tensor("audio", np.float32, ["batch", "samples"])]
    graph = b.model("bank", inputs, [b.tensor(nodes(b), np.float32, ["batch", "time", mels])])
    (out,) = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"audio": audio})
    return out


def sound(samples, seed=0):
    """A gliding tone in noise that swells, float32."""
    t = np.arange(samples) / 16_000
    noise = np.random.default_rng(seed + samples).standard_normal(samples)
    return ((0.02 + 0.1 * np.minimum(t, 1)) * (np.sin(900 * t + 300 * t**2) + 0.2 * noise)).astype(np.float32)


def kaldi(b):
    return kaldi_filter_bank(b, "audio", kaldi_mel_filters(80), "features")


def kaldi_per_mel(b):
    return standardised(b, kaldi(b), "normalised", ddof=1, inside=1e-7)


def seamless(audio):
    """SeamlessM4TFeatureExtractor's frames before it stacks them in pairs, without the last of an odd number."""
    found = SeamlessM4TFeatureExtractor()(audio, sampling_rate=16_000, return_tensors="np")
    return found["input_features"][0][: found["attention_mask"].sum()].reshape(-1, 80)


@pytest.mark.parametrize("samples", LENGTHS)
def test_kaldis_bank_is_that_of_transformers_before_it_normalises(samples):
    audio = sound(samples)
    want = SeamlessM4TFeatureExtractor()._extract_fbank_features(audio)
    got = run(kaldi, audio[None], 80)
    assert got.shape == (1, *want.shape)
    np.testing.assert_allclose(got[0], want, atol=2e-5)


@pytest.mark.parametrize("samples", LENGTHS)
def test_per_mel_normalisation_is_that_of_seamless(samples):
    audio, want = sound(samples), seamless(sound(samples))
    np.testing.assert_allclose(run(kaldi_per_mel, audio[None], 80)[0][: len(want)], want, atol=1e-4)


@pytest.mark.parametrize(("means", "variances"), [(True, True), (True, False)])
def test_the_normalisation_over_an_utterance_is_that_of_speech2text(means, variances):
    audio = sound(33_333)
    extractor = Speech2TextFeatureExtractor(normalize_means=means, normalize_vars=variances)
    want = extractor(audio, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    got = run(lambda b: standardised(b, kaldi(b), "normalised", variance=variances), audio[None], 80)
    np.testing.assert_allclose(got[0], want, atol=1e-3 if variances else 1e-4)


def test_a_large_mean_and_a_loud_band_hide_nothing():
    t = np.arange(16_000) / 16_000
    quiet = 1e-4 * np.random.default_rng(1).standard_normal(len(t))
    audio = (0.6 + 0.3 * np.sin(2 * np.pi * 200 * t) + quiet).astype(np.float32)
    want = SeamlessM4TFeatureExtractor()._extract_fbank_features(audio)
    assert want.max() - want.min() > 12, "the quiet bands are far below the loud one"
    np.testing.assert_allclose(run(kaldi, audio[None], 80)[0], want, atol=2e-5)


def test_silence_is_at_the_floor():
    silence = np.zeros(8000, np.float32)
    want = SeamlessM4TFeatureExtractor()._extract_fbank_features(silence)
    np.testing.assert_allclose(run(kaldi, silence[None], 80)[0], want, atol=2e-6)


def test_a_recording_shorter_than_a_frame_has_none():
    assert run(kaldi, np.ones((2, 399), np.float32), 80).shape == (2, 0, 80)
    assert run(kaldi, np.ones((2, 400), np.float32), 80).shape == (2, 1, 80)


def test_neighbours_in_a_batch_change_nothing():
    both = np.stack([sound(20_000), 0.001 * sound(20_000, seed=9)])
    got = run(kaldi_per_mel, both, 80)
    for row, alone in zip(got, both, strict=True):
        np.testing.assert_allclose(row, run(kaldi_per_mel, alone[None], 80)[0], atol=1e-5)


def nemo_filters(mels):
    return mel_filter_bank(257, mels, 0, 8000, 16_000, norm="slaney", mel_scale="slaney")


def parakeet(mels):
    """ParakeetFeatureExtractor; with transformers 4 it takes its filters from librosa, which is not needed here."""
    from transformers.models.parakeet.feature_extraction_parakeet import ParakeetFeatureExtractor

    extractor = ParakeetFeatureExtractor.__new__(ParakeetFeatureExtractor)
    SequenceFeatureExtractor.__init__(extractor, feature_size=mels, sampling_rate=16_000, padding_value=0.0)
    extractor.hop_length, extractor.n_fft, extractor.win_length, extractor.preemphasis = 160, 512, 400, 0.97
    extractor.mel_filters = torch.from_numpy(nemo_filters(mels).T).float()
    return extractor


def nemo_normalised(mels):
    """Nodes as of `run`."""

    def nodes(b):
        return standardised(b, nemo_filter_bank(b, "audio", nemo_filters(mels), "bank"), "out", ddof=1, outside=1e-5)

    return nodes


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("samples", LENGTHS)
def test_nemos_bank_and_its_normalisation_are_those_of_parakeet(samples, mels):
    audio = sound(samples)
    made = parakeet(mels)(audio, sampling_rate=16_000)
    want = made["input_features"][0][made["attention_mask"][0]].numpy()
    got = run(nemo_normalised(mels), audio[None], mels)
    assert got.shape == (1, samples // 160, mels) == (1, *want.shape)
    np.testing.assert_allclose(got[0], want, atol=2e-3)


def test_mels_without_energy_are_parakeets_in_float64():
    spectrum = np.fft.rfft(np.hanning(32_000) * sound(32_000))
    spectrum[len(spectrum) // 2 :] = 0  # as of a telephone's sound at 16 kHz
    audio = (0.01 * np.fft.irfft(spectrum)).astype(np.float32)
    extractor = parakeet(80)
    in_float32 = extractor(audio, sampling_rate=16_000)["input_features"][0, :-1].numpy()
    emphasised = torch.from_numpy(np.append(audio[:1].astype(float), audio[1:] - 0.97 * audio[:-1].astype(float)))
    extractor.mel_filters = torch.from_numpy(nemo_filters(80).T.copy())
    torch.set_default_dtype(torch.float64)
    try:
        energies = extractor._torch_extract_fbank_features(emphasised[None])[0, :-1]
    finally:
        torch.set_default_dtype(torch.float32)
    want = ((energies - energies.mean(0)) / (energies.std(0) + 1e-5)).numpy()
    got = run(nemo_normalised(80), audio[None], 80)[0]
    assert np.abs(in_float32 - want).max() > 0.01, "what rounding alone makes of them in float32"
    np.testing.assert_allclose(got, want, atol=1e-4)
