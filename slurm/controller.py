"""submitit's controller of a local job, without its limit of six lives: a long run meets its time limit more often.

python -m slurm.controller FOLDER       (the folder of the submission)
"""

import sys
from pathlib import Path

from submitit.local.local import Controller

LIVES = 1_000_000

if __name__ == "__main__":
    Controller(Path(sys.argv[1])).run(max_retry=LIVES)
