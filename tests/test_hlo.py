"""What is read from the text of a compiled program."""

import pytest

from jaxcnn.hlo import Traffic, count_bytes, count_collectives, count_cycles, read_instructions

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %y = f32[]{:T(128)} parameter(1)
  %x = f32[]{:T(128)} parameter(0)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter.1 (input: f32[64,8]) -> f32[16,8] {
  %input = f32[64,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.3 = f32[64,8]{1,0:T(8,128)} all-reduce(%input), channel_id=3, to_apply=%add
  ROOT %slice = f32[16,8]{1,0} dynamic-slice(%all-reduce.3), dynamic_slice_sizes={16,8}
}

%commands (p: f32[16,8]) -> f32[16,8] {
  %p = f32[16,8]{1,0} parameter(0)
  ROOT %copy = f32[16,8]{1,0} copy(%p)
}

ENTRY %main.0_spmd (param: bf16[4,128], param.1: f32[64,8]) -> f32[16,8] {
  %param = bf16[4,128]{1,0:T(4,128)(2,1)} parameter(0), metadata={op_name="images"}
  %param.1 = f32[64,8]{1,0:T(8,128)} parameter(1)
  %crop = (f32[4,128]{1,0:T(4,128)}, /*index=1*/pred[3]{0}) fusion(%param), kind=kLoop, calls=%x\
, metadata={op_name="jit(step)/augment/dot_general"}, backend_config={"estimated_cycles":"30"}
  %get = f32[4,128]{1,0} get-tuple-element(%crop), index=0
  %conv = f32[4,128]{1,0} fusion(%get), kind=kOutput, calls=%y\
, metadata={op_name="jit(step)/jvp(ResNet)/conv"}, backend_config={"estimated_cycles":"100"}
  %mean = (f32[8]{0}, f32[]) all-reduce(%a, %b), to_apply=%add, metadata={op_name="jit(step)/jvp(ResNet)/norm"}
  %back = f32[64,8]{1,0} fusion(%conv, %param.1), kind=kOutput, calls=%z\
, metadata={op_name="jit(step)/transpose(jvp(ResNet))/conv"}, backend_config={"estimated_cycles":"200"}
  %gather-start = (f32[16,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%back), dimensions={0}
  %gather-done = f32[64,8]{1,0} all-gather-done(%gather-start)
  %done = f32[16,8]{1,0} call(%gather-start), to_apply=%commands
  ROOT %update = f32[16,8]{1,0} fusion(%gather-done), kind=kCustom, calls=%all-reduce-scatter.1\
, metadata={op_name="jit(step)/sub"}, backend_config={"estimated_cycles":"7"}
}
"""


FAST_MEMORY = """\
ENTRY %main (param: f32[64,8]) -> f32[64,8] {
  %param = f32[64,8]{1,0:T(8,128)} parameter(0)
  %slice-start = ((f32[64,8]{1,0:T(8,128)}), f32[16,8]{1,0:T(8,128)S(1)}, s32[]{:T(128)S(2)}) slice-start(%param)
  %slice-done = f32[16,8]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %two = (f32[16,8]{1,0:T(8,128)S(1)}, f32[64,8]{1,0:T(8,128)}) fusion(%slice-done), kind=kLoop, calls=%x
  %fast = f32[16,8]{1,0:T(8,128)S(1)} get-tuple-element(%two), index=0
  ROOT %slow = f32[64,8]{1,0:T(8,128)S(1)} fusion(%fast), kind=kLoop, calls=%y
}
"""

LOOP = """\
%fused (x: f32[16,8]) -> f32[16,8] {
  %x = f32[16,8]{1,0:T(8,128)} parameter(0)
  ROOT %negate = f32[16,8]{1,0:T(8,128)} negate(%x)
}

%body (state: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %state = (s32[], f32[16,8]) parameter(0)
  %part = f32[16,8]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %work = f32[16,8]{1,0:T(8,128)} fusion(%part), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"30"}
  %sum = f32[16,8]{1,0:T(8,128)} all-reduce(%work), to_apply=%add
  ROOT %next = (s32[], f32[16,8]) tuple(%index, %sum)
}

%condition (state: (s32[], f32[16,8])) -> pred[] {
  %state.1 = (s32[], f32[16,8]) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(4)
  ROOT %less = pred[]{:T(512)} fusion(%count, %limit), kind=kLoop, calls=%compare
}

ENTRY %main (start: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %start = (s32[], f32[16,8]) parameter(0)
  ROOT %loop = (s32[], f32[16,8]) while(%start), condition=%condition, body=%bodyATTRIBUTES
}
"""


@pytest.fixture(scope="module")
def instructions():
    return read_instructions(PROGRAM)


def test_every_instruction_is_read(instructions):
    assert [line.name for line in instructions if line.is_top] == (
        "p copy param param.1 crop get conv mean back gather-start gather-done done update".split()
    )
    assert {line.computation for line in instructions} == {"add", "all-reduce-scatter.1", "commands", "main.0_spmd"}
    crop = next(line for line in instructions if line.name == "crop")
    assert (crop.opcode, crop.bytes, crop.operands, crop.cycles) == ("fusion", 4 * 128 * 4 + 3, ("param",), 30)


def test_collectives_are_counted_once_by_kind(instructions):
    assert count_collectives(instructions) == {
        "all-reduce": Traffic(1, 36),
        "all-gather": Traffic(1, 64 * 8 * 4),
        "reduce-scatter": Traffic(1, 64 * 8 * 4),
    }


def test_cycles_and_bytes_belong_to_phases(instructions):
    assert count_cycles(instructions) == {"augmentation": 30, "forward": 100, "backward": 200, "optimizer": 7}
    moved = count_bytes(instructions)
    assert moved["augmentation"] == (4 * 128 * 4 + 3) + 4 * 128 * 2
    assert moved["optimizer"] == (512 + 2048) + (512 + 512) + (512 + 2048)
    assert moved["backward"] == 64 * 8 * 4 + 4 * 128 * 4 + 64 * 8 * 4


def test_what_stays_in_the_memory_of_a_chip_does_not_count():
    instructions = read_instructions(FAST_MEMORY)
    # A slice of a large array is fetched, and one of two results is written.
    assert count_bytes(instructions)["optimizer"] == 16 * 8 * 4 + 64 * 8 * 4
    # A GPU numbers memories too, and has no tiles.
    everywhere = read_instructions(FAST_MEMORY.replace(":T(8,128)S(1)", ":S(1)"))
    assert count_bytes(everywhere)["optimizer"] == 2 * 512 + (512 + 2048 + 512) + (512 + 2048)


@pytest.mark.parametrize(
    "attributes", ["", ', backend_config={"known_trip_count":{"n":"4"},"known_init_step":{"init":"0","step":"1"}}']
)
def test_what_a_loop_does_counts_as_often_as_it_runs(attributes):
    text = LOOP.replace("ATTRIBUTES", attributes)
    instructions = read_instructions(text if not attributes else text.replace("constant(4)", "parameter(1)"))
    assert count_cycles(instructions)["optimizer"] == 4 * 30
    # The body's fusion and collective, and the two numbers that the condition compares.
    assert count_bytes(instructions)["optimizer"] == 4 * (2 * 512 + 2 * 512 + (4 + 4 + 1))
    assert count_collectives(instructions) == {"all-reduce": Traffic(4, 4 * 512)}


def test_a_program_without_cycles_has_none():
    assert not any(count_cycles(read_instructions(PROGRAM.replace("estimated_cycles", "other"))).values())
