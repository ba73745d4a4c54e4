//! vSphere's web service: SOAP of the VIM API, version 6.5, which every later vCenter speaks too.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, COOKIE, HeaderValue, SET_COOKIE};
use object_store::client::HttpRequest;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::settings::{Login, VsphereSettings};
use super::xml::{Element, Reference, element};
use crate::client::{Server, Settling, Way};
use crate::compute::{Failure, told};
use crate::credentials::Environment;
use crate::store::OpenError;

/// The longest answer that is read.
const ANSWER_BYTES: usize = 16 << 20;
/// How long vCenter may take for an answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// The most pages of a listing that are read, and objects in one.
const PAGES: usize = 1000;
const PAGE: usize = 500;
/// Objects that are asked for at once: a machine's settings hold its user-data.
const TOGETHER: usize = 100;
const ACTION: &str = "urn:vim25/6.5";
const SESSION: &str = "vmware_soap_session=";

/// What it says when there is no room, besides all that begins with `Insufficient`; elsewhere, or later, there may be.
const CAPACITY: [&str; 6] = [
    "NoCompatibleHost",
    "NoCompatibleHostWithAccessToDevice",
    "NoDiskSpace",
    "NotEnoughCpus",
    "NotEnoughLogicalCpus",
    "NotEnoughLicenses",
];
/// What it says when it may be better the next time.
const PASSING: [&str; 15] = [
    "ConcurrentAccess",
    "HostCommunication",
    "HostNotConnected",
    "HostNotReachable",
    "InaccessibleDatastore",
    "InvalidHostConnectionState",
    "InvalidHostState",
    "InvalidState",
    "RequestCanceled",
    "ResourceInUse",
    "ResourceNotAvailable",
    "RuntimeFault",
    "SystemError",
    "TaskInProgress",
    "Timedout",
];
/// What it says of whom it does not know.
const STRANGERS: [&str; 4] = [
    "InvalidLogin",
    "InvalidLocale",
    "NoClientCertificate",
    "PasswordExpired",
];

/// Who is logged in, and what the server calls its own parts.
#[derive(Clone)]
struct Session {
    cookie: Zeroizing<String>,
    /// What other requests call this session; whoever knows it can do nothing with it.
    key: String,
    parts: Parts,
}

/// The parts of a vCenter.
#[derive(Clone)]
struct Parts {
    root: Reference,
    properties: Reference,
    sessions: Reference,
    events: Reference,
    rights: Reference,
}

/// One of the parts of a vCenter.
#[derive(Debug, Clone, Copy)]
enum Part {
    Properties,
    Events,
    Rights,
}

/// An object with the properties that were asked for.
pub(super) struct Object {
    pub(super) reference: Reference,
    properties: Vec<(String, Element)>,
    /// Why it does not say some of what was asked for.
    withheld: Option<Element>,
}

impl Object {
    /// None where it has none.
    pub(super) fn get(&self, property: &str) -> Option<&Element> {
        let named = self.properties.iter().find(|(name, _)| name == property);
        named.map(|(_, value)| value)
    }

    pub(super) fn text(&self, property: &str) -> &str {
        self.get(property).map_or("", Element::text)
    }
}

/// A vCenter.
pub(super) struct Service {
    server: Server,
    /// Who logs in, or what is missing for that: planning needs nobody.
    login: Result<Login, String>,
    session: Mutex<Option<Session>>,
}

impl Service {
    pub(super) fn open(settings: &VsphereSettings, environment: &Environment) -> Result<Self, OpenError> {
        let who = settings.to_string();
        Ok(Self {
            server: Server::open(&who, settings.certificates.as_deref(), Way::Usual)?,
            login: Login::of(settings, environment),
            session: Mutex::default(),
        })
    }

    /// One request; its answer, and a session where it begins one.
    async fn send(
        &self,
        cookie: Option<&str>,
        method: &str,
        this: &Reference,
        parameters: &str,
    ) -> Result<(Element, Option<Zeroizing<String>>), Failure> {
        let login = self.login()?;
        let this = this.as_element("_this");
        let body = Zeroizing::new(format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope \
             xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body><{method} \
             xmlns=\"urn:vim25\">{this}{parameters}</{method}></soapenv:Body></soapenv:Envelope>"
        ));
        let request = http::Request::post(login.url.as_str());
        let request = request
            .header(CONTENT_TYPE, "text/xml; charset=utf-8")
            .header("soapaction", ACTION)
            .body(Bytes::copy_from_slice(body.as_bytes()).into());
        let mut request: HttpRequest = request.map_err(|error| Failure::passing(error.to_string()))?;
        if let Some(cookie) = cookie {
            let cookie = HeaderValue::from_str(cookie);
            let mut cookie = cookie.map_err(|_| Failure::passing("its session is none"))?;
            cookie.set_sensitive(true);
            request.headers_mut().insert(COOKIE, cookie);
        }
        // It does what it was asked for whether or not somebody still listens.
        let answer = self.server.answer_within(PATIENCE, request, ANSWER_BYTES).await;
        let answer = answer.map_err(Failure::unheard)?;
        let cookies = answer.headers().get_all(SET_COOKIE).iter();
        let cookie = cookies
            .filter_map(|cookie| cookie.to_str().ok()?.split(';').next())
            .find(|cookie| cookie.starts_with(SESSION))
            .map(|cookie| Zeroizing::new(cookie.to_owned()));
        let status = answer.status().as_u16();
        let read = Element::parse(answer.body()).filter(|one| one.name == "Envelope");
        let said = read.and_then(|mut one| {
            let body = one.children.iter_mut().find(|child| child.name == "Body")?;
            body.children.drain(..).next()
        });
        match said {
            Some(fault) if fault.name == "Fault" => {
                let detail = fault.child("detail").and_then(|detail| detail.children.first());
                let (words, nothing) = (fault.said("faultstring"), Element::default());
                // What it says of a login may repeat it.
                Err(failure(
                    detail.unwrap_or(&nothing),
                    if method == "Login" { "" } else { words },
                ))
            }
            Some(said) if status == 200 => Ok((said, cookie)),
            _ => Err(Failure::unheard(format!("it answered with status {status}"))),
        }
    }

    fn login(&self) -> Result<&Login, Failure> {
        self.login.as_ref().map_err(|why| Failure::Refused {
            code: "NoCredentials".to_owned(),
            why: why.clone(),
        })
    }

    async fn log_in(&self) -> Result<Session, Failure> {
        let strange = || Failure::passing("its answer is none of a vCenter");
        let instance = Reference::new("ServiceInstance", "ServiceInstance");
        let (content, early) = self.send(None, "RetrieveServiceContent", &instance, "").await?;
        let content = content.child("returnval").ok_or_else(strange)?;
        let part = |name: &str| content.child(name).and_then(Element::reference).ok_or_else(strange);
        let parts = Parts {
            root: part("rootFolder")?,
            properties: part("propertyCollector")?,
            sessions: part("sessionManager")?,
            events: part("eventManager")?,
            rights: part("authorizationManager")?,
        };
        let login = self.login()?;
        let who = Zeroizing::new(element("userName", &login.user) + &element("password", login.password.as_str()));
        let early = early.as_ref().map(|cookie| cookie.as_str());
        let (session, cookie) = self.send(early, "Login", &parts.sessions, &who).await?;
        let cookie = cookie.or_else(|| early.map(|early| Zeroizing::new(early.to_owned())));
        let session = session.child("returnval").ok_or_else(strange)?;
        Ok(Session {
            cookie: cookie.ok_or_else(strange)?,
            key: session.said("key").to_owned(),
            parts,
        })
    }

    /// A session; another one than the one with `refused`.
    async fn session(&self, refused: Option<&str>) -> Result<Session, Failure> {
        let mut session = self.session.lock().await;
        if let Some(there) = session.as_ref().filter(|one| refused != Some(one.cookie.as_str())) {
            return Ok(there.clone());
        }
        let new = self.log_in().await?;
        *session = Some(new.clone());
        Ok(new)
    }

    /// A request, and its answer; `this` and `parameters` may be those of a session.
    async fn within(&self, method: &str, this: impl Fn(&Session) -> (Reference, String)) -> Result<Element, Failure> {
        let mut refused: Option<Zeroizing<String>> = None;
        loop {
            let session = self.session(refused.as_ref().map(|cookie| cookie.as_str())).await?;
            let (object, parameters) = this(&session);
            match self.send(Some(&session.cookie), method, &object, &parameters).await {
                Ok((said, _)) => return Ok(said),
                // vCenter ends a session that was idle for half an hour.
                Err(failure) if failure.is(&["NotAuthenticated"]) && refused.is_none() => {
                    refused = Some(session.cookie);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn of_part(&self, part: Part, method: &str, parameters: &str) -> Result<Element, Failure> {
        let this = |session: &Session| {
            let part = match part {
                Part::Properties => &session.parts.properties,
                Part::Events => &session.parts.events,
                Part::Rights => &session.parts.rights,
            };
            let parameters = parameters.replace(KEY, &element("sessionId", &session.key));
            (part.clone(), parameters)
        };
        self.within(method, this).await
    }

    /// Asks for something that takes its time, and waits until it is done; gives what it made.
    pub(super) async fn done(
        &self,
        method: &str,
        this: &Reference,
        parameters: &str,
        time: Duration,
    ) -> Result<Option<Reference>, Failure> {
        let asked = self.within(method, |_| (this.clone(), parameters.to_owned())).await?;
        let task = asked.child("returnval").and_then(Element::reference);
        let task = task.ok_or_else(|| Failure::unheard(format!("its answer is none of {method}")))?;
        let mut settling = Settling::within(time);
        let nothing = Element::default();
        loop {
            let asked = self.of(&task, &["info.state", "info.error", "info.result"]).await;
            match asked {
                Ok(info) => match info.text("info.state") {
                    "success" => return Ok(info.get("info.result").and_then(Element::reference)),
                    "error" => {
                        let error = info.get("info.error").unwrap_or(&nothing);
                        let fault = error.child("fault").unwrap_or(&nothing);
                        return Err(failure(fault, error.said("localizedMessage")));
                    }
                    _ => {}
                },
                // It goes on there, whoever asks.
                Err(Failure::Passing(_) | Failure::Unheard(_)) => {}
                Err(failure) => return Err(failure),
            }
            if !settling.goes_on().await {
                return Err(Failure::passing("it is still at work"));
            }
        }
    }

    /// An object's properties.
    pub(super) async fn of(&self, object: &Reference, properties: &[&str]) -> Result<Object, Failure> {
        let objects = format!("<objectSet>{}</objectSet>", object.as_element("obj"));
        let wanted = wanted(&object.kind, properties);
        let found = self.retrieve(&format!("{wanted}{objects}")).await?;
        let found = found.into_iter().next();
        found.ok_or_else(|| Failure::passing("its answer describes nothing"))
    }

    /// Of objects of one kind those that are there, with their properties: what may not be seen is not taken for gone.
    pub(super) async fn each(&self, objects: &[Reference], properties: &[&str]) -> Result<Vec<Object>, Failure> {
        let mut all = Vec::new();
        for some in objects.chunks(TOGETHER) {
            let Some(first) = some.first() else { continue };
            let objects = some
                .iter()
                .map(|one| format!("<objectSet>{}</objectSet>", one.as_element("obj")));
            let objects: String = objects.collect();
            let missing = element("reportMissingObjectsInResults", true);
            let wanted = wanted(&first.kind, properties);
            all.extend(self.retrieve(&format!("{wanted}{objects}{missing}")).await?);
        }
        let withheld = all.iter().filter_map(|one| one.withheld.as_ref());
        match withheld.into_iter().find(|fault| fault.kind != "ManagedObjectNotFound") {
            Some(fault) => Err(failure(fault, "it does not say all that it was asked for")),
            None => Ok(all),
        }
    }

    /// All objects of a kind at or below `from`, by the ways that `paths` name: the kind of an object, and its property
    /// that names others.
    pub(super) async fn below(
        &self,
        from: &Reference,
        kind: &str,
        properties: &[&str],
        paths: &[(&str, &str)],
    ) -> Result<Vec<Object>, Failure> {
        let name = |path: &(&str, &str)| element("name", format!("{}.{}", path.0, path.1));
        // Every way goes on by every other.
        let onward: String = paths
            .iter()
            .map(|path| format!("<selectSet>{}</selectSet>", name(path)))
            .collect();
        let ways = paths.iter().map(|path| {
            let (name, kind, property) = (name(path), element("type", path.0), element("path", path.1));
            format!(
                "<selectSet xsi:type=\"TraversalSpec\">{name}{kind}{property}<skip>false</skip>{onward}</selectSet>"
            )
        });
        let ways: String = ways.collect();
        let objects = format!(
            "<objectSet>{}<skip>false</skip>{ways}</objectSet>",
            from.as_element("obj")
        );
        self.retrieve(&format!("{}{objects}", wanted(kind, properties))).await
    }

    async fn retrieve(&self, filter: &str) -> Result<Vec<Object>, Failure> {
        let options = format!("<options>{}</options>", element("maxObjects", PAGE));
        let asked = format!("<specSet>{filter}</specSet>{options}");
        let mut answer = self.of_part(Part::Properties, "RetrievePropertiesEx", &asked).await?;
        let mut all = Vec::new();
        for _ in 0..PAGES {
            // Where nothing is found, nothing is answered.
            let Some(page) = answer.children.iter_mut().find(|child| child.name == "returnval") else {
                return Ok(all);
            };
            let token = page.said("token").to_owned();
            all.extend(page.children.drain(..).filter_map(object));
            if token.is_empty() {
                return Ok(all);
            }
            let token = element("token", token);
            let more = self
                .of_part(Part::Properties, "ContinueRetrievePropertiesEx", &token)
                .await;
            answer = more.map_err(|failure| match failure {
                // Another session does not know of it.
                Failure::Refused { code, .. } => Failure::passing(format!("its listing broke off: {code}")),
                failure => failure,
            })?;
        }
        Err(Failure::passing("it lists more than is looked at"))
    }

    /// The folder that everything is in.
    pub(super) async fn root(&self) -> Result<Reference, Failure> {
        Ok(self.session(None).await?.parts.root)
    }

    /// Whether something of these types has happened to an object.
    pub(super) async fn has_happened(&self, object: &Reference, events: &[&str]) -> Result<bool, Failure> {
        let events: String = events.iter().map(|event| element("eventTypeId", event)).collect();
        let filter = format!(
            "<filter><entity>{}<recursion>self</recursion></entity>{events}<maxCount>1</maxCount></filter>",
            object.as_element("entity")
        );
        let found = self.of_part(Part::Events, "QueryEvents", &filter).await?;
        Ok(found.child("returnval").is_some())
    }

    /// Those privileges on an object that whoever logs in does not have.
    pub(super) async fn missing(&self, object: &Reference, privileges: &[&str]) -> Result<Vec<String>, Failure> {
        let asked: String = privileges.iter().map(|one| element("privId", one)).collect();
        let asked = format!("{}{KEY}{asked}", object.as_element("entity"));
        let answer = self.of_part(Part::Rights, "HasPrivilegeOnEntities", &asked).await?;
        let each = answer.all("returnval").flat_map(|one| one.all("privAvailability"));
        let missing = each.filter(|one| one.said("isGranted") == "false");
        Ok(missing.map(|one| told(one.said("privId"))).collect())
    }
}

/// Where the name of the session stands in what is asked.
const KEY: &str = "<sessionId/>";

/// The properties that are asked of objects of a kind.
fn wanted(kind: &str, properties: &[&str]) -> String {
    let properties: String = properties.iter().map(|one| element("pathSet", one)).collect();
    format!("<propSet>{}{properties}</propSet>", element("type", kind))
}

pub(super) fn object(mut described: Element) -> Option<Object> {
    let reference = described
        .child("obj")
        .filter(|_| described.name == "objects")?
        .reference()?;
    let missing = described.children.iter_mut().find(|child| child.name == "missingSet");
    let fault = missing.and_then(|missing| missing.children.iter_mut().find(|child| child.name == "fault"));
    let withheld = fault.and_then(|fault| {
        let kind = fault.children.iter().position(|child| child.name == "fault")?;
        Some(fault.children.swap_remove(kind))
    });
    let properties = described.children.into_iter().filter(|child| child.name == "propSet");
    let properties = properties.filter_map(|mut property| {
        let name = property.said("name").to_owned();
        let value = property.children.iter().position(|child| child.name == "val")?;
        Some((name, property.children.swap_remove(value)))
    });
    Some(Object {
        properties: properties.collect(),
        reference,
        withheld,
    })
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

/// What a fault means.
fn failure(fault: &Element, words: &str) -> Failure {
    let plain = |one: char| one.is_ascii_alphanumeric();
    let code: String = fault.kind.chars().filter(|one| plain(*one)).take(64).collect();
    let refused = |why: String| Failure::Refused {
        code: code.clone(),
        why,
    };
    let is = |codes: &[&str]| codes.contains(&code.as_str());
    if code.starts_with("Insufficient") || is(&CAPACITY) {
        return Failure::Capacity(format!("{code}: {}", told(words)));
    }
    if is(&PASSING) {
        return Failure::passing(format!("{code}: {}", told(words)));
    }
    match code.as_str() {
        // Some that it could not read, and says so with a part of it.
        "" | "InvalidRequest" => Failure::Refused {
            code: "InvalidRequest".to_owned(),
            why: "it does not understand what it was asked: is it a vCenter of version 6.5 or later?".to_owned(),
        },
        _ if is(&STRANGERS) => refused("its credentials are not accepted".to_owned()),
        "NoPermission" => {
            let privilege = told(fault.said("privilegeId"));
            refused(format!("its credentials lack the privilege `{privilege}`"))
        }
        "NotAuthenticated" => refused("its session has ended".to_owned()),
        "RestrictedVersion" => refused("its licence lets nobody change anything by this interface".to_owned()),
        _ => refused(told(words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a vCenter of version 8 answers, where nothing below `detail` says of which kind the words are.
    fn failed(kind: &str, inside: &str) -> Failure {
        let fault = format!(
            "<{kind}Fault xmlns=\"urn:vim25\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
             xsi:type=\"{kind}\">{inside}</{kind}Fault>"
        );
        failure(&Element::parse(fault.as_bytes()).unwrap(), "the words\u{7} of trainer")
    }

    #[test]
    fn what_may_pass_is_told_apart_from_what_will_be_wrong_again() {
        for kind in [
            "InsufficientStandbyCpuResource",
            "NoCompatibleHost",
            "NotEnoughLicenses",
        ] {
            assert!(
                matches!(failed(kind, ""), Failure::Capacity(why) if why == format!("{kind}: the words of trainer"))
            );
        }
        for kind in ["TaskInProgress", "HostNotConnected", "ConcurrentAccess"] {
            assert!(matches!(failed(kind, ""), Failure::Passing(_)), "{kind}");
        }
        let asked = failed("NoPermission", "<privilegeId>Network.Assign</privilegeId>");
        for (failure, code, words) in [
            (
                failed("InvalidLogin", ""),
                "InvalidLogin",
                "its credentials are not accepted",
            ),
            (
                asked,
                "NoPermission",
                "its credentials lack the privilege `Network.Assign`",
            ),
            (failed("DuplicateName", ""), "DuplicateName", "the words of trainer"),
            (failed("", ""), "InvalidRequest", "is it a vCenter"),
        ] {
            match failure {
                Failure::Refused { code: told, why } => assert!(told == code && why.contains(words), "{told}: {why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_may_not_be_seen_is_known_from_what_is_not_there() {
        let described = |fault: &str| {
            let text = format!(
                "<objects xmlns:xsi=\"x\"><obj type=\"VirtualMachine\">vm-1</obj><propSet><name>name</name><val>a</val>\
                 </propSet><missingSet><path>config</path><fault><fault xsi:type=\"{fault}\"/><localizedMessage/></fault>\
                 </missingSet></objects>"
            );
            object(Element::parse(text.as_bytes()).unwrap()).unwrap()
        };
        let object = described("NoPermission");
        assert_eq!((object.reference.id.as_str(), object.text("name")), ("vm-1", "a"));
        assert_eq!(object.withheld.unwrap().kind, "NoPermission");
    }
}
