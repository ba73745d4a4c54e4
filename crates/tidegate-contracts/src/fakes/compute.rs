use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::locked;
use crate::compute::{Compute, ComputeError, Handle, JobRequest, JobState};

/// What a started job does: the state that the platform reports as soon as it was asked for.
type Behaviour = dyn Fn(&JobRequest) -> Result<JobState, ComputeError> + Send + Sync;

/// Who a job's machine is.
type Machines = dyn Fn(&Handle) -> Result<Option<String>, ComputeError> + Send + Sync;

/// Compute that starts nothing: a function of the request says what its job does. Clones share their
/// jobs.
#[derive(Clone)]
pub struct FakeCompute {
    jobs: Arc<Mutex<BTreeMap<String, Job>>>,
    behaviour: Arc<Behaviour>,
    machines: Arc<Machines>,
    out_of_reach: Arc<AtomicBool>,
}

struct Job {
    request: JobRequest,
    state: JobState,
}

impl FakeCompute {
    /// Compute whose jobs run until [`FakeCompute::end`] or [`Compute::delete`].
    #[must_use]
    pub fn new() -> Self {
        Self::with(|_| Ok(JobState::Running))
    }

    /// Compute whose jobs do what `behaviour` says; an error stands for a platform that does not start
    /// the job.
    pub fn with(behaviour: impl Fn(&JobRequest) -> Result<JobState, ComputeError> + Send + Sync + 'static) -> Self {
        Self {
            jobs: Arc::default(),
            behaviour: Arc::new(behaviour),
            machines: Arc::new(|_| Ok(None)),
            out_of_reach: Arc::default(),
        }
    }

    /// The same, on machines that can prove who they are: what [`Compute::machine`] says.
    #[must_use]
    pub fn proving(
        self,
        machines: impl Fn(&Handle) -> Result<Option<String>, ComputeError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            machines: Arc::new(machines),
            ..self
        }
    }

    /// From now on no call reaches the machines, or every call does again; what runs there goes on.
    pub fn out_of_reach(&self, is: bool) {
        self.out_of_reach.store(is, Ordering::SeqCst);
    }

    fn reach(&self) -> Result<(), ComputeError> {
        if self.out_of_reach.load(Ordering::SeqCst) {
            return Err(ComputeError::Transient {
                what: "reaching a machine".to_owned(),
                source: std::io::ErrorKind::HostUnreachable.into(),
            });
        }
        Ok(())
    }

    /// Lets a job end with an exit code, or by a signal when there is none.
    pub fn end(&self, id: &str, exit_code: Option<i32>) {
        if let Some(job) = locked(&self.jobs).get_mut(id)
            && matches!(job.state, JobState::Pending | JobState::Running)
        {
            job.state = match exit_code {
                Some(_) => JobState::Ended(exit_code),
                None => JobState::Lost("a signal ended it".to_owned()),
            };
        }
    }

    /// Every request that was started, by id, removed ones included.
    #[must_use]
    pub fn started(&self) -> Vec<JobRequest> {
        locked(&self.jobs).values().map(|job| job.request.clone()).collect()
    }
}

impl Default for FakeCompute {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FakeCompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeCompute")
            .field("jobs", &locked(&self.jobs).len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Compute for FakeCompute {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        self.reach()?;
        let invalid = |why: &str| ComputeError::Invalid {
            id: request.id.clone(),
            why: why.to_owned(),
        };
        let mut jobs = locked(&self.jobs);
        match jobs.get(&request.id) {
            Some(job) if job.request.identity() != request.identity() => {
                return Err(invalid("another request has this id"));
            }
            Some(job) if job.state == JobState::Gone => return Err(invalid("it was removed")),
            Some(_) => {}
            None => {
                let state = (self.behaviour)(request)?;
                jobs.insert(
                    request.id.clone(),
                    Job {
                        request: request.clone(),
                        state,
                    },
                );
            }
        }
        Ok(Handle {
            id: request.id.clone(),
            platform: format!("fake-{}", request.id),
        })
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        self.reach()?;
        Ok(locked(&self.jobs)
            .get(&handle.id)
            .map_or(JobState::Gone, |job| job.state.clone()))
    }

    async fn machine(&self, handle: &Handle) -> Result<Option<String>, ComputeError> {
        (self.machines)(handle)
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        self.reach()?;
        if let Some(job) = locked(&self.jobs).get_mut(&handle.id) {
            job.state = JobState::Gone;
        }
        Ok(())
    }

    async fn sweep(&self, owner: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        self.reach()?;
        let mut ended = Vec::new();
        for (id, job) in locked(&self.jobs).iter_mut() {
            if job.request.owner == owner && !keep.contains(id) && job.state != JobState::Gone {
                job.state = JobState::Gone;
                ended.push(id.clone());
            }
        }
        Ok(ended)
    }
}
