"""The page of advantage estimators: its numbers, its drawing, and that no text gets out of its place."""

from __future__ import annotations

import re

import pytest

from upslope.report.estimators import estimator_document

HOSTILE = "</title><script>window.attacked = 1</script>"


def judged(name, family, error, lam=None, head=None):
    return {
        "name": name,
        "family": family,
        "lam": lam,
        "head": head,
        "agreement": {
            "error": error,
            "more_error": [-0.5, -0.75, None],
            "alignment": [0.5, 0.25, 0.75],
            "slope": [1.0, 0.8, 1.2],
            "rank_corrected": None,
            "sign": [0.625, 0.5, 0.75],
        },
        "seconds": 0.1,
    }


def place(name, problem=None):
    estimators = [judged(f"GAE({lam:g})", "critic", [10**lam, 0.9, 20.0], lam) for lam in (0.0, 0.5, 1.0)]
    estimators.append(judged("heads", "advantage head", [0.125, -0.03, None]))
    return {
        "name": name,
        "problem": problem,
        "num_decisions": 12,
        "num_prompts": 3,
        "estimators": [] if problem else estimators,
    }


@pytest.fixture
def found():
    return {
        "model": f"runs/{HOSTILE}",
        "task": "sums",
        "sentence": f"least error: heads {HOSTILE}",
        "shown": "held-out prompts",
        "reference": "GAE(1)",
        "temperature": 1.0,
        "gamma": 1.0,
        "rows": 4,
        "branches": 16,
        "fit": {"num_actions": 77, "num_prompts": 9},
        "places": [place("training prompts"), place("held-out prompts"), place("at temperature 2", "all <equal>")],
        "figures": {
            "error": ("error", "0 is perfect"),
            "more_error": ("more than own", "below 0 is better"),
            "alignment": ("alignment", "cosine"),
            "slope": ("slope", "1 is unbiased"),
            "rank_corrected": ("rank", "Spearman"),
            "sign": ("sign", "share"),
        },
        "costs": [("what", "tokens"), ("critic", "in training")],
        "where": [("place", "prompts"), ("held-out prompts", "3")],
        "absent": {"critic": f"none {HOSTILE}"},
        "notes": ["few & rough"],
    }


def test_text_stays_text_and_no_script_may_run(found):
    page = estimator_document(found).html()
    assert "<script" not in page
    assert page.count("&lt;script&gt;window.attacked") == 4  # the title twice, the sentence, a note
    assert "few &amp; rough" in page
    assert "at temperature 2: all &lt;equal&gt;" in page
    assert "script-src" not in page
    assert "default-src 'none'" in page


def test_every_number_stands_in_the_tables(found):
    page = estimator_document(found).html()
    assert page.count("<summary>on ") == 2
    assert page.count(" open><summary>on held-out prompts") == 1
    assert page.count("<b>0.12</b> [−0.03, ∞]") == 2
    assert page.count("<b>−0.50</b> [−0.75, ∞]") == 8
    assert page.count('<tr class="own">') == 2


def test_curves_lie_where_their_numbers_are(found):
    """One decade of the error is one distance: 1, 3.16 and 10 stand at equal steps on the logarithmic axis."""
    line = re.search(r'<polyline points="([^"]+)"', estimator_document(found).html()).group(1)
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 > y1 > y2


def test_the_page_opens_in_a_browser(found, open_page, tmp_path):
    (tmp_path / "page.html").write_text(estimator_document(found).html())
    shown = open_page(f"file://{tmp_path}/page.html")
    assert shown.locator("svg").count() == 4
    assert shown.locator("details[open] tbody tr").count() == 4
    assert shown.locator("details[open] th.number, details[open] tbody th").first.inner_text() == "GAE(0)"
    box, inner = shown.locator("svg").first.bounding_box(), shown.locator("svg circle").first.bounding_box()
    assert box["x"] <= inner["x"] <= box["x"] + box["width"]
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
