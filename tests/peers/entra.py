"""Who issues tokens for peers of Microsoft's services, as Entra ID and as a machine's metadata service do. A token is for one
service, whichever peer issued it, and ends after a few uses there."""

import hashlib
import hmac
import secrets

TENANT, CLIENT, SECRET, ASSERTION = "st-mary.example", "keeper", "SKEEPER", "federated-token"


class Refused(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.answer = status, {"error": {"code": code, "message": message}}


SERVICES = {"https://management.azure.com", "https://storage.azure.com", "https://vault.azure.net"}


def proof(service, text):
    return hmac.new(f"{TENANT} {service}".encode(), text.encode(), hashlib.sha256).hexdigest()


class Tokens:
    def __init__(self, resource, uses):
        self.resource, self.uses, self.left = resource, uses, {}

    def make(self, kind, service):
        text = secrets.token_urlsafe(20)
        lasts = 3599 if kind == "entra" else "86399"
        return {"token_type": "Bearer", "expires_in": lasts, "access_token": f"{text}.{proof(service, text)}"}

    def asked(self, method, path, query, form, headers):
        """A token where one is asked for, otherwise nothing."""
        if path == f"/{TENANT}/oauth2/v2.0/token" and method == "POST":
            return self.entra(form)
        if path == "/metadata/identity/oauth2/token":
            service = query.get("resource")
            known = service == self.resource or service in SERVICES
            if headers.get("metadata") != "true" or not known or query != {"api-version": "2018-02-01", "resource": service}:
                raise Refused(400, "invalid_request", "another request is expected")
            return self.make("machine", service)
        return None

    def entra(self, form):
        service, _, scope = (form.get("scope") or "").rpartition("/")
        asked = (form.get("grant_type"), form.get("client_id"), scope)
        if asked != ("client_credentials", CLIENT, ".default") or (service != self.resource and service not in SERVICES):
            raise Refused(400, "invalid_request", "another request is expected")
        kind = form.get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        if form.get("client_secret") != SECRET and not (kind and form.get("client_assertion") == ASSERTION):
            refused = Refused(401, "", "")
            why = "AADSTS7000215: Invalid client secret provided."
            refused.answer = {"error": "invalid_client", "error_description": why}
            raise refused
        return self.make("entra", service)

    def use(self, headers):
        held = (headers.get("authorization") or "").removeprefix("Bearer ")
        text, _, proven = held.partition(".")
        self.left[held] = self.left.get(held, self.uses) - 1
        if not hmac.compare_digest(proven, proof(self.resource, text)) or self.left[held] < 0:
            raise Refused(401, "Unauthorized", "[BearerReadAccessTokenFailed] Error validating token")
