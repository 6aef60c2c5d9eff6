"""First against last evaluation: paired by prompt, whatever else was measured in between."""

import pytest

from upslope.evaluation.held_out import curve, gain
from upslope.evaluation.intervals import mean_interval, paired_gain


def evaluation(step, **values):
    return {"kind": "evaluate", "step": step, "values": values}


def test_the_gain_is_that_of_common_prompts_from_first_to_last():
    events = [evaluation(0, a=0.0, b=1.0, c=0.0), evaluation(5, a=0.0, b=0.0), evaluation(9, b=1.0, c=1.0, d=0.0)]
    found = gain(events)
    assert (found.before.step, found.after.step, found.before.num_prompts) == (0, 9, 2)
    assert found.before.interval == mean_interval([1.0, 0.0])
    assert found.after.interval == mean_interval([1.0, 1.0])
    assert found.gain == paired_gain([1.0, 0.0], [1.0, 1.0])
    assert found.gain.estimate == 0.5


def test_the_curve_has_every_evaluation_over_all_of_its_prompts():
    found = curve([evaluation(0, a=0.0, b=1.0, c=0.0), evaluation(5, a=1.0, b=1.0)])
    assert [(one.step, one.num_prompts, one.interval.estimate) for one in found] == [
        (0, 3, pytest.approx(1 / 3)),
        (5, 2, 1.0),
    ]


@pytest.mark.parametrize("events", [[], [evaluation(0, a=1.0)], [evaluation(0, a=1.0), evaluation(3, b=1.0)]])
def test_without_two_evaluations_of_one_prompt_there_is_no_gain(events):
    assert gain(events) is None
