"""Tests of counting kernels: by their cost estimates, or by their matrix products."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from tools.planner import hlo
from tools.planner.flops import matmul_flops
from tools.planner.kernels import kernels_of
from tools.planner.work import count_work

# As libtpu 0.0.42 prints it; the body is shortened.
ESTIMATE = (
    '"cost_estimate":{"flops":"123456","transcendentals":"78","bytes_accessed":"9999","remote_bytes_transferred":"0"},'
)


def compiled(estimate: str = "", name: str = "my_kernel.1") -> hlo.Module:
    return hlo.parse(
        "HloModule m\n\nENTRY %main (q: bf16[1024,512], k: bf16[512,512]) -> bf16[1024,512] {\n"
        "  %q = bf16[1024,512]{1,0} parameter(0)\n  %k = bf16[512,512]{1,0:S(1)} parameter(1)\n"
        f"  ROOT %{name} = bf16[1024,512]{{1,0}} custom-call(%q, %k), "
        'custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[1024,512]{1,0}, bf16[512,512]{1,0}}, '
        f'backend_config={{"flag_configs":[],"custom_call_config":{{"body":"TUzv",{estimate}'
        '"needs_layout_passes":true},"aliasing_operands":{"lists":[]}}\n}\n'
    )


def product(x, y, cost=None):
    """Multiply [1024, 512] by [512, 512] in four blocks of rows."""

    def kernel(x_ref, y_ref, out_ref):
        out_ref[...] = x_ref[...] @ y_ref[...]

    rows = pl.BlockSpec((256, 512), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(4,),
        in_specs=[rows, pl.BlockSpec((512, 512), lambda i: (0, 0))],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct((1024, 512), x.dtype),
        cost_estimate=cost,
        name="my_kernel",
    )(x, y)


SHAPES = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16), jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)


def test_a_kernel_counts_its_cost_estimate():
    actual = count_work(compiled(ESTIMATE))
    assert (actual.flops, actual.transcendentals, actual.traffic) == (123456, 78, 9999)


def test_a_kernel_without_an_estimate_counts_the_products_of_its_jaxpr():
    def f(x, y):
        return jax.lax.scan(lambda x, _: (product(x, y), None), x, None, length=3)[0]

    kernels = kernels_of(jax.make_jaxpr(f)(*SHAPES))
    assert kernels == {("my_kernel", ((1024, 512),)): 2 * 1024 * 512 * 512}
    actual = count_work(compiled(name="my_kernel.7.clone"), kernels=kernels)
    assert actual.flops == 2 * 1024 * 512 * 512
    assert actual.traffic == 2 * 2 * 1024 * 512  # one operand and the result; the other operand is on the chip


def test_an_unknown_kernel_is_an_error():
    with pytest.raises(hlo.HloError, match=r"my_kernel.1 \[\(1024, 512\)\] has no cost estimate.*pass `cost_estimate`"):
        count_work(compiled())


def test_the_operations_of_a_model_include_its_kernels():
    assert matmul_flops(jax.make_jaxpr(product)(*SHAPES)) == 2 * 1024 * 512 * 512
    cost = pl.CostEstimate(flops=11, transcendentals=0, bytes_accessed=0)
    assert matmul_flops(jax.make_jaxpr(lambda x, y: product(x, y, cost))(*SHAPES)) == 11
