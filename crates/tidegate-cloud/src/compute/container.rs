//! What a container of a job does, on platforms that take its command, its arguments and its environment and nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use tidegate_contracts::{ComputeError, JobRequest};

/// Where the ticket is in a container's environment. The worker removes it before it does anything else.
pub(super) const TICKET: &str = "TIDEGATE_TICKET";
/// The longest ticket that a worker reads.
const TICKET_BYTES: usize = 64 << 10;

/// What runs in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) command: Vec<String>,
    /// It holds the ticket.
    pub(super) environment: BTreeMap<String, String>,
}

impl Container {
    /// The container of `request`. Where its command is the program here, which is `own`, it has the name there that images
    /// give it, whatever its file is called here, and is told where its ticket is.
    pub(super) fn of(request: &JobRequest, own: &Path) -> Result<Self, ComputeError> {
        if request.ticket.len() > TICKET_BYTES {
            return Err(ComputeError::Invalid {
                id: request.id.clone(),
                why: format!("its ticket has more than {} KiB", TICKET_BYTES >> 10),
            });
        }
        let mut command = request.command.clone();
        if let Some(first) = command.first_mut().filter(|first| own.as_os_str() == first.as_str()) {
            let small = own.file_name().is_some_and(|name| name == "tidegate-machine");
            *first = if small { "tidegate-machine" } else { "tidegate" }.to_owned();
            command.extend(["--ticket-from", TICKET].map(str::to_owned));
        }
        let mut environment = request.environment.clone();
        environment.insert(TICKET.to_owned(), request.ticket.clone());
        Ok(Self { command, environment })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_types::message::Attempt;
    use tidegate_types::{RunId, TaskName};

    use super::*;

    #[test]
    fn the_program_is_the_images_own_and_is_told_where_its_ticket_is() {
        let mut request = JobRequest {
            id: "job".to_owned(),
            attempt: Attempt {
                run: RunId::new("run").unwrap(),
                task: TaskName::new("train").unwrap(),
                attempt: 1,
                rank: 0,
            },
            command: ["/opt/tidegate", "worker"].map(str::to_owned).to_vec(),
            ticket: "{}".to_owned(),
            environment: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            owner: "owner".to_owned(),
            spot: false,
        };
        // However it is called where it was installed.
        for (here, there) in [
            ("/opt/tidegate", "tidegate"),
            ("/opt/tidegate-0.1.0-x86_64", "tidegate"),
            ("/opt/tidegate-machine", "tidegate-machine"),
        ] {
            here.clone_into(&mut request.command[0]);
            let own = Container::of(&request, Path::new(here)).unwrap();
            assert_eq!(own.command, [there, "worker", "--ticket-from", "TIDEGATE_TICKET"]);
        }
        "/opt/tidegate".clone_into(&mut request.command[0]);
        let own = Container::of(&request, Path::new("/opt/tidegate")).unwrap();
        assert_eq!(own.environment["TIDEGATE_TICKET"], "{}");
        assert_eq!(own.environment["A"], "b");
        let other = Container::of(&request, Path::new("/opt/another")).unwrap();
        assert_eq!(other.command, request.command);
        request.ticket = "x".repeat(TICKET_BYTES + 1);
        assert!(Container::of(&request, Path::new("/opt/tidegate")).is_err());
    }
}
