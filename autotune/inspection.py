"""A stored study as people look at it: figures, words and plots. For notebooks and scripts.

    from autotune import inspection

    study = inspection.open_view("studies/autotune.db")
    print(inspection.headline(study))
    inspection.plots.waterfall(study).show()

`load_study` gives the trials as a table. Everything takes the `StudyView` that `open_view` gives,
of a run that has ended or goes on; `view.result` is the answer, once there is one.
"""

from __future__ import annotations

from autotune.report import plots
from autotune.report.dataframe import load_study
from autotune.report.diagnosis import Finding, findings
from autotune.report.study_view import StudyView, open_view
from autotune.report.text import (
    batch_sizes,
    bottlenecks,
    certainty,
    comparison,
    headline,
    verdict,
)

__all__ = [
    "Finding",
    "StudyView",
    "batch_sizes",
    "bottlenecks",
    "certainty",
    "comparison",
    "findings",
    "headline",
    "load_study",
    "open_view",
    "plots",
    "verdict",
]
