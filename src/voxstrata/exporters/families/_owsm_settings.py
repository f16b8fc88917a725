"""What the config.yaml of an OWSM checkpoint says of its encoder. Names and defaults are ESPnet's.

A setting that would need other nodes than the graph has is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from voxstrata.base.errors import InputError, UsageError
from voxstrata.encoders.frames import SAMPLE_RATE
from voxstrata.exporters.filter_bank import FFT, HOP
from voxstrata.exporters.original import CheckpointFiles

CONVOLUTIONS = {"conv2d": 2, "conv2d8": 3}  # how many of stride 2, one after the other
DEFAULT_PREFIX = ("<nolang>", "<asr>")  # of ESPnet's own scripts
# What the graph computes, and after it ESPnet's default, which holds where a config says nothing.
_WHOLE = {
    "frontend": ("default", "default"), "normalize": ("global_mvn", None), "preencoder": (None, None),
    "postencoder": (None, None), "input_size": (None, None),
}  # fmt: skip
_FRONT_END = {
    "n_fft": (FFT, 512), "hop_length": (HOP, 128), "window": ("hann", "hann"), "center": (True, True),
    "normalized": (False, False), "onesided": (True, True), "apply_stft": (True, True),
}  # fmt: skip
_NORMALIZE = {"norm_means": (True, True), "norm_vars": (True, True)}
_ENCODER = {
    "attention_layer_type": ("selfattn", "rel_selfattn"), "pos_enc_layer_type": ("abs_pos", "rel_pos"),
    "use_ffn": (True, False), "macaron_ffn": (True, False), "ffn_activation_type": ("swish", "swish"),
    "positionwise_layer_type": ("linear", "linear"), "use_linear_after_conv": (False, False),
    "gate_activation": ("identity", "identity"), "qk_norm": (False, False),
}  # fmt: skip
_PROMPT = {
    "pos_enc_layer_type": ("abs_pos", "abs_pos"), "normalize_before": (True, True), "concat_after": (False, False),
    "positionwise_layer_type": ("linear", "linear"), "qk_norm": (False, False),
}  # fmt: skip


class _Part:
    """A mapping in a config. What it raises is InputError, which names the file and the key."""

    def __init__(self, where: str, found: object) -> None:
        self.where = where
        self.found: Mapping[Any, Any] = found if isinstance(found, Mapping) else {}

    def part(self, key: str) -> "_Part":
        return _Part(f"{self.where}: {key}", self.found.get(key))

    def refused(self, key: str, found: object, need: str) -> InputError:
        return InputError(f"{self.where}: {key} is {found!r:.60}, not {need}")

    def must(self, computed: Mapping[str, tuple[object, object]]) -> None:
        """Refuses settings of which the graph computes other values."""
        for key, (value, default) in computed.items():
            found = self.found.get(key, default)
            if found != value:
                raise self.refused(key, found, f"{value!r}, which OWSM's encoders have; no other can be exported")

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number, 1 or more."""
        value = self.found.get(key, default)
        if type(value) is not int or value < 1:
            raise self.refused(key, value, "a whole number of 1 or more; correct it")
        return value

    def flags(self, key: str, count: int) -> tuple[bool, ...]:
        """So many of true and false, or 1 and 0. One stands for all, and nothing for true."""
        value = self.found.get(key, True)
        every = [value] * count if isinstance(value, bool) else value
        if not isinstance(every, list) or len(every) != count or any(x not in (0, 1) for x in every):
            raise self.refused(key, value, f"{count} times true or false; correct it")
        return tuple(map(bool, every))

    def numbers(self, key: str) -> tuple[int, ...]:
        value = self.found.get(key) or []
        if not isinstance(value, list) or any(type(x) is not int for x in value):
            raise self.refused(key, value, "a list of whole numbers; correct it")
        return tuple(value)

    def tokens(self) -> dict[str, int]:
        """Every token's index."""
        value = self.found.get("token_list")
        if not isinstance(value, list) or not value or not all(isinstance(token, str) for token in value):
            raise self.refused("token_list", type(value).__name__, "a list of tokens; fetch config.yaml again")
        return {token: i for i, token in reversed(list(enumerate(value)))}  # the first of equal ones

    def blocks(self, layers: int) -> "Blocks":
        """layers: ESPnet's default."""
        sizes = {"output_size": 256, "attention_heads": 4, "linear_units": 2048, "num_blocks": layers}
        found = Blocks(*(self.whole(key, default) for key, default in sizes.items()))
        if found.d_model % found.heads or found.d_model % 2:
            raise self.refused("attention_heads", found.heads, f"a divisor of an even output_size, {found.d_model}")
        return found


@dataclass(frozen=True)
class Blocks:
    """Sizes of a stack of blocks. units: within a feed-forward."""

    d_model: int
    heads: int
    units: int
    layers: int


@dataclass(frozen=True)
class Prompt:
    """What OWSM-CTC is told beside the speech: language and task, two tokens before it, and that no text came before.

    tokens: their names, in this order. ids: of the same. encoder: of the text before, with positions of its own.
    crossing: of each block of the speech, whether it attends to that text.
    """

    tokens: tuple[str, str, str]
    ids: tuple[int, int, int]
    encoder: Blocks
    crossing: tuple[bool, ...]

    @property
    def named(self) -> tuple[str, ...]:
        """The tokens, each with what it says."""
        return tuple(
            f"{what}={token}" for what, token in zip(("language", "task", "previous"), self.tokens, strict=True)
        )


@dataclass(frozen=True)
class OwsmSettings:
    """Sizes of an encoder and its front end.

    win_length, window: samples. convolutions: of stride 2. gating_units, gating_kernel: of the branch beside attention.
    vocabulary: number of tokens. conditioned: blocks whose CTC the next block is told of. ctc_asr_only: of these, and
    of the last one at their end, whether its CTC learned transcripts alone; () where the config does not say.
    """

    win_length: int
    n_mels: int
    window: int
    convolutions: int
    blocks: Blocks
    gating_units: int
    gating_kernel: int
    merge_kernel: int
    vocabulary: int
    conditioned: tuple[int, ...]
    ctc_asr_only: tuple[bool, ...]
    prompt: Prompt | None

    @property
    def embed_out(self) -> str:
        """The layer after the convolutions."""
        return "encoder.embed.out.0" if self.convolutions == CONVOLUTIONS["conv2d"] else "encoder.embed.out"

    @property
    def subsampled(self) -> list[int]:
        """Of the mel bins those that each convolution leaves."""
        left = [self.n_mels]
        for _ in range(self.convolutions):
            left.append((left[-1] - 1) // 2)
        return left[1:]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors of the encoder and what is before it, by ESPnet's names."""
        d, units, half = self.blocks.d_model, self.blocks.units, self.gating_units // 2
        found: dict[str, tuple[int, ...]] = {
            "frontend.logmel.melmat": (FFT // 2 + 1, self.n_mels),
            "normalize.mean": (self.n_mels,),
            "normalize.std": (self.n_mels,),
        }

        def layer(m: str, *weight: int) -> None:
            found.update({f"{m}.weight": weight, f"{m}.bias": weight[:1]})

        def attention(m: str, width: int) -> None:
            for part in ("linear_q", "linear_k", "linear_v", "linear_out"):
                layer(f"{m}.{part}", width, width)

        def feed_forward(m: str, width: int, inner: int) -> None:
            layer(f"{m}.w_1", inner, width)
            layer(f"{m}.w_2", width, inner)

        for i in range(self.convolutions):
            layer(f"encoder.embed.conv.{2 * i}", d, d if i else 1, 3, 3)
        layer(self.embed_out, d, d * self.subsampled[-1])
        crossing = self.prompt.crossing if self.prompt else (False,) * self.blocks.layers
        for k, crosses in enumerate(crossing):
            m = f"encoder.encoders.{k}"
            for norm in ("norm_ff_macaron", "norm_mha", "norm_mlp", "norm_ff", "norm_final"):
                layer(f"{m}.{norm}", d)
            attention(f"{m}.attn", d)
            feed_forward(f"{m}.feed_forward_macaron", d, units)
            feed_forward(f"{m}.feed_forward", d, units)
            layer(f"{m}.cgmlp.channel_proj1.0", 2 * half, d)
            layer(f"{m}.cgmlp.csgu.norm", half)
            layer(f"{m}.cgmlp.csgu.conv", half, 1, self.gating_kernel)
            layer(f"{m}.cgmlp.channel_proj2", d, half)
            layer(f"{m}.depthwise_conv_fusion", 2 * d, 1, self.merge_kernel)
            layer(f"{m}.merge_proj", d, 2 * d)
            if crosses:
                layer(f"{m}.norm_cross_attn", d)
                attention(f"{m}.cross_attn", d)
        layer("encoder.after_norm", d)
        if self.conditioned:
            layer("ctc.ctc_lo", self.vocabulary, d)
            layer("encoder.conditioning_layer", d, self.vocabulary)
        if self.prompt:
            inner = self.prompt.encoder
            found["embed.weight"] = (self.vocabulary, inner.d_model)
            for k in range(inner.layers):
                m = f"prompt_encoder.encoders.{k}"
                layer(f"{m}.norm1", inner.d_model)
                layer(f"{m}.norm2", inner.d_model)
                attention(f"{m}.self_attn", inner.d_model)
                feed_forward(f"{m}.feed_forward", inner.d_model, inner.units)
            layer("prompt_encoder.after_norm", inner.d_model)
            if inner.d_model != d:
                layer("embed_proj", d, inner.d_model)
                layer("prompt_proj", d, inner.d_model)
        return found

    @classmethod
    def read(cls, files: CheckpointFiles, layers: int) -> Self:
        """layers: blocks in the weights. Raises InputError for an encoder that the graph does not compute, and
        UsageError for tokens that it does not know."""
        top = _Part(f"{files.folder}: config.yaml", files.config)
        front, encoder = top.part("frontend_conf"), top.part("encoder_conf")
        top.must(_WHOLE)
        top.part("normalize_conf").must(_NORMALIZE)
        front.must(_FRONT_END)
        encoder.must(_ENCODER)
        rate = front.found.get("fs", SAMPLE_RATE)
        if rate not in (SAMPLE_RATE, str(SAMPLE_RATE), f"{SAMPLE_RATE // 1000}k"):
            raise front.refused("fs", rate, f"{SAMPLE_RATE}")
        layer = encoder.found.get("input_layer", "conv2d")
        if layer not in CONVOLUTIONS:
            raise encoder.refused("input_layer", layer, f"one of {', '.join(CONVOLUTIONS)}")
        win_length = front.whole("win_length", FFT)
        if win_length > FFT:
            raise front.refused("win_length", win_length, f"at most n_fft, {FFT}")
        seconds, frame = top.part("preprocessor_conf").whole("speech_length"), HOP << CONVOLUTIONS[layer]
        if SAMPLE_RATE * seconds % frame:
            raise top.refused("speech_length", seconds, f"whole frames of {frame} samples")
        blocks = encoder.blocks(12)
        if blocks.layers != layers:  # before anything is made of that number
            raise encoder.refused("num_blocks", blocks.layers, f"{layers}, as the weights have")
        conditioned = encoder.numbers("interctc_layer_idx") if encoder.found.get("interctc_use_conditioning") else ()
        if not all(0 < k < blocks.layers for k in conditioned):
            raise encoder.refused("interctc_layer_idx", list(conditioned), "blocks before the last; correct it")
        asr_only = top.part("model_conf").found.get("ctc_asr_only")
        if not isinstance(asr_only, list) or len(asr_only) != len(conditioned) + 1:
            asr_only = []
        told = top.found.get("encoder") == "e_branchformer_ctc"
        return cls(
            win_length=win_length,
            n_mels=front.whole("n_mels", 80),
            window=SAMPLE_RATE * seconds,
            convolutions=CONVOLUTIONS[layer],
            blocks=blocks,
            gating_units=encoder.whole("cgmlp_linear_units", 2048),
            gating_kernel=encoder.whole("cgmlp_conv_kernel", 31),
            merge_kernel=encoder.whole("merge_conv_kernel", 3),
            vocabulary=len(top.tokens()) if told or conditioned else 0,
            conditioned=conditioned,
            ctc_asr_only=tuple(map(bool, asr_only)),
            prompt=_prompt(top, files.prefix, blocks.layers) if told else None,
        )


def _prompt(top: _Part, prefix: tuple[str, ...], layers: int) -> Prompt:
    """prefix: language and task as the user chose them, or ()."""
    part, conf, known = top.part("promptencoder_conf"), top.part("encoder_conf"), top.tokens()
    top.must({"promptencoder": ("transformer", "transformer")})
    part.must(_PROMPT)
    conf.must({"input_layer": ("conv2d8", "conv2d")})  # the only one that ESPnet gives tokens to
    if prefix and len(prefix) != 2:
        raise UsageError(f"the prefix is {', '.join(prefix)}; give language and task, as in <eng>,<asr>")
    absent = top.part("model_conf").found.get("sym_na", "<na>")
    names = (*(prefix or DEFAULT_PREFIX), absent)
    for name in names:
        if name not in known:
            raise UsageError(
                f"{top.where}: token_list has no {name!r:.60}; take a language like <eng> and a task like <asr>"
            )
    language, task, previous = names
    return Prompt(
        tokens=(language, task, previous),
        ids=(known[language], known[task], known[previous]),
        encoder=part.blocks(6),
        crossing=conf.flags("use_cross_attention", layers),
    )
