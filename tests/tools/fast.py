"""The same nbval with kernels forked from one process that already holds torch: ``make quick``.

``pytest -p tests.tools.fast`` collects, runs and compares as ever; only a kernel starts in another way. One fault can
hide from it: a lesson that uses a submodule which ``MORE`` has imported, and does not import it itself. So the gate is
``make test``. Linux only: elsewhere a process that holds torch cannot be forked safely.
"""

import gc
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.metadata import EntryPoint
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

FIRST = ["ipykernel.kernelapp", "torch"]
MORE = ["torch._dynamo", "matplotlib.pyplot", "matplotlib_inline.backend_inline", "torchvision.models", "networkx"]
"""What several lessons import, or have imported for them: the first optimizer imports ``torch._dynamo``."""
ADDRESS = "KERNELS_FORKED_AT"


def pytest_addoption(pluginmanager):
    """Start at pytest's first hook, so that torch is imported while pytest imports nbval."""
    if sys.platform != "linux":
        raise pytest.UsageError(
            "tests.tools.fast forks a process that holds torch, which is safe on Linux only: make test"
        )
    pluginmanager.set_blocked("hypothesispytest")  # as in early.py, for folders of notebooks too
    if ADDRESS not in os.environ:  # set where xdist starts a worker: all of them share one process
        pluginmanager.register(Holder())


class Holder:
    """The life of the process that is forked."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        os.environ[ADDRESS] = str(Path(self.folder.name, "socket"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.environ[ADDRESS])
            listener.listen()
            command = [sys.executable, "-Xfrozen_modules=off", "-m", "tests.tools.fast"]
            root = Path(__file__).parents[2]
            # One thread, as more cannot be forked, and a place for what torch leaves when it is imported.
            variables = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": self.folder.name}
            self.process = subprocess.Popen(command, stdin=listener, cwd=root, env=variables, start_new_session=True)

    def pytest_configure(self, config):
        if config.hook.pytest_xdist_auto_num_workers(config=config):  # several files, one of which may use them
            call(MORE).close()

    def pytest_unconfigure(self):
        self.process.kill()
        self.process.wait()
        del os.environ[ADDRESS]
        self.folder.cleanup()


def call(message):
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(os.environ[ADDRESS])
        connection = Connection(caller.detach())
    connection.send(message)
    return connection


def pytest_configure():
    factory = KernelProvisionerFactory.instance(default_provisioner_name="forked")
    factory.provisioners["forked"] = EntryPoint("forked", "tests.tools.fast:Forked", factory.GROUP_NAME)


class Forked(LocalProvisioner):
    async def launch_kernel(self, cmd, **kwargs):
        self.process = Kernel(cmd, kwargs["env"], kwargs["cwd"])
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class Kernel:
    """What jupyter_client asks of a ``subprocess.Popen``. However the kernel ends, its connection closes."""

    stdin = stdout = stderr = None

    def __init__(self, *request):
        try:
            self.connection = call(request)
            self.pid = self.connection.recv()
        except (OSError, EOFError) as error:
            raise pytest.exit.Exception("The process that holds torch has ended: see what it printed.", 1) from error

    def poll(self):
        return 1 if self.connection.poll() else None

    def wait(self):
        self.connection.poll(None)
        return 1

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def hold(names):
    for name in names:
        import_module(name)
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        sys.exit(f"tests.tools.fast: {threads} threads after importing {', '.join(names)}; forking needs one")
    gc.collect()
    gc.freeze()  # what is never collected is not copied by each fork


def serve(parent):
    """Fork for every request. Returns in the forked process, with the request and the connection to keep open."""
    listener = socket.socket(fileno=0)
    listener.settimeout(1)
    while os.getppid() == parent:  # else pytest was killed
        try:
            connection = Connection(listener.accept()[0].detach())
        except TimeoutError:
            continue
        request = connection.recv()
        if isinstance(request, list):
            hold(request)
        elif not os.fork():
            os.setsid()
            connection.send(os.getpid())
            listener.detach()
            return request, connection
        connection.close()
    sys.exit()


def main():
    pytest_is = os.getppid()
    # A kernel ends when this process does. ipykernel reads it when it is imported.
    os.environ["JPY_PARENT_PID"] = str(os.getpid())
    hold(FIRST)
    (command, variables, folder), connection = serve(pytest_is)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.environ.clear()
    os.environ.update(variables, JPY_PARENT_PID=str(os.getppid()))
    tempfile.tempdir = None  # it may have been looked up before
    import_module("torch").set_num_threads(int(variables["OMP_NUM_THREADS"]))  # as where torch is imported with it
    os.chdir(folder)
    # As 'python -m' does it.
    sys.argv = command[command.index("-m") + 1 :]
    sys.path[0] = folder
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    connection.close()


if __name__ == "__main__":
    main()
