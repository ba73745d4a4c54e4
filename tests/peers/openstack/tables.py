"""Neutron's tables, from its own models, and the word of a switch that is always there.

    python tables.py DATABASE
"""

import datetime
import json
import sys
import uuid

import sqlalchemy
from neutron.db.migration.models import head

engine = sqlalchemy.create_engine(sys.argv[1])
tables = head.get_metadata()
tables.create_all(engine)
LATE = datetime.datetime(2099, 1, 1)
with engine.begin() as connection:
    switch = {
        "id": str(uuid.uuid4()),
        "agent_type": "Open vSwitch agent",
        "binary": "neutron-openvswitch-agent",
        "topic": "N/A",
        "host": "node",
        "admin_state_up": True,
        "created_at": LATE,
        "started_at": LATE,
        "heartbeat_timestamp": LATE,
        "load": 0,
        "configurations": json.dumps(
            {"bridge_mappings": {}, "tunnel_types": [], "datapath_type": "system", "ovs_hybrid_plug": False}
        ),
    }
    connection.execute(tables.tables["agents"].insert().values(**switch))
