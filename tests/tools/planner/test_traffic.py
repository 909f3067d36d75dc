"""Tests of counting memory traffic in nested fusions, against counts by hand."""

import pytest

from tools.planner import hlo
from tools.planner.work import count_work

LAYERS, ROWS, COLUMNS = 8, 16, 32
LAYER = ROWS * COLUMNS  # bytes in int8

# A product with one layer of a stack of int8 matrices. The stack goes through nested fusions: the first is STEPS, the
# second slices.
NESTED = """\
HloModule m, is_scheduled=true

%first (stack: s8[8,16,32]) -> TYPE[8,16,32] {
  %stack = s8[8,16,32]{2,1,0} parameter(0)
STEPS
}

%second (all: TYPE[8,16,32], index: s32[]) -> TYPE[16,32] {
  %all = TYPE[8,16,32]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = TYPE[1,16,32]{2,1,0} dynamic-slice(%all, %index, %zero, %zero), dynamic_slice_sizes={1,16,32}
  ROOT %matrix = TYPE[16,32]{1,0} bitcast(%layer)
}

%product (x: bf16[4,16], weights: s8[8,16,32], number: s32[]) -> bf16[4,32] {
  %x = bf16[4,16]{1,0} parameter(0)
  %weights = s8[8,16,32]{2,1,0} parameter(1)
  %number = s32[] parameter(2)
  %prepared = TYPE[8,16,32]{2,1,0} fusion(%weights), kind=kLoop, calls=%first
  %bits = TYPE[8,16,32]{2,1,0} bitcast(%prepared)
  %one = TYPE[16,32]{1,0} fusion(%bits, %number), kind=kLoop, calls=%second
  ROOT %dot = bf16[4,32]{1,0} dot(%x, %one), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[4,16], w: s8[8,16,32], i: s32[]) -> bf16[4,32] {
  %a = bf16[4,16]{1,0} parameter(0)
  %w = s8[8,16,32]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %result = bf16[4,32]{1,0} fusion(%a, %w, %i), kind=kOutput, calls=%product
}
"""


def traffic(text: str) -> float:
    return count_work(hlo.parse(text)).traffic


def nested(dtype: str, *steps: str) -> str:
    lines = [f"  {'ROOT ' * (step is steps[-1])}{step}" for step in steps]
    return NESTED.replace("TYPE", dtype).replace("STEPS", "\n".join(lines))


@pytest.mark.parametrize(
    "dtype, steps",
    [
        ("s8", ["%copied = s8[8,16,32]{2,1,0} copy(%stack)"]),
        ("s8", ["%same = s8[8,16,32]{2,1,0} bitcast(%stack)"]),
        ("bf16", ["%converted = bf16[8,16,32]{2,1,0} convert(%stack)"]),
        (
            "f32",
            [
                "%copied = s8[8,16,32]{2,1,0} copy(%stack)",
                "%converted = f32[8,16,32]{2,1,0} convert(%copied)",
                "%two = f32[] constant(2)",
                "%twos = f32[8,16,32]{2,1,0} broadcast(%two), dimensions={}",
                "%scaled = f32[8,16,32]{2,1,0} multiply(%converted, %twos)",
            ],
        ),
    ],
)
def test_a_nested_fusion_reads_one_layer_in_its_stored_type(dtype, steps):
    assert traffic(nested(dtype, *steps)) == 2 * 4 * 16 + LAYER + 4 + 2 * 4 * 32


def test_a_nested_fusion_that_needs_all_elements_reads_all():
    reversed_layers = "%sorted = s8[8,16,32]{2,1,0} sort(%stack), dimensions={0}, to_apply=%compare"
    assert traffic(nested("s8", reversed_layers)) == 2 * 4 * 16 + LAYERS * LAYER + 4 + 2 * 4 * 32


def test_a_matrix_behind_a_nested_bitcast_is_read():
    """libtpu writes the product with the output embeddings in this way."""
    text = """\
HloModule m

%same (p: bf16[32,16]) -> bf16[32,16] {
  %p = bf16[32,16]{1,0} parameter(0)
  ROOT %b = bf16[32,16]{1,0} bitcast(%p)
}

%outer (x: bf16[4,16], w: bf16[32,16]) -> f32[4,32] {
  %x = bf16[4,16]{1,0:S(1)} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %f = bf16[32,16]{1,0} fusion(%w), kind=kLoop, calls=%same
  ROOT %c = f32[4,32]{1,0:S(1)} convolution(%x, %f), dim_labels=bf_oi->bf
}

ENTRY %main (a: bf16[4,16], v: bf16[32,16]) -> f32[4,32] {
  %a = bf16[4,16]{1,0:S(1)} parameter(0)
  %v = bf16[32,16]{1,0} parameter(1)
  ROOT %r = f32[4,32]{1,0:S(1)} fusion(%a, %v), kind=kOutput, calls=%outer
}
"""
    assert traffic(text) == 2 * 32 * 16


def test_a_converted_stack_that_is_returned_is_read_and_written():
    text = """\
HloModule m

%inner (p: s8[8,16]) -> bf16[8,16] {
  %p = s8[8,16]{1,0} parameter(0)
  ROOT %c = bf16[8,16]{1,0} convert(%p)
}

%outer (q: s8[8,16]) -> bf16[8,16] {
  %q = s8[8,16]{1,0} parameter(0)
  ROOT %f = bf16[8,16]{1,0} fusion(%q), kind=kLoop, calls=%inner
}

ENTRY %main (x: s8[8,16]) -> bf16[8,16] {
  %x = s8[8,16]{1,0} parameter(0)
  ROOT %r = bf16[8,16]{1,0} fusion(%x), kind=kLoop, calls=%outer
}
"""
    assert traffic(text) == 8 * 16 + 2 * 8 * 16


def test_a_nested_fusion_with_two_results():
    """One result is used up inside; of the other operand, only the updated row is read and written."""
    text = """\
HloModule m

%inner (p: f32[8,16], q: f32[1,16], n: s32[]) -> (f32[8,16], f32[1,16]) {
  %p = f32[8,16]{1,0} parameter(0)
  %q = f32[1,16]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %z = s32[] constant(0)
  %sum = f32[1,16]{1,0} add(%q, %q)
  %update = f32[8,16]{1,0} dynamic-update-slice(%p, %sum, %n, %z)
  ROOT %both = (f32[8,16]{1,0}, f32[1,16]{1,0}) tuple(%update, %sum)
}

%outer (a: f32[8,16], b: f32[1,16], m: s32[]) -> (f32[8,16], f32[16]) {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[1,16]{1,0} parameter(1)
  %m = s32[] parameter(2)
  %f = (f32[8,16]{1,0}, f32[1,16]{1,0}) fusion(%a, %b, %m), kind=kLoop, calls=%inner
  %first = f32[8,16]{1,0} get-tuple-element(%f), index=0
  %second = f32[1,16]{1,0} get-tuple-element(%f), index=1
  %flat = f32[16]{0} bitcast(%second)
  ROOT %t = (f32[8,16]{1,0}, f32[16]{0}) tuple(%first, %flat)
}

ENTRY %main (x: f32[8,16], y: f32[1,16], k: s32[]) -> (f32[8,16], f32[16]) {
  %x = f32[8,16]{1,0} parameter(0)
  %y = f32[1,16]{1,0} parameter(1)
  %k = s32[] parameter(2)
  ROOT %r = (f32[8,16]{1,0}, f32[16]{0}) fusion(%x, %y, %k), kind=kLoop, calls=%outer
}
"""
    row = 16 * 4
    assert traffic(text) == row + 4 + row + row
