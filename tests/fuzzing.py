"""Settings of property tests for file readers: 75 inputs, or as many as PROMPT_JAX_FUZZ says."""

import os

from hypothesis import HealthCheck, settings

FUZZ = settings(
    max_examples=int(os.environ.get("PROMPT_JAX_FUZZ", 75)),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
