"""Tasks in the registry: discovery, names and mixtures."""

import subprocess
import sys
from pathlib import Path

import pytest

from prompt_jax.data.registry import add_mixture, add_task, discover_tasks, find_task, mixture_rates, task_names
from prompt_jax.data.text_tasks import text_source
from prompt_jax.errors import DataError
from prompt_jax.task_format import TaskFormat
from reviews import REVIEW, source, write

TASKS = """
import seqio
from prompt_jax import add_task
from prompt_jax.task_format import TaskFormat
add_task("t_found", seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"]), TaskFormat("{x}"))
"""


def test_tasks_are_imported_once_and_similar_names_suggested(registry, tmp_path):
    write(tmp_path / "mine.py", TASKS)
    write(tmp_path / "_helper.py", "raise RuntimeError")
    assert "t_found" in discover_tasks(tmp_path)
    assert "t_found" in discover_tasks(tmp_path / "mine.py")
    assert find_task("t_found").task_format == TaskFormat("{x}")
    with pytest.raises(DataError, match="no task is called 't_fuond'; did you mean t_found"):
        find_task("t_fuond")


def test_the_default_folder_of_tasks_is_optional(monkeypatch, tmp_path, registry):
    monkeypatch.chdir(tmp_path)
    before = task_names()
    assert discover_tasks() == before
    (tmp_path / "tasks").mkdir()
    write(tmp_path / "tasks" / "mine.py", TASKS)
    assert discover_tasks() == sorted([*before, "t_found"])
    with pytest.raises(DataError, match="elsewhere: no such file or directory"):
        discover_tasks(tmp_path / "elsewhere")


def test_a_failed_import_names_file_and_cause_and_registers_nothing(registry, tmp_path):
    path = write(tmp_path / "broken.py", TASKS + "\n1 / 0\n")
    for _ in range(2):  # the second time for the same reason, not for a task that is there already
        with pytest.raises(DataError, match=r"broken.py: .*ZeroDivisionError: division by zero"):
            discover_tasks(tmp_path)
    assert "t_found" not in task_names()
    write(path, TASKS)
    assert "t_found" in discover_tasks(tmp_path)


def test_a_mixture_is_not_a_task(registry):
    import seqio

    add_task("t_part", source({"text": ["a"], "label": ["good"]}), REVIEW)
    seqio.MixtureRegistry.add("t_mixture", ["t_part"], default_rate=1)
    with pytest.raises(DataError, match="'t_mixture' is a mixture"):
        find_task("t_mixture")
    seqio.MixtureRegistry.remove("t_mixture")


def words(split):
    return [("a", "good")]


def test_a_mixture_of_this_package(registry):
    add_task("t_part", text_source(words, ("train",)), REVIEW)
    add_mixture("t_mixture", lambda: {"t_part": 3, "t_other": 0.5})
    assert mixture_rates("t_mixture") == {"t_other": 0.5, "t_part": 3.0}
    assert mixture_rates("t_part") is None
    with pytest.raises(DataError, match="'t_mixture' is a mixture.*: t_other, t_part"):
        find_task("t_mixture")
    for name in ("t_part", "t_mixture"):
        with pytest.raises(DataError, match=f"already called '{name}'"):
            add_task(name, text_source(words, ("train",)), REVIEW)
    add_mixture("t_none", {"t_part": 0})
    with pytest.raises(DataError, match=r"'t_none' has t_part at the rate 0.0; expected a positive number"):
        mixture_rates("t_none")


def test_tasks_join_seqios_registry(registry, tmp_path):
    """Also those that were registered before seqio was imported, so that its mixtures can contain them."""
    code = f"""if True:
        import sys
        from prompt_jax.data.registry import add_task, discover_tasks, find_task, mixture_rates
        from prompt_jax.data.text_tasks import text_source
        from prompt_jax.task_format import TaskFormat
        add_task("first", text_source(lambda split: [("a", "b")], ["train"]), TaskFormat("{{source}}"), target="target")
        assert "seqio" not in sys.modules
        assert discover_tasks("{write(tmp_path / "mine.py", TASKS + MIXTURE)}") == ["first", "t_found"]
        assert mixture_rates("t_mixture") == {{"first": 1.0, "t_found": 2.0}}
        assert type(find_task("first")).__name__ == "TextTask"
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


MIXTURE = """
seqio.MixtureRegistry.add("t_mixture", [("first", 1), ("t_found", 2)])
"""
