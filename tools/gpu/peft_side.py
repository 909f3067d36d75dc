"""The side `peft`: PEFT on PyTorch."""

import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import peft
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from tools.bench.cases import Row, Shape, timed
from tools.bench.peft_side import generator, member_steps, random_batch, training_step
from tools.gpu.cases import Case, base_config, cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def rows(model: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield the measurements of a base."""
    torch.manual_seed(0)
    yield {"case": "matmul", "side": "peft", **matmul(512 if tiny else 8192)}
    for case in cases(model, tiny):
        yield {"case": case.name, "side": "peft", "examples": case.examples, **measure(model, case, tiny)}
        gc.collect()  # the model has cycles
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def measure(model: str, case: Case, tiny: bool) -> Row:
    """Time a case."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    base, shape = random_base(model, case.shape, tiny), case.shape
    if case.kind == "generation":
        one = generator(base, shape, batch_of(shape), beams=1)
    elif case.kind == "members":
        one = member_steps(base, shape, [batch_of(shape) for _ in range(case.members)])
    else:
        one = training_step(base, shape, itertools.repeat(batch_of(shape)))
    measured = timed(blocking(one), steps=1 if tiny else 8 if case.kind == "step" else 3)
    peak = {"device_mib": torch.cuda.max_memory_allocated() / 2**20} if DEVICE == "cuda" else {}
    return measured | peak


def random_base(model: str, shape: Shape, tiny: bool) -> Any:
    """Return a model with random weights in bfloat16, made on the device."""
    raw = {name: value for name, value in base_config(model, tiny).items() if name != "model_type"}
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            if model == "llama":
                return LlamaForCausalLM(LlamaConfig(**raw))
            config = T5Config(**raw, decoder_start_token_id=0, dropout_rate=shape.dropout)
            return T5ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)


def batch_of(shape: Shape) -> dict[str, torch.Tensor]:
    return {name: value.to(DEVICE) for name, value in random_batch(shape).items()}


def blocking(one: Callable[[], Any]) -> Callable[[], None]:
    """Return a function that waits until the device is done."""

    def run() -> None:
        one()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def matmul(size: int) -> Row:
    """Measure the rate of products of random bfloat16 matrices."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return {"flops": 2 * size**3, **timed(blocking(lambda: a @ b))}


def machine() -> dict[str, str]:
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    return {"device": device, "platform": DEVICE, **versions}
