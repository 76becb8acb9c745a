"""Do AUC, DeLong's interval and DeLong's paired test give the figures of pROC's published examples?

    Rscript -e 'library(pROC); data(aSAH); write.csv(aSAH, "aSAH.csv")' && python benchmarks/proc_examples.py aSAH.csv

The patients' table comes with the R package pROC (GPL) and is not copied here; the figures below are those that the
package's documentation and tests print. Ends with an error where one differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from synthvision.evaluation.comparison import delong_paired
from synthvision.evaluation.intervals import delong

ALONE = {  # marker -> AUC and the ends of its 95% interval
    "wfns": (0.8236789, 0.7485349, 0.8988228),
    "s100b": (0.7313686, 0.6301182, 0.8326189),
    "ndka": (0.6119580, 0.5012450, 0.7226710),
}
PAIRED = {  # markers -> the ends of the difference's 95% interval, and p
    ("s100b", "wfns"): (-0.1742144, -0.0104062, 0.0271758),
    ("s100b", "ndka"): (-0.0488706, 0.2876917, 0.1642952),
}


def main(file: Path) -> None:
    """Print each figure beside the published one."""
    table = pd.read_csv(file)
    poor = (table["outcome"] == "Poor").to_numpy()
    rows = []
    for name, published in ALONE.items():
        found = delong(poor, table[name].to_numpy(float))
        rows.append((name, (found.value, found.low, found.high), published))
    for (first, second), published in PAIRED.items():
        difference, p = delong_paired(poor, table[first].to_numpy(float), table[second].to_numpy(float))
        rows.append((f"{first} - {second}", (difference.low, difference.high, p), published))
    for name, here, published in rows:
        print(f"{name:<14} {np.round(here, 7)} published {np.array(published)}")
        np.testing.assert_allclose(here, published, atol=1e-7)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
