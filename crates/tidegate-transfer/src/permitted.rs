use std::collections::BTreeSet;
use std::fmt::Display;

use tidegate_seal::packing::manifest_digest;
use tidegate_seal::permit::{OpenedPermit, open_permit};
use tidegate_seal::sign::VerifyingKey;
use tidegate_types::permit::{Envelope, Permit, SiteReference, StandingSlot};
use tidegate_types::{ArtifactId, Digest, Manifest, Refusal, RunId, SiteName};

use crate::clock::Clock;
use crate::tree::path_fault;

/// What a permit is held against: what the checker knows by itself, not what it was told.
#[derive(Debug, Clone, Copy)]
pub struct PermitCheck<'a> {
    /// The owner keeper's key, as pinned by the checker.
    pub owner: &'a VerifyingKey,
    /// The organisation.
    pub organisation: &'a str,
    /// Where this crossing comes from, with the digest of the site's definition.
    pub from: &'a SiteReference,
    /// Where this crossing goes.
    pub to: &'a SiteReference,
    /// The run that the crossing belongs to.
    pub run: &'a RunId,
    /// The time (Unix, seconds). What passes after the check is added while the crossing goes on.
    pub now: u64,
    /// The owner's current epoch: permits with a smaller one are revoked.
    pub revocation_epoch: u64,
}

/// Something whose crossing a permit allows. Only the functions that verified the permit make one.
#[derive(Debug)]
pub struct Permitted<T> {
    subject: T,
    artifact: ArtifactId,
    opened: OpenedPermit,
    from: SiteName,
    to: SiteName,
    byte_limit: u64,
    clock: Clock,
}

/// The refusal of a crossing for which there is no permit at all.
#[must_use]
pub fn permit_missing(artifact: &ArtifactId, to: &SiteName) -> Refusal {
    Refusal {
        rule: "permit-missing".to_owned(),
        what: format!("sending artifact `{}` to site `{to}`", artifact.short()),
        why: "there is no permit for it".to_owned(),
        fix: "ask the owner's keeper for a permit for this artifact and this site".to_owned(),
    }
}

impl Permitted<Manifest> {
    /// Checks that the permit in `envelope` allows exactly this artifact to cross from
    /// [`PermitCheck::from`] to [`PermitCheck::to`] now.
    ///
    /// # Errors
    /// A refusal by one of the rules `permit-signature`, `permit-other-organisation`,
    /// `permit-other-artifact`, `permit-other-owner`, `permit-other-site`, `permit-other-run`,
    /// `permit-other-label`, `permit-not-yet-valid`, `permit-expired`, `permit-revoked`,
    /// `permit-byte-limit`, `manifest-malformed`.
    pub fn verify(check: &PermitCheck<'_>, envelope: &Envelope, manifest: Manifest) -> Result<Self, Refusal> {
        let judge = Judge::of(check, &manifest)?;
        let opened = judge.open(envelope)?;
        let permit = &opened.permit;
        if opened.artifact != judge.artifact {
            let why = format!("permit `{}` is for artifact `{}`", permit.id, opened.artifact.short());
            return Err(judge.refuse("permit-other-artifact", &why));
        }
        // Only the owner may permit, and the key that was checked is the one of the sending site.
        judge.must_equal(
            "permit-other-owner",
            "the artifact is owned by site",
            &manifest.owner,
            &permit.from.site,
        )?;
        judge.same_site("comes from", &permit.from, check.from)?;
        judge.same_site("goes to", &permit.to, check.to)?;
        judge.must_equal("permit-other-label", "it is for label", &permit.label, &manifest.label)?;
        let byte_limit = permit.byte_limit;
        judge.pass(opened, manifest, byte_limit)
    }

    /// Checks that an output may cross under a standing slot of the permit in `envelope`, such as
    /// `output`: a worker's files, which could not be named when the permit was signed.
    ///
    /// [`PermitCheck::from`] and [`PermitCheck::to`] are those of this crossing: for an output the
    /// site of the worker and the owner's, the other way round than in the permit.
    ///
    /// # Errors
    /// As [`Permitted::verify`], and `permit-no-slot` where the permit has no such slot between the
    /// two sites, `permit-label-ceiling` where the output's label may not flow into the slot.
    pub fn standing(
        check: &PermitCheck<'_>,
        envelope: &Envelope,
        slot: &str,
        manifest: Manifest,
    ) -> Result<Self, Refusal> {
        let judge = Judge::of(check, &manifest)?;
        let opened = judge.open(envelope)?;
        let permit = &opened.permit;
        let slot = judge.slot(permit, slot)?;
        for site in [check.from, check.to] {
            let named = if site.site == permit.from.site {
                &permit.from
            } else {
                &permit.to
            };
            judge.same_site("has an end at", named, site)?;
        }
        if !manifest.label.flows_to(&slot.label) {
            let why = format!(
                "its label is `{}`, and slot `{}` carries `{}` at the most",
                manifest.label, slot.slot, slot.label
            );
            return Err(judge.refuse("permit-label-ceiling", &why));
        }
        let byte_limit = slot.byte_limit;
        judge.pass(opened, manifest, byte_limit)
    }

    /// What may cross.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.subject
    }

    /// The manifest's digest, which names what crosses.
    #[must_use]
    pub fn artifact(&self) -> ArtifactId {
        self.artifact
    }

    /// The permit.
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.opened.permit
    }

    /// SHA-256 of the permit's signed payload: how packing lists and grants name it.
    #[must_use]
    pub fn permit_digest(&self) -> Digest {
        self.opened.digest
    }

    /// The artifact that the permit names. Under a standing slot it is the job's input and not what
    /// crosses.
    #[must_use]
    pub fn permit_artifact(&self) -> ArtifactId {
        self.opened.artifact
    }

    /// Where this crossing comes from.
    #[must_use]
    pub fn from(&self) -> &SiteName {
        &self.from
    }

    /// Where this crossing goes.
    #[must_use]
    pub fn to(&self) -> &SiteName {
        &self.to
    }

    /// The most bytes that may be sent, retries included: the permit's, or the slot's.
    #[must_use]
    pub fn byte_limit(&self) -> u64 {
        self.byte_limit
    }

    /// Checks once more that the permit has not expired since it was verified.
    ///
    /// # Errors
    /// A refusal by rule `permit-expired`.
    pub fn still_valid(&self) -> Result<(), Refusal> {
        let now = self.clock.now();
        let what = || sending(&self.artifact, &self.from, &self.to);
        check_times(&self.opened.permit, now, what)
    }

    /// The refusal of a copy from a site that the permit does not name.
    pub(crate) fn not_copied_from(&self, site: &SiteName) -> Refusal {
        Refusal {
            rule: "permit-other-site".to_owned(),
            what: sending(&self.artifact, &self.from, &self.to),
            why: format!("its permit does not let it be copied from site `{site}`"),
            fix: "name that site in `transfer: {copy_from: …}`, and ask for a new permit".to_owned(),
        }
    }

    /// The refusal of a crossing that would send more than the permit allows.
    pub(crate) fn too_many_bytes(&self, bytes: u64) -> Refusal {
        byte_limit_refusal(sending(&self.artifact, &self.from, &self.to), bytes, self.byte_limit)
    }
}

fn sending(artifact: &ArtifactId, from: &SiteName, to: &SiteName) -> String {
    format!(
        "sending artifact `{}` from site `{from}` to site `{to}`",
        artifact.short()
    )
}

fn byte_limit_refusal(what: String, bytes: u64, limit: u64) -> Refusal {
    Refusal {
        rule: "permit-byte-limit".to_owned(),
        what,
        why: format!("with retries it would send {bytes} bytes, and the permit allows {limit}"),
        fix: "ask for a permit with a higher byte limit".to_owned(),
    }
}

fn check_times(permit: &Permit, now: u64, what: impl Fn() -> String) -> Result<(), Refusal> {
    let refuse = |rule: &str, why: String| {
        Err(Refusal {
            rule: rule.to_owned(),
            what: what(),
            why,
            fix: "check the clocks of both sites, or ask the owner's keeper for a new permit".to_owned(),
        })
    };
    if now < permit.not_before {
        let why = format!(
            "permit `{}` is valid from second {} on, and it is {now}",
            permit.id, permit.not_before
        );
        return refuse("permit-not-yet-valid", why);
    }
    if now >= permit.expires {
        let why = format!(
            "permit `{}` expired at second {}, and it is {now}",
            permit.id, permit.expires
        );
        return refuse("permit-expired", why);
    }
    Ok(())
}

/// One check under way.
struct Judge<'a> {
    check: &'a PermitCheck<'a>,
    artifact: ArtifactId,
}

impl<'a> Judge<'a> {
    fn of(check: &'a PermitCheck<'a>, manifest: &Manifest) -> Result<Self, Refusal> {
        let what = format!("sending artifact `{}`", manifest.name);
        let malformed = |why: String| Refusal {
            rule: "manifest-malformed".to_owned(),
            what: what.clone(),
            why,
            fix: "describe the files again".to_owned(),
        };
        let artifact = manifest_digest(manifest).map_err(|error| malformed(error.to_string()))?;
        let mut paths = BTreeSet::new();
        for file in &manifest.files {
            if let Some(why) = path_fault(&file.path) {
                return Err(malformed(format!("a path in its manifest cannot be used: {why}")));
            }
            if !paths.insert(&file.path) {
                return Err(malformed("a path is in its manifest twice".to_owned()));
            }
        }
        let judge = Self { check, artifact };
        judge.must_equal(
            "permit-other-organisation",
            "the artifact belongs to organisation",
            &manifest.organisation,
            check.organisation,
        )?;
        Ok(judge)
    }

    fn what(&self) -> String {
        sending(&self.artifact, &self.check.from.site, &self.check.to.site)
    }

    fn refuse(&self, rule: &str, why: &str) -> Refusal {
        Refusal {
            rule: rule.to_owned(),
            what: self.what(),
            why: why.to_owned(),
            fix: "ask the owner's keeper for a permit for exactly this crossing".to_owned(),
        }
    }

    fn must_equal(&self, rule: &str, states: &str, found: impl Display, wanted: impl Display) -> Result<(), Refusal> {
        let (found, wanted) = (found.to_string(), wanted.to_string());
        if found == wanted {
            Ok(())
        } else {
            Err(self.refuse(rule, &format!("{states} `{found}`, and not `{wanted}`")))
        }
    }

    /// Opens the permit and checks what does not depend on what crosses.
    fn open(&self, envelope: &Envelope) -> Result<OpenedPermit, Refusal> {
        let opened = open_permit(envelope, self.check.owner)
            .map_err(|error| self.refuse("permit-signature", &format!("its permit cannot be verified: {error}")))?;
        let permit = &opened.permit;
        let organisation = "the permit is of organisation";
        self.must_equal(
            "permit-other-organisation",
            organisation,
            &permit.organisation,
            self.check.organisation,
        )?;
        self.must_equal("permit-other-run", "the permit is for run", &permit.run, self.check.run)?;
        check_times(permit, self.check.now, || self.what())?;
        if permit.revocation_epoch < self.check.revocation_epoch {
            let why = format!(
                "permit `{}` is of epoch {}, and its owner revoked all before {}",
                permit.id, permit.revocation_epoch, self.check.revocation_epoch
            );
            return Err(self.refuse("permit-revoked", &why));
        }
        Ok(opened)
    }

    fn same_site(&self, states: &str, permitted: &SiteReference, actual: &SiteReference) -> Result<(), Refusal> {
        let states = format!("the permitted crossing {states} site");
        self.must_equal("permit-other-site", &states, &permitted.site, &actual.site)?;
        if permitted.definition == actual.definition {
            return Ok(());
        }
        let why = format!(
            "site `{}` is defined otherwise than when the permit was signed",
            actual.site
        );
        Err(self.refuse("permit-other-site", &why))
    }

    /// The one slot of that name between the two sites.
    fn slot<'p>(&self, permit: &'p Permit, name: &str) -> Result<&'p StandingSlot, Refusal> {
        let mut slots = permit
            .standing
            .iter()
            .filter(|slot| slot.slot == name && slot.from == self.check.from.site && slot.to == self.check.to.site);
        match (slots.next(), slots.next()) {
            (Some(slot), None) => Ok(slot),
            (None, _) => {
                let why = format!(
                    "permit `{}` has no standing slot `{name}` between these sites",
                    permit.id
                );
                Err(self.refuse("permit-no-slot", &why))
            }
            (Some(_), Some(_)) => {
                let why = format!(
                    "permit `{}` has more than one standing slot `{name}` between these sites",
                    permit.id
                );
                Err(self.refuse("permit-no-slot", &why))
            }
        }
    }

    fn pass(self, opened: OpenedPermit, manifest: Manifest, byte_limit: u64) -> Result<Permitted<Manifest>, Refusal> {
        // Compression may make it smaller on the way; whoever counts on that finds out while sending,
        // by the bytes themselves.
        Ok(Permitted {
            subject: manifest,
            artifact: self.artifact,
            opened,
            from: self.check.from.site.clone(),
            to: self.check.to.site.clone(),
            byte_limit,
            clock: Clock::at(self.check.now),
        })
    }
}
