"""Where an encoder runs, and in what it computes there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from voxstrata.base.errors import UsageError


@dataclass(frozen=True)
class Device:
    """Where the graphs run: kind "cpu", "cuda" or "tensorrt", and for the latter two which GPU.

    Raises UsageError for another kind. Wherever a Device is asked for, its name does as well: "cuda:1".
    """

    kind: str = "cpu"
    index: int = 0

    def __post_init__(self) -> None:
        if ":" in self.kind and not self.index:  # Device("cuda:1"), as PyTorch has it
            whole = self.parse(self.kind)
            object.__setattr__(self, "kind", whole.kind)
            object.__setattr__(self, "index", whole.index)
        elif self.kind not in ("cpu", "cuda", "tensorrt"):
            raise _unknown(self.kind)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "cpu", "cuda", "cuda:1", "tensorrt", … Raises UsageError for anything else."""
        m = re.fullmatch(r"(cpu|cuda|tensorrt)(?::(\d{1,3}))?", text)
        if m is None or (m[1] == "cpu" and m[2]):
            raise _unknown(text)
        return cls(m[1], int(m[2] or 0))

    @classmethod
    def parse_several(cls, text: str) -> list[Self]:
        """From "cuda:0,1,2", "cpu,cpu", … or one. Raises UsageError for anything else, and for several kinds."""
        devices: list[Self] = []
        for name in (part.strip() for part in text.split(",")):
            follows = devices and devices[-1].kind != "cpu" and re.fullmatch(r"\d+", name)
            devices.append(cls.parse(f"{devices[-1].kind}:{name}" if follows else name))
        if len({device.kind for device in devices}) > 1:
            raise UsageError(f"--device {text}: devices of one kind, since the last bits differ between kinds")
        return devices

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.index else self.kind

    def arithmetic(self, dtype: str) -> Literal["float16", "float32"]:
        """In what a model of that dtype computes here: TensorRT takes float16 for float32, which is another result."""
        return "float16" if dtype == "float16" or self.kind == "tensorrt" else "float32"


class DeviceField:
    """A dataclass's field that takes a Device or its name, and gives a Device; by default the CPU."""

    def __get__(self, owner: Any, kind: Any = None) -> Device:
        found: Device = Device() if owner is None else owner.__dict__["_device"]
        return found

    def __set__(self, owner: Any, value: Device | str) -> None:
        owner.__dict__["_device"] = value if isinstance(value, Device) else Device.parse(value)


def _unknown(text: str) -> UsageError:
    return UsageError(f"unknown device {text!r}; choose cpu, cuda, cuda:1, tensorrt or tensorrt:1")
