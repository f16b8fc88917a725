"""Make the silence cache of a checkpoint: pure, or calibrated on recordings; then condense it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxstrata.audio.units import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW_FRAMES
from voxstrata.errors import InputError
from voxstrata.exporters.checkpoint import Checkpoint
from voxstrata.exporters.reference import keys_and_values
from voxstrata.model.context import DEFAULT_EDGES
from voxstrata.model.silence import Silence

FIRST = DEFAULT_EDGES[0]  # encoder frames: the shortest bucket is where cached positions begin
# Log-mel of silence lies between -1.5 (digital silence) and about 0 (behind very loud speech), 8 decades of
# power below the loudest cell. One level in the middle does as well as matching each utterance's own:
# benchmarks/silence.py.
PURE_LEVEL = -0.75
CALIBRATION_RECORDINGS = 16
# Calibration recordings are cut to lengths spread over this range, so that early positions, too, are
# averaged over several recordings whose speech has ended by then.
CALIBRATION_SECONDS = (0.5, 9.0)
KMEANS_STEPS = 20


def pure_silence(checkpoint: Checkpoint, groups: int, level: float = PURE_LEVEL) -> tuple[Silence, dict[str, Any]]:
    """Keys and values of one run on silence at log-mel `level`, and the card's account of them."""
    log_mel = torch.full((1, checkpoint.shape.n_mels, 2 * WINDOW_FRAMES), level)
    key, value = keys_and_values(checkpoint.encoder, log_mel)
    return _finish(key[:, :, FIRST:], value[:, :, FIRST:], groups, {"kind": "pure", "pad_level": level})


def calibrated_silence(
    checkpoint: Checkpoint, recordings: Sequence[tuple[str, NDArray[np.float32]]], groups: int
) -> tuple[Silence, dict[str, Any]]:
    """Mean keys and values, position by position, over padded runs of recordings.

    `recordings`: (name, float32 samples at 16 kHz); at most CALIBRATION_RECORDINGS, evenly spaced, are used.
    Position p is averaged over the recordings whose cut ended a second (the default tail) or more before p.
    Raises InputError when fewer than two recordings last half a second.
    """
    shortest, longest = (round(s * FRAMES_PER_SECOND) for s in CALIBRATION_SECONDS)
    usable = [r for r in recordings if len(r[1]) >= CALIBRATION_SECONDS[0] * SAMPLE_RATE]
    if len(usable) < 2:
        raise InputError(
            f"calibration needs at least 2 recordings of {CALIBRATION_SECONDS[0]} s or more, found {len(usable)}"
        )
    chosen = [usable[i] for i in np.linspace(0, len(usable) - 1, min(len(usable), CALIBRATION_RECORDINGS)).astype(int)]
    cuts = np.linspace(shortest, longest, len(chosen)).astype(int)
    total: list[torch.Tensor] = []
    count = torch.zeros(WINDOW_FRAMES)
    for (_, audio), cut in zip(chosen, cuts, strict=True):
        frames = min(int(cut), len(audio) // SAMPLES_PER_FRAME)
        features = checkpoint.extractor(
            audio[: frames * SAMPLES_PER_FRAME], sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )["input_features"]
        begin = frames + FRAMES_PER_SECOND
        count[begin:] += 1
        kv = keys_and_values(checkpoint.encoder, features)
        total = total or [torch.zeros_like(t) for t in kv]
        for t, new in zip(total, kv, strict=True):
            t[:, :, begin:] += new[:, :, begin:]
    key, value = (t[:, :, FIRST:] / count[FIRST:, None] for t in total)
    account = {
        "kind": "calibrated",
        "recordings": [
            {"name": name, "sha256": hashlib.sha256(np.ascontiguousarray(audio, "<f4").tobytes()).hexdigest()}
            for name, audio in chosen
        ],
    }
    return _finish(key, value, groups, account)


def _finish(
    key: torch.Tensor, value: torch.Tensor, groups: int, account: dict[str, Any]
) -> tuple[Silence, dict[str, Any]]:
    group = None
    if groups:
        if not 1 <= groups <= key.shape[2]:
            raise InputError(f"{groups} silence keys: choose 1 … {key.shape[2]}, or 0 to keep all positions")
        group = torch.stack([_kmeans(k, groups) for k in key]).numpy().astype(np.int16)
    silence = Silence(FIRST, key.numpy().astype(np.float16), value.numpy().astype(np.float16), group)
    if not (np.isfinite(silence.key).all() and np.isfinite(silence.value).all()):
        raise InputError("the silence cache holds values beyond float16; this checkpoint's encoder is not usable")
    return silence, account | {"groups": groups, "first": FIRST, "sha256": silence.sha256()}


def _kmeans(points: torch.Tensor, groups: int) -> torch.Tensor:
    """Lloyd's k-means of (heads, positions, dim), each head apart; returns the groups (heads, positions).

    Starts from evenly spaced positions, so the same keys give the same groups.
    """
    heads, positions, dim = points.shape
    start = torch.linspace(0, positions - 1, groups).long()
    centres = points[:, start].clone()
    for _ in range(KMEANS_STEPS):
        nearest = torch.cdist(points, centres).argmin(-1)
        size = torch.zeros(heads, groups).scatter_add_(1, nearest, torch.ones(heads, positions))
        total = torch.zeros_like(centres).scatter_add_(1, nearest[..., None].expand(-1, -1, dim), points)
        centres = torch.where(size[..., None] > 0, total / size[..., None].clamp(min=1), centres)
    return torch.cdist(points, centres).argmin(-1)
