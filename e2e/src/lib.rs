//! The sandbox, a real Kubernetes cluster on one Linux machine, and what the
//! end-to-end tests need to talk to a cluster.
//!
//! Nothing here needs a Docker daemon or an image registry: the programs are
//! built from Go modules, the root file systems come from Debian packages and
//! the images are written as archives that containerd imports.

pub mod audit;
pub mod bench;
pub mod calls;
pub mod checks;
pub mod cluster;
pub mod command;
pub mod control_plane;
pub mod daemon;
pub mod demo;
pub mod example;
pub mod faults;
pub mod forward;
pub mod gate;
pub mod images;
pub mod kubectl;
pub mod node;
pub mod operated;
pub mod packages;
pub mod ports;
pub mod prober;
pub mod progress;
pub mod replica;
pub mod sandbox;
pub mod stack;
pub mod state;
pub mod substrate;
pub mod team;
pub mod unasked_edge;
pub mod wait;

/// The directory of the workspace that this crate was built from.
#[must_use]
pub fn workspace() -> &'static std::path::Path {
    let crate_dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir)
}
