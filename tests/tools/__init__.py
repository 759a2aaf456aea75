"""What conftest.py, each tool and the kernels need before torch and tqdm are imported, so that outputs are equal."""

import os

# The same sums on every machine, and no fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A progress bar appears by the clock: under load also in lessons, where caching features takes a tenth of a second.
os.environ.setdefault("TQDM_DISABLE", "1")
