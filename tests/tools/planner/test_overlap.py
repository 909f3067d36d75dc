"""Tests of asynchronous collectives, which overlap with matrix products, against counts by hand."""

from types import SimpleNamespace

import pytest

from tools.planner import chips, hlo
from tools.planner.__main__ import table
from tools.planner.collectives import Collective
from tools.planner.estimate import estimate
from tools.planner.programs import Program
from tools.planner.work import Overlap, count_work

MODULE = """\
HloModule m, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (carry: (s32[], f32[4,16], f32[8,16])) -> (s32[], f32[4,16], f32[8,16]) {
  %carry = (s32[], f32[4,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x.1 = f32[4,16]{1,0} get-tuple-element(%carry), index=1
  %w = f32[8,16]{1,0} get-tuple-element(%carry), index=2
BODY
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[4,16]{1,0}, f32[8,16]{1,0}) tuple(%next, %x.1, %w)
}

%condition (state: (s32[], f32[4,16], f32[8,16])) -> pred[] {
  %state = (s32[], f32[4,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (start: (s32[], f32[4,16], f32[8,16])) -> (s32[], f32[4,16], f32[8,16]) {
  %start = (s32[], f32[4,16]{1,0}, f32[8,16]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[4,16]{1,0}, f32[8,16]{1,0}) while(%start), condition=%condition, body=%body
}
"""
GATHER = "%g = (f32[8,16]{1,0}, f32[16,16]{1,0}) all-gather-start(%w), replica_groups={{0,1}}, dimensions={0}"
GATHERED = "%gathered = f32[16,16]{1,0} all-gather-done(%g)"
PRODUCT = "%p = f32[4,4]{1,0} dot(%x.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={1}"
SEND = "%s = (f32[4,16]{1,0}, f32[4,16]{1,0}) collective-permute-start(%x.1), source_target_pairs={{0,1},{1,0}}"
SENT = "%sent = f32[4,16]{1,0} collective-permute-done(%s)"
REDUCE = "%r = f32[4,16]{1,0} all-reduce(%x.1), replica_groups={{0,1}}, to_apply=%add"
SECOND = "%p.2 = f32[4,4]{1,0} dot(%x.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={1}"

FLOPS = 2 * 4 * 4 * 16
TRAFFIC = 4 * (4 * 16 + 4 * 16 + 4 * 4)
GATHERING = Collective("all-gather", 16 * 16 * 4, (0, 1), 5)
SENDING = Collective("collective-permute", 4 * 16 * 4, (0, 1), 5)


def work(*body: str):
    return count_work(hlo.parse(MODULE.replace("BODY", "\n".join(f"  {line}" for line in body))))


def test_a_gather_overlaps_with_the_product_in_between():
    actual = work(GATHER, PRODUCT, GATHERED, SECOND)
    assert actual.flops == 5 * 2 * FLOPS and actual.collectives == []
    assert actual.overlaps == [Overlap((GATHERING,), 5 * FLOPS, 5 * TRAFFIC)]


def test_without_a_product_in_between_nothing_overlaps():
    actual = work(GATHER, GATHERED, PRODUCT)
    assert actual.collectives == [GATHERING] and actual.overlaps == []


def test_collectives_in_flight_at_the_same_time_share_the_products():
    actual = work(GATHER, PRODUCT, SEND, GATHERED, SECOND, SENT)
    assert actual.overlaps[0].collectives == (GATHERING, SENDING) and actual.overlaps[0].flops == 5 * 2 * FLOPS


def test_a_synchronous_collective_does_not_overlap():
    actual = work(GATHER, REDUCE, PRODUCT, GATHERED)
    assert actual.collectives == [Collective("all-reduce", 4 * 16 * 4, (0, 1), 5)]
    assert actual.overlaps[0].collectives == (GATHERING,) and actual.overlaps[0].flops == 5 * FLOPS


# --------------------------------------------------------------------------------------------------------------
# On a TPU, an asynchronous collective is a series of fusions

# ruff: noqa: E501
TPU = """\
HloModule m, is_scheduled=true

%start (shard: f32[8,16]) -> (f32[8,16], f32[16,16], u32[]) {
  %shard = f32[8,16]{1,0} parameter(0)
  %gather = f32[16,16]{1,0} all-gather(%shard), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %call = (f32[8,16]{1,0}, f32[16,16]{1,0}, u32[]{:S(2)}) custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}

%step (shard.1: f32[8,16], buffer.1: f32[16,16], flag.1: u32[], x: f32[4,16]) -> (f32[4,4], f32[8,16], f32[16,16], f32[16,16], u32[]) {
  %shard.1 = f32[8,16]{1,0} parameter(0)
  %buffer.1 = f32[16,16]{1,0} parameter(1)
  %flag.1 = u32[]{:S(2)} parameter(2)
  %x = f32[4,16]{1,0} parameter(3)
  %dot = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %gather.1 = f32[16,16]{1,0} all-gather(%shard.1), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %all = (f32[4,4]{1,0}, f32[8,16]{1,0}, f32[16,16]{1,0}, f32[16,16]{1,0}, u32[]{:S(2)}) tuple(%dot, %shard.1, %buffer.1, %gather.1, %flag.1)
}

%done (shard.2: f32[8,16], buffer.2: f32[16,16], flag.2: u32[]) -> f32[16,16] {
  %shard.2 = f32[8,16]{1,0} parameter(0)
  %buffer.2 = f32[16,16]{1,0} parameter(1)
  %flag.2 = u32[]{:S(2)} parameter(2)
  %gather.2 = f32[16,16]{1,0} all-gather(%shard.2), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %call.2 = f32[16,16]{1,0} custom-call(%shard.2, %buffer.2, %gather.2, %flag.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w: f32[8,16], y: f32[4,16]) -> f32[16,16] {
  %w = f32[8,16]{1,0} parameter(0)
  %y = f32[4,16]{1,0} parameter(1)
  %started = (f32[8,16]{1,0}, f32[16,16]{1,0}, u32[]{:S(2)}) fusion(%w), kind=kCustom, calls=%start
  %s = f32[8,16]{1,0} get-tuple-element(%started), index=0
  %b = f32[16,16]{1,0} get-tuple-element(%started), index=1
  %f = u32[]{:S(2)} get-tuple-element(%started), index=2
  %one = (f32[4,4]{1,0}, f32[8,16]{1,0}, f32[16,16]{1,0}, f32[16,16]{1,0}, u32[]{:S(2)}) fusion(%s, %b, %f, %y), kind=kOutput, calls=%step
  %s.1 = f32[8,16]{1,0} get-tuple-element(%one), index=1
  %b.1 = f32[16,16]{1,0} get-tuple-element(%one), index=2
  %f.1 = u32[]{:S(2)} get-tuple-element(%one), index=4
  ROOT %result = f32[16,16]{1,0} fusion(%s.1, %b.1, %f.1), kind=kCustom, calls=%done
}
"""


def test_fusions_of_an_asynchronous_collective_count_it_once():
    actual = count_work(hlo.parse(TPU))
    assert actual.collectives == [] and actual.flops == FLOPS
    # The product reads x, for both operands, and writes its result. The end reads the shard and writes all shards.
    product = 4 * (4 * 16 + 4 * 4)
    assert actual.overlaps == [Overlap((Collective("all-gather", 16 * 16 * 4, (0, 1), 1),), FLOPS, product)]
    assert actual.traffic == product + 4 * (8 * 16 + 16 * 16)


@pytest.mark.parametrize("link, hidden", [(1e3, 0.5), (1e9, 512e-9)])
def test_computation_hides_a_collective_up_to_its_own_time(link, hidden):
    """Half of 1,024 bytes go over one link, and the product takes half a second."""
    chip = chips.Chip(memory=1000, peak=2 * FLOPS, bandwidth=1e12, link=link, axes=2)
    devices = [SimpleNamespace(coords=(x, 0)) for x in range(2)]
    sizes = ("argument", "temp", "output", "alias", "generated_code")
    memory = SimpleNamespace(**{f"{name}_size_in_bytes": 0 for name in sizes})
    executable = SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: TPU)
    lowered = SimpleNamespace(compile=lambda: executable)
    program = Program("step", lambda: lowered, devices, FLOPS, 1, {})
    actual = estimate(program, chips.Topology("test", chip, (2, 1), tuple(devices)))
    alone = 512 / link + chips.HOP
    assert actual.compute == 0.5 and actual.interconnect == pytest.approx(alone)
    assert actual.hidden == pytest.approx(min(alone, 0.5)) == pytest.approx(hidden, abs=2 * chips.HOP)
    assert actual.seconds == pytest.approx(0.5 + alone - actual.hidden) == pytest.approx(max(0.5, alone))
    assert actual.collectives == actual.overlapping == {"all-gather": (1, 1024)}
    (line,) = table([("step", actual)])[2:]
    assert "| 1 all-gather 0.000 GB (0.000 GB overlap) |" in line
