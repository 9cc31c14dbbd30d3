"""The lines of the loop that asks for batches, as the source has them."""

import sys

from autotune.instrument import loop_region
from autotune.instrument.loop_region import LoopRegion

SOURCE = """
def train(ask):
    for epoch in range(3):
        for batch in range(2):
            ask()
    return "left"
"""


def test_the_source_is_looked_at_once_however_many_passes_there_are(tmp_path):
    path = tmp_path / "trainer.py"
    path.write_text(SOURCE)
    regions, looks = [], []

    def ask():
        region = LoopRegion(sys._getframe(1))
        regions.append((region.is_left, region.ends_with_its_iterator))
        looks.append(loop_region._loops_in.cache_info().misses)

    names = {}
    exec(compile(SOURCE, str(path), "exec"), names)
    assert names["train"](ask) == "left"
    assert regions == [(False, False)] * 6
    assert len(set(looks)) == 1
