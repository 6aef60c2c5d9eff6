"""The stopwatch charges every moment to exactly one span."""

import time

from upslope.stopwatch import span, stopwatch


def test_spans_add_up_and_inner_time_is_charged_once():
    started = time.perf_counter()
    with stopwatch() as seconds:
        for _ in range(2):
            with span("outer"):
                time.sleep(0.02)
                with span("inner"):
                    time.sleep(0.03)
    elapsed = time.perf_counter() - started
    assert set(seconds) == {"outer", "inner"}
    assert seconds["inner"] >= 0.06
    assert seconds["outer"] >= 0.04
    assert sum(seconds.values()) <= elapsed


def test_an_inner_stopwatch_keeps_its_own_and_no_stopwatch_keeps_nothing():
    with span("nobody is watching"):
        pass
    with stopwatch() as outer:
        with stopwatch() as inner, span("a"):
            pass
        with span("b"):
            pass
    assert set(inner) == {"a"}
    assert set(outer) == {"b"}
