"""What a user would otherwise run on the same audio: encoders in PyTorch, optimum's ONNX export, CTranslate2.

Each takes the features of 30 s windows, float32 [batch, n_mels, 3000], and returns its last state [batch, 1500, d].
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import voxstrata  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it turns off

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from transformers import WhisperForConditionalGeneration

from voxstrata.exporters.checkpoint import Checkpoint

Features = NDArray[np.float32]
Encode = Callable[[Features], NDArray[np.float32]]

PACKAGES = {"optimum": "optimum.exporters.onnx", "CTranslate2": "ctranslate2"}  # peers that may be absent


def installed(peer: str) -> bool:
    """Whether a peer's package is there."""
    try:
        return importlib.util.find_spec(PACKAGES[peer]) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def pytorch(checkpoint: Checkpoint, attention: str) -> Encode:
    """Hugging Face's encoder with all its hidden states, eager or sdpa."""
    encoder = checkpoint.encoder

    def encode(features: Features) -> NDArray[np.float32]:
        encoder.set_attn_implementation(attention)
        with torch.inference_mode():
            done = encoder(torch.from_numpy(features), output_hidden_states=True)
        states: NDArray[np.float32] = done.last_hidden_state.numpy()
        return states

    return encode


def optimum_graph(checkpoint: Checkpoint, folder: Path) -> Path:
    """The encoder graph of `optimum-cli export onnx`, written below `folder`."""
    from optimum.exporters.onnx import main_export

    _under_a_decoder(checkpoint).save_pretrained(folder / "whole")
    checkpoint.extractor.save_pretrained(folder / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing Whisper warns about its shape checks
        main_export(str(folder / "whole"), folder / "onnx", task="automatic-speech-recognition", do_validation=False)
    return folder / "onnx" / "encoder_model.onnx"


def optimum(checkpoint: Checkpoint, folder: Path, threads: int) -> Encode:
    """optimum's encoder graph on ONNX Runtime with its default options; last state only."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(optimum_graph(checkpoint, folder), options)

    def encode(features: Features) -> NDArray[np.float32]:
        (states,) = session.run(["last_hidden_state"], {"input_features": features})
        return np.asarray(states)

    return encode


def ctranslate2(checkpoint: Checkpoint, folder: Path, threads: int) -> Encode:
    """The encoder of a model converted for faster-whisper, float32; last state only."""
    import ctranslate2 as ct2
    from ctranslate2.converters.transformers import WhisperLoader

    whole = _under_a_decoder(checkpoint)
    loader: Any = WhisperLoader()
    with torch.no_grad():
        spec = loader.get_model_spec(whole)
    loader.set_config(spec.config, whole, None)
    spec.register_vocabulary([f"token {i}" for i in range(whole.config.vocab_size)])
    spec.validate()
    folder.mkdir(parents=True)
    spec.save(str(folder))
    model = ct2.models.Whisper(str(folder), device="cpu", compute_type="float32", intra_threads=threads)

    def encode(features: Features) -> NDArray[np.float32]:
        return np.array(model.encode(ct2.StorageView.from_array(np.ascontiguousarray(features))))

    return encode


def _under_a_decoder(checkpoint: Checkpoint) -> WhisperForConditionalGeneration:
    """The checkpoint's encoder under a decoder of one random layer, for converters that insist on whole models."""
    config = type(checkpoint.config)(
        **checkpoint.config.to_diff_dict()
        | {"decoder_layers": 1, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        | {"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None}
    )
    model = WhisperForConditionalGeneration(config)
    model.model.encoder.load_state_dict(checkpoint.encoder.state_dict())
    return model.eval()
