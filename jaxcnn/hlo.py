"""Reads what XLA made of a program: the collectives, the bytes that move, and the cycles that the compiler expects.

The text of a compiled program has a line for each instruction: `%name = TYPE OPCODE(OPERANDS), ATTRIBUTES`.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
"""Kinds of instructions by which devices exchange arrays."""
PHASES = ("augmentation", "forward", "backward", "optimizer")
"""Parts of a training step."""

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS = ("call", "while", "conditional", "async-start")
_CALLEE = re.compile(r"(?:to_apply|body|condition|calls|true_computation|false_computation)=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"(\d+)\)")
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"T\(.*S\(\d+\)")
"""The layout of an array in a TPU's chip: its tiles, then the number of the memory, such as `T(8,128)S(1)`."""
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_NO_TRAFFIC = (*_CALLS, "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
"""Instructions that move nothing: they name arrays, or call others that do."""


class Buffer(NamedTuple):
    """An array of a program.

    Attributes:
      bytes: size.
      on_chip: it is in a memory of the chip, such as a TPU's vector memory, and not in the device's main memory.
    """

    bytes: int
    on_chip: bool


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a compiled program.

    Attributes:
      name: unique in the program.
      computation: name of the function that it belongs to.
      is_top: it is part of the entry function or of one that is called from there, and so of no fusion.
      opcode: what it does.
      repeats: how often a step runs it.
      arrays: the arrays of its result.
      operands: names of what it reads.
      op_name: where it comes from in the traced program.
      cycles: what the compiler expects it to take; 0 if it does not say.
    """

    name: str
    computation: str
    is_top: bool
    opcode: str
    repeats: int
    arrays: tuple[Buffer, ...]
    operands: tuple[str, ...]
    op_name: str
    cycles: int

    @property
    def bytes(self) -> int:
        """Size of its result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def memory_bytes(self) -> int:
        """Size of what its result has in main memory."""
        return sum(array.bytes for array in self.arrays if not array.on_chip)

    @property
    def phase(self) -> str:
        """The part of a training step that it belongs to."""
        if "/augment/" in self.op_name:
            return "augmentation"
        if "transpose(jvp" in self.op_name:
            return "backward"
        return "forward" if "jvp(" in self.op_name else "optimizer"


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind.

    Attributes:
      count: how many there are.
      bytes: size of the arrays that they join, for each device.
    """

    count: int
    bytes: int


def read_instructions(text: str) -> list[Instruction]:
    """Reads all instructions of a compiled program."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    found = list(_instructions(text))
    # Callers stand after what they call. From the entry function on, calls and loops lead to functions that are no
    # fusions.
    top, repeats = {entry[1] if entry else ""}, collections.Counter({entry[1] if entry else "": 1})
    for instruction, attributes in reversed(found):
        trips = _count_trips(attributes, found) if instruction.opcode == "while" else 1
        for name in _CALLEE.findall(attributes):
            repeats[name] += trips * repeats[instruction.computation]
            if instruction.opcode in _CALLS and instruction.computation in top:
                top.add(name)
    # Functions that some other kind of instruction calls are taken to run once.
    return [
        dataclasses.replace(
            instruction,
            is_top=instruction.computation in top,
            repeats=max(repeats[instruction.computation], 1),
        )
        for instruction, _ in found
    ]


def _count_trips(attributes: str, found: Sequence[tuple[Instruction, str]]) -> int:
    """Returns how often the body of a loop runs: what the compiler says, or else what its condition compares with."""
    if known := _TRIPS.search(attributes):
        return int(known[1])
    condition = _CONDITION.search(attributes)
    limits = [
        int(constant[1])
        for instruction, rest in found
        if condition and instruction.computation == condition[1] and instruction.opcode == "constant"
        if (constant := _CONSTANT.match(rest))
    ]
    return limits[0] if len(limits) == 1 else 1


def _instructions(text: str) -> Iterator[tuple[Instruction, str]]:
    """Yields each instruction, and the text of its operands and attributes."""
    computation = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            computation = start[1]
        elif found := _INSTRUCTION.match(line):
            name, kind, opcode, rest = found.groups()
            op_name, cycles = _OP_NAME.search(rest), _CYCLES.search(rest)
            instruction = Instruction(
                name=name,
                computation=computation,
                is_top=False,
                opcode=opcode,
                repeats=1,
                arrays=_read_arrays(kind),
                operands=tuple(_OPERAND.findall(rest.partition(")")[0])),
                op_name=op_name[1] if op_name else "",
                cycles=int(cycles[1]) if cycles else 0,
            )
            yield instruction, rest


def _read_arrays(kind: str) -> tuple[Buffer, ...]:
    """Reads arrays from the text of their types, such as `(f32[4,128]{1,0:T(8,128)S(1)}, u8[])`."""
    return tuple(
        Buffer(
            bytes=_width(name) * math.prod(map(int, filter(None, sizes.split(",")))),
            on_chip=_ON_CHIP.search(layout) is not None,
        )
        for name, sizes, layout in _ARRAY.findall(kind)
    )


def _width(name: str) -> int:
    """Returns the bytes of an element; types of less than a byte count as one."""
    digits = re.search(r"\d+", name)
    return max(int(digits[0]) // 8, 1) if digits else 1


def count_collectives(instructions: Sequence[Instruction]) -> dict[str, Traffic]:
    """Counts collectives by kind; one that runs beside others has two instructions, and counts once."""
    sizes = {instruction.name: instruction.bytes for instruction in instructions}
    found = dict[str, Traffic]()
    for instruction in instructions:
        kind = instruction.opcode.removesuffix("-done")
        if kind not in COLLECTIVES:
            continue
        size = instruction.bytes
        # The array before it is scattered.
        if kind == instruction.opcode:
            size = max(size, sum(sizes.get(name, 0) for name in instruction.operands))
        # TPUs have no instruction for it, but a fusion.
        if instruction.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        earlier = found.get(kind, Traffic(0, 0))
        repeats = instruction.repeats
        found[kind] = Traffic(earlier.count + repeats, earlier.bytes + repeats * size)
    return found


def count_bytes(instructions: Sequence[Instruction]) -> dict[str, int]:
    """Returns the bytes that instructions read from the device's main memory and write to it, by phase.

    What stays inside of a fusion, or in a memory of the chip, does not count.
    """
    by_name = {instruction.name: instruction for instruction in instructions}
    totals = dict.fromkeys(PHASES, 0)
    for instruction in instructions:
        if not instruction.is_top or instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-start"):
            continue
        operands = [by_name[name] for name in instruction.operands if name in by_name]
        if instruction.opcode.endswith("-done"):
            moved = sum(_count_started_bytes(start, instruction.bytes) for start in operands)
        else:
            moved = instruction.memory_bytes + sum(operand.memory_bytes for operand in operands)
        totals[instruction.phase] += instruction.repeats * moved
    return totals


def _count_started_bytes(start: Instruction, size: int) -> int:
    """Returns the bytes that an instruction moves that runs beside others, by the size of its result.

    Its start has its operands and its result in it. It may read only a slice of an operand.
    """
    if start.opcode == "async-start":
        return 0
    return sum(min(array.bytes, size) for array in start.arrays if not array.on_chip)


def count_cycles(instructions: Sequence[Instruction]) -> dict[str, int]:
    """Returns the cycles that the compiler expects, by phase; all 0 if it makes no estimate."""
    totals = dict.fromkeys(PHASES, 0)
    for instruction in instructions:
        totals[instruction.phase] += instruction.repeats * instruction.cycles
    return totals
