from deploykit.drift import text
from deploykit.drift.comparison import Drift, WorstInput
from deploykit.drift.intervals import Figure
from deploykit.drift.run import Result, Side
from deploykit.drift.where import Layer, Where

ESCAPE = "\x1b[2J"


def test_no_name_of_a_bundle_reaches_the_terminal_as_an_escape_sequence():
    drift = Drift(2, 3, (Figure("drift", 0.1, 2),), (WorstInput(0, 0.9, f"a text{ESCAPE}"),), (), None, (f"n{ESCAPE}",))
    layers = (Layer(f"layer{ESCAPE}\nPASS: all is well", 12.0, None, 0.1), Layer("next", 9.0, 3.0, 0.1))
    place = Where(layers, f"The drift enters at {ESCAPE}.", 1, (ESCAPE,))
    sides = Side(f"a@{ESCAPE}", f"x{ESCAPE}\x9b"), Side(f"b@{ESCAPE}", "y")
    shown = text.render(Result(*sides, f"data{ESCAPE}", f"tokens{ESCAPE}", drift, None, place, f"note{ESCAPE}"))
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "layer\N{REPLACEMENT CHARACTER}[2J PASS: all is well" in shown
    assert len(shown.splitlines()) > 10
