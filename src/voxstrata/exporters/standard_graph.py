"""The encoder as an ONNX graph of standard operators, which every execution provider can run.

Written node by node rather than traced, because the graph is the product: every residual state is an output, time is
dynamic, attention takes cached keys, and nothing depends on how a version of transformers or torch phrases a layer.
"""

from collections.abc import Sequence

from voxstrata.exporters.blocks import EncoderBuilder
from voxstrata.exporters.weights import Weights


def encoder_graph(
    weights: Weights, *, outputs: Sequence[str], cached: bool, norm_every: bool, blocks: int | None = None
) -> bytes:
    """Build the encoder.

    weights: the graph computes in their dtype. outputs: which of `output_names(layers)` it returns.
    cached: whether attention also sees cached keys, given as inputs `silence_key` and `silence_value`
        [layers, heads, keys, head_dim] and `silence_bias` [layers, heads, keys] (float32).
    norm_every: the final LayerNorm is applied to every `layer_k` that is returned.
    blocks: how many the graph holds, as many as the outputs need or more; by default all.

    Returns a serialized graph from `log_mel` float32 [batch, n_mels, time], time even and ≤ 3000, to each output
    [batch, time / 2, d_model] in the weights' dtype.
    """
    blocks = weights.shape.layers if blocks is None else blocks
    b = _StandardBuilder(weights, cached, blocks)
    b.encoder([f"residual_{k:02d}" for k in range(blocks + 1)], outputs, norm_every)
    # optimum's runtime works out the size of an output axis from its name
    returned = [b.tensor(n, weights.dtype, ["batch", "time // 2", b.shape.d_model]) for n in outputs]
    return b.model("whisper_encoder", b.declared_inputs(cached), returned)


class _StandardBuilder(EncoderBuilder):
    """Attention as products and a softmax; what a group of cached keys needs is added to the logits."""

    def __init__(self, weights: Weights, cached: bool, blocks: int) -> None:
        super().__init__(weights)
        self.cached = cached
        if blocks:
            self.ints("split_heads", 0, -1, self.shape.heads, self.shape.head_dim)
            self.ints("join_heads", 0, -1, self.shape.d_model)

    def prepare(self, x: str, frames: str) -> None:
        """The silence inputs in the graph's dtype, the batch size, zeros as the bias of computed keys."""
        if not self.cached:
            return
        dtype = self.weights.dtype
        for name in ("silence_key", "silence_value", "silence_bias"):
            if self.computed(name) == name:
                self.node("Identity", [name], f"{name}/cast")
        self.batch_shape(x, "ones3", 3)
        self.ints("heads_one", 1, self.shape.heads, 1)
        zeros = self.onnx.helper.make_tensor("value", self.type_of(dtype), [1], [0.0])
        self.node("Concat", ["heads_one", frames], "computed/shape", axis=0)
        self.node("ConstantOfShape", ["computed/shape"], "computed/bias", value=zeros)

    def attention(self, x: str, normed: str, block: int) -> tuple[str, str]:
        m = f"layers.{block}"
        q, key, value = (self.linear(normed, f"{m}.self_attn.{p}_proj") for p in "qkv")
        q, key, value = (self.node("Reshape", [t, "split_heads"], f"{t}/heads") for t in (q, key, value))
        q, value = (self.node("Transpose", [t], f"{t}/bhtd", perm=[0, 2, 1, 3]) for t in (q, value))
        if self.cached:
            key = self.node("Transpose", [key], f"{key}/bhtd", perm=[0, 2, 1, 3])
            key = self.with_cached(key, "silence_key/cast", "key", block, axis=2)
            value = self.with_cached(value, "silence_value/cast", "value", block, axis=2)
            key = self.node("Transpose", [key], f"{m}/keys/t", perm=[0, 1, 3, 2])
        else:
            key = self.node("Transpose", [key], f"{key}/bhdt", perm=[0, 2, 3, 1])
        logits = self.node("MatMul", [q, key], f"{m}/logits")
        if self.cached:
            logits = self.node("Add", [logits, self._silence_bias(block)], f"{m}/logits/biased")
        attention = self.node("Softmax", [logits], f"{m}/attention", axis=-1)
        weighted = self.node("MatMul", [attention, value], f"{m}/heads")
        joined = self.node("Transpose", [weighted], f"{m}/heads/bthd", perm=[0, 2, 1, 3])
        return x, self.node("Reshape", [joined, "join_heads"], f"{m}/joined")

    def _silence_bias(self, block: int) -> str:
        """One block's logit bias, zero for computed keys: [1, heads, 1, frames + keys]."""
        one = self.node("Gather", ["silence_bias/cast", f"layer_index_{block}"], f"silence_bias/{block}", axis=0)
        one = self.node("Unsqueeze", [one, self.ints("axis2", 2)], f"silence_bias/{block}/row")
        return self.node("Concat", ["computed/bias", one], f"silence_bias/{block}/all", axis=3)
