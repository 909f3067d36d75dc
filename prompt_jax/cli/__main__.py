"""Entry point of `python -m prompt_jax.cli`."""

import sys

from prompt_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
