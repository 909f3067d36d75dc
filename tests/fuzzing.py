"""How many inputs readers of files are given in property tests: 150, and in a long run PROMPT_JAX_FUZZ=10000."""

import os

from hypothesis import HealthCheck, settings

FUZZ = settings(
    max_examples=int(os.environ.get("PROMPT_JAX_FUZZ", 150)),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
