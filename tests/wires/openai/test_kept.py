"""What a response keeps of its request."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.encoding import LARGE
from streams.event import encode_json, escape_separators
from streams.wires.openai import kept
from streams.wires.openai.kept import encoded
from tests.support.turns import at_once, turns_and_result

SEPARATED = st.text(st.sampled_from('a"\\é\u0085\u2028\u2029\u20ac😀'))


@given(st.lists(SEPARATED) | st.dictionaries(SEPARATED, SEPARATED), st.integers(1, 7))
def test_a_value_is_encoded_the_same_in_slices_of_any_size(value: Any, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "LARGE", size)
        assert bytes(at_once(encoded(value))) == escape_separators(encode_json(value))


def test_a_large_value_is_escaped_in_slices_with_turns_between() -> None:
    for text, turns in (("\u2028" * 100, 0), ("x" * 10 * LARGE, 0), ("\u2028" * LARGE, 3)):
        assert turns_and_result(encoded(text))[0] == turns
