"""Types of options that models and methods share."""

from typing import Literal

PromptPlacement = Literal["before", "after"]
Site = Literal["encoder_self", "decoder_self", "decoder_cross"]
Initialization = Literal["uniform", "normal", "zero", "vocab", "labels", "text", "file"]
