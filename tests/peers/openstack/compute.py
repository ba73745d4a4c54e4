"""All of Nova in one process, over a message bus that stays in it.

    python compute.py PORT CONFIGURATION
"""

from nova import monkey_patch

monkey_patch.patch(backend="threading")

import os  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402

PORT, CONFIGURATION = int(sys.argv[1]), sys.argv[2]
os.environ["OS_NOVA_CONFIG_DIR"] = os.path.dirname(CONFIGURATION)
HERE = os.path.dirname(os.path.abspath(sys.argv[0]))
sys.argv = ["nova"]

# It reads the configuration, which all others need.
from nova.wsgi import osapi_compute  # noqa: E402, I001
import os_vif  # noqa: E402
from nova import service, utils  # noqa: E402
from nova.compute import rpcapi as compute  # noqa: E402
from nova.conductor import rpcapi as conductor  # noqa: E402
from nova.scheduler import rpcapi as scheduler  # noqa: E402
from nova.virt import fake  # noqa: E402
from oslo_privsep import priv_context  # noqa: E402
from waitress import serve  # noqa: E402

sys.path.insert(0, HERE)
import machine  # noqa: E402

fake.Processes = machine.Processes
priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
os_vif.initialize()
for settings in (
    {"binary": "nova-conductor", "topic": conductor.RPC_TOPIC},
    {"binary": "nova-scheduler", "topic": scheduler.RPC_TOPIC},
    {"binary": "nova-compute", "topic": compute.RPC_TOPIC, "topic_alt": compute.RPC_TOPIC_ALT},
):
    service.Service.create(**settings).start()
serve(osapi_compute.application, host="127.0.0.1", port=PORT, threads=8)
