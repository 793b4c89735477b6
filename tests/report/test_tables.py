"""Cells and their two scripts."""

import math

import pytest

from floral.core.intervals import Interval, t_interval
from floral.report.latex import latex
from floral.report.style import Style
from floral.report.tables import Cell, Column, amount, grid, interval_cell, number, unbroken

LOOK = Style(id="a", title="A <1 %> & b", short="A", family="F", group="method", colour="#aa0000", dashed=True)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (4810, "4.81\u2009k"), (1e6, "1\u2009M"), (2.5, "2.5"), (0.04, "0.04")]
)
def test_amounts_have_three_digits(value, text):
    assert amount(value) == text


def test_numbers_have_a_true_minus():
    assert number(-1.25, 1) == "\u22121.2" and number(1.0, 1, sign=True) == "+1.0"
    assert number(0.0, 1) == "0.0" and number(0.0, None, sign=True) == number(-0.004, 2) == "0.00"
    errors = [3.7518, 0.47, -2.64e-5, 248.0, 12345.0, 1.14e-11]
    assert [number(error, None) for error in errors] == [
        "3.75",
        "0.470",
        "\u22122.64e\u22125",
        "248",
        "1.23e+4",
        "1.14e\u221211",
    ]
    assert unbroken("85.4 ± 3.9 %") == "85.4\u00a0±\u00a03.9\u00a0%"


def test_interval_cells():
    assert interval_cell(t_interval([1.0, 2.0, 3.0]), 1, usual=3) == Cell(text="2.0 ± 2.5", order=2.0)
    assert interval_cell(t_interval([1.0, 2.0, 3.0]), 1, usual=5).note == "n = 3"
    assert interval_cell(t_interval([1.0]), 1, note="1/2 failed", usual=1).note == "n = 1; 1/2 failed"


@pytest.mark.parametrize(
    ("ends", "ratio", "text"),
    [
        ((0.04, 0.24), False, "+0.14 ± 0.10"),  # with one digit: +0.1 ± 0.1
        ((-0.02, 0.22), False, "+0.1 ± 0.1"),
        ((-0.051, 1.95), False, "+0.9 ± 1.0"),
        ((1.0, 3.0), False, "+2.0 ± 1.0"),
        ((0.5, 0.9997), True, "0.7070 [0.5000, 0.9997]"),
        ((0.5, 0.9), True, "0.671 [0.500, 0.900]"),
    ],
)
def test_a_difference_has_the_digits_that_decide(ends, ratio, text):
    low, high = ends
    mean = math.sqrt(low * high) if ratio else (low + high) / 2
    interval = Interval(mean=mean, low=low, high=high, n=3, neutral=float(ratio))
    assert interval_cell(interval, None if ratio else 1, sign=True, usual=3).text == text


def test_both_scripts_escape_what_they_must():
    cells = {"x": Cell(text="1.0 ± 0.2", note="n < 5 & odd", order=1.0, mark="best")}
    table = grid("t", [Column(id="x", title="X, %", spanner="S")], [(LOOK, cells)], "50 % of it")
    assert "A &lt;1\u00a0%&gt; &amp; b" in table.html and "n &lt; 5 &amp; odd" in table.html
    assert 'class="cell best" data-order="1"' in table.html and "<style" not in table.html
    assert r"A $<$1 \%$>$ \& b" in table.latex and r"\textbf{1.0 $\pm$ 0.2}" in table.latex
    assert r"\caption{50 \% of it. Bold results cannot be told from the best one.\label{tab:t}}" in table.latex


def test_absent_cells_are_dashes():
    table = grid("t", [Column(id="x", title="X")], [(LOOK, {})], "")
    assert "\u2013" in table.html and "--" in table.latex


def test_latex_specials():
    assert latex(r"50 % of_x & {y} \ ~ ^ −1") == (
        r"50 \% of\_x \& \{y\} \textbackslash{} \textasciitilde{} \textasciicircum{} $-$1"
    )
