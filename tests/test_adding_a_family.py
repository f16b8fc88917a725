"""The guide in CONTRIBUTING adds a family: its code is put where it says, and does what it says."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sound

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hf_reference import relative_l2  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import voxstrata as vs  # noqa: E402
from voxstrata.base.errors import InputError, UsageError  # noqa: E402
from voxstrata.encoders.family import Step  # noqa: E402
from voxstrata.exporters import ExportSpec, families  # noqa: E402
from voxstrata.exporters.validation import cpu_session  # noqa: E402

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def guide() -> dict[str, str]:
    """The code of the guide by file: blocks that begin with no file's name go on with the last one's."""
    section = PAGE.read_text(encoding="utf-8").split("## Adding a family, step by step\n")[1].split("\n## ")[0]
    found: dict[str, str] = {}
    name = ""
    for block in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S):
        named = re.match(r"# ([\w/]+\.py)", block)
        name = named[1] if named else name
        found[name] = found.get(name, "") + ("" if named else "\n") + block
    return found


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The guide's modules, importable while a test runs; the family's is in a folder of its own, not in the package."""
    code, here = guide(), tmp_path / "code"
    here.mkdir()
    (here / "toy_speech.py").write_text(code["toy_speech.py"], encoding="utf-8")
    (here / "toy.py").write_text(code["src/voxstrata/exporters/families/toy.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(here)])
    families.family_modules.cache_clear()
    yield code
    families.family_modules.cache_clear()
    for name in ("toy_speech", "toy", f"{families.__name__}.toy"):
        sys.modules.pop(name, None)


@pytest.fixture
def toy_checkpoint(toy: dict[str, str], tmp_path: Path) -> Path:
    torch.manual_seed(5)
    encoder = importlib.import_module("toy_speech").ToyEncoder(16, 2)
    folder = tmp_path / "toy"
    folder.mkdir()
    save_file(encoder.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "toy_speech", "width": 16, "blocks": 2}))
    return folder


def run_model(model: Any, audio: np.ndarray) -> dict[str, np.ndarray]:
    """Both graphs on recordings of one length."""
    (features,) = cpu_session(model.path / "features.onnx").run(None, {"audio": audio})
    outputs = cpu_session(model.path / "encoder_model.onnx").run(list(model.card.outputs), {"features": features})
    return dict(zip(model.card.outputs, outputs, strict=True))


def guided_tests(toy: dict[str, str]) -> dict[str, Callable[..., None]]:
    names = {
        "export": vs.export, "sound": sound, "run_model": run_model, "relative_l2": relative_l2, "torch": torch,
        "load_file": load_file, "np": np, "pytest": pytest, "InputError": InputError,
        "ToyEncoder": importlib.import_module("toy_speech").ToyEncoder,
    }  # fmt: skip
    exec(compile(toy["tests/test_toy.py"], "CONTRIBUTING.md", "exec"), names)
    return {name: value for name, value in names.items() if name.startswith("test_")}  # type: ignore[misc]


def test_the_guides_own_tests_pass(toy: dict[str, str], toy_checkpoint: Path, tmp_path: Path) -> None:
    tests = guided_tests(toy)
    assert len(tests) == 2
    for name, test in tests.items():
        test(toy_checkpoint=toy_checkpoint, tmp_path=tmp_path / name)


@pytest.mark.parametrize(
    ("right", "wrong", "match"),
    [
        ("epsilon=1e-5", "epsilon=1.0", r"layer_01 differs from the original by .* at 0\.025 s, allowed is 2e-04"),
        ('"least", np.array(1e-7', '"least", np.array(0.5', r"features differs from the original by .* at 0\.025 s"),
        # the mean of all recordings of a batch
        (
            'b.ints("last", -1)',
            'b.ints("last", 0, 1)',
            "differs from the original by .* in a batch at|from itself alone",
        ),
    ],
)
def test_a_family_that_is_wrong_leaves_no_folder(
    toy: dict[str, str], toy_checkpoint: Path, tmp_path: Path, right: str, wrong: str, match: str
) -> None:
    file = tmp_path / "code" / "toy.py"
    text = file.read_text(encoding="utf-8")
    assert text.count(right) == 1
    file.write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(InputError, match=match):
        vs.export(str(toy_checkpoint), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("kernel", "match"),
    [
        (399, "Toy cannot be computed at 399 samples, of which it declares 1 frame "),
        (401, r"layer_00 at 1\.025 s has 51 frames, Toy declares 50"),
    ],
)
def test_a_family_that_declares_other_frames_leaves_no_folder(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: int, match: str
) -> None:
    module = importlib.import_module(f"{families.__name__}.toy")
    monkeypatch.setattr(module, "Step", lambda stride, **_: Step(kernel, stride))
    with pytest.raises(InputError, match=match):
        vs.export(str(toy_checkpoint), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (ExportSpec(dtype="int8"), "--dtype int8"),
        (ExportSpec(dtype="float16"), "--dtype float16"),
        (ExportSpec(silence_keys=0), "--silence-keys"),
        (ExportSpec(norm_every=True), "--norm-every-layer"),
        (ExportSpec(norm_every=True, dtype="int8"), "--dtype int8 and --norm-every-layer"),
    ],
)
def test_what_a_family_cannot_have_is_refused_by_name(
    toy_checkpoint: Path, tmp_path: Path, spec: ExportSpec, named: str
) -> None:
    (toy_checkpoint / "model.safetensors").unlink()  # before any weights are read
    with pytest.raises(UsageError, match=rf"Toy: {named} (is|are) for Whisper's encoders alone"):
        vs.export(str(toy_checkpoint), tmp_path / "model", spec)


def test_a_family_is_calibrated_by_nothing(
    toy_checkpoint: Path, tmp_path: Path, make_corpus: Callable[..., Path]
) -> None:
    spec = ExportSpec(calibrate=make_corpus({"en/a": 1.0}))
    with pytest.raises(UsageError, match="Toy: --calibrate is for Whisper's encoders alone"):
        vs.export(str(toy_checkpoint), tmp_path / "model", spec)


def test_settings_that_are_missing_are_named(toy: dict[str, str], toy_checkpoint: Path, tmp_path: Path) -> None:
    (toy_checkpoint / "config.json").write_text('{"model_type": "toy_speech", "blocks": 2}')
    with pytest.raises(InputError, match=r"config\.json: it does not say width, on which the states depend"):
        vs.export(str(toy_checkpoint), tmp_path / "model")


def test_what_may_name_code_is_not_handed_on(toy: dict[str, str], toy_checkpoint: Path, tmp_path: Path) -> None:
    config = {"model_type": "toy_speech", "width": 16, "blocks": 2, "labels": ["a", "b"], "rate": 0.5}
    odd = {"auto_map": {"AutoModel": "x.Y"}, "_attn_implementation": "owner/kernel", "trust_remote_code": True}
    nested = {"inner": {"width": 16} | odd, "list": [{"width": 16} | odd]}
    (toy_checkpoint / "config.json").write_text(json.dumps(config | odd | nested))
    (toy_checkpoint / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000} | odd))
    model = vs.export(str(toy_checkpoint), tmp_path / "model", ExportSpec("layer_01"))
    written = {
        name: json.loads((model.path / f"{name}.json").read_text()) for name in ("config", "preprocessor_config")
    }
    plain = {"inner": {"width": 16}, "list": [{"width": 16}]}
    assert written == {"config": config | plain, "preprocessor_config": {"sampling_rate": 16_000}}
    assert model.card.outputs == ("layer_01",)
