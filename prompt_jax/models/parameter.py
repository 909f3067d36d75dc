"""One row of a family's table of weights."""

from typing import NamedTuple


class Parameter(NamedTuple):
    """One leaf of the parameters: its place here, in a checkpoint, and on a mesh.

    Attributes:
      path: in the nested dict; a stacked leaf holds `layers` arrays of `shape`.
      name: Hugging Face's name, with `{layer}`.
      shape: of one layer.
      axes: the logical names of the shape's axes.
      transposed: whether the checkpoint stores it as a PyTorch linear layer, [out, in]. Reading transposes it and then
        reshapes it to `shape`.
      layers: the number of layers, or None.
      stored: the shape in the checkpoint, if it does not follow from the above.
      third: which third of the stored tensor it is, if queries, keys and values are one tensor.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    transposed: bool = False
    layers: int | None = None
    stored: tuple[int, ...] | None = None
    third: int | None = None


def layer_norm_parameters(path: str, name: str, width: int, layers: int | None = None) -> list[Parameter]:
    """Return the scale and bias of a layer norm."""
    scale = Parameter(f"{path}/scale", f"{name}.weight", (width,), ("embed",), layers=layers)
    return [scale, scale._replace(path=f"{path}/bias", name=f"{name}.bias")]
