"""Amazon's EC2: moto, and beside it what moto leaves out and a driver depends on.

    python ec2.py PORT FOLDER POLICY

- Machines work: user-data is run as cloud-init runs it, by a process that is the machine; `shutdown` there ends it.
- Requests have the parameters that Amazon's own client knows of, and no others.
- A client token that was there before gives the same machine, or is refused with another request.
- What was just started is unknown for a moment, to listings and by its name.
- The console of a machine is what it wrote.
- A machine with the instance profile `machines` has the credentials of its role, whose session has the machine's name, and
  the services for them and for profiles (STS, IAM) are there.
- Credentials are AKADMIN and SKADMIN; they allow what the policy in the file POLICY allows. Conditions are left out: moto
  does not know what they are about.

GET /peer/… tells and steers: `machines`, `requests`, `full?subnet=ID`, `price?zone=NAME&is=PRICE`, `busy?count=N`,
`impostor` (from now on machines have the credentials of a session of another name), `interrupt?machine=ID` (the cloud takes
a machine back), `likely?machine=ID` (it may soon), `notice?machine=ID&seconds=N` (it
will).

- Each machine has the part of the metadata service that says so, with tokens, below /machine/ID: the link-local address
  in its user-data is written over.
"""

import base64
import copy
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

PORT, FOLDER, POLICY = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ |= {
    "INITIAL_NO_AUTH_ACTION_COUNT": "0",
    "MOTO_ENABLE_AMI_VALIDATION": "true",
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
    "MOTO_PORT": str(PORT),
}

import botocore.session  # noqa: E402
from moto.core.responses import ActionResult  # noqa: E402
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceIdError  # noqa: E402
from moto.ec2.models import instances  # noqa: E402
from moto.ec2.responses.general import General  # noqa: E402
from moto.ec2.responses.spot_instances import SpotInstances  # noqa: E402
from moto.iam.models import iam_backends  # noqa: E402
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: E402
from moto.sts.models import sts_backends  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402

ACCOUNT = "123456789012"
# For as long the service does not tell of a machine that it has started.
LATE = 0.4
LOCK = threading.RLock()
PUBLISHED = botocore.session.get_session().get_service_model("ec2")
TOKENS, STARTED, PROCESSES, FULL, PRICES, REQUESTS = {}, {}, {}, set(), {}, []
# What the metadata service says to machines, by path, and the tokens that it gave.
SAID, METADATA_TOKENS = {}, set()
BUSY = 0
IMPOSTOR = False
MACHINE = threading.local()


# What a request may hold.
def member_of(shape, name):
    for key, member in shape.members.items():
        written = member.serialization.get("queryName") or member.serialization.get("name", key)
        if written[0].upper() + written[1:] == name:
            return member
    return None


def fault(shape, path, value):
    for part in path:
        if shape.type_name == "structure":
            shape = member_of(shape, part)
        elif shape.type_name == "list" and part.isdigit() and part != "0":
            shape = shape.member
        else:
            shape = None
        if shape is None:
            return "UnknownParameter"
    enum = getattr(shape, "enum", None)
    if shape.type_name in ("structure", "list") or (enum and value not in enum):
        return "InvalidParameterValue"
    return None


def checked(action, form):
    if action not in PUBLISHED.operation_names:
        return "InvalidAction", action
    shape = PUBLISHED.operation_model(action).input_shape
    names = {name.split(".")[0] for name in form}
    for key in shape.required_members:
        written = shape.members[key].serialization.get("name", key)
        if written[0].upper() + written[1:] not in names:
            return "MissingParameter", f"The request must contain the parameter {key}"
    for name, value in form.items():
        if why := fault(shape, name.split("."), value):
            return why, f"The parameter {name} is not recognized"
    return None


# The machines.
def run(machine, user_data):
    folder = os.path.join(FOLDER, machine.id)
    os.makedirs(os.path.join(folder, "bin"))
    stub = os.path.join(folder, "bin", "shutdown")
    with open(stub, "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\n[ "$2" != now ] || echo off >{folder}/off\n')
    os.chmod(stub, 0o755)
    # The routes are those of the machine that the tests run on.
    os.symlink("/bin/true", os.path.join(folder, "bin", "ip"))
    script = os.path.join(folder, "user-data")
    own = f"http://127.0.0.1:{PORT}/machine/{machine.id}".encode()
    with open(script, "wb") as file:
        file.write(user_data.replace(b"http://169.254.169.254", own))
    os.chmod(script, 0o700)
    command = [script]
    if os.geteuid() == 0 and shutil.which("unshare"):
        # Whatever the machine has started ends with it.
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", script]
    with open(os.path.join(folder, "console"), "wb") as console:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": f"{folder}/bin:{os.environ['PATH']}", "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    PROCESSES[machine.id] = process
    threading.Thread(target=ended, args=(machine, process, folder), daemon=True).start()


def ended(machine, process, folder):
    process.wait()
    with LOCK:
        if os.path.exists(os.path.join(folder, "off")) and machine._state.name == "running":
            machine.terminate()
            because(machine, "Client.InstanceInitiatedShutdown")


def because(machine, code):
    machine.state_reason = instances.StateReason(f"{code}: it ended", code)


def kill(machine):
    process = PROCESSES.get(machine.id)
    if process and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


usual_run = instances.InstanceBackend.run_instances
usual_end = instances.InstanceBackend.terminate_instances
usual_list = instances.InstanceBackend.describe_instances
usual_by_id = instances.InstanceBackend.get_reservations_by_instance_ids
usual_one = instances.InstanceBackend.get_instance


def refused(code, message):
    raise EC2ClientError(code, message)


def run_instances(self, image_id, count, user_data, security_group_names, **more):
    token, form = more.get("client_token"), MACHINE.form
    with LOCK:
        if token in TOKENS:
            before, reservation = TOKENS[token]
            if before != form:
                refused("IdempotentParameterMismatch", "Arguments on this idempotent request are inconsistent with it")
            if reservation.instances[0]._state.name == "terminated":
                refused("IdempotentInstanceTerminated", "The machine of this request has ended")
            return copy.copy(reservation)
        if form.get("IamInstanceProfile.Name", PROFILE) != PROFILE:
            refused("InvalidParameterValue", "Invalid IAM Instance Profile name")
        if more.get("subnet_id") in FULL:
            refused("InsufficientInstanceCapacity", "We currently do not have sufficient capacity in the zone")
        if more.get("metadata_options", {}).get("HttpTokens") != "required":
            refused("InvalidParameterCombination", "This account starts no machine without tokens")
        data = base64.b64decode(form["UserData"], validate=True)
        if len(data) > 16384:
            refused("InvalidUserData.Malformed", "User data is limited to 16384 bytes")
        reservation = usual_run(self, image_id, count, user_data, security_group_names, **more)
        TOKENS[token] = (form, copy.copy(reservation))
        for machine in reservation.instances:
            STARTED[machine.id] = time.monotonic()
            if form.get("IamInstanceProfile.Name") == PROFILE:
                give_role(machine)
            run(machine, gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        return reservation


def late(machine):
    return time.monotonic() - STARTED.get(machine.id, 0) < LATE


def described(self, filters=None):
    found = usual_list(self, filters)
    for reservation in found:
        reservation.instances = [one for one in reservation.instances if not late(one)]
    return [reservation for reservation in found if reservation.instances]


def described_by_id(self, instance_ids, filters=None):
    for name in instance_ids:
        if late(usual_one(self, name)):
            raise InvalidInstanceIdError(name)
    return usual_by_id(self, instance_ids, filters)


def terminate_instances(self, instance_ids):
    with LOCK:
        for name in instance_ids:
            machine = usual_one(self, name)
            if late(machine):
                raise InvalidInstanceIdError(name)
        for name in instance_ids:
            kill(usual_one(self, name))
        reasons = {name: usual_one(self, name).state_reason for name in instance_ids}
        answer = usual_end(self, instance_ids)
        for machine, before in answer:
            # Who has ended keeps the reason.
            if before.name == "terminated":
                machine.state_reason = reasons[machine.id]
        return answer


def console(self):
    machine = self.ec2_backend.get_instance(self._get_param("InstanceId"))
    with open(os.path.join(FOLDER, machine.id, "console"), "rb") as file:
        output = base64.b64encode(file.read()[-65536:]).decode()
    return ActionResult({"InstanceId": machine.id, "Output": output})


usual_prices = SpotInstances.describe_spot_price_history


def prices(self):
    answer = usual_prices(self)
    for price in answer._result["SpotPriceHistory"]:
        price["SpotPrice"] = PRICES.get(price["AvailabilityZone"], "1.0")
    return answer


instances.InstanceBackend.run_instances = run_instances
instances.InstanceBackend.terminate_instances = terminate_instances
instances.InstanceBackend.describe_instances = described
instances.InstanceBackend.get_reservations_by_instance_ids = described_by_id
General.get_console_output = console
SpotInstances.describe_spot_price_history = prices


# Who may ask.
with open(POLICY, encoding="utf-8") as file:
    policy = json.load(file)
for statement in policy["Statement"]:
    statement.pop("Condition", None)
    if "iam:" in json.dumps(statement["Action"]):
        # Of these it does not ask which ones.
        statement["Resource"] = "*"
iam = iam_backends[ACCOUNT]["aws"]
everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}]}
for name, secret, allowed in [("AKADMIN", "SKADMIN", policy), ("AKSETUP", "SKSETUP", everything)]:
    iam.create_user("us-east-1", name)
    iam.put_user_policy(name, "machines", json.dumps(allowed))
    key = iam.create_access_key(name)
    del iam.access_keys[key.access_key_id]
    key.access_key_id, key.secret_access_key = name, secret
    iam.access_keys[name] = key


PROFILE, ROLE = "machines", "workers"
trust = {"Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}
role = iam.create_role(ROLE, json.dumps(trust), "/", None, "", {}, "3600")
iam.create_instance_profile(PROFILE, "/", [])
iam.add_role_to_instance_profile(PROFILE, ROLE)


def give_role(machine):
    name = "i-0123456789abcdef0" if IMPOSTOR else machine.id
    session = sts_backends[ACCOUNT]["aws"].assume_role("eu-central-1", name, role.arn, None, 3600, None)
    keys = {
        "Code": "Success",
        "AccessKeyId": session.access_key_id,
        "SecretAccessKey": session.secret_access_key,
        "Token": session.session_token,
        "Expiration": "2099-01-01T00:00:00Z",
    }
    below = "latest/meta-data/iam/security-credentials/"
    SAID[machine.id, below] = ROLE
    SAID[machine.id, below + ROLE] = keys
    SAID[machine.id, "latest/meta-data/placement/region"] = "eu-central-1"


# What machines ask about themselves.
def metadata(environ):
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if method == "PUT" and path.endswith("/latest/api/token"):
        seconds = environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS", "")
        if not seconds.isdigit() or not 1 <= int(seconds) <= 21600:
            return "400 Bad Request", ""
        token = os.urandom(16).hex()
        METADATA_TOKENS.add(token)
        return "200 OK", token
    if method != "GET" or environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN") not in METADATA_TOKENS:
        return "401 Unauthorized", ""
    _, _, machine, below = path.split("/", 3)
    answer = SAID.get((machine, below))
    if answer is None:
        return "404 Not Found", ""
    return "200 OK", answer if isinstance(answer, str) else json.dumps(answer)


# The server.
def every_machine():
    from moto.ec2.models import ec2_backends

    for region in ec2_backends[ACCOUNT].values():
        for reservation in region.reservations.values():
            yield from reservation.instances


def peer(path, query):
    global BUSY, IMPOSTOR
    value = lambda name: urllib.parse.parse_qs(query)[name][0]  # noqa: E731
    with LOCK:
        if path == "/peer/machines":
            return [
                {
                    "id": one.id,
                    "state": one._state.name,
                    "subnet": one.subnet_id,
                    "spot": one.lifecycle == "spot",
                    "tags": {tag["key"]: tag["value"] for tag in one.get_tags()},
                }
                for one in every_machine()
            ]
        if path == "/peer/requests":
            return REQUESTS
        if path == "/peer/full":
            FULL.add(value("subnet"))
        elif path == "/peer/price":
            PRICES[value("zone")] = value("is")
        elif path == "/peer/busy":
            BUSY = int(value("count"))
        elif path == "/peer/impostor":
            IMPOSTOR = True
        elif path == "/peer/likely":
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            SAID[value("machine"), "latest/meta-data/events/recommendations/rebalance"] = {"noticeTime": now}
        elif path == "/peer/notice":
            ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + int(value("seconds"))))
            SAID[value("machine"), "latest/meta-data/spot/instance-action"] = {"action": "terminate", "time": ends}
        elif path == "/peer/interrupt":
            for one in every_machine():
                if one.id == value("machine"):
                    kill(one)
                    one.terminate()
                    because(one, "Server.SpotInstanceTermination")
        else:
            return None
        return "done"


def xml(code, message):
    return f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"


moto = DomainDispatcherApplication(create_backend_app)


def application(environ, start_response):
    global BUSY
    path = environ["PATH_INFO"]
    if path.startswith("/peer/"):
        answer = peer(path, environ["QUERY_STRING"])
        start_response("200 OK" if answer is not None else "404 Not Found", [("content-type", "application/json")])
        return [json.dumps(answer).encode()]
    if path.startswith("/machine/"):
        status, answer = metadata(environ)
        start_response(status, [("content-type", "text/plain")])
        return [answer.encode()]
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    form = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body)))
    action, version = form.pop("Action", ""), form.pop("Version", "")
    form.pop("DryRun", None)
    # Whoever sets a test up has another name.
    setting_up = "Credential=AKSETUP/" in environ.get("HTTP_AUTHORIZATION", "")
    if not setting_up:
        with LOCK:
            REQUESTS.append({"action": action} | {k: v for k, v in form.items() if k != "UserData"})
            if BUSY > 0:
                BUSY -= 1
                start_response("503 Service Unavailable", [("content-type", "text/xml")])
                return [xml("RequestLimitExceeded", "Request limit exceeded.").encode()]
        beside = re.search(r"Credential=[^/]+/\d{8}/[a-z0-9-]+/(sts|iam)/", environ.get("HTTP_AUTHORIZATION", ""))
        known = {"GetCallerIdentity": "2011-06-15", "GetInstanceProfile": "2010-05-08"}
        if beside and known.get(action) == version:
            environ["wsgi.input"] = io.BytesIO(body)
            return moto(environ, start_response)
        why = checked(action, form) if version == "2016-11-15" else ("InvalidAction", version)
        if not re.search(r"Credential=[^/]+/\d{8}/[a-z0-9-]+/ec2/aws4_request", environ.get("HTTP_AUTHORIZATION", "")):
            why = ("AuthFailure", "it is not signed for this service")
        if why:
            start_response("400 Bad Request", [("content-type", "text/xml")])
            return [xml(*why).encode()]
    environ["wsgi.input"] = io.BytesIO(body)
    MACHINE.form = form
    return moto(environ, start_response)


make_server("127.0.0.1", PORT, application, threaded=True).serve_forever()
