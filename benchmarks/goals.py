"""Is a goal met? Of a row, or of several rows together."""

from math import exp, log
from typing import Any, NamedTuple

from benchmarks.benchmark import Goal, Mean
from benchmarks.suites import MEANS, SUITES

Spread = dict[str, Any]  # median, min, max, rounds


class Verdict(NamedTuple):
    """A line of the table of goals.

    Attributes:
      title: the row, or what the mean is of.
      what: the number that the goal bounds.
      value: it and its extremes; None where it could not be measured.
      goal: the bound.
      met: is it kept? None: not measured.
    """

    title: str
    what: str
    value: Spread | None
    goal: Goal
    met: bool | None


def verdicts(suite: str, results: dict[str, Any]) -> list[Verdict]:
    """Of every goal of a suite, by the results of its rows so far."""
    lines = [
        judge(name, goal, results.get(name))
        for name, bench in SUITES[suite].items()
        for goal in bench.goals
    ]
    return lines + [judge_mean(mean, results) for mean in MEANS[suite]]


def judge(title: str, goal: Goal, result: dict[str, Any] | None) -> Verdict:
    """One goal of one row."""
    what = goal.name and f"{goal.name}: "
    if not goal.against:
        what += "share of the roofline" if goal.roofline else "value"
        value = result and own_value(goal, result)
    else:
        peer = result and hardest_peer(goal, result)
        what += f"against {peer or ' or '.join(goal.against)}"
        value = result["ratios"][peer] if result and peer else None
    met = meets(goal, value["median"]) if value else None
    return Verdict(title, what, value, goal, met)


def judge_mean(mean: Mean, results: dict[str, Any]) -> Verdict:
    """The geometric mean of the rows' ratios, each to the row's hardest peer."""
    spreads = [judge(row, mean.goal, results.get(row)).value for row in mean.rows]
    what = f"{mean.goal.name and mean.goal.name + ': '}geometric mean"
    present = [spread for spread in spreads if spread]
    if len(present) < len(mean.rows):
        return Verdict(mean.title, what, None, mean.goal, None)
    value: Spread = {
        key: exp(sum(log(spread[key]) for spread in present) / len(present))
        for key in ("median", "min", "max")
    }
    return Verdict(
        mean.title, what, value, mean.goal, meets(mean.goal, value["median"])
    )


def own_value(goal: Goal, result: dict[str, Any]) -> Spread | None:
    """The first contender's value, as a share of the roofline if that is bounded."""
    value: Spread = next(iter(result["values"].values()))
    if not goal.roofline:
        return value
    if not result.get("roofline"):
        return None
    return {k: value[k] / result["roofline"] for k in ("median", "min", "max")}


def hardest_peer(goal: Goal, result: dict[str, Any]) -> str | None:
    """Of those that could be measured, the one with the ratio that is worst for us."""
    ratios = {name: result["ratios"][name]["median"] for name in goal.against
              if name in result["ratios"]}  # fmt: skip
    worst = max if goal.sign == "<=" else min
    return worst(ratios, key=ratios.__getitem__) if ratios else None


def meets(goal: Goal, value: float) -> bool:
    """Is the bound kept?"""
    return value >= goal.bound if goal.sign == ">=" else value <= goal.bound
