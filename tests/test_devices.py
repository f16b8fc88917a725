"""Devices: what can be checked of them on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from voxstrata import Context, Device, InputError, open_model
from voxstrata.base.errors import UsageError
from voxstrata.encoders.card import CACHED, ENCODER
from voxstrata.engine import CpuEncoder, CudaEncoder, Runtime
from voxstrata.engine.runtime import DEFAULT_TOKENS
from voxstrata.store import StoreSpec


def profiles(text: str) -> list[dict[str, list[int]]]:
    """ONNX Runtime's notation, `name:AxB,name:CxD,…`, as one dictionary per profile: a repeated name begins another."""
    found: list[dict[str, list[int]]] = []
    for part in text.split(","):
        name, shape = part.split(":")
        if not found or name in found[-1]:
            found.append({})
        found[-1][name] = [int(n) for n in shape.split("x")]
    return found


def test_tensorrt_gets_one_profile_of_one_shape_for_each_bucket(tiny_model: Path) -> None:
    spec = StoreSpec(("final",), context=Context(edges=(100, 300, 1500)))
    encoder = CudaEncoder(open_model(tiny_model), spec, Runtime(Device("cpu"), tokens=600))
    options = encoder._tensorrt_options(CACHED)
    assert options["trt_fp16_enable"]
    assert options["trt_engine_cache_enable"]
    assert Path(options["trt_engine_cache_path"]).parent == tiny_model
    silence = {"silence_key": [3, 4, 32, 8], "silence_value": [3, 4, 32, 8], "silence_bias": [3, 4, 32]}
    for bound in ("min", "opt", "max"):
        found = profiles(options[f"trt_profile_{bound}_shapes"])
        assert found == [{"log_mel": [b, 80, 2 * m]} | silence for m, b in ((100, 6), (300, 2))]
    # the full window has no cached keys, and a graph of its own
    assert profiles(encoder._tensorrt_options(ENCODER)["trt_profile_max_shapes"]) == [{"log_mel": [1, 80, 3000]}]


def test_a_device_that_cannot_start_is_an_error_not_another_device(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a CUDA device")
    model, spec = open_model(tiny_model), StoreSpec(("final",))
    with pytest.raises(InputError, match="--device cpu"):
        CudaEncoder(model, spec, Runtime(Device("cuda")))
    assert capfd.readouterr().out == ""  # `--json` has standard output to itself
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match="install onnxruntime-gpu"):
        CudaEncoder(model, spec, Runtime(Device("tensorrt")))


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_the_encoder_of_cpus_names_the_one_of_gpus(tiny_model: Path, kind: str) -> None:
    with pytest.raises(UsageError, match=f"for {kind} use CudaEncoder"):
        CpuEncoder(open_model(tiny_model), runtime=Runtime(Device(kind)))


def test_a_runtime_takes_all_cores_and_what_suits_its_device_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert (Runtime().thread_count, Runtime().batch_tokens, Runtime().device) == (3, DEFAULT_TOKENS["cpu"], Device())
    assert Runtime(Device("cuda")).batch_tokens == DEFAULT_TOKENS["cuda"] > DEFAULT_TOKENS["cpu"]
    assert (Runtime(threads=7, tokens=90).thread_count, Runtime(threads=7, tokens=90).batch_tokens) == (7, 90)


def test_a_device_says_in_what_it_computes() -> None:
    for text, device, arithmetic in (
        ("cuda", Device("cuda"), "float32"),
        ("cuda:bfloat16", Device("cuda", 0, True), "bfloat16"),
        ("cuda:3:bfloat16", Device("cuda", 3, True), "bfloat16"),
        ("tensorrt:2", Device("tensorrt", 2), "float16"),
    ):
        assert Device.parse(text) == device
        assert str(device) == text
        assert device.arithmetic("float32") == arithmetic
    assert Device.parse_several("cuda:0:bfloat16,2") == [Device("cuda", 0, True), Device("cuda", 2, True)]
    for wrong in ("cpu:bfloat16", "tensorrt:bfloat16", "cuda:bfloat16:1", "cuda:float16"):
        with pytest.raises(UsageError, match="unknown device"):
            Device.parse(wrong)
    with pytest.raises(UsageError, match="of one kind"):
        Device.parse_several("cuda:bfloat16,cuda:1")
