"""TensorBoard's files, as TensorBoard reads them."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prompt_jax.training.tensorboard import TensorBoard
from prompt_jax.training.tracker import TrackedRun


def test_files_are_rebuilt_when_a_run_is_resumed(tmp_path):
    """The events of steps after the checkpoint are gone, since those steps run again."""

    def write(steps, history):
        board = TensorBoard(tmp_path)
        board.start(TrackedRun("run", tmp_path, {}, [{}, {}], history))
        for step in steps:
            for member in range(2):
                board.log(step, member, {"train/loss": step + member / 2})
        board.finish("finished", None)

    write((1, 2, 3), [])
    write((3, 4), [{"step": step, "member": i, "train/loss": step + i / 2} for step in (1, 2) for i in range(2)])
    for member in range(2):
        reader = EventAccumulator(str(tmp_path / "tensorboard" / f"member_{member}"))
        reader.Reload()
        events = [(each.step, each.value) for each in reader.Scalars("train/loss")]
        assert events == [(step, step + member / 2) for step in (1, 2, 3, 4)]
