//! What clouds offer, behind the traits at the edges: stores (Amazon S3 and whatever speaks its protocol, Google Cloud
//! Storage, Azure Blob Storage), custody of keys, and machines.
//!
//! - [`Address`] reads what stands below `store:` in the sites file: `s3://bucket/prefix`,
//!   `gs://bucket/prefix`, `az://account/container/prefix`.
//! - [`CloudStore`] is such a store. One call is one request and never tries again by itself: whoever moves
//!   data decides about trying again, holds the permit against every try, and counts its bytes.
//! - [`LentStore`] reads what a [`CloudStore`] lends, without credentials for it.
//! - [`Source`] reads what somebody else put into a bucket, for a dataset.
//! - [`Ec2Driver`] starts a machine of Amazon's EC2 for each job, [`OpenStackDriver`] one of OpenStack, [`VsphereDriver`]
//!   one of VMware vSphere; [`VertexDriver`] and [`AzureMlDriver`] a container, on Google's Vertex AI and in Azure Machine
//!   Learning.
//! - [`Ec2Prover`] states which machine of Amazon's a worker is on, and [`Ec2Verifier`] asks Amazon whether that is so.
//! - [`SpotNotices`] tells a worker on a spot machine of Amazon's that the machine is taken back.
//! - [`VaultCustody`] keeps a private site's key in the transit engine of Vault or OpenBao, [`KmsCustody`] in
//!   Amazon's Key Management Service, [`GoogleKmsCustody`] in Google's, [`KeyVaultCustody`] in Azure Key Vault.
//!
//! Credentials come from where each cloud's own tools look for them: the environment, files that it names,
//! the machine's metadata service. No address and no error ever holds one.

mod address;
mod answer;
mod client;
mod compute;
mod credentials;
mod custody;
mod entra;
mod failure;
mod lent;
mod pace;
mod profile;
mod session;
mod source;
mod store;

pub use address::{Address, AddressError, Provider};
pub use compute::amazon::{Ec2Driver, Ec2Prover, Ec2Settings, Ec2Verifier, SpotNotice, SpotNotices};
pub use compute::azureml::{AzureMlDriver, AzureMlSettings};
pub use compute::openstack::{OpenStackDriver, OpenStackSettings};
pub use compute::vertex::{VertexDriver, VertexSettings};
pub use compute::vsphere::{VsphereDriver, VsphereSettings};
pub use compute::{InvalidMachine, ProgramShelf};
pub use credentials::Environment;
pub use custody::amazon::{KmsAddress, KmsCustody};
pub use custody::azure::{KeyVaultAddress, KeyVaultCustody};
pub use custody::google::{GoogleKmsAddress, GoogleKmsCustody};
pub use custody::vault::{VaultAddress, VaultCustody};
pub use lent::LentStore;
pub use session::Session;
pub use source::{Source, SourceAddress, SourceObject};
pub use store::{CloudStore, OpenError};
