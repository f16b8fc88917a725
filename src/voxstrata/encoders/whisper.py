"""Whisper's own declaration, derived from what its cards have always said."""

from voxstrata.encoders.family import Family, Output, Step
from voxstrata.encoders.frames import SAMPLES_PER_FRAME, WINDOW_SAMPLES
from voxstrata.encoders.outputs import describe, output_names

NAME = "Whisper"


def whisper_family(layers: int, d_model: int, n_mels: int, final_norm: str) -> Family:
    """Of a checkpoint of that size; final_norm: as in its card. The MLP is four times as wide as the states."""
    return Family(
        name=NAME,
        input="log_mel",
        normalisation="logarithm of the mel power, at least its maximum less 8, (x + 4) / 4, of each window by itself",
        features=n_mels,
        steps=(Step(kernel=1, stride=SAMPLES_PER_FRAME),),  # the last frame may be of a single sample
        window=WINDOW_SAMPLES,
        overlap=0,
        contexts=("bucketed", "padded", "trimmed"),
        masks="none: the silence after the speech is attended to, as in training",
        norm="pre",
        outputs=tuple(Output(name, *describe(name, layers, final_norm)) for name in output_names(layers)),
        stem_flops=(0, 12 * n_mels * d_model + 6 * d_model**2, 0),
        block_flops=(0, 24 * d_model**2, 4 * d_model),
    )


WHISPER = whisper_family(1, 1, 1, "final")  # for time alone, which is the same in all of them
