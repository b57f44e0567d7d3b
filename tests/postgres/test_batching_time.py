"""Which of the time that operations stand in line counts against their deadlines, and which not."""

from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lghard.postgres.batch import Job
from lghard.postgres.batching import Line
from lghard.postgres.retries import Operation

# What may happen next to a line with a head in this state, or without one.
NEXT = {
    None: ["enter"],
    "waiting": ["send", "others served", "look", "enter"],
    "under way": ["serve", "put away", "others served", "look", "enter"],
    "away": ["try again", "others served", "look", "enter"],
}


class Clock:
    """A mock of `monotonic` where batches look at it."""

    def __init__(self):
        self.now = 100.0
        self._patches = ExitStack()

    def __enter__(self):
        for module in ("batch", "retries"):
            self._patches.enter_context(patch(f"lghard.postgres.{module}.monotonic", self))
        return self

    def __exit__(self, *exc_info):
        self._patches.close()

    def __call__(self):
        return self.now


def job_of(deadline):
    return Job(Operation("aput", deadline=deadline, attempt_timeout=1.0), ())


class InLine:
    """An operation, and all the time that it waited for others, written down as it passes."""

    def __init__(self, now, deadline):
        self.job = job_of(deadline)
        self.deadline = deadline
        self.entered_at = now
        self.turn_at = now  # since when it waits for those in other lines, if it is the head
        self.state = "waiting"
        self._periods = []

    def waits_for_others(self, since, until):
        self._periods.append((max(since, self.entered_at), until))

    def excused(self):
        """The length of all periods, where they overlap once."""
        total = end = 0.0
        for since, until in sorted(self._periods):
            total += max(0.0, until - max(since, end))
            end = max(end, until)
        return total


class Model:
    """A line, and what happens to it."""

    def __init__(self, clock):
        self.clock = clock
        self.line = Line("t")
        self.others_at = 0.0
        self.entered = 0
        self.all = []

    @property
    def state(self):
        return self.all[0].state if self.all else None

    def enter(self):
        """Every third one has no patience, and is not excused for long."""
        self.entered += 1
        self.all.append(InLine(self.clock.now, 1e6 if self.entered % 3 else 0.01))
        self.all[-1].job.line = self.line
        self.line.jobs.append(self.all[-1].job)

    def others_served(self):
        self.others_at = self.clock.now
        if self.state == "waiting":
            for each in self.all:
                each.waits_for_others(self.all[0].turn_at, self.clock.now)

    def send(self):
        self.line.excuse(self.others_at)
        self.all[0].state = "under way"

    def serve(self):
        served = self.all.pop(0)
        served.job.serve()
        self.line.jobs.popleft()
        self.check(served)
        for each in self.all:
            each.turn_at = self.clock.now
            each.waits_for_others(0.0, self.clock.now)

    def put_away(self):
        self.all[0].state = "away"

    def try_again(self):
        self.all[0].state = "waiting"
        self.all[0].turn_at = self.all[0].job.waits_since = self.clock.now

    def look(self):
        self.line.excuse(self.others_at if self.state == "waiting" else 0.0)
        for each in self.all:
            self.check(each)

    def check(self, each):
        if left := each.job.operation.remaining():
            later = left + self.clock.now - each.entered_at - each.deadline
            assert later == pytest.approx(min(each.excused(), 10 * each.deadline), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 59), st.sampled_from([0.0, 0.1, 0.7, 1.0])), min_size=9))
def test_what_is_not_counted_is_what_was_waited_while_others_were_served(events):
    """Once, however often somebody looks; and not what the head takes for itself."""
    with Clock() as clock:
        model = Model(clock)
        for which, seconds in events:
            clock.now += seconds
            names = NEXT[model.state]
            getattr(model, names[which % len(names)].replace(" ", "_"))()
        model.look()


@given(st.lists(st.floats(0.1, 1.0), min_size=20))
def test_no_more_than_ten_deadlines_are_not_counted(periods):
    """However long the line is."""
    with Clock() as clock:
        line, job = Line("t"), job_of(deadline=1.0)
        job.line = line
        line.jobs.append(job)
        for seconds in periods:
            clock.now += seconds
            line.excuse(clock.now)
            left = 1.0 + min(10.0, clock.now - 100.0) - (clock.now - 100.0)
            assert job.operation.remaining() == pytest.approx(max(0.0, left), abs=1e-6)
