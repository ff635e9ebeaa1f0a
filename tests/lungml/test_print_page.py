"""Bars of round lengths, and words that fit their line."""

from __future__ import annotations

from lungml.print_page import bar_length_mm, minus, short_uid, words_of


def test_bars_are_round_and_at_most_a_quarter_or_so() -> None:
    assert [bar_length_mm(mm) for mm in (360, 60, 34, 12, 2)] == [100, 10, 5, 2, 1]


def test_a_long_or_foreign_series_uid_is_cut() -> None:
    assert short_uid("1.2") == "Series 1.2"
    assert len(short_uid("1" * 128)) == 71
    assert short_uid("é") == "Series ?"


def test_a_place_is_told_with_its_unit_and_frame() -> None:
    assert minus(words_of((-1.25, 0, 3))) == "x \N{MINUS SIGN}1.2, y 0.0, z 3.0 mm (LPS)"
