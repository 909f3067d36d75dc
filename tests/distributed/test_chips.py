"""Tests of the table of accelerators."""

from types import SimpleNamespace

import jax
import pytest

from prompt_jax.distributed.chips import CHIPS, chip_of
from prompt_jax.errors import ConfigError


def device(kind: str, memory: int | None = None) -> SimpleNamespace:
    stats = None if memory is None else {"bytes_limit": memory}
    return SimpleNamespace(device_kind=kind, platform="tpu", memory_stats=lambda: stats)


@pytest.mark.parametrize(
    "kind, name",
    [
        *(("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5p", "v5p"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e")),
        *(("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100")),
    ],
)
def test_devices_are_recognized(kind, name):
    assert chip_of([device(kind)]) == CHIPS[name]
    assert chip_of([device(kind, 12345)]).memory == 12345


def test_the_host_as_a_device():
    assert chip_of(jax.devices()).memory > 2**30


def test_an_unknown_device():
    with pytest.raises(ConfigError, match="does not know the speed of 'TPU v99'; known are v4, v5e, .* Give mesh.ens"):
        chip_of([device("TPU v99")])
