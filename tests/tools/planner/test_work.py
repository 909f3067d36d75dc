"""Tests of counting work in compiled programs, against counts by hand and programs compiled here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools.planner import hlo
from tools.planner.work import Collective, count_work, trip_count

# A loop of 8 over stacked weights that are sliced in a fusion, as XLA writes scans for TPUs, with one of unknown
# length in it. S(1) is on the chip.
LOOPS = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,16,32]{2,1,0:T(8,128)})->f32[4,32]{1,0}}

%fused_slice (param_0: f32[8,16,32], param_1: s32[]) -> f32[16,32] {
  %param_0 = f32[8,16,32]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice.1 = f32[1,16,32]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,16,32}
  ROOT %bitcast.1 = f32[16,32]{1,0:T(8,128)} bitcast(%slice.1)
}

%fused_dot (param_0.1: f32[4,16], param_1.1: f32[8,16,32], param_2.1: s32[]) -> f32[4,32] {
  %param_0.1 = f32[4,16]{1,0:T(8,128)S(1)} parameter(0)
  %param_1.1 = f32[8,16,32]{2,1,0:T(8,128)} parameter(1)
  %param_2.1 = s32[]{:T(128)} parameter(2)
  %inner = f32[16,32]{1,0:T(8,128)} fusion(%param_1.1, %param_2.1), kind=kLoop, calls=%fused_slice
  ROOT %dot.1 = f32[4,32]{1,0:T(8,128)} dot(%param_0.1, %inner), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_update (param_0.2: f32[8,4,32], param_1.2: f32[4,32], param_2.2: s32[]) -> f32[8,4,32] {
  %param_0.2 = f32[8,4,32]{2,1,0} parameter(0)
  %param_1.2 = f32[4,32]{1,0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %bitcast.2 = f32[1,4,32]{2,1,0} bitcast(%param_1.2)
  ROOT %update.2 = f32[8,4,32]{2,1,0} dynamic-update-slice(%param_0.2, %bitcast.2, %param_2.2, %zero.2, %zero.2)
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_condition (state: (pred[], f32[4,32])) -> pred[] {
  %state = (pred[], f32[4,32]{1,0}) parameter(0)
  ROOT %go = pred[] get-tuple-element(%state), index=0
}

%inner_body (state.1: (pred[], f32[4,32])) -> (pred[], f32[4,32]) {
  %state.1 = (pred[], f32[4,32]{1,0}) parameter(0)
  %go.1 = pred[] get-tuple-element(%state.1), index=0
  %x.1 = f32[4,32]{1,0} get-tuple-element(%state.1), index=1
  %gathered = f32[4,64]{1,0} all-gather(%x.1), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={1}
  %half = f32[4,32]{1,0} slice(%gathered), slice={[0:4], [0:32]}
  ROOT %next = (pred[], f32[4,32]{1,0}) tuple(%go.1, %half)
}

%body (carry: (s32[], f32[8,16,32], f32[4,16], f32[8,4,32])) -> (s32[], f32[8,16,32], f32[4,16], f32[8,4,32]) {
  %carry = (s32[]{:T(128)}, f32[8,16,32]{2,1,0}, /*index=2*/f32[4,16]{1,0:T(8,128)S(1)}, f32[8,4,32]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %weights = f32[8,16,32]{2,1,0:T(8,128)} get-tuple-element(%carry), index=1
  %x.2 = f32[4,16]{1,0:T(8,128)S(1)} get-tuple-element(%carry), index=2
  %saved = f32[8,4,32]{2,1,0} get-tuple-element(%carry), index=3
  %y.2 = f32[4,32]{1,0} fusion(%x.2, %weights, %i), kind=kOutput, calls=%fused_dot
  %reduced = f32[4,32]{1,0} all-reduce(%y.2), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
  %saved.1 = f32[8,4,32]{2,1,0} fusion(%saved, %reduced, %i), kind=kLoop, calls=%fused_update
  %one = s32[] constant(1)
  %i.1 = s32[]{:T(128)S(1)} add(%i, %one)
  ROOT %out = (s32[], f32[8,16,32], f32[4,16], f32[8,4,32]) tuple(%i.1, %weights, %x.2, %saved.1)
}

%condition (carry.1: (s32[], f32[8,16,32], f32[4,16], f32[8,4,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(8), metadata={op_name="jit(f)/while/cond/lt"}
  %carry.1 = (s32[], f32[8,16,32], f32[4,16], f32[8,4,32]) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.2, %limit), direction=LT
}

ENTRY %main (w: f32[8,16,32]) -> f32[4,32] {
  %w = f32[8,16,32]{2,1,0:T(8,128)} parameter(0)
  %fetched = (f32[8,16,32]{2,1,0:S(1)}, f32[8,16,32]{2,1,0}, u32[]{:S(2)}) copy-start(%w)
  %here = f32[8,16,32]{2,1,0:S(1)} copy-done(%fetched)
  %start = (s32[], f32[8,16,32], f32[4,16]{1,0:S(1)}, f32[8,4,32]) custom-call(), custom_call_target="AllocateBuffer"
  %loop = (s32[], f32[8,16,32], f32[4,16], f32[8,4,32]) while(%start), condition=%condition, body=%body
  %more = (pred[], f32[4,32]) custom-call(), custom_call_target="AllocateBuffer"
  %inner_loop = (pred[], f32[4,32]) while(%more), condition=%inner_condition, body=%inner_body
  ROOT %result = f32[4,32]{1,0} get-tuple-element(%inner_loop), index=1
}
"""


def test_loops_count_once_per_iteration():
    actual = count_work(hlo.parse(LOOPS), unknown_trips=3)
    assert actual.flops == 8 * 2 * 4 * 32 * 16
    reduced, gathered = actual.collectives
    assert reduced == Collective("all-reduce", 4 * 32 * 4, (0, 2), 8)
    assert gathered == Collective("all-gather", 4 * 64 * 4, (0, 4), 3)


def test_traffic_counts_reads_and_writes_in_main_memory():
    layer, row = 16 * 32 * 4, 4 * 32 * 4
    in_loop = (
        (layer + 4 + row)  # the fusion reads one layer of the weights, and the counter, and writes y; x is on the chip
        + 2 * row  # all-reduce
        + (row + 4 + row)  # the update reads what it writes, and does not read or write the others
        + 4 + 4  # the counter and the one are read; the new counter is on the chip
    )  # fmt: skip
    condition = 4 + 4 + 1  # of the outer loop: compares two numbers
    in_inner_loop = (row + 2 * row) + 2 * row  # all-gather; slice
    copied = 8 * layer  # to the chip
    expected = copied + 8 * (in_loop + condition) + 3 * in_inner_loop
    assert count_work(hlo.parse(LOOPS), unknown_trips=3).traffic == expected


def test_trip_counts():
    module = hlo.parse(LOOPS)
    loops = {i.name: i for i in module.computations["main"].values() if i.opcode == "while"}
    assert trip_count(loops["loop"], module) == 8
    assert trip_count(loops["inner_loop"], module) is None
    known = 'body=%body, backend_config={"known_trip_count":{"n":"12"},"x":{}}'
    assert trip_count(loops["inner_loop"]._replace(attributes=known), module) == 12


# --------------------------------------------------------------------------------------------------------------
# Products as a TPU's compiler writes them


def convolution(left: str, right: str, out: str, window: str, labels: str) -> float:
    text = (
        f"HloModule m\n\nENTRY %main (l: {left}, r: {right}) -> {out} {{\n"
        f"  %l = {left} parameter(0)\n  %r = {right} parameter(1)\n"
        f"  ROOT %c = {out} convolution(%l, %r), window={{{window}}}, dim_labels={labels}\n}}\n"
    )
    return count_work(hlo.parse(text)).flops


@pytest.mark.parametrize(
    "left, right, out, window, labels, products",
    [
        # [4, 612, 512] x [512, 512], the first axis a batch
        ("bf16[4,612,512]", "bf16[512,512,1]", "bf16[4,612,512]", "size=1", "0bf_io0->0bf", 4 * 612 * 512 * 512),
        # to 3 heads of 64: [4, 612, 512] x [512, 3, 64]
        (
            *("bf16[4,612,512,1]", "bf16[512,3,64,1]", "bf16[4,612,3,64]"),
            *("size=1x3 pad=0_0x2_2 rhs_reversal=0x1", "0bf1_i1o0->0b1f", 4 * 612 * 512 * 3 * 64),
        ),
        # from 3 heads of 64: [4, 612, 3, 64] x [3, 64, 512]
        (
            *("bf16[4,612,3,64]", "bf16[3,64,512,1]", "bf16[4,612,512,1]"),
            *("size=1x3", "0b1f_1io0->0bf1", 4 * 612 * 3 * 64 * 512),
        ),
        # scores of 4 rows and 3 heads: [4, 612, 3, 64] x [4, 612, 3, 64] -> [4, 3, 612, 612]
        (
            *("bf16[4,612,3,64]", "bf16[4,612,3,64]", "f32[4,3,612,612]"),
            *("size=4x3 stride=3x2 lhs_dilate=4x3", "0b1f_0o1i->01bf", 4 * 3 * 612 * 612 * 64),
        ),
        # the same where one axis of the two is shared: [3, 16, 4, 64] x [512, 3, 64] -> [3, 512, 4, 16]
        (
            *("bf16[4,16,3,64]", "bf16[512,3,64,1]", "bf16[4,512,16,3]"),
            *("size=1x3 stride=1x2 lhs_dilate=1x3", "0b1f_o1i0->0fb1", 4 * 16 * 3 * 512 * 64),
        ),
    ],
)
def test_a_convolution_counts_products_with_values(left, right, out, window, labels, products):
    assert convolution(left, right, out, window, labels) == 2 * products


def test_an_ordinary_convolution():
    """Edges, where the kernel overlaps padding, count less."""
    actual = convolution("f32[2,5,7]", "f32[3,7,11]", "f32[2,5,11]", "size=3 pad=1_1", "b0f_0io->b0f")
    assert actual == 2 * 2 * 7 * 11 * (5 * 3 - 2)


def test_a_program_compiled_here():
    """A scan with attention, vmapped over members, has exactly the products of its code."""

    def f(weights, x):
        def layer(x, w):
            q = jnp.einsum("btd,dhk->bthk", x, w)
            mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, q)), q)
            return x + jnp.einsum("bthk,dhk->btd", mixed, w), None

        return jax.lax.scan(layer, x, weights)[0]

    shapes = (jnp.zeros((5, 16, 4, 8)), jnp.zeros((3, 2, 6, 16)))
    text = jax.jit(jax.vmap(f, (None, 0))).lower(*shapes).compile().as_text()
    projection, scores = 3 * 2 * 6 * 16 * 4 * 8, 3 * 2 * 4 * 6 * 6 * 8
    assert count_work(hlo.parse(text)).flops == 5 * 2 * (2 * projection + 2 * scores)


# --------------------------------------------------------------------------------------------------------------
# Groups of devices


@pytest.mark.parametrize(
    "groups, first",
    [
        ("replica_groups={{4,5,6,7},{0,1,2,3}}", (4, 5, 6, 7)),
        ("replica_groups={}", ()),
        ("replica_groups=[8,2]<=[16]", (0, 1)),
        ("replica_groups=[2,8]<=[8,2]T(1,0)", tuple(range(0, 16, 2))),
        ("replica_groups=[4,4]<=[2,4,2]T(1,0,2)", (0, 1, 8, 9)),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1,'axis_2'=2] {'axis_0'}", tuple(range(0, 16, 2))),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0','axis_1'}", tuple(range(16))),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=8], device_ids=([8,2]T(1,0)) {'a'}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=8], device_ids=([8,2]T(1,0)) {'c'}", tuple(range(0, 16, 2))),
    ],
)
def test_groups_in_every_form(groups, first):
    text = (
        "HloModule m\n\nENTRY %main (x: bf16[3,5]) -> bf16[3,5] {\n  %x = bf16[3,5] parameter(0)\n"
        f"  ROOT %r = bf16[3,5] all-reduce-start(%x), channel_id=1, {groups}, to_apply=%add\n}}\n"
    )
    assert count_work(hlo.parse(text)).collectives == [Collective("all-reduce", 30, first, 1)]


def test_a_group_of_one_is_not_a_collective():
    text = (
        "HloModule m\n\nENTRY %main (x: f32[3]) -> f32[3] {\n  %x = f32[3] parameter(0)\n"
        "  ROOT %r = f32[3] all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add\n}\n"
    )
    assert count_work(hlo.parse(text)).collectives == []


def test_unknown_text_is_an_error():
    with pytest.raises(hlo.HloError, match="expected the text of an HLO module"):
        hlo.parse("module @jit_f { }")
    text = (
        "HloModule m\n\nENTRY %main (x: f32[3]) -> f32[3] {\n  %x = f32[3] parameter(0)\n"
        "  ROOT %r = f32[3] all-reduce(%x), replica_groups=@axes, to_apply=%add\n}\n"
    )
    with pytest.raises(hlo.HloError, match="r: unknown form of replica groups"):
        count_work(hlo.parse(text))


def test_bytes():
    assert hlo.Array("bf16", (3, 5), 0).bytes == 30
    assert hlo.Array("s4", (3, 5), 0).bytes == 7.5
    assert hlo.Array("pred", (3,), 0).bytes == 3
    assert hlo.Array("f8e4m3fn", (3,), 0).bytes == 3
    assert np.isclose(hlo.Array("f32", (), 1).main, 0)
