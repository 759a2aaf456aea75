"""What pytest needs everywhere: one thread, and a look at the pictures that nbval does not compare."""

import base64
import io
import os
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell
from PIL import Image, ImageChops

# Before torch is imported, here and in the kernels: the same sums on every machine, and no fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers(config):
    """None for a single file, whose tests stay on one worker anyway: starting it would take longer than a lesson."""
    return 0 if len(config.args) == 1 and Path(config.args[0].partition("::")[0]).is_file() else 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Notice a stale picture, wherever the matplotlib and FreeType at work are those that drew the stored one."""
    result = yield
    if isinstance(item, IPyNbCell):
        stored, drawn = pictures(item.cell.outputs), pictures(item.test_outputs)
        # How many there are is compared by nbval, through their words.
        for old, new in zip(stored, drawn, strict=False):
            if old.info.get("Software") == new.info.get("Software") and differ(old, new):
                item.raise_cell_error("The stored picture is stale: it is not the one drawn now. Run 'make save'.")
    return result


def differ(old, new):
    """Numbers that differ in the last digit, as between processors, shade a pixel by one level of 255: allow a few."""
    levels = ImageChops.difference(old.convert("RGB"), new.convert("RGB")).getextrema()
    return old.size != new.size or max(high for _, high in levels) > 4


def pictures(outputs):
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found if png]
