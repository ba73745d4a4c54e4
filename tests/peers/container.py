"""A container, as far as a platform's promises about it go: a process of this machine with the command, the arguments
and the environment that it was given, and nothing else but a `PATH`, below which the program under test is `tidegate`."""

import os
import shutil
import signal
import subprocess


class Container:
    def __init__(self, folder, programs, command, environment):
        os.makedirs(folder)
        self.environment = {"PATH": f"{programs}:{os.environ['PATH']}"} | environment
        if os.geteuid() == 0 and shutil.which("unshare"):
            # Whatever it has started ends with it.
            command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
        with open(os.path.join(folder, "log"), "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self):
        """Its exit code, as platforms tell it."""
        code = self.process.wait()
        return code if code >= 0 else 128 - code

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
