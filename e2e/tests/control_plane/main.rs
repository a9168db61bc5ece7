//! What the operator does on a control plane: real kube-apiserver, etcd and
//! kube-controller-manager without nodes, one for each test that needs it, and
//! beside it what the test is about: PostgreSQL, Keto, Oathkeeper, Traefik.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod attacks;
mod canary;
mod charts;
mod controllers;
mod databases;
mod decisions;
mod edge;
mod faults;
mod hosts;
mod identity;
mod misuse;
mod operator;
mod ownership;
mod poison;
mod rbac;
mod references;
mod relations;
mod schema;
mod sequences;
mod traces;
mod workloads;

#[path = "../../../operator/tests/postgres/server.rs"]
#[allow(dead_code, reason = "the operator's own tests use the rest of it")]
mod server;
