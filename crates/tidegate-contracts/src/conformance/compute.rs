use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_types::message::Attempt;
use tidegate_types::{RunId, TaskName};

use super::{Verdict, done, must};
use crate::compute::{Compute, ComputeError, Handle, JobRequest, JobState};

/// What the suite needs to know about the compute under test.
pub struct ComputeSubject<'a> {
    /// Gives the compute of that name; it is opened again, as after a restart, while jobs run.
    pub open: &'a dyn Fn(&str) -> Arc<dyn Compute>,
    /// A command that ends with this exit code when its standard input (or whatever brings the ticket)
    /// is exactly the ticket's text and its environment is exactly as asked (`SUITE=conformance`), and
    /// with another one otherwise.
    pub ends: &'a dyn Fn(i32, &str) -> Vec<String>,
    /// A command that runs until it is ended.
    pub runs: Vec<String>,
    /// How long a state may take to be seen.
    pub patience: Duration,
    /// Whether the platform knows the exit code of what ended by itself.
    pub knows_exit_codes: bool,
}

/// Checks the contract of [`Compute`].
///
/// A job that was deleted may be refused by a later `ensure`, or found gone; it may not run again.
///
/// # Errors
/// The first promise that was broken.
pub async fn compute(subject: &ComputeSubject<'_>) -> Verdict {
    unknown(subject).await?;
    exit_codes(subject).await?;
    one_job_for_one_request(subject).await?;
    deleted(subject).await?;
    swept(subject).await
}

fn request(id: &str, command: Vec<String>) -> Result<JobRequest, String> {
    let promise = "conformance uses good names";
    Ok(JobRequest {
        id: id.to_owned(),
        attempt: Attempt {
            run: done(RunId::new("conformance"), promise)?,
            task: done(TaskName::new("train"), promise)?,
            attempt: 1,
            rank: 0,
        },
        command,
        ticket: ticket(id),
        environment: BTreeMap::from([("SUITE".to_owned(), "conformance".to_owned())]),
        owner: "suite".to_owned(),
        spot: false,
    })
}

fn ticket(id: &str) -> String {
    format!("{{\"secret\":\"of {id}\"}}")
}

async fn observed(
    compute: &dyn Compute,
    handle: &Handle,
    patience: Duration,
    wanted: impl Fn(&JobState) -> bool,
    promise: &str,
) -> Result<JobState, String> {
    let until = Instant::now() + patience;
    loop {
        let state = done(compute.observe(handle).await, "a job is observed")?;
        if wanted(&state) {
            return Ok(state);
        }
        if Instant::now() > until {
            return Err(format!("broken: {promise}; last seen: {state:?}"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn unknown(subject: &ComputeSubject<'_>) -> Verdict {
    let compute = (subject.open)("unknown");
    let handle = Handle {
        id: "never-started".to_owned(),
        platform: "never-started".to_owned(),
    };
    must(
        done(compute.observe(&handle).await, "an unknown job is observed")? == JobState::Gone,
        "a job that was never started is gone",
    )?;
    done(compute.delete(&handle).await, "deleting what never was succeeds")?;
    must(
        done(compute.sweep("suite", &[]).await, "nothing is swept")?.is_empty(),
        "sweeping nothing ends nothing",
    )?;
    let empty = request("empty", Vec::new())?;
    must(
        matches!(compute.ensure(&empty).await, Err(ComputeError::Invalid { .. })),
        "a request without a command is invalid",
    )
}

async fn exit_codes(subject: &ComputeSubject<'_>) -> Verdict {
    let compute = (subject.open)("exit-codes");
    for code in [0, 3] {
        let id = format!("ends-{code}");
        let request = request(&id, (subject.ends)(code, &ticket(&id)))?;
        let handle = done(compute.ensure(&request).await, "a job is started")?;
        must(handle.id == id, "a handle has the request's id")?;
        let promise = "a command gets ticket and environment, and its exit code is told";
        let ended = |state: &JobState| matches!(state, JobState::Ended(_) | JobState::Lost(_) | JobState::Gone);
        let state = observed(&*compute, &handle, subject.patience, ended, promise).await?;
        let as_told = |state: &JobState| match state {
            JobState::Ended(Some(seen)) => *seen == code,
            JobState::Ended(None) => !subject.knows_exit_codes,
            _ => false,
        };
        must(as_told(&state), &format!("{promise}; seen: {state:?}"))?;
        let again = done(compute.ensure(&request).await, "an ended job is ensured")?;
        for compute in [&compute, &(subject.open)("exit-codes")] {
            let state = done(compute.observe(&again).await, "an ended job is observed")?;
            must(as_told(&state), "an ended job never runs again, also after a restart")?;
        }
    }
    Ok(())
}

async fn one_job_for_one_request(subject: &ComputeSubject<'_>) -> Verdict {
    let compute = (subject.open)("one-job");
    let request = request("runs", subject.runs.clone())?;
    let restarted = (subject.open)("one-job");
    let (a, b, c) = futures::join!(
        compute.ensure(&request),
        restarted.ensure(&request),
        compute.ensure(&request)
    );
    let promise = "the same request gives the same job, also at once and after a restart";
    let (a, b, c) = (done(a, promise)?, done(b, promise)?, done(c, promise)?);
    must(a == b && b == c, promise)?;
    let running = |state: &JobState| *state == JobState::Running;
    observed(
        &*restarted,
        &a,
        subject.patience,
        running,
        "a job that runs is seen running",
    )
    .await?;
    let mut renewed = request.clone();
    renewed.ticket = renewed.ticket.replacen('{', "{\"credentials\":{\"TOKEN\":\"new\"},", 1);
    must(
        compute.ensure(&renewed).await.is_ok_and(|handle| handle == a),
        "new credentials in a ticket are no other job",
    )?;
    let mut other = request.clone();
    other.ticket = ticket("another");
    must(
        matches!(compute.ensure(&other).await, Err(ComputeError::Invalid { .. })),
        "another request with the same id is invalid",
    )?;
    done(compute.delete(&a).await, "a running job is deleted")
}

async fn deleted(subject: &ComputeSubject<'_>) -> Verdict {
    let compute = (subject.open)("deleted");
    let request = request("deleted", subject.runs.clone())?;
    let handle = done(compute.ensure(&request).await, "a job is started")?;
    done(compute.delete(&handle).await, "a job is deleted")?;
    let gone = |state: &JobState| *state == JobState::Gone;
    observed(&*compute, &handle, subject.patience, gone, "a deleted job is gone").await?;
    done(compute.delete(&handle).await, "deleting what is gone succeeds")?;
    let again = (subject.open)("deleted");
    if again.ensure(&request).await.is_ok() {
        let state = done(again.observe(&handle).await, "a deleted job is observed")?;
        must(gone(&state), "a deleted job never runs again")?;
    }
    Ok(())
}

async fn swept(subject: &ComputeSubject<'_>) -> Verdict {
    let compute = (subject.open)("swept");
    let running = |state: &JobState| *state == JobState::Running;
    let mut handles = Vec::new();
    for (id, owner) in [("kept", "suite"), ("swept", "suite"), ("foreign", "somebody-else")] {
        let mut request = request(id, subject.runs.clone())?;
        owner.clone_into(&mut request.owner);
        let handle = done(compute.ensure(&request).await, "a job is started")?;
        observed(
            &*compute,
            &handle,
            subject.patience,
            running,
            "a job that runs is seen running",
        )
        .await?;
        handles.push(handle);
    }
    let restarted = (subject.open)("swept");
    let ended = done(restarted.sweep("suite", &["kept".to_owned()]).await, "jobs are swept")?;
    must(
        ended == ["swept"],
        "a sweep ends the owner's jobs that are not kept, and names them",
    )?;
    for handle in &handles {
        let state = done(compute.observe(handle).await, "a job is observed")?;
        let expected = if handle.id == "swept" {
            JobState::Gone
        } else {
            JobState::Running
        };
        must(
            state == expected,
            &format!("after a sweep job `{}` is {expected:?}; seen: {state:?}", handle.id),
        )?;
    }
    let again = done(
        restarted.sweep("suite", &["kept".to_owned()]).await,
        "jobs are swept again",
    )?;
    must(again.is_empty(), "a second sweep ends nothing")?;
    for handle in &handles {
        done(compute.delete(handle).await, "a job is deleted")?;
    }
    Ok(())
}
