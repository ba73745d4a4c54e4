"""Who issues tokens for peers of Microsoft's services, as Entra ID and as a machine's metadata service do. A token ends
after a few uses."""

import secrets

TENANT, CLIENT, SECRET, ASSERTION = "st-mary.example", "keeper", "SKEEPER", "federated-token"


class Refused(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.answer = status, {"error": {"code": code, "message": message}}


class Tokens:
    def __init__(self, resource, uses):
        self.resource, self.uses, self.left = resource, uses, {}

    def make(self, kind):
        text = secrets.token_urlsafe(40)
        self.left[text] = self.uses
        lasts = 3599 if kind == "entra" else "86399"
        return {"token_type": "Bearer", "expires_in": lasts, "access_token": text}

    def asked(self, method, path, query, form, headers):
        """A token where one is asked for, otherwise nothing."""
        if path == f"/{TENANT}/oauth2/v2.0/token" and method == "POST":
            return self.entra(form)
        if path == "/metadata/identity/oauth2/token":
            if headers.get("metadata") != "true" or query != {"api-version": "2018-02-01", "resource": self.resource}:
                raise Refused(400, "invalid_request", "another request is expected")
            return self.make("machine")
        return None

    def entra(self, form):
        asked = (form.get("grant_type"), form.get("client_id"), form.get("scope"))
        if asked != ("client_credentials", CLIENT, f"{self.resource}/.default"):
            raise Refused(400, "invalid_request", "another request is expected")
        kind = form.get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        if form.get("client_secret") != SECRET and not (kind and form.get("client_assertion") == ASSERTION):
            refused = Refused(401, "", "")
            why = "AADSTS7000215: Invalid client secret provided."
            refused.answer = {"error": "invalid_client", "error_description": why}
            raise refused
        return self.make("entra")

    def use(self, headers):
        held = (headers.get("authorization") or "").removeprefix("Bearer ")
        self.left[held] = self.left.get(held, 0) - 1
        if self.left[held] < 0:
            raise Refused(401, "Unauthorized", "[BearerReadAccessTokenFailed] Error validating token")
