//! The policy compiler: AuthPolicies in, Oathkeeper rules, Keto namespaces and
//! relation tuples out. Pure but for [`publications`], which remembers what the
//! running Oathkeeper pods have confirmed.

pub mod compile;
pub mod evidence;
pub mod id_token;
pub mod key;
pub mod leaving;
pub mod matches;
pub mod model;
pub mod pattern;
pub mod plan;
pub mod protection;
pub mod publications;
pub mod reach;
pub mod rejection;
pub mod relations;
pub mod rule;
pub mod tighten;
pub mod witness;
pub mod world;
