"""A clean report on a random schema means that its values come back, in another process."""

import importlib
import sys

from hypothesis import given, settings

from lghard.state.graph import check_schema
from tests.state.generated import module_of, schemas
from tests.state.round_trip import EQUAL, fates

UNKNOWN = {"LGS316", "LGS404"}


def drawn(count):
    """So many random schemas; one process writes the values of all, and one reads them."""
    pieces = {}

    @settings(max_examples=count)
    @given(schemas)
    def draw(piece):
        pieces[piece.annotation] = piece

    draw()
    return list(pieces.values())


def test_clean_means_equal(tmp_path_factory):
    """Neither a finding nor a note, and every value comes back the same."""
    pieces = drawn(min(30 * settings.default.max_examples, 3000))
    source = module_of(pieces)
    name = f"generated_{abs(hash(source))}"
    folder = tmp_path_factory.mktemp("generated")
    (folder / f"{name}.py").write_text(source)
    sys.path.insert(0, str(folder))
    try:
        cases = importlib.import_module(name).CASES
        reports = {number: check_schema(case.annotation) for number, case in cases.items()}
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)
    become = fates(name, folder / "written", path=folder)
    wrong = {
        cases[number].annotation: (become[number], pieces[int(number)])
        for number, report in reports.items()
        if report.clean and not UNKNOWN & set(report.rules) and set(become[number]) - {EQUAL}
    }
    assert {} == wrong
