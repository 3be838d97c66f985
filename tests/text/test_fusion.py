"""Vectors of several fields put together."""

import numpy as np
import pytest

from hllm.errors import ConfigError
from hllm.text.fusion import fuse, parse_fusion

A = np.array([[1.0, 2], [3, 4], [0, 0], [0, 0]], dtype=np.float32)
B = np.array([[5.0, 6], [0, 0], [7, 8], [0, 0]], dtype=np.float32)
HAS = [A.any(1), B.any(1)]


def test_the_mean_is_over_the_fields_that_are_there() -> None:
    vectors, has = fuse([A, B], HAS, "mean", [3, 1])
    np.testing.assert_allclose(vectors, [[2, 3], [3, 4], [7, 8], [0, 0]])
    assert has.tolist() == [True, True, True, False] and vectors.dtype == np.float32


def test_concatenated_vectors_are_zero_where_a_field_is_not() -> None:
    vectors, has = fuse([A, B], HAS, "concat", [1, 2])
    np.testing.assert_allclose(vectors, [[1, 2, 10, 12], [3, 4, 0, 0], [0, 0, 14, 16], [0, 0, 0, 0]])
    assert has.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "name",
    [
        "sum",
        "mean:1",
        "mean:1,x",
        "mean:1,-2",
        "together:1,2",
        "learned:1,2",
        "concat:1,2,3",
        "mean:1,nan",
        "",
    ],
)
def test_what_is_no_fusion_is_refused(name) -> None:
    with pytest.raises(ConfigError, match="fusion"):
        parse_fusion(name, 2)
    assert parse_fusion("mean:3,1", 2) == ("mean", [3.0, 1.0])
    assert parse_fusion("concat", 2) == ("concat", [1.0, 1.0])
    assert parse_fusion("learned", 2) == ("learned", [1.0, 1.0])
