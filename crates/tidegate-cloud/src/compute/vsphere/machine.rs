//! What a machine of ours says of itself.

use std::collections::BTreeMap;

use tidegate_seal::digest::sha256;

use super::service::Object;
use super::xml::Reference;

/// What stands at a machine: whose it is, its job, and the digest of its request. Nothing on the machine itself can change
/// what does not begin with `guestinfo.`.
pub(super) const OWNER: &str = "tidegate.owner";
pub(super) const JOB: &str = "tidegate.job";
pub(super) const REQUEST: &str = "tidegate.request";
/// What a machine says of itself at its end: its exit code.
pub(super) const EXIT: &str = "guestinfo.tidegate.exit";
/// What the name of every machine begins with: those of others are not asked for more than that.
pub(super) const NAME: &str = "tidegate-";
/// What is asked of a machine.
pub(super) const PROPERTIES: [&str; 5] = [
    "config.template",
    "runtime.powerState",
    "runtime.connectionState",
    "config.changeVersion",
    "config.extraConfig",
];

/// How far a machine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// It is on, or nobody can say that it is not.
    On,
    /// It was on, and is off.
    Ended,
    /// It was never on.
    New,
}

/// A machine of ours, as vCenter describes it.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) reference: Reference,
    pub(super) stage: Stage,
    /// Its host says that it is.
    pub(super) off: bool,
    pub(super) owner: String,
    pub(super) job: String,
    pub(super) request: String,
    pub(super) exit: Option<i32>,
    pub(super) version: String,
}

impl Machine {
    /// None where it is nobody's, or is not there wholly. Whether one that is off was ever on is not known yet.
    pub(super) fn of(object: &Object) -> Option<Self> {
        let said: BTreeMap<&str, &str> = object
            .get("config.extraConfig")?
            .children
            .iter()
            .map(|one| (one.said("key"), one.said("value")))
            .collect();
        let said = |key: &str| said.get(key).copied();
        // Somebody has made a template of what was one of ours.
        if object.text("config.template") == "true" {
            return None;
        }
        let exit = said(EXIT).and_then(|code| code.trim().parse().ok());
        // Of a machine on a host that does not answer nobody knows more than it was.
        let off =
            object.text("runtime.powerState") == "poweredOff" && object.text("runtime.connectionState") == "connected";
        Some(Self {
            reference: object.reference.clone(),
            stage: if exit.is_some() || off { Stage::Ended } else { Stage::On },
            off,
            owner: said(OWNER)?.to_owned(),
            job: said(JOB)?.to_owned(),
            request: said(REQUEST)?.to_owned(),
            exit,
            version: object.text("config.changeVersion").to_owned(),
        })
    }

    pub(super) fn id(&self) -> &str {
        &self.reference.id
    }
}

/// Of several machines for one job, the one that counts: one that works before one that has ended, before one that never
/// began; then the first.
pub(super) fn counting(machines: &[Machine]) -> Option<&Machine> {
    machines.iter().min_by_key(|one| (one.stage, one.id().len(), one.id()))
}

/// The name of a job's machine: the same for the same job, and no other's, so that one folder holds no two of them.
pub(super) fn name_of(owner: &str, job: &str) -> String {
    let digest = sha256(format!("{owner}\n{job}").as_bytes()).to_hex();
    format!("{NAME}{}", digest.chars().take(32).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::service;
    use super::super::xml::{Element, option};
    use super::*;

    fn machine(id: &str, power: &str, connection: &str, settings: &str) -> Option<Machine> {
        let property = |name: &str, value: &str| format!("<propSet><name>{name}</name><val>{value}</val></propSet>");
        let text = format!(
            "<objects xmlns:xsi=\"x\"><obj type=\"VirtualMachine\">{id}</obj>{}{}{}</objects>",
            property("runtime.powerState", power),
            property("runtime.connectionState", connection),
            property("config.extraConfig", settings)
        );
        Machine::of(&service::object(Element::parse(text.as_bytes()).unwrap()).unwrap())
    }

    fn ours(more: &str) -> String {
        option(OWNER, "o") + &option(JOB, "j") + &option(REQUEST, "r") + more
    }

    #[test]
    fn nobody_is_said_to_be_off_of_whom_nobody_knows() {
        let stage = |power: &str, connection: &str, more: &str| {
            let machine = machine("vm-1", power, connection, &ours(more)).unwrap();
            (machine.stage, machine.exit)
        };
        assert_eq!(stage("poweredOff", "connected", ""), (Stage::Ended, None));
        for connection in ["disconnected", "inaccessible", "orphaned", "invalid"] {
            assert_eq!(stage("poweredOff", connection, ""), (Stage::On, None), "{connection}");
        }
        for power in ["poweredOn", "suspended"] {
            assert_eq!(stage(power, "connected", ""), (Stage::On, None), "{power}");
        }
        // It is done, and on its way to be off; a hypervisor may forget then what it said.
        assert_eq!(
            stage("poweredOn", "connected", &option(EXIT, "3")),
            (Stage::Ended, Some(3))
        );
        assert_eq!(
            stage("poweredOn", "connected", &option(EXIT, "three")),
            (Stage::On, None)
        );
        // What does not say whose it is is nobody's.
        assert!(machine("vm-1", "poweredOff", "connected", &option(JOB, "j")).is_none());
    }

    #[test]
    fn of_twins_one_that_works_counts_before_one_that_has_ended() {
        let of = |id: &str, power: &str| machine(id, power, "connected", &ours("")).unwrap();
        let counts = |all: &[Machine]| counting(all).unwrap().id().to_owned();
        assert_eq!(counts(&[of("vm-9", "poweredOff"), of("vm-10", "poweredOn")]), "vm-10");
        assert_eq!(counts(&[of("vm-10", "poweredOn"), of("vm-9", "poweredOn")]), "vm-9");
    }

    #[test]
    fn a_job_has_one_name_and_no_other_job_has_it() {
        let name = name_of("owner", "job");
        assert!(
            name.len() <= 80 && name.starts_with(NAME),
            "vCenter takes 80 signs: {name}"
        );
        assert_eq!(name, name_of("owner", "job"));
        assert!(name != name_of("owner", "job2") && name != name_of("another", "job"));
    }
}
