"""Serves one of OpenStack's own applications.

    python serve.py MODULE PORT
"""

import importlib
import sys

MODULE, PORT = sys.argv[1], int(sys.argv[2])
sys.argv = [MODULE]

from waitress import serve  # noqa: E402

serve(importlib.import_module(MODULE).application, host="127.0.0.1", port=PORT, threads=8)
