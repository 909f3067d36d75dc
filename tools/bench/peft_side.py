"""The side `peft`: PEFT on PyTorch. __main__.py describes the cases."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.optimization import Adafactor

from tools.bench.cases import GENERATIONS, MEMBERS, SHAPES, SMOLLM2, Row, Shape, review_time, reviews, timed


def single(case: str) -> Row:
    """Time a training step of a single prompt."""
    torch.manual_seed(0)
    shape = SHAPES[case]
    if case == "reviews":
        base, batches, tokenize_seconds = review_batches(shape.batch)
    else:
        base, batches = random_base(shape), itertools.repeat(random_batch(shape))
    one = training_step(base, shape, batches)
    a = torch.ones(2048, 2048)
    matmul = {"matmul": 2 * 2048**3 / timed(lambda: a @ a)["seconds"]}
    return (review_time(one, tokenize_seconds) if case == "reviews" else timed(one)) | matmul


def training_step(base: Any, shape: Shape, batches: Iterator[Any]) -> Callable[[], None]:
    """Return a function that runs a training step of a single prompt."""
    model = get_peft_model(base, options(shape)).train()
    optimizer = adafactor([parameter for parameter in model.parameters() if parameter.requires_grad])

    def one() -> None:
        model(**next(batches)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return one


def generation(case: str) -> Row:
    """Time the generation of a fixed number of tokens per input."""
    torch.manual_seed(0)
    shape = GENERATIONS[case]
    one = generator(random_base(shape), shape, random_batch(shape), beams=5 if case.endswith("beam5") else 1)
    return timed(one, steps=2)


def generator(base: Any, shape: Shape, batch: dict[str, torch.Tensor], beams: int) -> Callable[[], Any]:
    """Return a function that generates `shape.target` tokens per input."""
    model = get_peft_model(base, options(shape)).eval()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    how = {"num_beams": beams, "do_sample": False, "pad_token_id": 0}
    length = {"min_new_tokens": shape.target, "max_new_tokens": shape.target}
    return torch.no_grad()(lambda: model.generate(**inputs, **how, **length))


def ensemble() -> Row:
    """Time one step per member in turn."""
    torch.manual_seed(0)
    shape = SHAPES["ensemble"]
    return timed(member_steps(random_base(shape), shape, [random_batch(shape) for _ in range(MEMBERS)]))


def member_steps(base: Any, shape: Shape, batches: Sequence[dict[str, torch.Tensor]]) -> Callable[[], None]:
    """Return a function that runs one step per member in turn.

    The members are adapters of one base, each with a batch and an optimizer.
    """
    names = [f"member{number}" for number in range(len(batches))]
    model = get_peft_model(base, options(shape), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, options(shape))
    model.train()
    parameters = {name: list(model.prompt_encoder[name].parameters()) for name in names}
    optimizers = {name: adafactor(trained) for name, trained in parameters.items()}
    batch_of = dict(zip(names, batches, strict=True))

    def gradient(name: str) -> None:
        model.set_adapter(name)
        model(**batch_of[name]).loss.backward()

    def all_members() -> None:
        for name, optimizer in optimizers.items():
            gradient(name)
            optimizer.step()
            optimizer.zero_grad()

    for name in names:  # check, before timing, that each step trains its own adapter only
        gradient(name)
        with_gradient = {n for n, parameter in model.named_parameters() if parameter.grad is not None}
        own = {id(parameter) for parameter in parameters[name]}
        expected = {n for n, parameter in model.named_parameters() if id(parameter) in own}
        if with_gradient != expected:
            raise RuntimeError(f"{name} of PEFT has gradients for {sorted(with_gradient)}, not {sorted(expected)}")
        optimizers[name].zero_grad()
    return all_members


def options(shape: Shape) -> PromptLearningConfig:
    kind = PromptTuningConfig if shape.method == "soft_prompt" else PrefixTuningConfig
    task = TaskType.SEQ_2_SEQ_LM if shape.model == "t5" else TaskType.CAUSAL_LM
    return kind(task_type=task, num_virtual_tokens=shape.length)


def adafactor(parameters: list[Any]) -> Adafactor:
    """Return Adafactor with the prompt-tuning paper's settings."""
    return Adafactor(
        parameters, lr=0.3, scale_parameter=False, relative_step=False, warmup_init=False, weight_decay=1e-5
    )


def random_base(shape: Shape) -> T5ForConditionalGeneration | GPT2LMHeadModel | LlamaForCausalLM:
    """Return a model of the case's shape with random weights."""
    if shape.model == "llama":
        return LlamaForCausalLM(LlamaConfig(**SMOLLM2))
    if shape.model == "gpt2":
        rate = shape.dropout
        return GPT2LMHeadModel(GPT2Config(resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=rate))
    sizes: dict[str, Any] = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6}
    sizes |= {"num_heads": 8, "feed_forward_proj": "relu", "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=shape.dropout))


def random_batch(shape: Shape) -> dict[str, torch.Tensor]:
    """Return a random batch without padding."""
    ids = torch.randint(2, 32000, (shape.batch, shape.source))
    labels = torch.randint(2, 32000, (shape.batch, shape.target)) if shape.target else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def review_batches(size: int) -> tuple[Any, Iterator[dict[str, Any]], float]:
    """Return the demo model, shuffled batches of reviews, and the seconds it takes to tokenize a batch.

    Each batch is padded to its longest row.
    """
    import traceforge_title_model
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

    from prompt_jax.checkpoints.demo import demo_folder

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(traceforge_title_model.span_dir() / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    model = T5ForConditionalGeneration.from_pretrained(str(demo_folder()))
    texts, labels = reviews()
    start = time.perf_counter()
    inputs, targets = (tokenizer([text + "</s>" for text in column])["input_ids"] for column in (texts, labels))
    seconds = time.perf_counter() - start
    rows: Any = [
        {"input_ids": x, "attention_mask": [1] * len(x), "labels": y} for x, y in zip(inputs, targets, strict=True)
    ]
    collate = DataCollatorForSeq2Seq(tokenizer)
    loader: Any = torch.utils.data.DataLoader(rows, size, shuffle=True, drop_last=True, collate_fn=collate)
    return model, iter(loader), seconds / len(texts) * size
