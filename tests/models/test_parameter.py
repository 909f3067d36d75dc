"""The table of parameters, against the parameters that are loaded."""

import jax
import pytest

import prompt_jax
from prompt_jax.models import family
from prompt_jax.models.parameter import layer_norm_parameters


@pytest.mark.parametrize(("name", "embedding"), [("t5_v11", (256, 64)), ("gpt2", (256, 64)), ("bart", (256, 64))])
def test_every_parameter_is_in_the_table(fixtures, name, embedding):
    """The table has the paths, shapes and numbers of axes of the actual parameters."""
    model = prompt_jax.load_model(str(fixtures / name / "base"))
    table = {p.path: p for p in family(model.config).parameters(model.config)}
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    paths = {"/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): leaf for path, leaf in leaves}
    assert paths.keys() == table.keys()
    for path, leaf in paths.items():
        row = table[path]
        assert leaf.shape == (row.shape if row.layers is None else (row.layers, *row.shape))
        assert len(row.axes) == len(row.shape)
    assert table["embedding"].shape == embedding


def test_a_layer_norm_has_a_scale_and_a_bias():
    scale, bias = layer_norm_parameters("decoder/norm", "model.decoder.layer_norm", 8, layers=3)
    assert (scale.path, scale.name) == ("decoder/norm/scale", "model.decoder.layer_norm.weight")
    assert (bias.path, bias.name) == ("decoder/norm/bias", "model.decoder.layer_norm.bias")
    assert scale[2:] == bias[2:] and (bias.shape, bias.axes, bias.layers) == ((8,), ("embed",), 3)
