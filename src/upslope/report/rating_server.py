"""The page on which a person rates a run's samples, served to this machine's user alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from upslope.errors import RecordError
from upslope.report.html import rating_page
from upslope.report.inspector import prompt_view
from upslope.report.local_server import Exchange, LocalServer
from upslope.report.questions import Question, questions
from upslope.report.ratings import COMPARISONS, STARS, Rating, Ratings
from upslope.report.run import Run


class RatingServer(LocalServer):
    """Asks one rater one question after another, of which none is asked again once its rating is on the disk.

        GET  /TOKEN/      the page; opening it again brings the samples that have come since
        GET  /TOKEN/next  the first question that this rater has not rated
        POST /TOKEN/rate  {question, verdict, seconds}: writes a rating, answers with the next question
        POST /TOKEN/undo  {question}: takes a rating back, answers with that question

    Nothing that is sent says which step or model wrote an answer. Raises: RecordError when there is nothing to rate, or
    the port is taken.
    """

    def __init__(self, run: Run, ratings: Ratings, *, stars: bool, rater: str, seed: int, port: int) -> None:
        self.run, self.ratings = run, ratings
        self._stars, self._rater, self._seed = stars, rater, seed
        self._questions = self._read()
        if not self._questions:
            wanted = "a sample" if stars else "two different samples of one prompt"
            raise RecordError(
                f"{run.folder} has not logged {wanted}, so there is nothing to rate; run.samples_per_step and "
                "run.samples_per_evaluation say how many are kept"
            )
        actions = {("GET", ""): self._page, ("GET", "next"): self._next}
        super().__init__(actions | {("POST", "rate"): self._rate, ("POST", "undo"): self._undo}, port=port)

    def own_ratings(self) -> list[Rating]:
        """The rater's standing ratings of the questions there are, in the order they were given."""
        known = self._questions
        return [r for r in self.ratings.standing() if r["rater"] == self._rater and r["question"] in known]

    def _read(self) -> dict[str, Question]:
        samples = [*self.run.samples(), *self.run.samples(kind="held_out")]
        return {question.id: question for question in questions(samples, stars=self._stars, seed=self._seed)}

    def _page(self, exchange: Exchange) -> None:
        self._questions = self._read()
        data = {"stars": self._stars, "rater": self._rater, "path": str(self.ratings.path)}
        html = rating_page(data, title=f"rate {self.run.folder.resolve().name} · upslope")
        exchange.send(HTTPStatus.OK, html.encode(), "text/html; charset=utf-8")

    def _next(self, exchange: Exchange) -> None:
        exchange.send_json(HTTPStatus.OK, self._state())

    def _rate(self, exchange: Exchange) -> None:
        posted = exchange.posted() or {}
        question, seconds, said = self._asked(posted), posted.get("seconds"), posted.get("verdict")
        allowed: Sequence[str | int] = STARS if self._stars else COMPARISONS
        verdict = next((each for each in allowed if each == said and type(each) is type(said)), None)  # 1 == True
        timed = isinstance(seconds, int | float) and 0 <= seconds < math.inf
        if question is None or verdict is None or seconds is None or not timed:
            exchange.send_json(HTTPStatus.BAD_REQUEST, {"problem": "this is no rating of a question that was asked"})
            return
        try:
            fresh = self.ratings.add(question, verdict, rater=self._rater, seconds=round(seconds, 2), seed=self._seed)
        except RecordError as error:
            exchange.send_json(HTTPStatus.INSUFFICIENT_STORAGE, {"problem": str(error)})
        else:
            exchange.send_json(HTTPStatus.OK, self._state() | {"fresh": fresh})

    def _undo(self, exchange: Exchange) -> None:
        question = self._asked(exchange.posted() or {})
        if question is None:
            exchange.send_json(HTTPStatus.BAD_REQUEST, {"problem": "there is no such question"})
            return
        try:
            undone = self.ratings.take_back(question.id, rater=self._rater)
        except RecordError as error:
            exchange.send_json(HTTPStatus.INSUFFICIENT_STORAGE, {"problem": str(error)})
        else:
            exchange.send_json(HTTPStatus.OK, self._state(question if undone else None))

    def _asked(self, posted: dict[str, Any]) -> Question | None:
        return self._questions.get(str(posted.get("question")))

    def _state(self, wanted: Question | None = None) -> dict[str, Any]:
        """The question to ask (the wanted one, else the first unrated), how many are rated, and the last of them."""
        rated = [rating["question"] for rating in self.own_ratings()]
        known = set(rated)
        asked = wanted or next((question for id, question in self._questions.items() if id not in known), None)
        counts = {"rated": len(rated), "total": len(self._questions), "last": rated[-1] if rated else None}
        return {"question": None if asked is None else _shown(asked), **counts}


def _shown(question: Question) -> dict[str, Any]:
    """What the rater may know of a question."""
    answers = [{"text": answer.text, "cut": answer.cut} for answer in question.answers]
    return {"id": question.id, "prompt": prompt_view(question.prompt), "answers": answers}
