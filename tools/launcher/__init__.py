"""Launches training on this machine, on Slurm, on Cloud TPUs or on GKE: `python -m tools.launcher`.

It uses only Python's standard library, so it also runs where JAX is not installed.

commands.py     commands and files as steps; a dry run prints them as shell
checks.py       checks of the command line
jobs.py         the record of a job and the code that it runs
restarts.py     which exit statuses lead to a restart, and after what delay
local.py slurm.py tpu_vm.py gke.py     the backends
gcloud.py tpu_workers.py        parts of tpu_vm.py: the TPU as a resource, and its workers
job_set.py      part of gke.py: the Kubernetes manifest
"""
