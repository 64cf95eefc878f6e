import pytest

from benchmarks.table import markdown, number


def test_table_is_markdown() -> None:
    assert markdown(["K", "ms"], [["4", "1.5"], ["8", "-"]]) == "| K | ms |\n|---|---:|\n| 4 | 1.5 |\n| 8 | - |"

    assert markdown(["a", "b", "c"], [], left=2).endswith("|---|---|---:|")


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0123456, "0.0123"), (12.345, "12.3"), (123.45, "123"), (12345.6, "12346")]
)
def test_number_has_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text
