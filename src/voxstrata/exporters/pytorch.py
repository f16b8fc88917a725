"""Hugging Face's encoder as the reference: every hidden state, at any length, computed by its own modules."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from voxstrata.encoders.outputs import output_names


@contextmanager
def _window_of(encoder: WhisperEncoder, frames: int) -> Iterator[None]:
    """Let the encoder accept `frames` positions for a while. By itself it insists on a full window of 1500."""
    positions, config = encoder.embed_positions, encoder.config
    full = config.max_source_positions
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(positions.weight[:frames])
    config.max_source_positions = frames
    try:
        yield
    finally:
        encoder.embed_positions, config.max_source_positions = positions, full


def hidden_states(encoder: WhisperEncoder, log_mel: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run the encoder on log-mel [batch, n_mels, 2·frames]; returns every output [batch, frames, d_model] by name.

    Hooks on the modules take the states, because `output_hidden_states` does not give `layer_L`, the last state before
    the final LayerNorm.
    """
    states: list[torch.Tensor] = []

    def keep_input(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        states.append(args[0])

    def keep_output(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    with torch.inference_mode(), ExitStack() as stack:
        stack.enter_context(_window_of(encoder, log_mel.shape[-1] // 2))
        handles = [encoder.layers[0].register_forward_pre_hook(keep_input)]
        handles += [layer.register_forward_hook(keep_output) for layer in encoder.layers]
        for handle in handles:
            stack.callback(handle.remove)
        final = encoder(log_mel).last_hidden_state
    return dict(zip(output_names(len(encoder.layers)), [*states, final], strict=True))


Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]


def each_attention(encoder: WhisperEncoder, log_mel: torch.Tensor, take: Attention) -> None:
    """Run the encoder on one full window [1, n_mels, 3000]. As soon as a layer has them, `take` gets its number and
    queries, keys and values, each (heads, 1500, head_dim), to use there and then: they are not held.

    Queries are scaled, so that query · key are the logits of attention.
    """
    heads = encoder.config.encoder_attention_heads
    scale = (encoder.config.d_model // heads) ** -0.5
    with torch.inference_mode(), ExitStack() as stack:
        for k, layer in enumerate(encoder.layers):
            found: dict[str, torch.Tensor] = {}
            for name in ("q_proj", "k_proj", "v_proj"):

                def keep(
                    _: torch.nn.Module,
                    __: tuple[Any, ...],
                    y: torch.Tensor,
                    k: int = k,
                    name: str = name,
                    found: dict[str, torch.Tensor] = found,
                ) -> None:
                    found[name] = y[0].unflatten(-1, (heads, -1)).transpose(0, 1).contiguous()
                    if len(found) == 3:
                        take(k, found["q_proj"].mul_(scale), found["k_proj"], found["v_proj"])
                        found.clear()

                stack.callback(getattr(layer.self_attn, name).register_forward_hook(keep).remove)
        encoder(log_mel)


def queries_keys_values(
    encoder: WhisperEncoder, log_mel: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `each_attention` gives, of all layers: each (layers, heads, 1500, head_dim)."""
    heads, frames = encoder.config.encoder_attention_heads, log_mel.shape[-1] // 2
    dim = encoder.config.d_model // heads
    query, key, value = (torch.empty(len(encoder.layers), heads, frames, dim) for _ in range(3))

    def take(layer: int, *found: torch.Tensor) -> None:
        for whole, part in zip((query, key, value), found, strict=True):
            whole[layer] = part

    each_attention(encoder, log_mel, take)
    return query, key, value


def block_states(
    module: torch.nn.Module, blocks: torch.nn.ModuleList, features: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What a module of transformers computes from features [1, …], unmasked: the input of the first block, what every
    block gives, and the last hidden state. What `output_hidden_states` gives last differs between versions."""
    states: list[torch.Tensor] = []

    def keep(_: object, given: Any, made: Any = None) -> None:
        found = made if made is not None else given
        states.append(found[0] if isinstance(found, tuple) else found)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    hooks.append(blocks[0].register_forward_pre_hook(keep))
    try:
        with torch.inference_mode():
            last = module(features).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return states, last
