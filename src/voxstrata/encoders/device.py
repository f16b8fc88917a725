"""Where an encoder runs, and in what it computes there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from voxstrata.base.errors import UsageError


@dataclass(frozen=True)
class Device:
    """Where the graphs run: kind "cpu", "cuda" or "tensorrt", and for the latter two which GPU.

    bfloat16: on CUDA, the encoder computes in it, whatever type the model was exported in.
    Raises UsageError for another kind. Wherever a Device is asked for, its name does as well: "cuda:1".
    """

    kind: str = "cpu"
    index: int = 0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if ":" in self.kind and not self.index and not self.bfloat16:  # Device("cuda:1"), as PyTorch has it
            for name, value in vars(self.parse(self.kind)).items():
                object.__setattr__(self, name, value)
        elif self.kind not in ("cpu", "cuda", "tensorrt"):
            raise _unknown(self.kind)
        elif self.bfloat16 and self.kind != "cuda":
            raise _unknown(f"{self.kind}:bfloat16")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "cpu", "cuda", "cuda:1", "cuda:bfloat16", "tensorrt", … Raises UsageError for anything else."""
        m = re.fullmatch(r"(cpu|cuda|tensorrt)(?::(\d{1,3}))?(:bfloat16)?", text)
        if m is None or (m[1] == "cpu" and m[2]) or (m[1] != "cuda" and m[3]):
            raise _unknown(text)
        return cls(m[1], int(m[2] or 0), bool(m[3]))

    @classmethod
    def parse_several(cls, text: str) -> list[Self]:
        """From "cuda:0,1,2", "cpu,cpu", … or one. Raises UsageError for anything else, and for several kinds."""
        devices: list[Self] = []
        for name in (part.strip() for part in text.split(",")):
            follows = devices and devices[-1].kind != "cpu" and re.fullmatch(r"\d+", name)
            own = cls.parse(f"{devices[-1].kind}:{name}" if follows else name)
            devices.append(replace(own, bfloat16=devices[-1].bfloat16) if follows else own)
        if len({(device.kind, device.bfloat16) for device in devices}) > 1:
            raise UsageError(f"--device {text}: devices of one kind, since the last bits differ between kinds")
        return devices

    def __repr__(self) -> str:
        return f"Device({str(self)!r})"

    def __str__(self) -> str:
        return self.kind + f":{self.index}" * bool(self.index) + ":bfloat16" * self.bfloat16

    def arithmetic(self, dtype: str) -> Literal["float16", "bfloat16", "float32"]:
        """In what a model of that dtype computes here: TensorRT takes float16 for float32, which is another result."""
        if self.bfloat16:
            return "bfloat16"
        return "float16" if dtype == "float16" or self.kind == "tensorrt" else "float32"


class DeviceField:
    """A dataclass's field that takes a Device or its name, and gives a Device; by default the CPU."""

    def __get__(self, owner: Any, kind: Any = None) -> Device:
        found: Device = Device() if owner is None else owner.__dict__["_device"]
        return found

    def __set__(self, owner: Any, value: Device | str) -> None:
        owner.__dict__["_device"] = value if isinstance(value, Device) else Device.parse(value)


def _unknown(text: str) -> UsageError:
    return UsageError(f"unknown device {text!r}; choose cpu, cuda, cuda:1, cuda:bfloat16, tensorrt or tensorrt:1")
