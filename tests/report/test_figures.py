"""What can be checked of a picture without looking at it."""

import re
from dataclasses import replace
from itertools import combinations, pairwise

import polars as pl
import pytest

from floral.config.suites import suite_runs
from floral.report.charts import axes, render, scatter
from floral.report.charts.axes import Axis
from floral.report.charts.colour_difference import difference
from floral.report.charts.curves import curves
from floral.report.compared import methods
from floral.report.figures.axis_range import far_methods, round_outwards
from floral.report.figures.method_rows import method_rows
from floral.report.latex import article
from floral.report.style import MAX_LINES, REFERENCE, Style, assign_styles, method_styles
from floral.report.templates import template_yaml

PALETTE = {"families": {"A": 20, "Control": "none"}, "variants": {"one": {"colour": "#aa0000", "short": "One"}}}


def style(name: str, colour: str) -> Style:
    return Style(id=name, title=name, short=name, family="A", group="method", colour=colour, dashed=False)


COLUMN = render.PRESETS["column"]
TWO = [style("a", "#aa0000"), style("b", "#00aa00")]


def line(name: str, xs: list[float], ys: list[float]) -> pl.DataFrame:
    xs, ys = [float(x) for x in xs], [float(y) for y in ys]
    return pl.DataFrame({"method_id": [name] * len(xs), "x": xs, "mean": ys, "low": ys, "high": ys, "n": [1] * len(xs)})


def drawn(chart: render.Drawing, name: str = "figure") -> render.Figure:
    return render.render(chart, COLUMN, name, "Title", "Subtitle", 'says "what" & why')


def test_same_drawing_same_bytes_in_any_order():
    chart = curves(line("a", [0, 1, 2], [0.1, 0.2, 0.3]), TWO, Axis(title="x"), Axis(title="y"), COLUMN)
    first = drawn(chart)
    drawn(curves(line("b", [0, 1], [0.1, 0.2]), TWO, Axis(title="x"), Axis(title="y"), COLUMN))
    assert drawn(chart).svg == first.svg and first.pdf.startswith(b"%PDF")


def test_inline_svg_has_its_own_ids_and_an_accessible_name():
    chart = curves(line("a", [0, 1, 2], [0.1, 0.2, 0.3]), TWO, Axis(title="x"), Axis(title="y"), COLUMN)
    inline = drawn(chart, "curves_task").inline
    assert 'aria-label="says &quot;what&quot; &amp; why"' in inline
    assert re.findall(r'id="([^"]+)"', inline) and all(
        i.startswith("curves_task-") for i in re.findall(r'id="([^"]+)"', inline)
    )


def test_what_spends_nothing_is_a_level_on_a_logarithmic_axis():
    frame = pl.concat([line("a", [0, 10, 100], [0.1, 0.5, 0.9]), line("b", [0, 0, 0], [0.2, 0.3, 0.4])])
    chart = curves(frame, TWO, Axis(title="bytes", log=True), Axis(title="y"), COLUMN)
    assert chart.data["lines"]["method_id"].unique().to_list() == ["a"] and 0 not in chart.data["lines"]["x"].to_list()
    assert chart.data["levels"]["mean"].to_list() == [0.4]
    assert "#00aa00" in drawn(chart).svg


def test_labels_never_overlap_and_keep_the_order_of_the_lines():
    many = [style(f"m{i}", f"#0000{i:02x}") for i in range(12)]
    frame = pl.concat([line(one.id, [0, 1], [0.0, 0.5 + 0.0001 * i]) for i, one in enumerate(many)])
    labels = curves(frame, many, Axis(title="x"), Axis(title="y"), COLUMN).data["labels"]
    heights = labels["label_y"].to_list()
    assert labels["method_id"].to_list() == [f"m{i}" for i in reversed(range(12))]
    gaps = [above - below for above, below in pairwise(heights)]
    assert min(gaps) == pytest.approx(max(gaps)) and min(gaps) > 0


def test_ticks_of_a_logarithmic_axis_areround_outwards():
    # 1, 2 and 5 would be six places (5 to 200): 1 and 3 are four
    assert axes.tick_options(Axis(title="x", log=True), 3, 250)["values"] == [3, 10, 30, 100]
    assert axes.tick_options(Axis(title="x", log=True), 1900, 4000)["values"] == [2000, 3000]


def test_no_two_methods_share_a_colour():
    variants = [(f"one-{i}", f"One {i}", "one", "A", False) for i in range(30)]
    found = assign_styles([*variants, ("c", "C", "c", "Control", False), ("u", "U", "u", "Unknown", True)], PALETTE)
    assert len({one.colour for one in found.values()}) == 32
    assert found["one-0"].colour == "#aa0000" and found["one-0"].short == "One"
    assert [one.group for one in found.values()][-2:] == ["oracle", "control"]


def test_methods_stand_by_family_in_the_palettes_order_and_others_below():
    palette = {
        "families": {"B": 1, "A": 2, "Control": "none"},
        "variants": {"a2": {"colour": "#123456", "group": "control"}},
    }
    told = [("a", "A", False), ("b", "B", False), ("c", "Control", False), ("n", "New", False), ("o", "A", True)]
    found = assign_styles(
        [(name, name, name, family, oracle) for name, family, oracle in [*told, ("a2", "A", False)]], palette
    )
    assert [(one.id, one.group_title) for one in found.values()] == [
        ("b", "B"), ("a", "A"), ("n", "New"), ("o", "Told the true clusters"), ("c", "Controls"), ("a2", "Controls"),
    ]  # fmt: skip


def test_names_of_marks_overlap_neither_each_other_nor_a_mark():
    many = [style(f"method {i}", f"#0000{i:02x}") for i in range(30)]
    rows = {"method_id": [one.id for one in many], "x": [1e6 * (1 + i // 12) for i in range(30)]}
    values = [50.0 + i % 5 for i in range(30)]
    frame = pl.DataFrame({**rows, "mean": values, "low": values, "high": values})
    drawing = scatter.scatter(
        frame, many, Axis(title="x", log=True), Axis(title="y"), (40.0, 60.0), COLUMN, rows["method_id"]
    )
    boxes = [
        (row["text_x"], row["to_y"], row["text_x"] + render.LETTER_POINTS * len(row["short"]))
        for row in drawing.data["labels"].iter_rows(named=True)
    ]
    for at, (left, y, right) in enumerate(boxes):
        for other_left, other_y, other_right in boxes[at + 1 :]:
            assert abs(y - other_y) >= scatter.LABEL_HEIGHT - 1 or right <= other_left or other_right <= left
    assert len(boxes) == 30


def test_what_sends_nothing_stands_at_the_left_edge():
    frame = line("a", [0], [50]).vstack(line("b", [1e6], [60]))
    drawing = scatter.scatter(frame, TWO, Axis(title="bytes", log=True), Axis(title="y"), (40.0, 70.0), COLUMN, ())
    at = dict(drawing.data["marks"].select("method_id", "x").iter_rows())
    assert 0 < at["a"] < at["b"] == 1e6
    assert ">0<" in drawn(drawing).svg


@pytest.mark.parametrize(
    ("ends", "domain"),
    [((81.3, 94.6), (80, 95)), ((62.0, 100.0), (60, 100)), ((10.8, 76.0), (0, 80)), ((99.98, 99.98), (98, 100))],
)
def test_an_axis_of_accuracies_is_round_and_ends_at_100(ends, domain):
    assert round_outwards(ends, 0, 100) == domain


def test_only_a_control_far_from_all_rivals_stands_outside():
    rivals = {"a": (82.0, 84.0), "b": (85.0, 92.0)}
    assert far_methods({**rivals, "c": (8.0, 8.0)}, {"c"}) == {"c"}
    assert far_methods({**rivals, "c": (8.0, 8.0)}, set()) == set()
    assert far_methods({**rivals, "c": (78.0, 78.0)}, {"c"}) == set()
    assert far_methods({"a": (40.0, 77.0), "c": (10.0, 10.0)}, {"c"}) == set()  # little room is gained
    assert far_methods({"c": (10.0, 10.0)}, {"c"}) == set()


def test_one_outlier_does_not_squeeze_an_axis():
    near = {f"m{i}": (80.0 + i, 82.0 + i) for i in range(9)}
    assert far_methods({**near, "outlier": (12.0, 14.0)}, set()) == {"outlier"}
    assert far_methods({**near, "two": (12.0, 14.0), "more": (10.0, 14.0)}, set()) == set(), "they are no exception"


def test_an_interval_is_cut_where_no_value_can_be(results, suite_runs):
    from floral.report.collect import collect

    configuration = collect("quickstart", suite_runs, results).configurations[0]
    marks = [("a", "interval", 60.0, 112.0), ("a", "dot", 87.0, None), ("b", "dot", 90.0, None)]
    figure = method_rows(marks, TWO, configuration, COLUMN, "result", "Accuracy, %", 1, "mean", "told")
    assert (
        figure.subtitle == "mean; interval cut at 0 or 100 %: a" and ">100<" in figure.svg and ">120<" not in figure.svg
    )


def test_errors_over_powers_of_ten_have_a_logarithmic_axis(tmp_path):
    from floral.report.collect import collect

    runs = suite_runs("paper_synthetic", ["synthetic_linear"], ["fedavg"], [0])
    configuration = collect("paper_synthetic", runs, tmp_path).configurations[0]
    near = [("a", "interval", -1.0, 3.0), ("a", "dot", 1.0, None), ("b", "dot", 0.5, None)]
    far = [*near[:2], ("b", "dot", 1e-9, None)]
    linear, log = (
        method_rows(marks, TWO, configuration, COLUMN, "result", "Test MSE", None, "mean", "told")
        for marks in (near, far)
    )
    assert linear.plane["x"].type == "linear" and "interval cut at 0: a" in linear.subtitle
    assert log.plane["x"].type == "log" and "interval cut at the end of the axis: a" in log.subtitle
    start = log.plane["x"].domain[0]
    assert 0 < start < 1e-9 and sorted(log.table["value"]) == pytest.approx([start, 1e-9, 1.0], rel=1e-5)


@pytest.mark.parametrize("preset", render.PRESETS.values(), ids=render.PRESETS)
def test_a_figure_has_the_width_of_its_preset_and_letters_of_7_to_8_points(preset):
    names = [(f"m{i}", f"Method {i} (a long name)", f"F{i % 9}") for i in range(40)]
    many = [replace(style(name, "#aa0000"), short=short, family=family) for name, short, family in names]
    frame = pl.concat([line(one.id, [1, 2e6], [0.1, 0.5 + 0.01 * i]) for i, one in enumerate(many)])
    axis_titles = Axis(title="Bytes sent so far, all clients", log=True, unit="B"), Axis(title="Accuracy, %")
    for drawn_methods in (many[:8], sorted(many, key=lambda one: one.family)):
        of_methods = frame.filter(pl.col("method_id").is_in([one.id for one in drawn_methods]))
        drawing = curves(of_methods, drawn_methods, *axis_titles, preset)
        figure = render.render(drawing, preset, "f", "Title", "Sub", "")
        several = len(drawn_methods) > MAX_LINES
        assert figure.width == preset.zoom * (preset.several if several else preset.width)
        assert (r"\begin{figure*}" in article("", [[(figure, "")]], [])) == (several or preset.width > 300)
        natural = float(re.search(r'viewBox="0 0 ([\d.]+)', figure.svg)[1])
        assert natural * preset.zoom == figure.width, "it was made smaller"
        sizes = {float(size) for size in re.findall(r'font-size="([\d.]+)px"', figure.svg)}
        assert sizes and min(sizes) >= 7 and max(sizes) <= 8
        assert ">Title<" not in figure.svg and ">Accuracy, %<" in figure.svg and "MB<" in figure.svg
        assert len(drawing.chart.get("concat", [])) == (9 if several else 0), "a panel per family"


def test_numbers_of_an_axis_have_one_form():
    assert axes.number_texts([0.01, 0.1, 1.0]) == ["0.01", "0.1", "1"]
    assert axes.number_texts([1e-8, 3e-5, 0.01]) == ["10⁻⁸", "3·10⁻⁵", "10⁻²"]


@pytest.mark.parametrize("suite", ["quickstart", "paper_mnist_reduced", "methods"])
def test_methods_drawn_together_are_told_apart_with_any_vision(suite):
    """Their colours differ by ΔE 12 for normal vision and the three dichromacies, or both dash and marker differ."""
    found = method_styles(methods(suite_runs(suite)).values(), template_yaml("styles.yaml")).values()
    alike = [
        (one.id, other.id)
        for one, other in combinations(found, 2)
        if len(found) <= MAX_LINES or one.group_title == other.group_title or REFERENCE in (one.id, other.id)
        if difference(one.colour, other.colour) < 12
        if one.line[0] == other.line[0] or one.line[1] == other.line[1]
    ]
    assert alike == []
    assert difference("#d9531e", "#b5811a") == pytest.approx(2.3, abs=0.1), "FLoRAL 1 % and 10 % for deuteranopes"
