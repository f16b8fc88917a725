"""Hold a family's graphs against its original, on every output, from the shortest recording to past the window."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from voxstrata.base.errors import InputError, VoxstrataError
from voxstrata.base.plain import counted
from voxstrata.base.progress import Progress, Reporter
from voxstrata.encoders.card import ENCODER, FEATURES
from voxstrata.encoders.family import Family
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.exporters.hub import first_line
from voxstrata.exporters.original import Original
from voxstrata.exporters.validation import TOLERANCE, StoredArray, cpu_session, voice

_SECONDS = (0.1, 7.0, 19.6)  # beside the shortest, the window, what is past it, and an edge between two frame counts
_EDGE = 1.03  # seconds, near which
_PAST = 1.7  # seconds
_LONGEST = 120.0  # seconds of a window that is validated; nobody has the memory for a much wider one
_BATCH_SECONDS = 8.0  # up to which a batch is tried, too
_ALONE = 1e-5  # relative L2, of a recording in a batch to itself alone


def validate_family(folder: Path, original: Original, outputs: Sequence[str], reporter: Reporter) -> dict[str, Any]:
    """Compare graphs and original on made-up voiced sounds, alone and in a batch of one length.

    A recording past the window goes through `Family.pieces`, and each piece is compared. As in `validate`, the original
    computes everything first, and **has no weights afterwards**.

    Returns what the card says of it: for every output, and for the features, the largest relative L2 difference over
    all lengths, which are listed in seconds. Raises InputError naming the output and the length when a difference
    exceeds what float32 may have, a recording in a batch is not itself, or frames are not as many as declared.
    """
    family = original.family
    window = min(family.window, round(_LONGEST * SAMPLE_RATE) // family.hop * family.hop)
    edge = _first_of_its_frames(family, round(_EDGE * SAMPLE_RATE))
    lengths = {family.shortest, edge - 1, edge, window, *(round(s * SAMPLE_RATE) for s in _SECONDS)}
    lengths = {n for n in lengths if family.shortest <= n <= window}
    if window == family.window:  # the last piece has a length of its own
        past = [piece.samples for piece in family.pieces(window + round(_PAST * SAMPLE_RATE))]
        lengths |= {n for n in past if n >= family.shortest}
    with torch.inference_mode(), TemporaryFile(dir=folder) as file:
        cases = {}
        for done, samples in enumerate(sorted(lengths)):
            reporter.progress(Progress("validating", done, 2 * len(lengths), "runs"))
            with _computing(family, samples):
                cases[samples] = _case(original, outputs, samples, file)
        for module in vars(original).values():
            if isinstance(module, torch.nn.Module):
                module.to("meta")
        v = _FamilyValidation(folder, family, outputs)
        for done, (samples, case) in enumerate(cases.items(), len(lengths)):
            reporter.progress(Progress("validating", done, 2 * len(lengths), "runs"))
            with _computing(family, samples):
                v.compare(samples, case)
    v.check_pieces()
    return {
        "measure": "largest relative L2 difference from the original in float32 PyTorch",
        "lengths_seconds": [round(n / SAMPLE_RATE, 4) for n in sorted(lengths)],
        "outputs": v.worst,
        "features": v.worst_features,
    }


def _first_of_its_frames(family: Family, samples: int) -> int:
    """The fewest samples that give as many frames as `samples` do."""
    while family.frames(samples - 1) == family.frames(samples):
        samples -= 1
    return samples


@contextmanager
def _computing(family: Family, samples: int) -> Iterator[None]:
    """Make an InputError of what ONNX Runtime or the original's code raises."""
    try:
        yield
    except VoxstrataError:
        raise
    except Exception as e:
        raise InputError(
            f"validation failed: {family.name} cannot be computed at {samples} samples, of which it declares "
            f"{counted(family.frames(samples), 'frame')} ({first_line(e)}); no model was written"
        ) from e


@dataclass(frozen=True)
class _Case:
    """What the original makes of recordings of one length: the first one's features, and the states, by output, of each
    that is compared."""

    features: StoredArray
    want: list[dict[str, StoredArray]]


def _recordings(samples: int) -> NDArray[np.float32]:
    """Two of one length [2, samples], of different loudness, so that neighbours could leak."""
    return np.stack([voice(samples / SAMPLE_RATE, 120.0, 0.3), voice(samples / SAMPLE_RATE, 210.0, 0.01)])


def _case(original: Original, outputs: Sequence[str], samples: int, file: BufferedRandom) -> _Case:
    first, second = _recordings(samples)
    features = StoredArray(file, original.features(first).numpy())
    want = []
    for audio in (first, second) if samples <= _BATCH_SECONDS * SAMPLE_RATE else (first,):
        states = original.hidden_states(audio)
        want.append({name: StoredArray(file, states[name].numpy()) for name in outputs})
    return _Case(features, want)


class _FamilyValidation:
    """The two graphs in sessions, and the largest differences so far."""

    def __init__(self, folder: Path, family: Family, outputs: Sequence[str]) -> None:
        self.family, self.outputs = family, outputs
        self.features, self.encoder = cpu_session(folder / FEATURES), cpu_session(folder / ENCODER)
        self.worst, self.worst_features = dict.fromkeys(outputs, 0.0), 0.0

    def run(self, audio: NDArray[np.float32]) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Features and outputs of recordings [batch, samples]."""
        (features,) = self.features.run(None, {"audio": audio})
        states = self.encoder.run(self.outputs, {"features": features})
        return features, dict(zip(self.outputs, states, strict=True))

    def compare(self, samples: int, case: _Case) -> None:
        """Recordings of one length: the first alone against the original, then two together."""
        batch, at = _recordings(samples), f"at {samples / SAMPLE_RATE:.4g} s"
        features, alone = self.run(batch[:1])
        want = case.features.read()
        self.worst_features = max(self.worst_features, self._difference("features", features, want, at))
        self._against_original(alone, case.want[0], samples, at)
        if len(case.want) == 1:
            return
        together = self.run(batch)[1]
        for name, state in together.items():
            self._difference(name, state[:1], alone[name], f"in a batch {at} from itself alone", _ALONE)
        self._against_original(
            {n: state[1:] for n, state in together.items()}, case.want[1], samples, f"in a batch {at}"
        )

    def check_pieces(self) -> None:
        """Raises InputError where the pieces of long recordings do not follow each other, frame for frame."""
        family = self.family
        for more in (1, family.hop, family.window // 3, family.window, 3 * family.window):
            at = 0
            for piece in family.pieces(family.window + more):
                if piece.frame != at or piece.skip + piece.frames > family.frames(piece.samples):
                    raise InputError(
                        f"validation failed: {family.name} cuts {family.window + more} samples into pieces that do not "
                        "follow each other; no model was written"
                    )
                at += piece.frames
            self._check_count("pieces of a long recording", at, family.frames(family.window + more))

    def _against_original(
        self, got: dict[str, NDArray[Any]], want: dict[str, StoredArray], samples: int, at: str
    ) -> None:
        for name, state in got.items():
            self._check_count(f"{name} {at}", state.shape[1], self.family.frames(samples))
            self.worst[name] = max(self.worst[name], self._difference(name, state, want[name].read(), at))

    def _check_count(self, what: str, found: int, declared: int) -> None:
        if found != declared:
            raise InputError(
                f"validation failed: {what} has {found} frames, {self.family.name} declares {declared}; "
                "no model was written"
            )

    def _difference(
        self, name: str, got: NDArray[Any], want: NDArray[Any], at: str, allowed: float = TOLERANCE["float32"]
    ) -> float:
        """Relative L2. Raises InputError where it is more than allowed."""
        if got.shape != want.shape:
            raise InputError(
                f"validation failed: {name} is {got.shape} {at}, the original's {want.shape}; no model was written"
            )
        a, b = got.astype(np.float64), want.astype(np.float64)
        scale = float(np.linalg.norm(b))
        difference = float(np.linalg.norm(a - b)) / (scale or 1.0)
        if not difference <= allowed:  # so put, NaN fails too
            raise InputError(
                f"validation failed: {name} differs from the original by {difference:.2e} (relative L2) {at}, "
                f"allowed is {allowed:.0e}; no model was written"
            )
        return difference
