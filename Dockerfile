# The image of `python -m tools.launcher gke`: this commit on Python 3.12, with JAX for TPUs.
FROM python:3.12-slim
RUN pip install --no-cache-dir uv==0.13.8
WORKDIR /prompt_jax
# The dependencies are a layer that commits share.
COPY pyproject.toml requirements.lock ./
RUN uv pip install --system --no-cache --constraint requirements.lock \
    -r pyproject.toml --extra demo --extra gcs --extra tpu
COPY . .
RUN uv pip install --system --no-cache --no-deps .
