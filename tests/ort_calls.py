"""ONNX Runtime's side of a custom operator, played in Python: its table of functions, a node, and tensors of ours."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ELEMENTS = {"float32": 1, "int32": 6, "float16": 10, "bfloat16": 16}
"""ONNXTensorElementDataType."""
SLOTS = 300
Pointer, Size, Int64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
Out = ctypes.POINTER(ctypes.c_void_p)
Text = ctypes.c_char_p


class CustomOp(ctypes.Structure):
    """OrtCustomOp, version 17: a version and 25 functions."""

    _fields_ = (
        ("version", Size), ("CreateKernel", Pointer), ("GetName", Pointer), ("GetExecutionProviderType", Pointer),
        ("GetInputType", Pointer), ("GetInputTypeCount", Pointer), ("GetOutputType", Pointer),
        ("GetOutputTypeCount", Pointer), ("KernelCompute", Pointer), ("KernelDestroy", Pointer),
        ("GetInputCharacteristic", Pointer), ("GetOutputCharacteristic", Pointer), ("GetInputMemoryType", Pointer),
        ("variadic", Pointer * 4), ("CreateKernelV2", Pointer), ("KernelComputeV2", Pointer),
        ("InferOutputShapeFn", Pointer), ("versions", Pointer * 2), ("inplace", Pointer * 4),
    )  # fmt: skip


@dataclass
class Tensor:
    """Memory of anybody, with what ONNX Runtime tells about it."""

    address: int
    kind: str
    shape: tuple[int, ...]
    owner: Any = None


@dataclass
class Call:
    """One invocation of a kernel: what it reads, who makes its outputs, and the stream it is told."""

    inputs: Sequence[Tensor]
    make_output: Callable[[int, tuple[int, ...]], Tensor]
    stream: int = 0
    outputs: dict[int, Tensor] = field(default_factory=dict)


class Refused(Exception):
    """The status that an operator answered with."""


class Played:
    """An operator's library, registered with a runtime that is this object."""

    def __init__(self, library: Path) -> None:
        self.things: list[Any] = [None]
        self.ops: list[CustomOp] = []
        self.kept: list[Any] = []
        self.table = (Pointer * SLOTS)()
        for slot, (name, *types) in FUNCTIONS.items():
            function = ctypes.CFUNCTYPE(Pointer, *types)(getattr(self, name))
            self.kept.append(function)
            self.table[slot] = ctypes.cast(function, Pointer).value
        get_api = ctypes.CFUNCTYPE(Pointer, ctypes.c_uint32)(lambda _: ctypes.addressof(self.table))
        self.base = (Pointer * 2)(ctypes.cast(get_api, Pointer).value, None)
        self.kept.append(get_api)
        self.library = ctypes.CDLL(str(library))
        self.library.RegisterCustomOps.restype = Pointer
        self.require(self.library.RegisterCustomOps(None, self.base))

    def handle(self, thing: Any) -> int:
        self.things.append(thing)
        return len(self.things) - 1

    def require(self, status: int | None) -> None:
        if status:
            raise Refused(self.things[status])

    def provider(self, op: CustomOp) -> str:
        found = ctypes.CFUNCTYPE(Text, Pointer)(op.GetExecutionProviderType)(ctypes.addressof(op))
        return str(found.decode())

    def types(self, op: CustomOp) -> tuple[int, int]:
        """Elements of the hidden states and of the weights."""
        kind = ctypes.CFUNCTYPE(ctypes.c_int, Pointer, Size)
        return kind(op.GetInputType)(ctypes.addressof(op), 0), kind(op.GetOutputType)(ctypes.addressof(op), 1)

    def kernel(self, provider: str, kind: str, weights: str, attributes: dict[str, Any]) -> Kernel:
        """A kernel for nodes of these types; raises `Refused`."""
        wanted = (provider, (ELEMENTS[kind], ELEMENTS[weights]))
        op = next(op for op in self.ops if (self.provider(op), self.types(op)) == wanted)
        made, info = Pointer(), self.handle(attributes)
        create = ctypes.CFUNCTYPE(Pointer, Pointer, Pointer, Pointer, Out)(op.CreateKernelV2)
        self.require(create(ctypes.addressof(op), ctypes.addressof(self.table), info, ctypes.byref(made)))
        return Kernel(self, op, made)

    # What the operator calls. Handles are places in `things`; None and 0 are a good status.

    def create_status(self, _: int, message: bytes) -> int:
        return self.handle(message.decode())

    def create_domain(self, _: bytes, out: Any) -> None:
        out[0] = 1

    def add_op(self, _: int, op: int) -> None:
        self.ops.append(CustomOp.from_address(op))

    def add_domain(self, *_: Any) -> None:
        pass

    def tensor_data(self, value: int, out: Any) -> None:
        out[0] = self.things[value].address

    def tensor_info(self, value: int, out: Any) -> None:
        out[0] = value

    def tensor_element(self, info: int, out: Any) -> None:
        out[0] = ELEMENTS[self.things[info].kind]

    def tensor_rank(self, info: int, out: Any) -> None:
        out[0] = len(self.things[info].shape)

    def tensor_shape(self, info: int, out: Any, count: int) -> None:
        for axis, length in enumerate(self.things[info].shape[:count]):
            out[axis] = length

    def attribute_number(self, info: int, name: bytes, out: Any) -> int | None:
        return self.attribute(info, name, (int, float), out)

    def attribute(self, info: int, name: bytes, kinds: Any, out: Any) -> int | None:
        value = self.things[info].get(name.decode())
        if not isinstance(value, kinds):
            return self.handle(f"no attribute {name.decode()}")
        out[0] = value
        return None

    def attribute_text(self, info: int, name: bytes, out: int, size: Any) -> int | None:
        value = self.things[info].get(name.decode())
        if not isinstance(value, str) or len(value) + 1 > size[0]:
            return self.handle(f"no attribute {name.decode()} of {size[0]} bytes")
        ctypes.memmove(out, value.encode() + b"\0", len(value) + 1)
        size[0] = len(value) + 1
        return None

    def kernel_input(self, context: int, index: int, out: Any) -> None:
        out[0] = self.handle(self.things[context].inputs[index])

    def kernel_output(self, context: int, index: int, shape: Any, count: int, out: Any) -> None:
        call = self.things[context]
        call.outputs[index] = call.make_output(index, tuple(shape[:count]))
        out[0] = self.handle(call.outputs[index])

    def compute_stream(self, context: int, out: Any) -> None:
        out[0] = self.things[context].stream

    def parallel_for(self, _: int, task: int, total: int, __: int, shared: int) -> None:
        run = ctypes.CFUNCTYPE(None, Pointer, Size)(task)
        for number in reversed(range(total)):
            run(shared, number)

    def release(self, *_: Any) -> None:
        pass


class Kernel:
    """A kernel of one node; destroyed with this object."""

    def __init__(self, runtime: Played, op: CustomOp, handle: Pointer) -> None:
        self.runtime, self.op, self.pointer = runtime, op, handle

    def run(self, call: Call) -> dict[int, Tensor]:
        """The outputs of one call; raises `Refused`."""
        compute = ctypes.CFUNCTYPE(Pointer, Pointer, Pointer)(self.op.KernelComputeV2)
        self.runtime.require(compute(self.pointer, self.runtime.handle(call)))
        return call.outputs

    def __del__(self) -> None:
        ctypes.CFUNCTYPE(None, Pointer)(self.op.KernelDestroy)(self.pointer)


Longs = ctypes.POINTER(Int64)
FUNCTIONS: dict[int, tuple[Any, ...]] = {
    0: ("create_status", ctypes.c_int, Text),
    26: ("create_domain", Text, Out),
    27: ("add_op", Pointer, Pointer),
    28: ("add_domain", Pointer, Pointer),
    51: ("tensor_data", Pointer, Out),
    60: ("tensor_element", Pointer, ctypes.POINTER(ctypes.c_int)),
    61: ("tensor_rank", Pointer, ctypes.POINTER(Size)),
    62: ("tensor_shape", Pointer, Longs, Size),
    65: ("tensor_info", Pointer, Out),
    85: ("attribute_number", Pointer, Text, ctypes.POINTER(ctypes.c_float)),
    86: ("attribute_number", Pointer, Text, Longs),
    87: ("attribute_text", Pointer, Text, Pointer, ctypes.POINTER(Size)),
    90: ("kernel_input", Pointer, Size, Out),
    91: ("kernel_output", Pointer, Size, Longs, Size, Out),
    93: ("release", Pointer),
    99: ("release", Pointer),
    193: ("compute_stream", Pointer, Out),
    274: ("parallel_for", Pointer, Pointer, Size, Size, Pointer),
}
"""Slots of OrtApi that the operator calls, with the types of their arguments."""
