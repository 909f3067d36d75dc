"""One row of a family's table of weights."""

from typing import NamedTuple


class Parameter(NamedTuple):
    """One leaf of the parameters: where it is here, in a checkpoint, and on a mesh.

    `path` leads to it in the nested dict; a stacked leaf holds `layers` arrays of `shape`. `name` is Hugging Face's,
    with `{layer}`; `transposed` says that the checkpoint has it as a PyTorch linear layer, [out, in], to be
    transposed and then reshaped to `shape`; `stored` is its shape there, where that does not follow from these; `third`
    says which third of that it is, of queries, keys and values in one tensor. `axes` are the logical names of `shape`'s
    axes.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    transposed: bool = False
    layers: int | None = None
    stored: tuple[int, ...] | None = None
    third: int | None = None
