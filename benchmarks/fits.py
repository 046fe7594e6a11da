"""How well the laws are fitted: against published fits, planted truths, held-out runs and the clock.

    FITS_DATA=... python -m benchmarks.fits [--only PART_OF_NAME] [--studies N] [--design PART_OF_NAME]

FITS_DATA is a folder of public measurements (chinchilla_isoflop_234.csv, gemstones_*.jsonl,
gemstones_published_fits.csv, gadre_models.csv, datablations_points.csv); CHINCHILLA_POINTS, if set, is
the CSV of the 245 points digitised from Hoffmann et al. 2022, figure 4, with the columns `Model Size`,
`Training FLOP` and `loss`. Prints a table: what was measured, ours, and the bar. Times are of CPU.
"""

import argparse
import os
from pathlib import Path

from benchmarks.fits_planted import curves, digitised, planted
from benchmarks.fits_published import cold_start, forecasts, gadre, gemstones
from benchmarks.fits_speed import million_rows, report

PARTS = (
    cold_start, gemstones, gadre, curves, digitised, planted, forecasts, report, million_rows,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="only parts whose name holds this")
    parser.add_argument("--design", help="only planted designs whose name holds this")
    parser.add_argument("--studies", type=int, default=500, help="synthetic ones of each design")
    parser.add_argument("--first-seed", type=int, default=0, help="of the planted studies")
    options = parser.parse_args()
    if "FITS_DATA" not in os.environ:
        parser.error("FITS_DATA is not set; wanted the folder of public measurements")
    folder = Path(os.environ["FITS_DATA"])
    print("| what | ours | bar | met |\n|---|---|---|---|")
    for part in PARTS:
        if options.only and not any(text in part.__name__ for text in options.only):
            continue
        for row in part(folder, options):
            print(row.text(), flush=True)


if __name__ == "__main__":
    main()
