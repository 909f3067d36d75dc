"""The report's section on time, memory and devices."""

from prompt_jax.config.optimizer import OptimizerConfig
from prompt_jax.experiment import Experiment
from prompt_jax.report.formatting import bytes_text, duration
from prompt_jax.report.run_files import Environment, Summary


def resource_rows(summary: Summary, experiment: Experiment) -> list[tuple[str, str]]:
    """Return names and texts of what a run used. Runs of earlier versions have few of them."""
    rows = [("Wall time", _time_text(summary))]
    if (speed := summary.throughput) is not None:
        rows.append(("Throughput", f"{_rate(speed.examples)} examples/s, {_rate(speed.tokens)} tokens/s in training"))
    if "optimizer.learning_rate" not in summary.members[0].settings:
        rows.append(("Learning rate", rate_text(summary.members[0].learning_rate, experiment.optimizer)))
    if (where := summary.environment) is not None:
        rows.append(("Devices", _device_text(where)))
        memory = f"{bytes_text(where.host_memory)} on the host"
        if where.device_memory is not None:
            memory += f", {bytes_text(where.device_memory)} on {'the' if where.devices == 1 else 'a'} device"
        rows.append(("Peak memory", memory))
    return rows


def rate_text(peak: float | None, config: OptimizerConfig) -> str:
    """Return the learning rate and its schedule as text: `0.3, linear decay after 100 warm-up steps`.

    The peak is None in runs of earlier versions, whose configurations have an absolute rate.
    """
    rate = "default" if (known := peak or config.learning_rate) is None else f"{known:g}"
    schedule = "constant" if config.schedule == "constant" else f"{config.schedule} decay"
    warmup = f" after {config.warmup_steps:,} warm-up steps" if config.warmup_steps else ""
    return f"{rate}, {schedule}{warmup}"


def _time_text(summary: Summary) -> str:
    if summary.times is None:
        return duration(summary.seconds)
    times = summary.times
    parts = [("compilation", times.compile), ("training", times.train), ("validation", times.validation)]
    text = f"{duration(summary.seconds)}: {', '.join(f'{duration(seconds)} of {name}' for name, seconds in parts)}"
    return text if times.test is None else f"{text}; then {duration(times.test)} of final evaluation"


def _device_text(where: Environment) -> str:
    processes = f" in {where.processes:,} processes" if where.processes > 1 else ""
    return f"{where.devices:,} × {where.device}{processes}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
