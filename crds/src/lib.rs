//! The custom resources of the API group `peristyle.dev`.
//!
//! Types, schema and the CEL rules that the API server enforces; no client and
//! no runtime, so that any program may read and write the objects. The
//! committed CRDs of the chart are printed from here by `crdgen`.

pub mod class;
pub mod condition;
pub mod crd;
pub mod duration;
pub mod names;
pub mod v1alpha1;

/// API group of every kind.
pub const GROUP: &str = "peristyle.dev";

/// Field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "peristyle";
