"""The parts of `tools/launch.py`: Python's standard library alone, so that it runs where JAX is not installed.

commands.py    what is run, apart from running it: a dry run prints it as shell
jobs.py        the record of a job, what is checked before it starts, and the code that it is given
restarts.py    which ends of a process are worth another start, and when
local.py slurm.py tpu_vm.py    the backends
"""
