"""A machine of Nova that is a process here: it runs its user-data as cloud-init does, and `shutdown` in it ends it."""

import base64
import gzip
import os
import signal
import subprocess
import threading
import time

from nova.compute import power_state
from nova.virt import event, fake, hardware


class Processes(fake.FakeDriverWithoutFakeNodes):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.processes = {}

    def folder(self, instance):
        folder = os.path.join(fake.CONF.instances_path, instance.uuid)
        os.makedirs(os.path.join(folder, "bin"), exist_ok=True)
        return folder

    def start(self, instance):
        if not instance.user_data:
            return
        folder = self.folder(instance)
        stub = os.path.join(folder, "bin", "shutdown")
        with open(stub, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\n[ "$2" != now ] || echo off >{folder}/off\n')
        os.chmod(stub, 0o755)
        # The routes are those of the machine that the tests run on.
        if not os.path.lexists(os.path.join(folder, "bin", "ip")):
            os.symlink("/bin/true", os.path.join(folder, "bin", "ip"))
        data = base64.b64decode(instance.user_data)
        script = os.path.join(folder, "user-data")
        with open(script, "wb") as file:
            file.write(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        os.chmod(script, 0o700)
        with open(os.path.join(folder, "console"), "ab") as console:
            process = subprocess.Popen(
                # Whatever the machine has started ends with it.
                ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", script],
                cwd=folder,
                env={"PATH": f"{folder}/bin:/usr/local/bin:/usr/bin:/bin", "TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self.processes[instance.uuid] = process
        threading.Thread(target=self.watch, args=(instance.uuid, process, folder), daemon=True).start()

    def watch(self, uuid, process, folder):
        """Says that a machine has shut itself down, as a hypervisor does."""
        process.wait()
        if not os.path.exists(os.path.join(folder, "off")):
            return
        # Nova does not listen while it is still starting the machine, which no other one leaves as fast.
        for _ in range(60):
            if uuid not in self.processes:
                return
            self.emit_event(event.LifecycleEvent(uuid, event.EVENT_LIFECYCLE_STOPPED))
            time.sleep(0.5)

    def stop(self, instance):
        process = self.processes.pop(instance.uuid, None)
        if process and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def spawn(self, context, instance, *arguments, **more):
        super().spawn(context, instance, *arguments, **more)
        self.start(instance)

    def power_off(self, instance, *arguments, **more):
        self.stop(instance)
        super().power_off(instance, *arguments, **more)

    def destroy(self, context, instance, *arguments, **more):
        self.stop(instance)
        super().destroy(context, instance, *arguments, **more)

    def get_info(self, instance, use_cache=True):
        if os.path.exists(os.path.join(self.folder(instance), "off")):
            return hardware.InstanceInfo(state=power_state.SHUTDOWN)
        return super().get_info(instance, use_cache)

    def get_console_output(self, context, instance):
        with open(os.path.join(self.folder(instance), "console"), errors="replace", encoding="utf-8") as file:
            return file.read()
