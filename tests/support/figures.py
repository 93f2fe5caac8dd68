"""Figures that tests measure, for the summary of the run."""

FIGURE = "figure"  #: name of a test's property with one of them, as text

FIGURES: list[str] = []  #: those of the present test
