"""Methods: how trainable parameters make a Prompt. One file a method, each with `init` and `apply`."""
