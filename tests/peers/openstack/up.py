"""OpenStack's own control plane on this machine: keystone, placement, glance, neutron and nova over MariaDB, whose
machines are processes (`machine.py`).

    python up.py PORT FOLDER

It listens on PORT once everything is up, and tells there, as JSON, where keystone is, and an image, a network and a kind
of machine that are there. Whoever starts it in a PID namespace of its own ends everything by ending it.
"""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

PORT, FOLDER = int(sys.argv[1]), sys.argv[2]
HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = sys.executable
BIN = os.path.dirname(PYTHON)
SECRET, DEMO = "SKSERVICE", "SKDEMO"
LOOPBACK = "127.0.0.1"


def free_port():
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        return one.getsockname()[1]


KEYSTONE, GLANCE, PLACEMENT, NEUTRON, NOVA = (free_port() for _ in range(5))
AUTH = f"http://{LOOPBACK}:{KEYSTONE}/v3"
CHILDREN = []


def inside(*parts):
    return os.path.join(FOLDER, *parts)


def log(name):
    return open(inside("logs", name), "ab")


def start(name, *command):
    with log(name) as file:
        CHILDREN.append(
            (name, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment()))
        )


def run(name, *command, **more):
    with log(name) as file:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True, env=environment(**more))


def environment(**more):
    folders = {f"OS_{name.upper()}_CONFIG_DIR": inside("etc", name) for name in ("keystone", "glance", "placement", "nova", "neutron")}
    return os.environ | folders | {"OS_NEUTRON_CONFIG_FILES": "neutron.conf", "PYTHONWARNINGS": "ignore"} | more


def until(what, look):
    end = time.monotonic() + 180
    while time.monotonic() < end:
        for name, child in CHILDREN:
            if child.poll() is not None:
                sys.exit(f"{name} has ended")
        if look():
            return
        time.sleep(0.1)
    sys.exit(f"{what} did not come")


def answers(port, path="/"):
    def look():
        try:
            urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=5)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    until(f"port {port}", look)


def database(name):
    return f"mysql+pymysql://root@localhost/{name}?unix_socket={inside('my', 's')}&charset=utf8"


def trusts(section, user):
    return f"""
        [{section}]
        www_authenticate_uri = {AUTH}
        auth_url = {AUTH}
        auth_type = password
        project_domain_name = Default
        user_domain_name = Default
        project_name = service
        username = {user}
        password = {SECRET}
        region_name = RegionOne
        """


def configure(name, text):
    os.makedirs(inside("etc", name), exist_ok=True)
    with open(inside("etc", name, f"{name}-api.conf" if name == "glance" else f"{name}.conf"), "w", encoding="utf-8") as file:
        file.write("\n".join(line.strip() for line in textwrap.dedent(text).splitlines()))


def write_configurations():
    configure(
        "keystone",
        f"""
        [DEFAULT]
        use_stderr = true
        [database]
        connection = {database("keystone")}
        [fernet_tokens]
        key_repository = {inside("fernet")}
        [credential]
        key_repository = {inside("credentials")}
        [identity]
        password_hash_rounds = 4
        """,
    )
    configure(
        "glance",
        f"""
        [DEFAULT]
        use_stderr = true
        enabled_backends = files:file
        node_staging_uri = file://{inside("images", "staging")}
        worker_self_reference_url = http://{LOOPBACK}:{GLANCE}
        [glance_store]
        default_backend = files
        [files]
        filesystem_store_datadir = {inside("images", "store")}
        [os_glance_staging_store]
        filesystem_store_datadir = {inside("images", "staging")}
        [os_glance_tasks_store]
        filesystem_store_datadir = {inside("images", "tasks")}
        [database]
        connection = {database("glance")}
        [paste_deploy]
        flavor = keystone
        config_file = {os.path.join(os.path.dirname(BIN), "etc/glance/glance-api-paste.ini")}
        [oslo_concurrency]
        lock_path = {inside("lock")}
        """
        + trusts("keystone_authtoken", "glance"),
    )
    configure(
        "placement",
        f"""
        [DEFAULT]
        use_stderr = true
        [placement_database]
        connection = {database("placement")}
        sync_on_startup = true
        [api]
        auth_strategy = keystone
        """
        + trusts("keystone_authtoken", "placement"),
    )
    configure(
        "neutron",
        f"""
        [DEFAULT]
        use_stderr = true
        core_plugin = ml2
        service_plugins =
        auth_strategy = keystone
        api_paste_config = {os.path.join(os.path.dirname(BIN), "etc/neutron/api-paste.ini")}
        transport_url = fake://
        state_path = {inside("neutron")}
        notify_nova_on_port_status_changes = false
        notify_nova_on_port_data_changes = false
        dhcp_agent_notification = false
        [ml2]
        type_drivers = local
        tenant_network_types = local
        mechanism_drivers = openvswitch
        extension_drivers = port_security
        [database]
        connection = {database("neutron")}
        [oslo_concurrency]
        lock_path = {inside("lock")}
        """
        + trusts("keystone_authtoken", "neutron"),
    )
    configure(
        "nova",
        f"""
        [DEFAULT]
        use_stderr = true
        host = node
        my_ip = {LOOPBACK}
        transport_url = fake://
        compute_driver = fake.Processes
        state_path = {inside("nova")}
        instances_path = {inside("machines")}
        periodic_fuzzy_delay = 0
        service_down_time = 600
        report_interval = 60
        vif_plugging_is_fatal = false
        vif_plugging_timeout = 0
        [database]
        connection = {database("nova")}
        [api_database]
        connection = {database("nova_api")}
        [api]
        auth_strategy = keystone
        compute_link_prefix = http://{LOOPBACK}:{NOVA}
        [scheduler]
        discover_hosts_in_cells_interval = 2
        [filter_scheduler]
        track_instance_changes = false
        [glance]
        api_servers = http://{LOOPBACK}:{GLANCE}
        [oslo_concurrency]
        lock_path = {inside("lock")}
        [vnc]
        enabled = false
        [spice]
        enabled = false
        [service_user]
        send_service_user_token = true
        """
        + trusts("keystone_authtoken", "nova")
        + trusts("placement", "placement")
        + trusts("neutron", "neutron")
        + trusts("service_user", "nova").replace("[service_user]", ""),
    )
    # `[service_user]` stands once, with both parts.
    path = inside("etc", "nova", "nova.conf")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        head, tail = text.split("[service_user]", 1)
        switch, rest = tail.split("[keystone_authtoken]", 1)
        trusted, own = rest.rsplit("www_authenticate_uri", 1)
        file.write(f"{head}[keystone_authtoken]{trusted}[service_user]{switch}www_authenticate_uri{own}")
    shutil.copy(os.path.join(os.path.dirname(BIN), "etc/nova/api-paste.ini"), inside("etc", "nova"))
    # Without it, nova would not start a second time under the same name.
    with open(inside("nova", "compute_id"), "w", encoding="utf-8") as file:
        file.write(str(uuid.uuid4()))


def start_database():
    install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={inside('my', 'data')}"]
    run("mariadb", *install, "--auth-root-authentication-method=normal", "--skip-test-db")
    start(
        "mariadb",
        *["mariadbd", "--no-defaults", "--user=root", f"--datadir={inside('my', 'data')}", f"--socket={inside('my', 's')}"],
        *[f"--pid-file={inside('my', 'pid')}", "--skip-networking", "--skip-log-bin", "--max-connections=300"],
        *["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--innodb-flush-method=nosync", "--sync-frm=0"],
        "--innodb-buffer-pool-size=128M",
    )
    names = ["keystone", "glance", "placement", "nova", "nova_api", "nova_cell0", "neutron"]
    make = "".join(f"create database if not exists {name} character set utf8mb3;" for name in names)

    def made():
        client = ["mariadb", "--no-defaults", "-uroot", "-S", inside("my", "s"), "-e", make]
        return subprocess.run(client, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    until("the database", made)


def prepare_keystone():
    settings = f"--config-file {inside('etc', 'keystone', 'keystone.conf')}"
    owner = "--keystone-user root --keystone-group root"
    url = " ".join(f"--bootstrap-{kind}-url {AUTH}" for kind in ("public", "internal", "admin"))
    run(
        "keystone",
        *[PYTHON, os.path.join(HERE, "manage.py"), "keystone.cmd.manage"],
        f"{settings} fernet_setup {owner}",
        f"{settings} credential_setup {owner}",
        f"{settings} db_sync",
        f"{settings} bootstrap --bootstrap-password {SECRET} --bootstrap-region-id RegionOne {url}",
    )


def prepare_others():
    settings = f"--config-file {inside('etc', 'nova', 'nova.conf')}"
    run(
        "nova",
        *[PYTHON, os.path.join(HERE, "manage.py"), "nova.cmd.manage", f"{settings} api_db sync"],
        f"{settings} cell_v2 map_cell0 --database_connection {database('nova_cell0')}",
        f"{settings} db sync",
        f"{settings} cell_v2 create_cell --name cell1",
        OS_NOVA_DISABLE_EVENTLET_PATCHING="1",
    )
    run("glance", os.path.join(BIN, "glance-manage"), "--config-file", inside("etc", "glance", "glance-api.conf"), "db_sync")


def session(user, password, project):
    from keystoneauth1 import session as sessions
    from keystoneauth1.identity import v3

    domain = {"user_domain_name": "Default", "project_domain_name": "Default"}
    return sessions.Session(auth=v3.Password(auth_url=AUTH, username=user, password=password, project_name=project, **domain))


def seed():
    admin = session("admin", SECRET, "admin")

    def make(kind, plural, **values):
        return admin.post(f"{AUTH}/{plural}", json={kind: values}).json()[kind]["id"]

    roles = {role["name"]: role["id"] for role in admin.get(f"{AUTH}/roles").json()["roles"]}
    if "service" not in roles:
        roles["service"] = make("role", "roles", name="service")
    projects = {name: make("project", "projects", name=name, domain_id="default") for name in ("service", "demo")}
    users = [(name, SECRET, "service", ["admin", "service"]) for name in ("glance", "placement", "nova", "neutron")]
    for name, password, project, granted in [*users, ("demo", DEMO, "demo", ["member"])]:
        user = make("user", "users", name=name, password=password, domain_id="default")
        for role in granted:
            admin.put(f"{AUTH}/projects/{projects[project]}/users/{user}/roles/{roles[role]}")
    for kind, name, url in [
        ("image", "glance", f"http://{LOOPBACK}:{GLANCE}"),
        ("placement", "placement", f"http://{LOOPBACK}:{PLACEMENT}"),
        ("compute", "nova", f"http://{LOOPBACK}:{NOVA}/v2.1"),
        ("network", "neutron", f"http://{LOOPBACK}:{NEUTRON}"),
    ]:
        service = make("service", "services", type=kind, name=name)
        for interface in ("public", "internal"):
            make("endpoint", "endpoints", service_id=service, interface=interface, url=url, region_id="RegionOne")


def furnish():
    """An image, a network, two kinds of machine, and what an application may log in with."""
    admin, demo = session("admin", SECRET, "admin"), session("demo", DEMO, "demo")

    def at(kind):
        return {"endpoint_filter": {"service_type": kind, "interface": "public"}}

    demo.get("/v2.0/networks", **at("network"))
    network = demo.post("/v2.0/networks", json={"network": {"name": "inside"}}, **at("network")).json()["network"]["id"]
    subnet = {"network_id": network, "ip_version": 4, "cidr": "10.9.0.0/16"}
    demo.post("/v2.0/subnets", json={"subnet": subnet}, **at("network"))
    for name, ram, cpus in [("m1.small", 512, 1), ("m1.train", 2048, 2), ("m1.huge", 8 << 20, 1000)]:
        flavor = {"name": name, "ram": ram, "vcpus": cpus, "disk": 1}
        admin.post("/flavors", json={"flavor": flavor}, **at("compute"))
    image = {"name": "debian-13", "disk_format": "raw", "container_format": "bare"}
    image = demo.post("/v2/images", json=image, **at("image")).json()["id"]
    plain = {"Content-Type": "application/octet-stream"}
    demo.put(f"/v2/images/{image}/file", data=b"\0" * 4096, headers=plain, **at("image"))
    application = demo.post(
        f"{AUTH}/users/{demo.get_user_id()}/application_credentials",
        json={"application_credential": {"name": "tidegate"}},
    ).json()["application_credential"]
    until("a host", lambda: admin.get("/os-hypervisors", **at("compute")).json()["hypervisors"])
    return {
        "auth": AUTH,
        "network": network,
        "image": image,
        "application": application["id"],
        "application_secret": application["secret"],
    }


def main():
    for folder in ("logs", "etc", "my", "fernet", "credentials", "lock", "nova", "machines", "images/store", "images/staging", "images/tasks"):
        os.makedirs(inside(folder), mode=0o700, exist_ok=True)
    write_configurations()
    start_database()
    serve = os.path.join(HERE, "serve.py")
    with ThreadPoolExecutor(4) as pool:
        others = pool.submit(prepare_others)
        tables = pool.submit(run, "neutron", PYTHON, os.path.join(HERE, "tables.py"), database("neutron"))
        prepare_keystone()
        start("keystone", PYTHON, serve, "keystone.wsgi.api", str(KEYSTONE))
        answers(KEYSTONE, "/v3")
        seed()
        tables.result()
        others.result()
    start("placement", PYTHON, serve, "placement.wsgi.api", str(PLACEMENT))
    start("glance", PYTHON, serve, "glance.wsgi.api", str(GLANCE))
    start("neutron", PYTHON, serve, "neutron.wsgi.api", str(NEUTRON))
    answers(PLACEMENT)
    start("nova", PYTHON, os.path.join(HERE, "compute.py"), str(NOVA), inside("etc", "nova", "nova.conf"))
    for port in (GLANCE, NEUTRON, NOVA):
        answers(port)
    there = json.dumps(furnish()).encode()

    class Told(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(there)

    http.server.ThreadingHTTPServer((LOOPBACK, PORT), Told).serve_forever()


main()
