"""Goals of the benchmarks, and that what misses one says why."""

import pytest

from bench import goals, readme


def test_a_missed_goal_is_told_with_what_the_roofline_leaves():
    def row(speedup, percent, group="short", launch="eager"):
        return {
            "case": f"case {speedup}",
            "group": group,
            "dtype": "float32",
            "phase": "forward",
        } | {"launch": launch, "speedup": speedup, "percent_of_roofline": percent}

    rows = [row(1.0, 50), row(4.0, 50), row(0.5, 90, "long"), row(0.1, 1, launch="graph")]
    met = goals.Goal("float32", "forward", 1.9, 49, "short")
    missed = goals.Goal("float32", "forward", 3, 60, "short")
    elsewhere = goals.Goal("float32", "forward", 99, isa="avx2")
    slow = "below 1.0x: 1 of 3, least 0.50x (case 0.5, float32 forward)"
    assert list(goals.shortfalls(rows, [met, elsewhere], "")) == [slow]
    assert list(goals.shortfalls(rows, [missed], "")) == [
        "float32 forward, short: 2.00 of 3x (roofline: 4.0x)",
        "float32 forward, short: 50 of 60 % of the roofline",
        slow,
    ]


@pytest.mark.parametrize("line", readme.short_of_goals().splitlines()[2:])
def test_what_is_short_of_its_goals_says_what_limits_it(line):
    op, _, limited_by = (cell.strip() for cell in line.strip("|").split(" | "))
    assert limited_by.strip("| "), f"{op}: fill in `limited_by` of its benchmark"
