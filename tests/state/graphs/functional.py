"""The functional API: an @entrypoint, whose tasks' results are stored."""

from __future__ import annotations

from dataclasses import dataclass

from langgraph.func import entrypoint, task


@dataclass
class Draft:
    text: str


@dataclass
class Verdict:
    scores: tuple[int, int]


@task
def write(topic: str) -> Draft:
    return Draft(topic)


@task
def judge(draft: Draft) -> Verdict:
    return Verdict((len(draft.text), 1))


@task
def unknown(draft: Draft):  # type: ignore[no-untyped-def]
    return draft


def review(draft: Draft) -> Verdict:
    unknown(draft)
    return judge(draft).result()


@entrypoint()
def graph(
    topic: str, *, previous: dict[str, Draft] | None = None
) -> entrypoint.final[str, dict[str, set[tuple[int, int]]]]:
    verdict = review(write(topic).result())
    return entrypoint.final(value=topic, save={"scores": {verdict.scores}})
