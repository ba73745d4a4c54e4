"""Runs several commands of one of OpenStack's own programs, which takes seconds to read, one after another.

    python manage.py MODULE COMMAND...
"""

import importlib
import os
import sys

module = importlib.import_module(sys.argv[1])
for command in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        sys.argv = [sys.argv[1].split(".")[0] + "-manage", *command.split()]
        code = 1
        try:
            code = module.main() or 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{command}: failed")
