"""OWSM and OWSM-CTC with random weights, made and computed by ESPnet itself.

`python tests/espnet_models.py` writes tests/data/owsm and tests/data/owsm_ctc: the files of two tiny models as ESPnet
packs them, and `states.npz`, what ESPnet's own modules make of two sounds. It needs ESPnet (202511 was used) and what
its modules import: `pip install --no-deps espnet typeguard librosa torch_complex humanfriendly pooch lazy_loader
audioread` beside the project's own packages. What ESPnet imports beside that, and OWSM's encoders do not use, is
replaced by nothing at all.
"""

from __future__ import annotations

import copy
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

SAMPLE_RATE, WINDOW = 16_000, 480_000
KINDS = ("owsm", "owsm_ctc")
LENGTHS = (2_400, 20_801)  # samples: 0.15 s is hardly a frame of 80 ms
EVERY = 50  # of the frames of a padded recording those that are stored
DATA = Path(__file__).parent / "data"
# what ESPnet's tasks import, and OWSM's encoders never call
_UNUSED = (
    "torchaudio", "h5py", "g2p_en", "jamo", "sentencepiece", "tacotron_cleaner", "jaconv", "einops", "hydra",
    "omegaconf", "opt_einsum",
)  # fmt: skip
_TOKENS = ["<blank>", "<unk>", "<na>", "<nolang>", "<eng>", "<deu>", "<asr>", "<st_deu>", *"abcdefgh", "<sop>"]
Array = np.ndarray[Any, Any]


class _Nothing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are not installed, with nothing in them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = name.split(".")[0] in _UNUSED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: Any) -> None:
        pass


@contextmanager
def nothing_for_the_unused() -> Iterator[None]:
    """What ESPnet needs to be imported, while it is."""
    finder = _Nothing()
    sys.meta_path.append(finder)  # at the end: what is installed comes first
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def config(kind: str) -> dict[str, Any]:
    """As ESPnet's config.yaml has it: the published configurations of OWSM v3.1 and of OWSM-CTC, scaled down."""
    told = kind == "owsm_ctc"
    encoder: dict[str, Any] = {
        "output_size": 16, "attention_heads": 2, "attention_layer_type": "selfattn", "pos_enc_layer_type": "abs_pos",
        "rel_pos_type": "latest", "cgmlp_linear_units": 24, "cgmlp_conv_kernel": 7, "use_linear_after_conv": False,
        "gate_activation": "identity", "num_blocks": 3 if told else 2, "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1, "attention_dropout_rate": 0.1, "input_layer": "conv2d8" if told else "conv2d",
        "layer_drop_rate": 0.0, "linear_units": 20, "positionwise_layer_type": "linear", "use_ffn": True,
        "macaron_ffn": True, "merge_conv_kernel": 5, "use_flash_attn": False,
    }  # fmt: skip
    text = {"attention_heads": 2, "linear_units": 20, "num_blocks": 1, "use_flash_attn": False}
    found: dict[str, Any] = {
        "token_list": [*_TOKENS, "<sos>", "<eos>"], "init": None, "input_size": None, "ctc_conf": {},
        "token_type": "char", "bpemodel": None, "frontend": "default",
        "frontend_conf": {"n_fft": 512, "win_length": 400, "hop_length": 160, "fs": "16k", "n_mels": 20},
        "specaug": None, "specaug_conf": {}, "normalize": "global_mvn",
        "normalize_conf": {"stats_file": "exp/stats/train/feats_stats.npz"},
        "preprocessor_conf": {"speech_length": 30, "fs": SAMPLE_RATE, "na_symbol": "<na>"},
        "model_conf": {"sym_na": "<na>", "report_cer": False, "report_wer": False},
    }  # fmt: skip
    if told:
        encoder |= {"interctc_layer_idx": [1, 2], "interctc_use_conditioning": True, "use_cross_attention": [0, 1, 1]}
        found |= {"encoder": "e_branchformer_ctc", "promptencoder": "transformer", "preprocessor": "s2t_ctc"}
        found |= {"promptencoder_conf": {"output_size": 12, **text}, "model": "espnet_ctc"}
        found["model_conf"] |= {"interctc_weight": 0.8, "ctc_asr_only": [True, False, False]}
    else:
        found |= {"encoder": "e_branchformer", "decoder": "transformer", "decoder_conf": text, "model": "espnet"}
        found |= {"preencoder": None, "preencoder_conf": {}, "postencoder": None, "postencoder_conf": {}}
        found |= {"preprocessor": "s2t"}
    return found | {"encoder_conf": encoder}


def write_folder(folder: Path, kind: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """A model of random weights as ESPnet packs it for the hub; returns ESPnet's own model, read from these files."""
    import argparse

    import torch
    import yaml

    with nothing_for_the_unused():
        import espnet2.tasks.s2t
        import espnet2.tasks.s2t_ctc
    task = espnet2.tasks.s2t_ctc.S2TTask if kind == "owsm_ctc" else espnet2.tasks.s2t.S2TTask
    experiment = folder / "exp" / "s2t_train"
    experiment.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    n_mels = settings["frontend_conf"]["n_mels"]
    mean, deviation = rng.uniform(-9, -3, n_mels), rng.uniform(1, 3, n_mels)
    stats = folder / settings["normalize_conf"]["stats_file"]
    stats.parent.mkdir(parents=True)
    np.savez(stats, count=np.array(10), sum=10 * mean, sum_square=10 * (deviation**2 + mean**2))
    torch.manual_seed(seed)
    given = copy.deepcopy(settings)
    given["normalize_conf"]["stats_file"] = str(stats)
    model = task.build_model(argparse.Namespace(**given))
    with torch.no_grad():  # weights that make attention, gates and the CTC choose
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0, (2.0 if "ctc_lo" in name else 1.2) / p[0].numel() ** 0.5)
            else:
                p.add_(torch.randn(p.shape) * 0.2)
    torch.save(model.state_dict(), experiment / "valid.total_count.ave_5best.pth")
    (experiment / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    packed = {
        "espnet": "202511",
        "files": {"s2t_model_file": "exp/s2t_train/valid.total_count.ave_5best.pth"},
        "yaml_files": {"s2t_train_config": "exp/s2t_train/config.yaml"},
    }
    (folder / "meta.yaml").write_text(yaml.safe_dump(packed), encoding="utf-8")
    return model.eval()


def espnet_states(model: Any, audio: Array, prefix: tuple[str, str] = ("<nolang>", "<asr>")) -> dict[str, Array]:
    """Every output [frames, d_model] of one recording as it is given, by hooks on ESPnet's modules."""
    import torch

    states: list[torch.Tensor] = []
    encoder = model.encoder
    skipped = 2 if hasattr(model, "prompt_encoder") else 0
    hooks = [encoder.encoders[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))]
    hooks += [block.register_forward_hook(lambda _, __, out: states.append(out[0])) for block in encoder.encoders]
    speech = {"speech": torch.from_numpy(audio)[None], "speech_lengths": torch.tensor([len(audio)])}
    if skipped:
        tokens = [[model.token_list.index(name) for name in names] for names in (("<na>",), prefix)]
        for key, ids in zip(("text_prev", "prefix"), tokens, strict=True):
            speech |= {key: torch.tensor([ids]), f"{key}_lengths": torch.tensor([len(ids)])}
    with torch.no_grad():
        out = model.encode(**speech)[0]
    for hook in hooks:
        hook.remove()
    states.append(out[0] if isinstance(out, tuple) else out)
    names = [f"layer_{k:02d}" for k in range(len(states) - 1)] + ["final"]
    return {name: state[0, skipped:].clone().numpy() for name, state in zip(names, states, strict=True)}


def espnet_features(model: Any, audio: Array) -> Array:
    """Normalised log-mel [frames, n_mels]."""
    import torch

    with torch.no_grad():
        speech, length = torch.from_numpy(audio)[None], torch.tensor([len(audio)])
        return model.normalize(*model.frontend(speech, length))[0][0].numpy()


def main() -> None:
    """Write the models and the states that the default tests read."""
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import sound

    for kind in KINDS:
        model = write_folder(DATA / kind, kind, config(kind))
        found: dict[str, Array] = {}
        for samples in LENGTHS:
            audio = sound(samples / SAMPLE_RATE, seed=samples)[:samples]
            audio = (np.round(audio * 32768) / 32768).astype(np.float32)
            found[f"audio/{samples}"] = np.round(audio * 32768).astype(np.int16)
            found[f"features/{samples}"] = espnet_features(model, audio)
            found |= {f"exact/{samples}/{k}": v for k, v in espnet_states(model, audio).items()}
            padded = espnet_states(model, np.pad(audio, (0, WINDOW - samples)))
            found |= {f"padded/{samples}/{k}": v[::EVERY] for k, v in padded.items()}
            if kind == "owsm_ctc":
                told = espnet_states(model, audio, ("<eng>", "<st_deu>"))
                found |= {f"told/{samples}/{k}": v for k, v in told.items()}
        np.savez_compressed(DATA / kind / "states.npz", **found)


if __name__ == "__main__":
    main()
