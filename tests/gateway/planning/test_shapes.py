"""config.json of well-known models, and those that do not tell enough."""

import json

import pytest

from gateway.planning.formulas import weight_bytes
from gateway.planning.shapes import ShapeUnknown, read_shape, shape_of
from tests.gateway.planning.models import DEEPSEEK_V3, LLAMA2_7B, LLAMA3_8B, LLAMA3_70B, MIXTRAL_8X7B


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA3_8B, 8_030_261_248),
        (LLAMA3_70B, 70_553_706_496),
        (LLAMA2_7B, 6_738_415_616),
        (MIXTRAL_8X7B, 46_702_792_704),
        (DEEPSEEK_V3, None),
    ],
)
def test_parameters(config, parameters):
    """As the model cards count them; where the matrices have other forms, nothing is made up."""
    assert shape_of(config).parameters == parameters


def test_weights_that_are_not_known_are_asked_for():
    with pytest.raises(ValueError, match="how many parameters"):
        weight_bytes(shape_of(DEEPSEEK_V3))


def test_heads():
    """Without grouped-query attention all heads are cached; with one shared head, one."""
    assert shape_of(LLAMA2_7B).kv_heads == 32
    assert shape_of({**LLAMA2_7B, "multi_query": True}).kv_heads == 1
    assert shape_of({**LLAMA3_8B, "head_dim": 256}).head_dim == 256


def test_text_model_of_a_model_that_sees():
    nested = {
        "model_type": "llava",
        "torch_dtype": "float16",
        "text_config": {**LLAMA3_8B, "torch_dtype": None},
    }
    assert shape_of(nested).layers == 32
    assert shape_of(nested).dtype_bytes == 2


def test_windows():
    assert shape_of({**LLAMA3_8B, "sliding_window": 4096}).window == 4096
    assert shape_of({**LLAMA3_8B, "sliding_window": 4096, "use_sliding_window": False}).window is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting"),
        ("[]", "not an object"),
        ("{}", "no num_hidden_layers"),
        (json.dumps({**LLAMA3_8B, "torch_dtype": "int3"}), "unknown dtype 'int3'"),
        (json.dumps({**LLAMA3_8B, "num_hidden_layers": 0}), "no num_hidden_layers"),
    ],
)
def test_what_does_not_tell_is_refused(tmp_path, text, says):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ShapeUnknown, match=says) as caught:
        read_shape(tmp_path)
    assert str(path) in str(caught.value)
