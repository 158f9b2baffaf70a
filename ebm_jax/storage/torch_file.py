"""Reads tensors from a file that PyTorch saved, without unpickling: it checks the file's program and never runs it.

A pickle is a program for a stack machine, and may call anything. This reader knows the instructions that a state dict
of tensors needs, and the plain numbers of an optimiser's state beside it, and refuses all others. It knows four
callables by name, and does their work itself.
"""

import functools
import io
import math
import pickletools
import reprlib
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebm_jax.storage import sizes
from ebm_jax.types import BadInput

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
STORAGES = {  # a tensor's elements may be of these types
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
    "BoolStorage": np.dtype("?"),
}


class Malformed(Exception):
    """The file is no saved state dict of tensors."""


class Name(NamedTuple):
    """A callable or a type that the file names; the reader compares it and never looks it up."""

    module: str
    name: str


class Storage(NamedTuple):
    """Numbers that lie elsewhere in the file."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


MARK = Name("", "mark")
ORDERED_DICT = Name("collections", "OrderedDict")
REBUILD_TENSORS = (Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor"))
REBUILD_PARAMETER = Name("torch._utils", "_rebuild_parameter")
KNOWN = {ORDERED_DICT, *REBUILD_TENSORS, REBUILD_PARAMETER, *(Name("torch", name) for name in STORAGES)}


def read_tensors(path: Path, part: str = "") -> dict[str, np.ndarray]:
    """The arrays, by name, of a state dict that `torch.save` wrote, in its format since 1.6 or the format before.

    Args:
      part: the name of the state dict in a dict of several things, as checkpoints are; empty: the file is the dict.

    Raises:
      BadInput: the file cannot be read, is damaged, cut short or too large, or holds anything but a dict from names to
        tensors.
    """
    try:
        sizes.require_file(path)
        if zipfile.is_zipfile(path):
            return _read_archive(path, part)
        with path.open("rb") as file:
            return _read_legacy(file, part)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}); give a file of weights") from error
    except Exception as error:  # pickletools, zipfile and struct each raise their own of damaged files
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{path} is no file of tensors that PyTorch saved ({type(error).__name__}: {reason}); nothing of it was "
            "run; copy the file anew"
        ) from error


def _read_archive(path: Path, part: str) -> dict[str, np.ndarray]:
    """The format since PyTorch 1.6: an uncompressed zip of NAME/data.pkl and a file NAME/data/KEY for each storage."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise Malformed("its entries are compressed, which PyTorch's are not")
        (program,) = (name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl"))
        folder = program.removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
            raise Malformed("its numbers are not little-endian")

        @functools.cache  # many tensors may be views of one storage
        def content(storage: Storage) -> bytes:
            return archive.read(f"{folder}data/{storage.key}")

        return _arrays(_part(_result(io.BytesIO(archive.read(program))), part), content)


def _read_legacy(file: io.BufferedIOBase, part: str) -> dict[str, np.ndarray]:
    """The format before: pickles of a magic number, version, system, dict and the storages' keys; then the storages.

    Each storage is its number of elements, in eight bytes, and then the elements.
    """
    if _result(file) != LEGACY_MAGIC or _result(file) != LEGACY_PROTOCOL:
        raise Malformed("it does not begin as PyTorch's files do")
    system = _result(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True or sys.byteorder != "little":
        raise Malformed("its numbers are not little-endian")
    state, keys = _result(file), _result(file)
    wanted = {tensor.storage.key: tensor.storage for tensor in (_within(state) if part else _tensors(state).values())}
    if not isinstance(keys, list) or any(key not in wanted for key in keys):
        raise Malformed("it has storages that no tensor uses")
    contents = {}
    for key in keys:
        size = int.from_bytes(_exactly(file, 8), "little")
        if size * wanted[key].dtype.itemsize > sizes.largest():
            raise Malformed("it is cut short")
        if size != wanted[key].size:
            raise Malformed(f"storage {key} has {size} elements, not {wanted[key].size}")
        contents[key] = _exactly(file, size * wanted[key].dtype.itemsize)
    return _arrays(_part(state, part), lambda storage: contents[storage.key])


def _exactly(file: io.BufferedIOBase, size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise Malformed("it is cut short")
    return content


def _part(state: Any, part: str) -> Any:
    """The entry of this name in a dict; the whole where there is no name."""
    if not part:
        return state
    if not isinstance(state, dict) or part not in state:
        raise Malformed(f"it has no part {part}")
    return state[part]


def _within(value: Any) -> Iterator[Tensor]:
    """The tensors in nested dicts."""
    if isinstance(value, Tensor):
        yield value
    for inner in value.values() if isinstance(value, dict) else ():
        yield from _within(inner)


def _tensors(state: Any) -> dict[str, Tensor]:
    """The state dict, if it is one."""
    if not isinstance(state, dict) or not state:
        raise Malformed("it holds no dict of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Malformed(f"{_shown(name)} is not the name of a tensor")
    total = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in state.values())
    if total > (limit := sizes.largest()):
        raise Malformed(sizes.in_words("its tensors take", total, limit))
    return state


def _shown(value: Any) -> str:
    """A value of the file in words; the whole text of nested values may be longer than any memory."""
    return reprlib.repr(value)[:80]


def _arrays(state: Any, content: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    """The tensors of a state dict as arrays that share no memory."""
    return {name: _array(tensor, content(tensor.storage)) for name, tensor in _tensors(state).items()}


def _array(tensor: Tensor, content: bytes) -> np.ndarray:
    storage, shape = tensor.storage, tensor.shape
    if len(content) != storage.size * storage.dtype.itemsize:
        raise Malformed(f"storage {storage.key} has {len(content)} bytes, not {storage.size} elements")
    elements = 1
    for length in shape:
        elements *= length
    last = tensor.offset + sum((length - 1) * stride for length, stride in zip(shape, tensor.strides, strict=True))
    if elements > storage.size or (elements and last >= storage.size):
        raise Malformed(f"a tensor of {shape} reaches beyond the {storage.size} elements of its storage")
    if not elements:
        return np.empty(shape, storage.dtype)
    flat = np.frombuffer(content, storage.dtype)[tensor.offset :]
    strides = tuple(stride * storage.dtype.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat, shape, strides, writeable=False).copy()


def _result(file: io.BufferedIOBase) -> Any:
    """The value that the next program in the file leaves on the stack: plain values, names, storages and tensors."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    instructions: Any = pickletools.genops(file)  # pyright: ignore[reportArgumentType]
    for opcode, argument, _ in instructions:
        name = opcode.name
        if name == "STOP":
            (result,) = stack
            return result
        if name in PUSHED:
            stack.append(PUSHED[name](argument))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in CHANGES:
            CHANGES[name](stack)
        elif name not in ("PROTO", "FRAME"):
            raise Malformed(f"its pickle has the instruction {name}, which tensors do not need")
    raise Malformed("its pickle is cut short")


def _known(argument: str) -> Name:
    name = Name(*argument.split(" ", 1))
    if name not in KNOWN:
        raise Malformed(f"it asks for {name.module}.{name.name}, which tensors do not need")
    return name


def _since_mark(stack: list[Any]) -> list[Any]:
    """Take the topmost mark and all values above it off the stack; returns the values."""
    place = next(index for index in range(len(stack) - 1, -1, -1) if stack[index] is MARK)
    values = stack[place + 1 :]
    del stack[place:]
    return values


def _tuple_of(length: int) -> Callable[[list[Any]], None]:
    def change(stack: list[Any]) -> None:
        values = tuple(stack[len(stack) - length :])
        if len(values) != length:
            raise Malformed("its pickle takes more than there is")
        del stack[len(stack) - length :]
        stack.append(values)

    return change


def _tuple_since_mark(stack: list[Any]) -> None:
    values = tuple(_since_mark(stack))
    stack.append(values)


def _append(stack: list[Any]) -> None:
    value = stack.pop()
    _of_type(stack[-1], list).append(value)


def _appends(stack: list[Any]) -> None:
    values = _since_mark(stack)
    _of_type(stack[-1], list).extend(values)


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _of_type(stack[-1], dict)[_as_key(key)] = value


def _set_items(stack: list[Any]) -> None:
    values = _since_mark(stack)
    target = _of_type(stack[-1], dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_as_key(key)] = value


def _build(stack: list[Any]) -> None:
    """Drop attributes of a state dict, such as its `_metadata`: they say nothing of the tensors."""
    _of_type(stack.pop(), dict)
    _of_type(stack[-1], dict)


def _call(stack: list[Any]) -> None:
    arguments, function = _of_type(stack.pop(), tuple), stack.pop()
    if function == ORDERED_DICT and len(arguments) < 2:
        stack.append({_as_key(key): value for key, value in (arguments or [[]])[0]})  # pairs, from Python 2
    elif function in REBUILD_TENSORS:
        stack.append(_tensor(*arguments[:4]))
    elif function == REBUILD_PARAMETER:
        stack.append(_of_type(arguments[0], Tensor))
    else:
        raise Malformed(f"its pickle calls {_shown(function)}, which tensors do not need")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    numbers = (offset, *_of_type(shape, tuple), *_of_type(strides, tuple))
    if any(type(number) is not int or number < 0 for number in numbers) or len(shape) != len(strides):
        raise Malformed(f"a tensor of the shape {_shown(shape)}")
    return Tensor(_of_type(storage, Storage), offset, shape, strides)


def _storage(stack: list[Any]) -> None:
    """Turn ('storage', type, key, device, size) into a `Storage`; the older format adds a view, which must be None."""
    kind, dtype, key, _, size, *view = _of_type(stack.pop(), tuple)
    if kind != "storage" or view not in ([], [None]) or not isinstance(key, str):
        raise Malformed("its tensors are not stored as tensors are")
    if type(size) is not int or size < 0 or not isinstance(dtype, Name) or dtype.name not in STORAGES:
        raise Malformed(f"a storage of {_shown(size)} elements of {_shown(dtype)}")
    stack.append(Storage(key, STORAGES[dtype.name], size))


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Malformed(f"its pickle has {type(value).__name__} for {kind.__name__}")
    return value


def _as_key(value: Any) -> str | int:
    """A name, or the number of a parameter in an optimiser's state."""
    return value if type(value) is int else _of_type(value, str)


PUSHED: dict[str, Callable[[Any], Any]] = {
    "MARK": lambda _: MARK,
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "GLOBAL": _known,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda value: value),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"), lambda value: value),  # the last: Python 2
}
CHANGES: dict[str, Callable[[list[Any]], None]] = {
    "TUPLE": _tuple_since_mark,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "BUILD": _build,
    "REDUCE": _call,
    "BINPERSID": _storage,
}
