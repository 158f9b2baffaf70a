"""A reader of optimised HLO: how often each instruction runs, and what it computes, moves, sends and copies.

`jax.stages.Compiled.as_text()` gives the text, with the shapes of one device. XLA's own cost analysis counts the body
of a loop once, however long the loop is.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
COLLECTIVES += ("collective-broadcast",)
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"}
CONTROL = {"while", "conditional", "call", "async-start"}
IN_PLACE = {"dynamic-update-slice", "scatter"}
SLICES = {"dynamic-slice", "gather", "slice"}
HBM = 0  # the memory space of a layout that names none


class Array(NamedTuple):
    """An array as it lies in memory."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    """Multiples to which the most minor dimensions are padded, the last one that of the most minor."""
    space: int
    """The memory that holds it: `HBM`, or on a TPU 1 for the vector memory on the chip."""

    @property
    def size(self) -> int:
        """Bytes, padding included."""
        bits = re.search(r"\d+", self.dtype)
        width = int(bits[0]) / 8 if bits else float(self.dtype == "pred")  # token and opaque have no bytes
        order = [self.dims[axis] for axis in self.minor_to_major or reversed(range(len(self.dims)))]
        tile = list(reversed(self.tile))
        order += [1] * (len(tile) - len(order))
        padded = [
            -(-dim // step) * step for dim, step in zip(order, tile + [1] * (len(order) - len(tile)), strict=True)
        ]
        return math.ceil(width * math.prod(padded))


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """The result, or the parts of a tuple."""
    operands: tuple[str, ...]
    inside: str
    """What stands between the parentheses: the operands, a constant's value or a parameter's number."""
    attributes: str
    is_root: bool

    @property
    def label(self) -> str:
        """The name that JAX gave it; a parameter has the path of its argument's leaf, such as "state.step"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else self.name


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """A compiled program for one of its devices."""

    computations: dict[str, Computation]
    entry: str
    aliased: frozenset[int]
    """Numbers of the parameters whose memory an output takes over."""

    @property
    def parameters(self) -> dict[int, Instruction]:
        """The arguments by their numbers."""
        entry = self.computations[self.entry].values()
        return {int(one.inside): one for one in entry if one.opcode == "parameter"}


class Run(NamedTuple):
    """An instruction in its place in a whole run of the program."""

    instruction: Instruction
    computation: Computation
    times: int
    """How often it runs."""
    in_loop: bool
    fused: bool
    """Whether it is a part of a fusion, whose values stay in registers."""


def parse(text: str) -> Program:
    """The program in the text of an optimised HLO module."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    header = text.partition("\n")[0]
    start = header.find("input_output_alias={")
    aliases = header[start : _closing(header, start + len("input_output_alias="))] if start >= 0 else ""
    aliased = frozenset(int(number) for number in re.findall(r"\((\d+), \{", aliases))
    return Program(computations, entry, aliased)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    inside = text[opening + 1 : closing - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    arrays = tuple(_array(*found) for found in re.findall(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?", text[:end]))
    return Instruction(name, text[end:opening].strip(), arrays, operands, inside, text[closing:], is_root)


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "({") - (text[position] in ")}")
        if depth == 0:
            return position + 1
    raise ValueError(f"no closing bracket in {text[start : start + 80]}")


def _array(dtype: str, dims: str, layout: str) -> Array:
    order, _, rest = layout.partition(":")
    tile, space = re.match(r"T\(([\d,]+)\)", rest), re.search(r"S\((\d+)\)", rest)
    return Array(
        dtype, _numbers(dims), _numbers(order), _numbers(tile[1] if tile else ""), int(space[1]) if space else HBM
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs, except the condition of a loop."""
    found = re.findall(
        r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", instruction.attributes
    )
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    return found + (re.findall(r"%?([\w.\-]+)", branches[1]) if branches else [])


def trip_count(program: Program, loop: Instruction) -> int:
    """How often the body of a `while` runs: as XLA says, or else the bound in its condition.

    JAX's loops of a known length count from 0 in steps of 1.

    Raises:
      ValueError: the number depends on values.
    """
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    constants = [
        int(run.instruction.inside)
        for run in _walk(program, condition[1] if condition else "", 1, False, False)
        if run.instruction.opcode == "constant" and run.instruction.arrays[0].dtype in ("s32", "s64", "u32")
    ]
    if len(constants) != 1:
        raise ValueError(f"the length of the loop {loop.name} is not in its condition")
    return constants[0]


def runs(program: Program) -> Iterator[Run]:
    """Every instruction that a run of the program reaches; all branches of a conditional count."""
    return _walk(program, program.entry, 1, False, False)


def _walk(program: Program, name: str, times: int, in_loop: bool, fused: bool) -> Iterator[Run]:
    computation = program.computations[name]
    for instruction in computation.values():
        yield Run(instruction, computation, times, in_loop, fused)
        is_loop = instruction.opcode == "while"
        inner = times * trip_count(program, instruction) if is_loop else times
        inside = fused or instruction.opcode not in CONTROL
        for other in called(instruction):
            yield from _walk(program, other, inner, in_loop or is_loop, inside)


class Collective(NamedTuple):
    """One communication between devices."""

    kind: str
    size: int
    """Bytes of its result on one device."""
    in_loop: bool


def collectives(program: Program) -> list[Collective]:
    """All communications; an asynchronous pair counts once."""
    found = []
    for run in runs(program):
        kind = run.instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            found.append(Collective(kind, sum(array.size for array in run.instruction.arrays), run.in_loop))
    return found


def flops(program: Program) -> float:
    """Floating-point operations of all convolutions and matrix products on one device: multiplications and additions.

    Those on padding, or between the elements of a dilated operand, do not count.
    """
    return float(sum(run.times * _flops(run.instruction, run.computation) for run in runs(program)))


def _flops(instruction: Instruction, computation: Computation) -> int:
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left, right = (computation[name].arrays[0].dims for name in instruction.operands[:2])
    result = instruction.arrays[0].dims
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        return 2 * math.prod(result) * math.prod(left[axis] for axis in _numbers(contracted[1] if contracted else ""))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"the convolution {instruction.name} does not say what its dimensions are")
    window = dict(
        re.findall(r"(\w+)=([\d_x\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or [""])[0])
    )
    products = 2 * result[labels[3].index("b")] * result[labels[3].index("f")] * right[labels[2].index("i")]
    for place, axis in enumerate(sorted(set(labels[3]) - {"b", "f"})):
        sizes = left[labels[1].index(axis)], result[labels[3].index(axis)], right[labels[2].index(axis)]
        products *= taps(
            *sizes, *(_window(window, place, name) for name in ("stride", "lhs_dilate", "rhs_dilate", "pad"))
        )
    return products


def _window(window: dict[str, str], place: int, name: str) -> int:
    """An entry of a convolution's window in one spatial dimension; for padding, the lower one."""
    if name not in window:
        return 0 if name == "pad" else 1
    return int(window[name].split("x")[place].split("_")[0])


def taps(size: int, out: int, kernel: int, stride: int, dilation: int, kernel_dilation: int, low: int) -> int:
    """How many pairs of an output and a kernel element meet an input element, in one dimension."""
    extent = (size - 1) * dilation + 1
    places = [position * stride + tap * kernel_dilation - low for position in range(out) for tap in range(kernel)]
    return sum(0 <= place < extent and place % dilation == 0 for place in places)


def traffic(program: Program, in_loops: bool = False) -> float:
    """Bytes that one device reads from and writes to its HBM. Arrays in another memory, by their layouts, move none.

    A slice, a gather or an update in place counts its part alone. A fusion reads each operand once.

    Args:
      in_loops: count only what runs in loops.
    """
    counted = (run for run in runs(program) if not run.fused and (run.in_loop or not in_loops))
    return float(sum(run.times * _moved(program, run) for run in counted))


def _moved(program: Program, run: Run) -> int:
    instruction, computation = run.instruction, run.computation
    if instruction.opcode in FREE | CONTROL or instruction.opcode.endswith("-done"):
        return 0
    operands = enumerate(computation[name].arrays for name in instruction.operands)
    read = sum(_read(program, instruction, place, arrays) for place, arrays in operands)
    return read + _written(program, instruction, computation)


def _in_hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.size for array in arrays if array.space == HBM)


def _read(program: Program, instruction: Instruction, place: int, arrays: tuple[Array, ...]) -> int:
    """Bytes read of the operand at a place."""
    total, users = _in_hbm(arrays), list(_users(program, instruction, place))
    if instruction.opcode == "slice-start":  # its results are operand, slice and context
        return min(total, instruction.arrays[1].size)
    if total == 0 or any(at > 0 or user.opcode not in SLICES | IN_PLACE for user, at in users):
        return total
    return min(total, sum(sum(array.size for array in user.arrays) for user, _ in users if user.opcode in SLICES))


def _users(program: Program, instruction: Instruction, place: int) -> Iterator[tuple[Instruction, int]]:
    """The users of the operand at a place, and its place among theirs, through fusions and bitcasts."""
    if instruction.opcode != "fusion":
        yield instruction, place
        return
    body = program.computations[called(instruction)[0]]
    names = {one.name for one in body.values() if one.opcode == "parameter" and int(one.inside) == place}
    for user in body.values():
        if names & set(user.operands):
            if user.opcode == "bitcast":
                names.add(user.name)
            else:
                at = next(index for index, name in enumerate(user.operands) if name in names)
                yield from _users(program, user, at)


def _written(program: Program, instruction: Instruction, computation: Computation) -> int:
    if instruction.opcode == "slice-start":
        return _in_hbm(instruction.arrays[1:2])
    results = instruction.arrays[:1] if instruction.opcode.endswith("-start") else instruction.arrays
    makers = _makers(program, instruction, computation)
    return sum(_new(array, *maker) for array, maker in zip(results, makers, strict=False) if array.space == HBM)


def _new(result: Array, maker: Instruction, scope: Computation) -> int:
    """Bytes of a result that were not there before."""
    if maker.opcode not in IN_PLACE:
        return result.size
    update = scope[maker.operands[1 if maker.opcode == "dynamic-update-slice" else -1]]
    return min(result.size, sum(array.size for array in update.arrays))


def _makers(program: Program, instruction: Instruction, scope: Computation) -> list[tuple[Instruction, Computation]]:
    """The instruction that makes each array of the result, and its computation, through fusions and bitcasts."""
    if instruction.opcode == "fusion":
        scope = program.computations[called(instruction)[0]]
        root = next(one for one in scope.values() if one.is_root)
        parts = root.operands if root.opcode == "tuple" else [root.name]
        return [_makers(program, scope[part], scope)[0] for part in parts]
    if instruction.opcode == "bitcast":
        return _makers(program, scope[instruction.operands[0]], scope)
    return [(instruction, scope)] * len(instruction.arrays)


def whole_copies(program: Program, rows: int, elements: int) -> Counter[str]:
    """Instructions that write a whole array of `elements` anew, with `rows` among its dimensions, by their opcodes.

    Updates of rows in place do not count, nor moves to another memory in the same layout.
    """
    found: Counter[str] = Counter()
    for run in runs(program):
        instruction, opcode = run.instruction, run.instruction.opcode
        if run.fused or opcode in FREE | CONTROL or opcode in COLLECTIVES or opcode.endswith("-done"):
            continue
        makers = _makers(program, instruction, run.computation)
        for result, (maker, _) in list(zip(instruction.arrays, makers, strict=False))[
            : 1 if opcode.endswith("-start") else None
        ]:
            whole = rows in result.dims and math.prod(result.dims) == elements
            moved = opcode.startswith("copy") and _only_moves(run.computation, instruction, result)
            if whole and not moved and maker.opcode not in IN_PLACE | FREE:
                found[opcode.removesuffix("-start")] += run.times
    return found


def _only_moves(computation: Computation, copy: Instruction, result: Array) -> bool:
    (source,) = computation[copy.operands[0]].arrays
    return source.minor_to_major == result.minor_to_major and source.space != result.space
