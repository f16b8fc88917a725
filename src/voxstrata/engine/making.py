"""Which encoder runs a model on a device."""

import onnxruntime as ort

from voxstrata.encoders import ModelFolder
from voxstrata.engine.cpu_encoder import CpuEncoder
from voxstrata.engine.cuda_encoder import CudaEncoder
from voxstrata.engine.encoder import Encoder
from voxstrata.engine.exact_encoder import ExactEncoder
from voxstrata.engine.runtime import Runtime
from voxstrata.store.spec import StoreSpec


def make_encoder(
    model: ModelFolder, spec: StoreSpec, runtime: Runtime, sessions: dict[str, ort.InferenceSession] | None = None
) -> Encoder:
    """What encodes on that device. sessions: by graph, to be shared on a CPU. Raises what `Encoder` raises."""
    shared = sessions if runtime.device.kind == "cpu" else None
    if not model.card.whisper:
        return ExactEncoder(model, spec, runtime, shared)
    return (
        CpuEncoder(model, spec, runtime, shared) if runtime.device.kind == "cpu" else CudaEncoder(model, spec, runtime)
    )
