"""TensorBoard's files, as TensorBoard reads them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prompt_jax.training.tensorboard import TensorBoard
from prompt_jax.training.tracker import TrackedRun


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(each.step, each.value) for each in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_files_are_rebuilt_from_the_history(tmp_path):
    """Steps after the checkpoint run again. Files of the earlier process have them too, so they are deleted."""
    first = TensorBoard(tmp_path)
    run = TrackedRun("run", tmp_path, {}, [{}, {}], [])
    first.start(run)
    for step in (1, 2, 3):
        first.log(step, 0, {"train/loss": float(step)})
    first.finish("failed", None)
    history = [{"step": 1, "member": 0, "train/loss": 1.0}, {"step": 1, "member": 1, "x": 0.5}]
    second = TensorBoard(tmp_path)
    second.start(TrackedRun("run", tmp_path, {}, [{}, {}], history))
    second.log(2, 0, {"train/loss": 4.0, "seconds": 8.0})
    read = scalars(tmp_path / "tensorboard" / "member_0")  # each event is on the disk at once
    assert read == {"train/loss": [(1, 1.0), (2, 4.0)], "seconds": [(2, 8.0)]}
    assert scalars(tmp_path / "tensorboard" / "member_1") == {"x": [(1, 0.5)]}
    second.finish("finished", None)
