"""`Parameter`: one row of a model family's parameter table."""

from typing import NamedTuple


class Parameter(NamedTuple):
    """A parameter's path and shape, its name and shape in a checkpoint, and its logical axes.

    Attributes:
      path: path in the nested dict of parameters.
      name: Hugging Face's name, with `{layer}` for the layer's number.
      shape: shape in one layer.
      axes: logical names of the axes of `shape`, which the mesh's rules map to mesh axes.
      transposed: whether the checkpoint stores a PyTorch linear layer, [out, in]. It is transposed and then reshaped to
        `shape`.
      layers: the number of layers, the leading axis of the leaf; None for a parameter outside layers.
      stored: the shape in the checkpoint, if it does not follow from `shape` and `transposed`.
      part: the first output and the end of the outputs in a tensor that several parameters share, such as fused
        queries, keys and values. Their rows of the table are in the order of the outputs.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    transposed: bool = False
    layers: int | None = None
    stored: tuple[int, ...] | None = None
    part: tuple[int, int] | None = None


def layer_norm_parameters(path: str, name: str, width: int, layers: int | None = None) -> list[Parameter]:
    """Return the table rows of a layer norm's scale and bias."""
    scale = Parameter(f"{path}/scale", f"{name}.weight", (width,), ("embed",), layers=layers)
    return [scale, scale._replace(path=f"{path}/bias", name=f"{name}.bias")]
