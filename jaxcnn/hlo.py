"""Reads what XLA made of a program: the collectives, the bytes that move, and the cycles that the compiler expects.

The text of a compiled program has a line for each instruction: `%name = TYPE OPCODE(OPERANDS), ATTRIBUTES`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
"""Kinds of instructions by which devices exchange arrays."""
PHASES = ("augmentation", "forward", "backward", "optimizer")
"""Parts of a training step."""

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS = ("call", "while", "conditional", "async-start")
_CALLEE = re.compile(r"(?:to_apply|body|condition|calls|true_computation|false_computation)=%?([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_NO_TRAFFIC = (*_CALLS, "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
"""Instructions that move nothing: they name arrays, or call others that do."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a compiled program.

    Attributes:
      name: unique in the program.
      computation: name of the function that it belongs to.
      is_top: it is part of the entry function or of one that is called from there, and so of no fusion.
      opcode: what it does.
      bytes: size of its result.
      operands: names of what it reads.
      op_name: where it comes from in the traced program.
      cycles: what the compiler expects it to take; 0 if it does not say.
    """

    name: str
    computation: str
    is_top: bool
    opcode: str
    bytes: int
    operands: tuple[str, ...]
    op_name: str
    cycles: int

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
    # From the entry function on, calls and loops lead to other functions that are no fusions.
    callees: dict[str, set[str]] = {}
    for instruction, called in found:
        callees.setdefault(instruction.computation, set()).update(called)
    top, new = set[str](), {entry[1]} if entry else set()
    while new:
        top |= new
        new = set().union(*(callees.get(name, set()) for name in new)) - top
    return [dataclasses.replace(instruction, is_top=instruction.computation in top) for instruction, _ in found]


def _instructions(text: str) -> Iterator[tuple[Instruction, list[str]]]:
    """Yields each instruction with the functions that it calls as they are, not fused."""
    computation = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            computation = start[1]
        elif found := _INSTRUCTION.match(line):
            name, kind, opcode, rest = found.groups()
            op_name, cycles = _OP_NAME.search(rest), _CYCLES.search(rest)
            yield (
                Instruction(
                    name=name,
                    computation=computation,
                    is_top=False,
                    opcode=opcode,
                    bytes=_bytes(kind),
                    operands=tuple(_OPERAND.findall(rest.partition(")")[0])),
                    op_name=op_name[1] if op_name else "",
                    cycles=int(cycles[1]) if cycles else 0,
                ),
                _CALLEE.findall(rest) if opcode in _CALLS else [],
            )


def _bytes(kind: str) -> int:
    """Returns the size of arrays by the text of their types, such as `(f32[4,128]{1,0}, u8[])`."""
    return sum(
        _width(name) * math.prod(map(int, filter(None, sizes.split(",")))) for name, sizes in _ARRAY.findall(kind)
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
        found[kind] = Traffic(earlier.count + 1, earlier.bytes + size)
    return found


def count_bytes(instructions: Sequence[Instruction]) -> dict[str, int]:
    """Returns the bytes that instructions read and write, by phase.

    What stays inside of a fusion does not count. The body of a loop counts once.
    """
    sizes = {instruction.name: instruction.bytes for instruction in instructions}
    totals = dict.fromkeys(PHASES, 0)
    for instruction in instructions:
        if instruction.is_top and instruction.opcode not in _NO_TRAFFIC and not instruction.opcode.endswith("-done"):
            # The result of a start has its operands in it.
            is_start = instruction.opcode.endswith("-start")
            read = 0 if is_start else sum(sizes.get(name, 0) for name in instruction.operands)
            totals[instruction.phase] += instruction.bytes + read
    return totals


def count_cycles(instructions: Sequence[Instruction]) -> dict[str, int]:
    """Returns the cycles that the compiler expects, by phase; all 0 if it makes no estimate."""
    totals = dict.fromkeys(PHASES, 0)
    for instruction in instructions:
        totals[instruction.phase] += instruction.cycles
    return totals
