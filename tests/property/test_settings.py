"""Every setting, with any value of a variable or a file."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given, settings
from hypothesis import strategies as st

from octaskly.config.settings import SETTINGS, Setting
from octaskly.config.value_types import InvalidValue

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates()
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
texts = st.one_of(
    st.text(),
    st.from_regex(r"[0-9]{1,20}[smhdKMGT]?", fullmatch=True),
    st.from_regex(r"\[?[a-z0-9:]{1,9}\]?(:[0-9]{1,6})?(,a=b)?", fullmatch=True),
)
rows = st.sampled_from(SETTINGS)
SLOTS = next(setting for setting in SETTINGS if setting.key == "slots")


@settings(max_examples=300)
@given(setting=rows, text=texts)
@example(setting=SLOTS, text="9" * 5000)
def test_text_is_accepted_or_refused_and_its_display_round_trips(
    setting: Setting, text: str
) -> None:
    """Any output of `octaskly config` may be put into a variable."""
    with suppress(InvalidValue):
        value = setting.value_type.parse_text(text)

        assert setting.value_type.parse_text(setting.value_type.format(value)) == value


@settings(max_examples=300)
@given(setting=rows, value=values)
def test_file_value_is_accepted_or_refused_with_the_allowed_ones(
    setting: Setting, value: object
) -> None:
    """No file ends an agent with a traceback."""
    faults: tuple[tuple[object, str], ...] = ()
    try:
        setting.value_type.parse_toml(value)
    except InvalidValue as error:
        faults = error.faults

    assert all(allowed for _, allowed in faults)
