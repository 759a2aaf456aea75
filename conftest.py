"""What pytest needs everywhere: one thread, and a look at the pictures that nbval does not compare."""

import base64
import io
import os

import pytest
from nbval.plugin import IPyNbCell
from PIL import Image

# Before torch is imported, here and in the kernels: the same sums on every machine, and no fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Notice a stale picture, wherever the matplotlib and FreeType at work are those that drew the stored one."""
    result = yield
    if isinstance(item, IPyNbCell):
        stored, drawn = pictures(item.cell.outputs), pictures(item.test_outputs)
        for old, new in zip(
            stored, drawn, strict=False
        ):  # how many there are is compared by nbval, through their words
            same_tool = old.info.get("Software") == new.info.get("Software")
            if same_tool and old.convert("RGBA").tobytes() != new.convert("RGBA").tobytes():
                item.raise_cell_error("The stored picture is stale: it is not the one drawn now. Run 'make save'.")
    return result


def pictures(outputs):
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found if png]
