from __future__ import annotations

from nnunetv2_pgl.errors import counted, one_line, size_text


def test_a_message_is_one_line_that_a_terminal_can_show() -> None:
    assert one_line(ValueError("/data/two  blanks/Schädel.nii.gz: is 2D")) == "/data/two  blanks/Schädel.nii.gz: is 2D"
    assert one_line("first\n  second\r\nthird\n") == "first second third"
    assert one_line("\x1b[2J\x1b]0;title\x07") == "?[2J?]0;title?"
    assert one_line("x" * 10**6) == "x" * 2000 + "..."


def test_numbers_in_messages() -> None:
    assert [counted(number, "scan") for number in (0, 1, 2)] == ["0 scans", "1 scan", "2 scans"]
    assert size_text((12, 0.8, 0.75)) == "12 x 0.8 x 0.75"
    assert size_text((10_000_000, 2)) == "10000000 x 2"
