"""Files of torch.save, read without torch; nothing in them is run.

They are pickles: programs of a small stack machine. `pickletools` takes the program
apart, and the interpreter here knows no more of it than data needs: numbers, strings,
containers, and for each function that torch.save names one of ours. The storages of
the tensors are the other entries of a zip or, before torch 1.6, follow the pickle.
"""

import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from flaxcnn.errors import FlaxcnnError

ZIP = b"PK\x03\x04"
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that the first pickle holds
TAR = b"ustar"
NOT_TORCH = "not a file of torch.save (a web page in its place?); download it again"
PICKLE_BYTES = 1 << 24  # one may take 70 in memory; networks need less than 1 << 20

# What malformed input raises, here or in numpy, pickletools and zipfile.
MALFORMED = (
    EOFError, LookupError, OverflowError, RuntimeError, TypeError, ValueError,
    zipfile.BadZipFile,
)  # fmt: skip


def read_pth(path: Path) -> Any:
    """What torch.save wrote, tensors as numpy arrays: views, some of them read-only.

    An OrderedDict comes as dict, a torch.Size as tuple, a Parameter as array; sets,
    counters, bytes, devices and types as what they are made of.

    Raises:
      FlaxcnnError: no such file, not one of torch.save, damaged, or one that holds more
        than tensors, numbers, strings and containers of them.
    """
    if not path.is_file():
        raise FlaxcnnError(f"no file {path}; give one that torch.save wrote")
    try:
        with open(path, "rb") as file:
            return _read(file, path.stat().st_size)
    except FlaxcnnError as error:
        raise FlaxcnnError(f"{path}: {error}") from error
    except OSError as error:
        raise FlaxcnnError(
            f"{path}: cannot be read ({error.strerror}); make it readable, or copy it"
        ) from error
    except MALFORMED as error:
        raise FlaxcnnError(
            f"{path}: truncated or damaged ({error!r:.200}); download or copy it again"
        ) from error


def _read(file: IO[bytes], size: int) -> Any:
    head = file.read(512)
    if head.startswith(ZIP):
        return _read_zip(file, size)
    if LEGACY in head[:32]:
        return _read_legacy(file, size)
    if head[257:].startswith(TAR):
        raise FlaxcnnError(
            "in the tar format of torch 0.1; load and save it with today's torch"
        )
    raise FlaxcnnError(NOT_TORCH)


def _read_zip(file: IO[bytes], size: int) -> Any:
    """<root>/data.pkl and the storages <root>/data/<key>."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next(iter(entries), "").partition("/")[0]
        if f"{root}/data.pkl" not in entries:
            raise FlaxcnnError(NOT_TORCH)
        # All that is read below is together no larger than the file.
        if any(
            e.compress_type or e.compress_size != e.file_size for e in entries.values()
        ):
            raise ValueError("compressed entries, which torch does not write")
        if sum(entry.file_size for entry in entries.values()) > size:
            raise ValueError("entries larger than the file")
        order = f"{root}/byteorder"
        if order in entries and archive.read(order) != b"little":
            raise FlaxcnnError("not little-endian; load and save it with torch here")

        def read(key: str, dtype: np.dtype, length: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{root}/data/{key}"), dtype, length)

        return _unpickle(archive.read(f"{root}/data.pkl"), _Storages(read, size))


def _read_legacy(file: IO[bytes], size: int) -> Any:
    """Five pickles: magic number, version, system, object, keys; then the storages."""
    # A file would ask for as much memory as a damaged length says; a map does not.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        storages = _Storages(lambda _, dtype, length: np.empty(length, dtype), size)
        *_, result, keys = (_unpickle(stream, storages) for _ in range(5))
        if sorted(keys) != sorted(storages.arrays):
            raise ValueError("other storages than its tensors have")
        for key in keys:
            array = storages.arrays[key]
            if stream.read(8) != len(array).to_bytes(8, "little"):
                raise ValueError("a storage of another length")
            data = stream.read(array.nbytes)
            array[:] = np.frombuffer(data, array.dtype, len(array))
        return result


@dataclass
class _Storages:
    """The storages by key: each is made once, when the pickle first names it."""

    make: Callable[[str, np.dtype, int], np.ndarray]
    room: int  # bytes that all of them can have
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def find(self, persistent_id: Any) -> np.ndarray:
        match persistent_id:
            case "storage", np.dtype() as dtype, str(key), str(), int(length), *views:
                if any(views):  # None since torch 0.4
                    raise FlaxcnnError("of torch 0.3; load and save it with today's")
            case _:
                raise ValueError("not the name of a storage")
        if key not in self.arrays:
            self.room -= length * dtype.itemsize
            if length < 0 or self.room < 0:
                raise ValueError("storages larger than the file")
            self.arrays[key] = self.make(key, dtype, length)
        array = self.arrays[key]
        if (array.dtype, len(array)) != (dtype, length):
            raise ValueError("a storage of two types or lengths")
        return array


def _unpickle(stream: Any, storages: _Storages) -> Any:
    """Runs the stack machine; each mark opens a stack of its own."""
    stacks: list[list[Any]] = [[]]
    memo: dict[Any, Any] = {}
    for opcode, arg, position in pickletools.genops(stream):
        if position and position > PICKLE_BYTES:
            raise ValueError(f"a pickle of more than {PICKLE_BYTES} bytes")
        inputs = _pop(stacks, opcode.stack_before)
        match opcode.name, inputs:
            case "PROTO" | "FRAME" | "STOP", _:
                continue
            case "MARK", _:
                stacks.append([])
                continue
            case "BINPUT" | "LONG_BINPUT", _:
                memo[arg] = stacks[-1][-1]
                continue
            case "MEMOIZE", [value]:
                memo[len(memo)] = value
            case "BINGET" | "LONG_BINGET", _:
                value = memo[arg]
            case "BINPERSID", [persistent_id]:
                value = storages.find(persistent_id)
            case _:
                value = _value(opcode.name, arg, inputs)
        stacks[-1].append(value)
    return inputs[0]  # of STOP, which genops ends with


def _pop(stacks: list[list[Any]], before: list[Any]) -> list[Any]:
    """The inputs of an opcode: one for each of `before`, then all above the mark."""
    marked = stacks.pop() if pickletools.stackslice in before else []
    stack, count = stacks[-1], len(before) - 2 * (pickletools.stackslice in before)
    if count > len(stack):
        raise IndexError("an empty stack")
    start = len(stack) - count
    inputs = stack[start:] + marked
    del stack[start:]
    return inputs


def _value(opcode: str, arg: Any, inputs: list[Any]) -> Any:
    """What an opcode pushes."""
    match opcode, inputs:
        case "NONE", _:
            return None
        case "NEWTRUE" | "NEWFALSE", _:
            return opcode == "NEWTRUE"
        case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT", _:
            return arg
        case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8", _:
            return arg
        case "BINSTRING" | "SHORT_BINSTRING", _:  # of Python 2
            return arg
        case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3", _:
            return tuple(inputs)
        case "EMPTY_LIST", _:
            return []
        case "APPEND" | "APPENDS", [list() as target, *items]:
            target.extend(items)
            return target
        case "EMPTY_DICT", _:
            return {}
        case "SETITEM" | "SETITEMS", [dict() as target, *items]:
            return _update(target, items)
        case "GLOBAL", _:
            return _global(arg.replace(" ", "."))
        case "STACK_GLOBAL", [str(module), str(name)]:
            return _global(f"{module}.{name}")
        case "REDUCE", [function, tuple(arguments)] if callable(function):
            return function(*arguments)  # one of GLOBALS: nothing else is callable
        case "BUILD", [target, _]:  # the state of an OrderedDict: a module's _metadata
            return target
    raise ValueError(f"{opcode}, as torch.save does not write it")


def _update(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Sets keys and values, which take turns in `items`."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | None):  # deep tuples crash hash()
            raise TypeError("a key that is no string or number")
        target[key] = value
    return target


def _ordered_dict(pairs: Any = None) -> dict[Any, Any]:
    """An OrderedDict; Python 2 wrote its pairs as a list, others set them later."""
    if not isinstance(pairs, list | None):
        raise TypeError("an OrderedDict of no list")
    items = [item for key, value in pairs or () for item in (key, value)]
    if pairs:
        pairs.clear()  # else a small file could have them copied many times
    return _update({}, items)


def _tensor(storage: Any, offset: int, size: Any, strides: Any, *_: Any) -> np.ndarray:
    """A view of the storage, no larger than it, and not beyond its end.

    In Python's integers: those of numpy's own check overflow.
    """
    for value, kind in (storage, np.ndarray), (size, tuple), (strides, tuple):
        if not isinstance(value, kind):
            raise TypeError(f"a tensor with no {kind.__name__} where torch has one")
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *strides)):
        raise ValueError("an offset, size or stride that is no natural number")
    if len(size) > 64:
        raise ValueError("more dimensions than numpy's 64")
    if 0 in size:
        return np.empty(size, storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, strides, strict=True))
    if last >= len(storage) or math.prod(size) > len(storage):
        raise ValueError("a tensor larger than its storage")
    width = storage.itemsize
    steps = [width * stride for stride in strides]
    return np.ndarray(size, storage.dtype, storage, width * offset, steps)


def _global(name: str) -> Any:
    if name not in GLOBALS:
        raise FlaxcnnError(
            f"it asks to run {name!r:.99}, as a whole pickled model or an attack does: "
            "refused, and nothing in it was run; get a file of the weights alone, or, "
            "if you trust this one, load it and torch.save(model.state_dict(), ...)"
        )
    return GLOBALS[name]


def _content(*content: Any) -> tuple[Any, ...]:
    """Of what checkpoints hold beside the weights: nobody wants the object itself."""
    return content


DTYPES = (
    "bfloat16", "bool", "float16", "float32", "float64", "int16", "int32", "int64",
    "int8", "uint8",
)  # fmt: skip
GLOBALS: dict[str, Any] = {
    "__builtin__.bytearray": _content,
    "__builtin__.set": _content,
    "_codecs.encode": _content,  # bytes
    "collections.Counter": _content,
    "torch.device": _content,
    **{f"torch.{name}": name for name in DTYPES},
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": lambda size: size,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.BoolStorage": np.dtype("?"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.ShortStorage": np.dtype("<i2"),
}
