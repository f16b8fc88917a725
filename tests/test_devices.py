"""Devices: what can be checked of them on a machine without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
from packaging.requirements import Requirement

from voxstrata import Context, Device, InputError, open_model
from voxstrata.base.errors import UsageError
from voxstrata.encoders.card import CACHED, ENCODER
from voxstrata.engine import CpuEncoder, CudaEncoder, Runtime
from voxstrata.engine.cuda_encoder import load_tensorrt
from voxstrata.engine.encoder import PROVIDERS
from voxstrata.engine.runtime import DEFAULT_TOKENS
from voxstrata.store import StoreSpec


def profile(text: str) -> dict[str, list[int]]:
    """ONNX Runtime's notation, `name:AxB,name:CxD,…`; a name that is repeated would begin another profile."""
    parts = [part.split(":") for part in text.split(",")]
    assert len({name for name, _ in parts}) == len(parts)
    return {name: [int(n) for n in shape.split("x")] for name, shape in parts}


def test_on_tensorrt_each_bucket_has_a_session_of_one_shape_and_an_engine_of_its_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's provider stays on the first profile of an engine, whatever shape it is given."""
    shutil.copytree(tiny_model, tmp_path / "model")
    spec = StoreSpec(("final",), context=Context(edges=(100, 300, 1500)))
    encoder = CudaEncoder(open_model(tmp_path / "model"), spec, Runtime(Device("cpu"), tokens=600))
    encoder.device = Device("tensorrt")
    silence = {"silence_key": [3, 4, 32, 8], "silence_value": [3, 4, 32, 8], "silence_bias": [3, 4, 32]}
    expected = {
        100: (CACHED, {"log_mel": [6, 80, 200]} | silence),
        300: (CACHED, {"log_mel": [2, 80, 600]} | silence),
        1500: (ENCODER, {"log_mel": [1, 80, 3000]}),  # which has no cached keys
    }
    made: dict[str, list[Any]] = {}

    def session(graph: bytes, options: Any, providers: list[Any], **_: Any) -> Any:
        assert Path(providers[0][1]["trt_engine_cache_path"]).is_dir()
        made[providers[0][1]["trt_engine_cache_path"]] = [graph, *providers]
        return SimpleNamespace(get_providers=lambda: [p for p, _ in providers])

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(PROVIDERS.values()))
    for frames, (graph, shapes) in expected.items():
        name = encoder._encoder_session(frames)
        assert encoder._session(name) is encoder._session(name)
        (provider, options), *behind = encoder._providers(name)
        assert (provider, [p for p, _ in behind]) == (PROVIDERS["tensorrt"], [PROVIDERS["cuda"], PROVIDERS["cpu"]])
        assert options["trt_fp16_enable"]
        assert options["trt_engine_cache_enable"]
        assert [profile(options[f"trt_profile_{bound}_shapes"]) for bound in ("min", "opt", "max")] == [shapes] * 3
        assert encoder._source(name) == encoder._source(graph)
    assert len(made) == 3
    assert {Path(path).parent for path in made} == {tmp_path / "model" / "tensorrt"}
    # of another number of windows it is another engine
    encoder.tokens = 900
    assert encoder._tensorrt_options(300)["trt_engine_cache_path"] not in made


def test_tensorrts_libraries_are_loaded_from_where_pip_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(path: str, mode: int) -> None:
        if not Path(path).exists():
            raise OSError("no such file")
        assert mode == ctypes.RTLD_GLOBAL  # for the provider, which asks for them by name
        loaded.append(path)

    monkeypatch.setattr(ctypes, "CDLL", load)
    load_tensorrt()  # it is not installed: nothing to load, and nothing to say
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    for name in ("__init__.py", "libnvinfer.so.10", "libnvinfer.so.11"):
        (folder / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    load_tensorrt()
    assert loaded == [str(folder / "libnvinfer.so.10")]


def test_the_extra_gpu_brings_the_libraries_by_the_names_that_onnxruntime_gives_them() -> None:
    """pip only warns of an extra that a package does not have."""
    try:
        offered = metadata("onnxruntime-gpu").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        pytest.skip("onnxruntime in place of onnxruntime-gpu")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {r.name: r.extras for r in map(Requirement, project["optional-dependencies"]["gpu"])}
    assert {"cuda", "cudnn"} <= asked["onnxruntime-gpu"] <= {*offered}


def test_no_cuda_graph_is_recorded_on_tensorrt(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its provider keeps one recording for a session, whose addresses are those of the caller that came first."""
    monkeypatch.setattr(CudaEncoder, "_make_session", lambda *_: None)
    spec, runtime = StoreSpec(("final",)), Runtime(Device("tensorrt"), tokens=600)
    encoder = CudaEncoder(open_model(tiny_model), spec, runtime, cuda_graphs=True)
    assert encoder.fixed_shapes
    assert not any("cuda_graph" in key for _, options in encoder._providers(f"{CACHED}:200") for key in options)


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
