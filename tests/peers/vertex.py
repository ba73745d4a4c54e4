"""Google's Vertex AI as far as containers that train need it, over Google's own discovery document
(`google_discovery.py`). Its jobs run: each is a process (`container.py`).

    python vertex.py PORT FOLDER PROGRAMS

- A job is pending for a moment, and what was just made is not listed for a while.
- What runs cannot be removed, what is cancelled takes a moment to end, and what is removed too.
- Labels, filters and masks have the signs that the service allows.

GET /peer/… tells and steers: `jobs`, `made` (containers that there ever were), `requests`, `full?is=yes`,
`busy?count=N`, `swallow?count=N` (jobs are made and nobody is told so), `late?seconds=N`, `preempt?job=NAME`, `twin`.
"""

import datetime
import itertools
import os
import re
import sys
import threading
import time

from container import Container
from google_discovery import Document, Refused, Swallowed, invalid

PORT, FOLDER, PROGRAMS = int(sys.argv[1]), sys.argv[2], sys.argv[3]
RESOURCE = "aiplatform.projects.locations.customJobs."
DOCUMENT = Document("aiplatform.v1", RESOURCE)
TOO_OFTEN = (
    "Quota exceeded for quota metric 'Resource management (CRUD) requests' and limit 'Resource management (CRUD) requests "
    "per minute per region' of service 'aiplatform.googleapis.com' for consumer 'project_number:1'."
)
FINAL = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}
LABEL = re.compile(r"^[a-z][a-z0-9_-]{0,62}$")
# Seconds that things take.
START, CANCEL, REMOVE = 0.3, 0.3, 0.2
LOCK = threading.RLock()
JOBS, MADE, REQUESTS, NUMBERS = {}, [], [], itertools.count(1001)
STEERED = {"late": 0.4, "busy": 0, "swallow": 0, "full": False}


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


class Job:
    def __init__(self, parent, spec):
        number = next(NUMBERS)
        self.made, self.container, self.removed = time.monotonic(), None, False
        self.shown = spec | {"name": f"{parent}/customJobs/{number}", "state": "JOB_STATE_PENDING", "createTime": now()}
        threading.Timer(START, self.start).start()

    def start(self):
        with LOCK:
            if self.shown["state"] != "JOB_STATE_PENDING":
                return
            spec = self.shown["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]
            environment = {one["name"]: one["value"] for one in spec.get("env", [])}
            folder = os.path.join(FOLDER, self.shown["name"].rpartition("/")[2])
            command = [*spec.get("command", []), *spec.get("args", [])]
            self.container = Container(folder, PROGRAMS, command, environment)
            MADE.append({"environment": self.container.environment, "log": os.path.join(folder, "log")})
            self.shown |= {"state": "JOB_STATE_RUNNING", "startTime": now()}
        threading.Thread(target=self.wait, daemon=True).start()

    def wait(self):
        code = self.container.wait()
        with LOCK:
            if self.shown["state"] != "JOB_STATE_RUNNING":
                return
            if code == 0:
                self.end("JOB_STATE_SUCCEEDED", None)
            else:
                self.end("JOB_STATE_FAILED", {"code": 3, "message":
                    f"The replica workerpool0-0 exited with a non-zero status of {code}. Termination reason: Error. \n"
                    "To find out more about why your job exited please check the logs."})

    def end(self, state, error):
        self.shown |= {"state": state, "endTime": now()} | ({"error": error} if error else {})
        if self.container:
            self.container.kill()

    def cancelled(self):
        with LOCK:
            if self.shown["state"] not in FINAL:
                self.end("JOB_STATE_CANCELLED", {"code": 1, "message": "CANCELED"})


def checked(job):
    """What the document says in words alone."""
    if len(job["displayName"]) > 128:
        raise invalid("body.displayName: longer than 128 characters")
    for key, value in job.get("labels", {}).items():
        if not LABEL.match(key) or not re.match(r"^[a-z0-9_-]{0,63}$", value):
            raise invalid(f"body.labels.{key}: not a label")
    [pool] = job["jobSpec"]["workerPoolSpecs"]
    machine = pool["machineSpec"]
    if pool.get("replicaCount") != "1" or not pool.get("containerSpec", {}).get("command"):
        raise invalid("body.jobSpec.workerPoolSpecs[0]: one container with a command is expected")
    if machine["machineType"].split("-")[0] not in ("n1", "n2", "e2", "c2", "a2", "g2"):
        raise invalid(f"Machine type \"{machine['machineType']}\" is not supported.")
    if ("acceleratorType" in machine) != (machine.get("acceleratorCount", 0) > 0):
        raise invalid("an accelerator has a kind and a number")
    if len(pool["containerSpec"].get("env", [])) > 100:
        raise invalid("body.jobSpec.workerPoolSpecs[0].containerSpec.env: at most 100")
    if not job["jobSpec"].get("scheduling", {}).get("disableRetries"):
        raise invalid("nobody here wants what failed to be tried again")
    return job


def fields(schema, mask):
    for name in mask.split(","):
        if name not in DOCUMENT.schemas[schema]["properties"]:
            raise invalid(f"there is no field {name}")
    return mask.split(",")


def masked(job, mask):
    if not mask:
        return job
    return {name: job[name] for name in fields("GoogleCloudAiplatformV1CustomJob", mask) if name in job}


def fitting(job, written):
    for part in written.split(" AND ") if written else []:
        found = re.match(r"^labels\.([a-z0-9_]+)=([a-z][a-z0-9_-]*)$", part)
        if not found:
            raise invalid(f"Invalid filter: {written}")
        if job.get("labels", {}).get(found[1]) != found[2]:
            return False
    return True


def listed(parent, query):
    young = time.monotonic() - STEERED["late"]
    jobs = [job.shown for job in JOBS.values() if job.made < young and job.shown["name"].startswith(parent + "/")]
    jobs = [job for job in jobs if fitting(job, query.get("filter", ""))]
    # Two on a page at the most, whatever was asked for: the service may do so.
    size, start = min(int(query.get("pageSize", 2)), 2), int(query.get("pageToken", "page-0").removeprefix("page-"))
    page = {"customJobs": [masked(job, query.get("readMask")) for job in jobs[start:start + size]]}
    return page | ({"nextPageToken": f"page-{start + size}"} if start + size < len(jobs) else {})


def wrong_state(name, state, verb):
    return Refused(400, "FAILED_PRECONDITION", f"The CustomJob \"{name}\" is in state {state} and cannot be {verb}.")


def done(method, name, query, body):
    action = method["id"].removeprefix(RESOURCE)
    with LOCK:
        REQUESTS.append({"action": action, "query": query})
        if STEERED["busy"] > 0:
            STEERED["busy"] -= 1
            raise Refused(429, "RESOURCE_EXHAUSTED", TOO_OFTEN)
        if action == "create":
            if STEERED["full"]:
                raise Refused(429, "RESOURCE_EXHAUSTED", "The following quota metrics exceed quota limits: "
                              "aiplatform.googleapis.com/custom_model_training_nvidia_t4_gpus")
            job = Job(name.removesuffix("/customJobs"), checked(body))
            JOBS[job.shown["name"]] = job
            if STEERED["swallow"] > 0:
                STEERED["swallow"] -= 1
                raise Swallowed
            return job.shown
        if action == "list":
            return listed(name.removesuffix("/customJobs"), query)
        job = JOBS.get(name)
        if job is None:
            raise Refused(404, "NOT_FOUND", f"The CustomJob \"{name}\" does not exist.")
        state = job.shown["state"]
        if action == "get":
            return masked(job.shown, query.get("fields"))
        if action == "cancel":
            if state in FINAL:
                raise wrong_state(name, state, "cancelled")
            if state != "JOB_STATE_CANCELLING":
                job.shown["state"] = "JOB_STATE_CANCELLING"
                threading.Timer(CANCEL, job.cancelled).start()
            return {}
        if action == "delete":
            if state not in FINAL or job.removed:
                raise wrong_state(name, state, "deleted")
            job.removed = True
            threading.Timer(REMOVE, lambda: JOBS.pop(name, None)).start()
            return {"name": f"{name.rpartition('/customJobs/')[0]}/operations/{next(NUMBERS)}", "done": False}
    raise Refused(501, "UNIMPLEMENTED", action)


def steer(path, query):
    with LOCK:
        if path == "jobs":
            return [job.shown for job in JOBS.values()]
        if path == "made":
            return MADE
        if path == "requests":
            return REQUESTS
        if path == "preempt":
            error = {"code": 14, "message": "The spot VM of workerpool0-0 was preempted."}
            JOBS[query["job"]].end("JOB_STATE_FAILED", error)
        elif path == "twin":
            # Of the last one, as whoever asked at the same time made it.
            made = [job.shown for job in JOBS.values()][-1]
            spec = {name: made[name] for name in ("displayName", "labels", "jobSpec")}
            twin = Job(made["name"].rpartition("/customJobs/")[0], spec)
            JOBS[twin.shown["name"]] = twin
        elif path == "full":
            STEERED["full"] = query["is"] == "yes"
        elif path == "late":
            STEERED["late"] = float(query["seconds"])
        elif path in ("busy", "swallow"):
            STEERED[path] = int(query["count"])
        else:
            raise Refused(404, "NOT_FOUND", path)
        return "done"


DOCUMENT.serve(PORT, done, steer)
