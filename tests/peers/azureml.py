"""Azure Machine Learning as far as command jobs need it, over the models and requests of Microsoft's own client: every
path, field, kind of value and word of a request is checked against them. It issues tokens too (`entra.py`). Its jobs run:
each is a process (`container.py`).

    python azureml.py PORT FOLDER PROGRAMS

- A job waits for a moment before it runs. One whose name is there already is not made again: its tags are replaced.
- What runs cannot be removed, what is cancelled takes a moment to end, and what is removed too.

GET /peer/… tells and steers: `jobs`, `made` (containers that there ever were), `environments`, `full?is=yes`,
`busy?count=N`, `swallow?count=N` (jobs are made and nobody is told so), `preempt?job=NAME` (its machine is taken away, and
the job waits for another one).
"""

import datetime
import enum
import inspect
import json
import os
import pathlib
import re
import sys
import threading
import time
import types
import typing
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The models alone: the client's own package asks for a hundred others.
CLIENT = pathlib.Path(sys.prefix) / "azureml"
sys.path.insert(0, str(CLIENT))
import azure.ai  # noqa: E402

package = types.ModuleType("azure.ai.ml")
package.__path__ = [str(CLIENT / "azure" / "ai" / "ml")]
sys.modules["azure.ai.ml"] = azure.ai.ml = package
from azure.ai.ml._restclient.arm_ml_service import models  # noqa: E402
from azure.ai.ml._restclient.arm_ml_service._utils import model_base  # noqa: E402
from azure.ai.ml._restclient.arm_ml_service.models import _models  # noqa: E402
from azure.ai.ml._restclient.arm_ml_service.operations import _operations as requests  # noqa: E402

from container import Container  # noqa: E402
from entra import Refused, Tokens  # noqa: E402

PORT, FOLDER, PROGRAMS = int(sys.argv[1]), sys.argv[2], sys.argv[3]
HERE = f"http://127.0.0.1:{PORT}"
API = "2025-12-01"
SUBSCRIPTION, GROUP, WORKSPACE = "00000000-1111-2222-3333-444444444444", "ml", "st-mary"
TOKENS = Tokens("https://management.azure.com", 40)
NAMES = vars(_models) | {"_models": models, "datetime": datetime}
DURATION = re.compile(r"^P(?!$)(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?$")
FINAL = {"Completed", "Failed", "Canceled"}
SIZES, CLUSTERS = ["Standard_DS3_v2", "STANDARD_NC4AS_T4_V3"], ["gpu"]
# Seconds that things take.
QUEUE, START, AGAIN, CANCEL, REMOVE = 0.1, 0.2, 3, 0.2, 0.2
LOCK = threading.RLock()
JOBS, MADE, ENVIRONMENTS = {}, [], {}
STEERED = {"busy": 0, "swallow": 0, "full": False}


class Swallowed(Exception):
    """It was done, and nobody is told so."""


def invalid(message):
    return Refused(400, "ValidationError", message)


# What a body may hold.
def fields(model):
    """The fields of a model by their names on the wire, with what they are."""
    found = {}
    for part in reversed(model.__mro__):
        for name, kind in part.__dict__.get("__annotations__", {}).items():
            field = part.__dict__.get(name)
            if isinstance(field, model_base._RestField):
                kind = eval(kind, NAMES) if isinstance(kind, str) else typing.get_type_hints(part, NAMES, NAMES)[name]
                found[field._rest_name_input or name] = (field, kind)
    return found


def check(kind, value, place):
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, typing.ForwardRef):
        return check(eval(kind.__forward_arg__, NAMES), value, place)
    if origin is typing.Union:
        if value is None and type(None) in inner:
            return
        words = [one for one in inner if inspect.isclass(one) and issubclass(one, enum.Enum)]
        kinds = words or [one for one in inner if one is not type(None)]
        check(kinds[0], value, place)
    elif origin is typing.Literal:
        if value not in [getattr(one, "value", one) for one in inner]:
            raise invalid(f"{place}: '{value}' is not known")
    elif origin is list:
        if not isinstance(value, list):
            raise invalid(f"{place}: a list is expected")
        for item in value:
            check(inner[0], item, place)
    elif origin is dict:
        if not isinstance(value, dict):
            raise invalid(f"{place}: an object is expected")
        for name, item in value.items():
            check(inner[1], item, f"{place}.{name}")
    elif kind is datetime.timedelta:
        if not isinstance(value, str) or not DURATION.match(value):
            raise invalid(f"{place}: not a duration")
    elif kind in (str, bool, int, float):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise invalid(f"{place}: not a {kind.__name__}")
    elif inspect.isclass(kind) and issubclass(kind, enum.Enum):
        if value not in [one.value for one in kind]:
            raise invalid(f"{place}: '{value}' is not known")
    elif inspect.isclass(kind) and issubclass(kind, model_base.Model):
        check_model(kind, value, place)


def check_model(model, value, place):
    if not isinstance(value, dict):
        raise invalid(f"{place}: an object is expected")
    if mapping := model.__dict__.get("__mapping__"):
        key = next(name for name, (field, _) in fields(model).items() if field._is_discriminator)
        if value.get(key) not in mapping:
            raise invalid(f"{place}.{key}: '{value.get(key)}' is not one of {sorted(mapping)}")
        model = mapping[value[key]]
    known = fields(model)
    for name, item in value.items():
        if name not in known:
            raise invalid(f"{place}.{name}: unknown field")
        field, kind = known[name]
        if field._visibility == ["read"]:
            raise invalid(f"{place}.{name}: it is the service's to say")
        check(kind, item, f"{place}.{name}")
    for name, (field, kind) in known.items():
        optional = typing.get_origin(kind) is typing.Union and type(None) in typing.get_args(kind)
        if not optional and field._visibility != ["read"] and name not in value:
            raise invalid(f"{place}.{name}: it is required")


# What runs.
class Job:
    def __init__(self, path, name, body):
        self.container, self.runs, self.removed = None, 0, False
        made = datetime.datetime.now(datetime.timezone.utc).isoformat()
        self.shown = {"id": path, "name": name, "type": "Microsoft.MachineLearningServices/workspaces/jobs",
                      "systemData": {"createdAt": made, "createdByType": "Application"},
                      "properties": body["properties"] | {"status": "NotStarted"}}
        threading.Timer(QUEUE, self.queue).start()
        threading.Timer(START, self.start).start()

    def status(self):
        return self.shown["properties"]["status"]

    def become(self, status):
        self.shown["properties"]["status"] = status

    def queue(self):
        with LOCK:
            if self.status() == "NotStarted":
                self.become("Queued")

    def start(self):
        with LOCK:
            if self.status() not in ("NotStarted", "Queued"):
                return
            asked, self.runs = self.shown["properties"], self.runs + 1
            folder = os.path.join(FOLDER, f"{self.shown['name']}-{time.monotonic_ns()}")
            environment = asked.get("environmentVariables", {})
            self.container = Container(folder, PROGRAMS, ["/bin/sh", "-c", asked["command"]], environment)
            MADE.append({"environment": self.container.environment, "log": os.path.join(folder, "log")})
            self.become("Running")
        threading.Thread(target=self.wait, args=(self.container,), daemon=True).start()

    def wait(self, container):
        code = container.wait()
        with LOCK:
            if self.status() == "Running" and self.container is container:
                self.become("Completed" if code == 0 else "Failed")

    def preempt(self):
        self.become("Queued")
        self.container.kill()
        threading.Timer(AGAIN, self.start).start()

    def cancelled(self):
        with LOCK:
            self.become("Canceled")
            if self.container:
                self.container.kill()


def make_job(path, name, body):
    check(models.JobBase, body, "$")
    asked = body["properties"]
    if path in JOBS:
        JOBS[path].shown["properties"]["tags"] = asked.get("tags", {})
        return JOBS[path].shown
    environment = asked["environmentId"]
    if environment not in ENVIRONMENTS and not environment.startswith("azureml://registries/"):
        raise invalid(f"the environment {environment} is not there")
    cluster, size = asked.get("computeId"), asked.get("resources", {}).get("instanceType", "")
    if cluster:
        if cluster.rpartition("/computes/")[2] not in CLUSTERS or "queueSettings" in asked:
            raise invalid(f"the compute {cluster} is not there, or does not queue so")
    elif size.upper() not in {one.upper() for one in SIZES}:
        raise Refused(400, "UserError", f"The requested VM size {size} is not supported.")
    if STEERED["full"]:
        raise Refused(409, "QuotaExceeded", "The subscription has no cores left for this family of machines.")
    JOBS[path] = Job(path, name, body)
    if STEERED["swallow"] > 0:
        STEERED["swallow"] -= 1
        raise Swallowed
    return JOBS[path].shown


def listed(path, query):
    jobs = [job.shown for job in JOBS.values()]
    if tag := query.get("tag"):
        jobs = [job for job in jobs if tag in job["properties"].get("tags", {})]
    # Two on a page, so that there are pages.
    at = int(query.get("$skip", "0"))
    more = urllib.parse.urlencode(query | {"api-version": API, "$skip": str(at + 2)})
    return {"value": jobs[at:at + 2]} | ({"nextLink": f"{HERE}{path}?{more}"} if at + 2 < len(jobs) else {})


def service(method, path, query, body):
    """Status and answer."""
    def meant(build, *names, **more):
        request = build(*names, subscription_id=SUBSCRIPTION, **more)
        return request.method == method and urllib.parse.unquote(urllib.parse.urlsplit(request.url).path) == path

    place = (GROUP, WORKSPACE)
    tail = path.partition(f"/workspaces/{WORKSPACE}/")[2].split("/")
    name, version = (tail + ["", ""])[1], (tail + ["", "", "", ""])[3]
    if query.keys() - {"jobType", "tag", "$skip", "listViewType"}:
        raise Refused(400, "BadParameter", "unknown parameter")
    if meant(requests.build_workspaces_get_request, *place):
        return 200, {"id": path, "name": WORKSPACE, "location": "westeurope", "properties": {}}
    if meant(requests.build_virtual_machine_sizes_list_request, "westeurope"):
        return 200, {"value": [{"name": size, "vCPUs": 4} for size in SIZES]}
    if meant(requests.build_jobs_list_request, *place):
        return 200, listed(path, query)
    if not name:
        raise Refused(404, "NotFound", f"there is no {method} {path}")
    if meant(requests.build_compute_get_request, *place, name):
        if name not in CLUSTERS:
            raise Refused(404, "ComputeNotFound", f"compute {name} not found")
        state = {"computeType": "AmlCompute", "provisioningState": "Succeeded"}
        return 200, {"id": path, "name": name, "properties": state}
    if version and meant(requests.build_environment_versions_get_request, *place, name, version):
        if path not in ENVIRONMENTS:
            raise Refused(404, "UserError", f"environment {name}:{version} not found")
        return 200, ENVIRONMENTS[path]
    if version and meant(requests.build_environment_versions_create_or_update_request, *place, name, version):
        check(models.EnvironmentVersion, body, "$")
        ENVIRONMENTS[path] = {"id": path, "name": version} | body
        return 201, ENVIRONMENTS[path]
    if meant(requests.build_jobs_create_or_update_request, *place, name):
        return 201, make_job(path, name, body)
    job = JOBS.get(path.removesuffix("/cancel"))
    if job is None:
        raise Refused(404, "UserError", f"job {name} not found")
    if meant(requests.build_jobs_get_request, *place, name):
        return 200, job.shown
    if meant(requests.build_jobs_cancel_request, *place, name):
        if job.status() in FINAL:
            raise Refused(400, "UserError", f"job {name} has ended and cannot be cancelled")
        if job.status() != "CancelRequested":
            job.become("CancelRequested")
            threading.Timer(CANCEL, job.cancelled).start()
        return 202, None
    if meant(requests.build_jobs_delete_request, *place, name):
        if job.status() not in FINAL or job.removed:
            raise Refused(409, "Conflict", f"job {name} is {job.status()} and cannot be deleted")
        job.removed = True
        threading.Timer(REMOVE, lambda: JOBS.pop(path, None)).start()
        return 202, None
    raise Refused(404, "NotFound", f"there is no {method} {path}")


def steer(path, query):
    if path == "jobs":
        return [job.shown | {"runs": job.runs} for job in JOBS.values()]
    if path == "made":
        return MADE
    if path == "environments":
        return list(ENVIRONMENTS.values())
    if path == "preempt":
        next(job for job in JOBS.values() if job.shown["name"] == query["job"]).preempt()
    elif path == "full":
        STEERED["full"] = query["is"] == "yes"
    elif path in ("busy", "swallow"):
        STEERED[path] = int(query["count"])
    else:
        raise Refused(404, "NotFound", path)
    return "done"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answered(self, text):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if url.path.startswith("/peer/"):
            return 200, steer(url.path.removeprefix("/peer/"), query)
        form = dict(urllib.parse.parse_qsl(text.decode())) if "form" in (self.headers.get("content-type") or "") else {}
        if token := TOKENS.asked(self.command, url.path, query, form, self.headers):
            return 200, token
        TOKENS.use(self.headers)
        if STEERED["busy"] > 0:
            STEERED["busy"] -= 1
            raise Refused(429, "TooManyRequests", "The request is being throttled.")
        if query.pop("api-version", None) != API:
            raise Refused(400, "InvalidApiVersionParameter", "the version of the interface is missing or unknown")
        if text and self.headers.get("content-type") != "application/json":
            raise Refused(415, "UnsupportedMediaType", "the body is not declared as JSON")
        return service(self.command, urllib.parse.unquote(url.path), query, json.loads(text) if text else {})

    def serve(self):
        text = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            with LOCK:
                status, answer = self.answered(text)
        except Refused as refused:
            answer, status = refused.answer, refused.status
        except Swallowed:
            self.close_connection = True
            return
        except (ValueError, KeyError) as error:
            answer, status = invalid(repr(error)).answer, 400
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json; charset=utf-8")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = serve

    def log_message(self, *arguments):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
